"""The evidence of one capture in an in-memory DuckDB: one SQL table per table, and nothing that can be written back.

Their columns are those of ``bundle/tables.py``, and ``end_ns`` where a row has a start and a duration. Two more are
``leaves`` (what each sealed leaf says of itself) and ``artefacts`` (named bodies, such as the cost of the recording).
One thread, no extensions, no files: the same bundle gives the same answers anywhere. Columns are held compressed: a
day of four engines polled at 4 Hz is a hundred million rows. A column that is null throughout is computed: most of a
table of calls are, and to hold them took three fifths of the time in which evidence is read.

Every store of a process is a database of its own in one DuckDB, which it leaves when nobody holds it any more; beside
them lies one with an empty table for each, for those that a store has no rows of: making forty is what a small store
would cost most. What a query says of these alone is the same for every store, and is asked once in a process.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpuaudit.analyze.overlap_join import MACRO
from gpuaudit.bundle.columns import ColumnData, Rows, row_count
from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.bundle.table import SQL_TYPE, Table
from gpuaudit.bundle.tables import TABLES

if TYPE_CHECKING:
    from gpuaudit.analyze.call_meanings import Meaning
    from gpuaudit.bundle.reader import Bundle

MAX_TIME_NS = 1 << 62
"""146 years: a time or duration beyond it is not evidence, and sums of two stay within int64."""

MAX_OPERATIONS = 5_000
"""Different names of calls that are looked at one by one; all libraries together export fewer."""

MAX_RAW_BYTES = 64 << 30
"""Decoded size past which a bundle is refused before decoding; a bundle of a day on 8 GPUs has less than a tenth."""

BATCH_ROWS = 1_000_000
"""Rows that are in memory at once where a query is read in parts."""

COMPRESS_ROWS = 1_000_000
"""Rows after which what is held is compressed: about 80 MB as they come, and a tenth of that for good."""

NOT_OWN = "pid NOT IN (SELECT pid FROM processes WHERE role IN ('recorder', 'attacher'))"
"""SQL condition that keeps the recorder's and the attacher's own rows out of what is said of the workload."""

MAX_KNOWN, MAX_KNOWN_TEXT = 2_000, 8_000
"""Queries over tables without rows whose answers are kept, and the longest of them in characters."""

_READS = re.compile(r"\s*(SELECT|WITH|DESCRIBE)\b", re.IGNORECASE)
"""Statements that make nothing."""

_PLAIN = re.compile(r"[A-Za-z0-9_.:-]*\Z")

_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "threads": "1",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "temp_directory": "",
}

_EXTRA_TABLES = {
    "leaves": "leaf UINTEGER, kind VARCHAR, table_name VARCHAR, rows UBIGINT, seen UBIGINT, written UBIGINT, "
    "lost UBIGINT, boot_ns UBIGINT, utc_ns BIGINT",
    "artefacts": "leaf UINTEGER, name VARCHAR, size_bytes UBIGINT, body VARCHAR",
}


@dataclass(frozen=True)
class Leaf:
    """What one sealed leaf says of itself; counters are cumulative for its table, None where the leaf has none."""

    index: int
    kind: str
    table: str | None
    rows: int
    seen: int | None
    written: int | None
    lost: int | None
    boot_ns: int | None = None
    utc_ns: int | None = None


_OF_LEAF = {
    "index": pa.uint32(), "kind": pa.string(), "table": pa.string(), "rows": pa.uint64(), "seen": pa.uint64(),
    "written": pa.uint64(), "lost": pa.uint64(), "boot_ns": pa.uint64(), "utc_ns": pa.int64(),
}  # fmt: skip


@dataclass(frozen=True)
class Artefact:
    """A named body in the bundle."""

    leaf: int
    name: str
    body: bytes


class Store:
    """Evidence, queryable. Make it with :meth:`from_bundle` or :meth:`from_tables`."""

    def __init__(self) -> None:
        self._con, self._name = _instance().cursor(), f"evidence_{next(_numbers)}"
        self._con.execute(f"ATTACH ':memory:' AS {self._name} (COMPRESS)")
        self._con.execute(f"SET search_path = '{self._name},{_NOTHING}'")
        weakref.finalize(self, _leave, self._con, self._name)
        self._uncompressed = 0
        self._rows: dict[str, int] = {}
        """Rows of each table that has any."""
        self._held: dict[str, set[str]] = {}
        """Columns of each such table that are not null throughout."""
        self._disordered: set[str] = set()
        """Tables whose columns are not in their order any more."""
        self._own = {*_EXTRA_TABLES}
        """Names that mean something else in another store: tables with rows, and relations."""
        self._altered = False
        """Whether a statement was run that may have made others."""
        self.leaves: list[Leaf] = []
        self.artefacts: list[Artefact] = []
        self.open_body: dict[str, Any] = {}
        self.totals: dict[str, Any] = {}
        for name, columns in _EXTRA_TABLES.items():
            self._con.execute(f"CREATE TABLE {name}({columns})")

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> Store:
        """Everything a verified bundle holds; InputUnusable when it would not fit or holds impossible times."""
        store = cls()
        raw = sum(h.raw_len for h in bundle.headers)
        if raw > MAX_RAW_BYTES:
            raise InputUnusable(
                f"the bundle decodes to {raw} bytes, at most {MAX_RAW_BYTES} are analysed at once",
                hint="capture for a shorter time",
            )
        store.open_body = dict(bundle.open_body)
        totals = (bundle.seal_body or {}).get("totals", {})
        store.totals = totals.get("tables", {}) if isinstance(totals, dict) else {}
        for h in bundle.headers:
            store.leaves.append(
                Leaf(h.idx, h.kind, h.table, h.rows or 0, h.seen, h.written, h.lost, h.boot_ns, h.utc_ns)
            )
        for table in TABLES.values():
            for leaf, rows in bundle.segments(table.name):
                store._insert(table, leaf, rows)
        store.artefacts = [Artefact(i, name, body) for i, name, body in bundle.artefacts()]
        store._finish()
        return store

    @classmethod
    def from_tables(
        cls, tables: Mapping[str, Rows | Sequence[Rows]], *, open_body: Mapping[str, Any] | None = None,
        lost: Mapping[str, int] | None = None, artefacts: Iterable[tuple[str, bytes]] = (),
    ) -> Store:  # fmt: skip
        """Rows per table, one leaf per segment, without a file: for tests and imports.

        ``lost`` adds records that the counters say were lost, per table.
        """
        store = cls()
        store.open_body = dict(open_body or {})
        store.leaves.append(Leaf(0, "open", None, 0, None, None, None))
        for name, given in tables.items():
            written = 0
            for rows in [given] if isinstance(given, dict) else given:
                leaf = len(store.leaves)
                count = row_count(rows)
                written += count
                missing = (lost or {}).get(name, 0)
                store.leaves.append(Leaf(leaf, "segment", name, count, written + missing, written, missing))
                store._insert(TABLES[name], leaf, rows)
        for name, body in artefacts:
            store.artefacts.append(Artefact(len(store.leaves), name, body))
            store.leaves.append(Leaf(len(store.leaves), "artefact", None, 0, None, None, None))
        store._finish()
        return store

    def sql(self, query: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query over the views, as Python values."""
        if not _READS.match(query):
            self._altered = True
        if not parameters and self._of_no_rows(query):
            return copy.deepcopy(_rows_of_nothing(query))
        return self._con.execute(query, list(parameters)).fetchall()

    def arrays(self, query: str) -> dict[str, npt.NDArray[Any]]:
        """Columns of a query as numpy arrays; the query casts to BIGINT and replaces nulls itself."""
        if self._of_no_rows(query):
            return copy.deepcopy(_arrays_of_nothing(query))
        return _arrays(self._con, query)

    def batches(self, query: str) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Numeric columns of a query, some rows at a time, for what need not be in memory at once. Nothing else may be
        asked of the store until all are had. The query casts to whole numbers and replaces nulls itself: a null, or a
        boolean, raises pyarrow.ArrowInvalid at its batch."""
        for batch in self._con.sql(query).to_arrow_reader(BATCH_ROWS):
            yield dict(zip(batch.schema.names, (c.to_numpy() for c in batch.columns), strict=True))

    def arrays_by_start(self, query: str) -> dict[str, npt.NDArray[Any]]:
        """The same for rows of one table, in the order of their ``start_ns``, then of leaf and row, in which they were
        put in. Those of one thread mostly come so: to sort millions of them in SQL takes far longer than to see that.
        """
        out = self.arrays(query)
        start = out["start_ns"]
        if (start[1:] >= start[:-1]).all():
            return out
        order = np.argsort(start, kind="stable")
        return {name: values[order] for name, values in out.items()}

    @contextmanager
    def relation(self, name: str, columns: Mapping[str, npt.NDArray[Any]]) -> Iterator[None]:
        """Columns of ours under a name that queries can use, for as long as the context lasts."""
        self._con.register(name, pa.table({k: pa.array(v) for k, v in columns.items()}))
        self._own.add(name)
        try:
            yield
        finally:
            self._own.discard(name)
            self._con.unregister(name)

    def row_count(self, table: str) -> int:
        """Rows of a table."""
        return self._rows.get(TABLES[table].name, 0)

    def parts(self, table: str) -> list[str]:
        """SQL conditions that cut a table between leaves into parts of about :data:`BATCH_ROWS` rows, each row in one;
        for joins whose intermediate rows would be too many at once. A small table is one part."""
        cuts, rows = [0], 0
        for leaf in (x for x in self.leaves if x.table == TABLES[table].name):
            if rows >= BATCH_ROWS:
                cuts.append(leaf.index)
                rows = 0
            rows += leaf.rows
        ends = [f" AND leaf < {cut}" for cut in cuts[1:]]
        return [f"leaf >= {cut}{end}" for cut, end in zip(cuts, [*ends, ""], strict=True)]

    @cached_property
    def operations(self) -> tuple[str, ...]:
        """Names of all calls that the capture has, in order."""
        tables = ("cuda_calls", "nccl_calls", "nccl_comms", "call_totals", "period_totals")
        parts = " UNION ".join(f"SELECT op FROM {t}" for t in tables if self.row_count(t))
        rows = self.sql(f"SELECT DISTINCT op FROM ({parts}) ORDER BY 1") if parts else []
        return tuple(str(op) for (op,) in rows)

    def means(self, meaning: Meaning) -> str:
        """SQL condition on ``op``: the names of this capture that mean this. As :attr:`Meaning.condition`, which looks
        at every row's name with a regular expression, and in a tenth of its time."""
        if len(self.operations) > MAX_OPERATIONS:
            return meaning.condition
        names = [op for op in self.operations if meaning.means(op)]
        return f"op IN ({', '.join(map(quoted, names))})" if names else "false"

    def artefact(self, name: str) -> Artefact | None:
        """The last artefact of that name."""
        found = [a for a in self.artefacts if a.name == name]
        return found[-1] if found else None

    def lock(self, memory_bytes: int) -> duckdb.DuckDBPyConnection:
        """The connection, for a stranger's query: no files, no settings, bounded memory, for good.

        That holds for every store this process has by then; one that is made later has another DuckDB.
        """
        _instance.cache_clear()
        for setting in (f"memory_limit='{memory_bytes}B'", "enable_external_access=false", "lock_configuration=true"):
            self._con.execute(f"SET {setting}")
        return self._con

    def _of_no_rows(self, query: str) -> bool:
        """Whether it names nothing of this store's own. Whose processes rows belong to means nothing where there are
        none; a name that is part of another, or of a text, counts as named."""
        text = query.replace(NOT_OWN, "").lower()
        return not self._altered and len(query) <= MAX_KNOWN_TEXT and not any(name in text for name in self._own)

    def _insert(self, table: Table, leaf: int, rows: Rows) -> None:
        count = row_count(rows)
        if not count:
            return
        columns: dict[str, pa.Array] = {}
        for c in table.columns:
            data = rows.get(c.name)
            if data is None and c.nullable:  # made before the column was added: null throughout
                continue
            if data is None:
                raise InputUnusable(
                    f"leaf {leaf}: {table.name} has no column {c.name}", hint="analyse it with the version that made it"
                )
            if c.name.endswith("_ns") and c.type in {"u64", "i64"}:
                _check_times(table, c.name, leaf, data.values)
            if data.valid is None or data.valid.any():  # what is null throughout need not be carried over
                columns[c.name] = _arrow(data)
        self._hold(table, columns.keys())
        self._rows[table.name] = self._rows.get(table.name, 0) + count
        self._own.add(table.name)
        columns["leaf"] = pa.array(np.full(count, leaf, dtype=np.uint32))
        columns["row"] = pa.array(np.arange(count, dtype=np.uint32))
        self._con.register("batch", pa.table(columns))
        names = ", ".join(f'"{name}"' for name in columns)
        self._con.execute(f'INSERT INTO "{table.name}" ({names}) SELECT * FROM batch')
        self._con.unregister("batch")
        self._uncompressed += count
        if self._uncompressed >= COMPRESS_ROWS:
            self._con.execute(f"CHECKPOINT {self._name}")
            self._uncompressed = 0

    def _hold(self, table: Table, columns: Set[str]) -> None:
        """Make the table, or make room for what was null so far: such a column is the table's last until
        :meth:`_finish`."""
        if table.name not in self._held:
            self._held[table.name] = held = {*columns, *_OF_END}
            self._con.execute(f"CREATE TABLE {_declared(table, held)}")
            return
        for c in table.columns:
            if c.name in columns and c.name not in self._held[table.name]:
                self._held[table.name].add(c.name)
                self._disordered.add(table.name)
                self._con.execute(f'ALTER TABLE "{table.name}" DROP COLUMN "{c.name}"')
                self._con.execute(f'ALTER TABLE "{table.name}" ADD COLUMN "{c.name}" {SQL_TYPE[c.type]}')

    def _finish(self) -> None:
        for name in sorted(self._disordered):  # rows are millions, and a view over few tables costs a query little
            columns = ", ".join(f'"{c}"' for (c, *_) in self.sql(f'DESCRIBE {_NOTHING}."{name}"'))
            self._con.execute(f'ALTER TABLE "{name}" RENAME TO "{name}_as_held"')
            self._con.execute(f'CREATE VIEW "{name}" AS SELECT {columns} FROM "{name}_as_held"')
        told = {name: pa.array([getattr(x, name) for x in self.leaves], type=t) for name, t in _OF_LEAF.items()}
        self._con.register("told", pa.table(told))
        self._con.execute("INSERT INTO leaves SELECT * FROM told")
        self._con.unregister("told")
        for a in self.artefacts:
            text = a.body.decode("utf-8", "replace")
            self._con.execute("INSERT INTO artefacts VALUES (?, ?, ?, ?)", [a.leaf, a.name, len(a.body), text])


_NOTHING = "nothing"
_NULL = " GENERATED ALWAYS AS (NULL) VIRTUAL"
_OF_END = {"start_ns", "duration_ns"}
"""What ``end_ns`` is computed from: held always, because a column that another needs cannot be made anew."""
_numbers = itertools.count()


@cache
def _instance() -> duckdb.DuckDBPyConnection:
    """The DuckDB of this process, with an empty table for every table of evidence, and the interval join."""
    con = duckdb.connect(":memory:", config=_CONFIG)
    con.execute(f"ATTACH ':memory:' AS {_NOTHING}")
    con.execute(f"USE {_NOTHING}")
    for table in TABLES.values():
        con.execute(f"CREATE TABLE {_declared(table, {c.name for c in table.columns})}")
    con.execute(MACRO)
    return con


@lru_cache(MAX_KNOWN)
def _rows_of_nothing(query: str) -> list[tuple[Any, ...]]:
    return _instance().execute(query).fetchall()


@lru_cache(MAX_KNOWN)
def _arrays_of_nothing(query: str) -> dict[str, npt.NDArray[Any]]:
    return _arrays(_instance(), query)


def _arrays(con: duckdb.DuckDBPyConnection, query: str) -> dict[str, npt.NDArray[Any]]:
    out = {name: np.ma.getdata(values) for name, values in con.execute(query).fetchnumpy().items()}
    return {name: _one_of_each(values) if values.dtype == object else values for name, values in out.items()}


def _leave(con: duckdb.DuckDBPyConnection, name: str) -> None:
    """Give back the memory of a store that nobody holds; one whose DuckDB is locked keeps it until the process ends."""
    with contextlib.suppress(duckdb.Error):
        con.execute(f"USE {_NOTHING}")
        con.execute(f"DETACH {name}")
    con.close()


def _declared(table: Table, held: Set[str]) -> str:
    """Name and columns of a table; ``end_ns``, and the null of columns that are not ``held``, are computed when they
    are asked for.

    A table and not a view over one: to bind the columns of views took two fifths of what a small query costs.
    """
    columns = [f'"{c.name}" {SQL_TYPE[c.type]}{"" if c.name in held else _NULL}' for c in table.columns]
    if {c.name for c in table.columns} >= _OF_END:
        columns.append('"end_ns" UBIGINT GENERATED ALWAYS AS (("start_ns" + "duration_ns")::UBIGINT) VIRTUAL')
    return f'"{table.name}"({", ".join(columns)}, "leaf" UINTEGER, "row" UINTEGER)'


def quoted(text: str) -> str:
    """A text value as an SQL expression: evidence reaches SQL text only through here.

    What is not a plain identifier goes through hexadecimal, so that no quote, NUL or newline is ever part of a query.
    """
    return f"'{text}'" if _PLAIN.match(text) else f"decode(unhex('{text.encode().hex()}'))"


MAX_QUOTED = 1_024
"""Characters of a text that a query spells out; a longer one is told by its digest."""


def is_text(expression: str, value: str | None) -> str:
    """An SQL condition: the expression has this text, of whatever length; or is null."""
    if value is None:
        return f"{expression} IS NULL"
    if len(value) <= MAX_QUOTED:
        return f"{expression} = {quoted(value)}"
    return f"sha256({expression}) = '{hashlib.sha256(value.encode()).hexdigest()}'"


def _one_of_each(texts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same texts, those that are equal the same object: millions of rows name a few operations and streams."""
    known: dict[str, str] = {}
    return np.array([known.setdefault(t, t) for t in texts.tolist()], dtype=object)


def _check_times(table: Table, column: str, leaf: int, values: npt.NDArray[Any]) -> None:
    worst = max(abs(int(values.max())), abs(int(values.min())))
    if worst >= MAX_TIME_NS:
        raise InputUnusable(
            f"leaf {leaf}: {table.name}.{column} holds {worst} ns, expected less than {MAX_TIME_NS} (146 years)",
            hint="this evidence was not written by a recorder; ask for the original bundle",
        )


def _arrow(data: ColumnData) -> pa.Array:
    mask = None if data.valid is None else ~data.valid
    values = pa.array(data.values, mask=mask)
    if data.dictionary is None:
        return values
    return pa.DictionaryArray.from_arrays(values, pa.array(data.dictionary, type=pa.string()))
