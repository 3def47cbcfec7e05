"""An SQLite file that another tool wrote, read as hostile input: structure checked first, then bounded queries only.

What protects the program: the file is opened immutable and read-only by the very name that was digested, and digested
again at the end; its structure is checked page by page before any row is read, so that a page cannot be served twice;
schema text is not trusted; only tables are read, no views and no virtual ones; an authorizer allows SELECT on named
tables and nothing else; values, statements and work are bounded. Sorting spills to disk, so memory stays flat.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import quote

from gpuaudit.bundle.display import printable
from gpuaudit.bundle.errors import InputUnusable

if TYPE_CHECKING:
    from gpuaudit.capture.importers.reading import Recording

MAGIC = "SQLite format 3\0"
"""How such a file begins (SQLite, Database File Format, 1.3.1)."""

MAX_FILE_BYTES = 64 << 30
"""As for the content of any recording (``reading.MAX_CONTENT_BYTES``)."""
MAX_VALUE_BYTES = 16 << 20
"""Longest text, blob or row, as the longest line of a log."""
MAX_TABLES = 512
"""An Nsight Systems export has about a hundred tables, the most of what is imported."""

_WORK_EVERY = 100_000
"""Steps of SQLite's virtual machine between two looks at how many there were."""
_WORK_PER_BYTE = 256
"""Steps that a file may cost for each of its bytes; reading and sorting real ones takes less than a tenth of it."""
_WORK_LEAST = 200_000_000
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z", re.ASCII)
_FUNCTIONS = frozenset({"count", "min", "max", "sum", "total"})
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: MAX_VALUE_BYTES, sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 1 << 20, sqlite3.SQLITE_LIMIT_COLUMN: 512, sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 16, sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 8,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 64, sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}  # fmt: skip

Cell = int | float | str | bytes | None


def is_sqlite(head: Sequence[str]) -> bool:
    """Whether the first lines of a file are those of an SQLite database."""
    return bool(head) and head[0].startswith(MAGIC)


class ForeignDatabase:
    """A hostile database; a context manager. InputUnusable for whatever is wrong with it."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._work = 0
        self._most = _WORK_LEAST + _WORK_PER_BYTE * path.stat().st_size
        _refuse_log(path)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputUnusable(f"{self.name}: more than {MAX_FILE_BYTES} bytes")
        try:
            self._db = sqlite3.connect(_uri(path), uri=True, isolation_level=None)
        except sqlite3.Error as e:
            raise InputUnusable(f"cannot open {self.name}: {e}", hint="is the file readable?") from None
        try:
            self._begin()
        except (sqlite3.Error, UnicodeError) as e:
            self._db.close()
            raise self._damaged(e) from None
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> ForeignDatabase:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._db.close()

    def _begin(self) -> None:
        db = self._db
        db.text_factory = lambda b: b.decode("utf-8", "replace")
        for what, most in _LIMITS.items():
            db.setlimit(what, most)
        for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0", "query_only=ON", "temp_store=FILE"):
            db.execute(f"PRAGMA {pragma}")
        db.set_progress_handler(self._step, _WORK_EVERY)
        rows = db.execute("SELECT type, name, sql FROM sqlite_master LIMIT ?", (8 * MAX_TABLES,)).fetchall()
        self.tables = frozenset(str(name) for kind, name, sql in rows if kind == "table" and _ordinary(name, sql))
        if len(self.tables) > MAX_TABLES:
            raise InputUnusable(f"{self.name}: {len(self.tables)} tables, at most {MAX_TABLES} are read")
        (self.user_version,) = db.execute("PRAGMA user_version").fetchone()
        self._columns = {
            t: tuple(str(c[1]) for c in db.execute(f'PRAGMA table_info("{t}")').fetchall()) for t in sorted(self.tables)
        }

    def check(self) -> None:
        """Look at every page, then lock the connection: nothing but SELECT on the tables from here on."""
        try:
            problem = self._db.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.Error as e:
            raise self._damaged(e) from None
        if problem != ("ok",):
            raise self._damaged(problem[0] if problem else "no answer")
        self._db.set_authorizer(self._allow)

    def columns(self, table: str) -> tuple[str, ...]:
        """Names of a table's columns; none for a table that is not there."""
        return self._columns.get(table, ())

    def rows(self, query: str, parameters: Sequence[int | str] = ()) -> Iterator[tuple[Cell, ...]]:
        """Rows of a SELECT, one by one. The query is ours; what is hostile is what it reads."""
        try:
            yield from self._db.execute(query, list(parameters))
        except (sqlite3.Error, UnicodeError, OverflowError) as e:
            raise self._damaged(e) from None

    def read(
        self, table: str, wanted: Sequence[str], *, order: str = "", where: str = ""
    ) -> Iterator[tuple[Cell, ...]]:  # fmt: skip
        """Every row of a table with the columns ``wanted``; null for a column that it does not have.

        ``order`` and ``where`` are SQL of ours. No index is used: one that does not fit its table could hide rows.
        """
        have = self.columns(table)
        cells = ", ".join(f'"{c}"' if c in have else "NULL" for c in wanted)
        tail = (f" WHERE {where}" if where else "") + (f" ORDER BY {order}" if order else "")
        return self.rows(f'SELECT {cells} FROM "{table}" NOT INDEXED{tail}')  # noqa: S608 - names of ours, checked

    def count(self, table: str, where: str = "") -> int:
        """Rows of a table; 0 where it is not there."""
        if table not in self.tables:
            return 0
        tail = f" WHERE {where}" if where else ""
        ((n,),) = self.rows(f'SELECT count(*) FROM "{table}" NOT INDEXED{tail}')  # noqa: S608
        return int(str(n))

    def _step(self) -> int:
        self._work += _WORK_EVERY
        return self._work > self._most

    def _allow(self, action: int, first: str | None, second: str | None, base: str | None, view: str | None) -> int:
        if action == sqlite3.SQLITE_SELECT:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_READ and first in self.tables and view is None and base in ("main", None):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and second in _FUNCTIONS:
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY

    def _damaged(self, why: object) -> InputUnusable:
        text = "reading it takes more work than its size allows" if str(why) == "interrupted" else str(why)
        told = printable(" ".join(text.split()))  # SQLite quotes names of the file, over several lines
        return InputUnusable(f"{self.name}: the database is damaged: {told:.160}", hint="copy it again")


def _ordinary(name: object, sql: object) -> bool:
    """A table with rows of its own, and a name that stands in a query as it is."""
    plain = isinstance(name, str) and _NAME.match(name) and not name.startswith("sqlite_")
    return bool(plain) and isinstance(sql, str) and not re.match(r"\s*CREATE\s+VIRTUAL\b", sql, re.IGNORECASE)


def _uri(path: Path) -> str:
    return f"file:{quote(os.fsencode(path.absolute()))}?mode=ro&immutable=1"


def _refuse_log(path: Path) -> None:
    """A write-ahead log or journal beside the file holds rows that an immutable reader does not see."""
    for end in ("-wal", "-journal"):
        beside = path.with_name(path.name + end)
        try:
            full = beside.stat().st_size > 0
        except OSError:
            continue
        if full:
            raise InputUnusable(
                f"{path.name}: {beside.name} lies beside it, with rows that are not in the file yet",
                hint=f"close the tool that writes it, then: sqlite3 {path.name} 'PRAGMA wal_checkpoint(TRUNCATE)'",
            )


def digested(recording: Recording) -> None:
    """Digest the whole recording; call it before its rows are read, and :func:`unchanged` afterwards."""
    for _ in recording.blocks():
        pass


def unchanged(recording: Recording) -> None:
    """InputUnusable unless the file still is, byte for byte, what :func:`digested` saw."""
    again = type(recording)(recording.path)
    try:
        digested(again)
        if again.sha256() != recording.sha256():
            raise InputUnusable(f"{recording.name} was changed while it was read", hint="import a copy of it")
    finally:
        again.close()
