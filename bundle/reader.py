"""Reading a bundle as if somebody hostile had written it, and without changing a byte of it.

:meth:`Bundle.open` checks the form: file, schema, headers, payload digests as they are read. Who made it and whether
it is whole is the matter of :func:`gpuaudit.bundle.verify.verify`, which comes first.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from gpuaudit.bundle import canonical, header, limits, sqlite_file
from gpuaudit.bundle.columns import Rows
from gpuaudit.bundle.errors import BundleInvalid, HostUnfit, InputUnusable
from gpuaudit.bundle.guard import Decoder
from gpuaudit.bundle.header import Header
from gpuaudit.bundle.merkle import Frontier, leaf_hash
from gpuaudit.bundle.table import NUMPY_DTYPE
from gpuaudit.bundle.tables import TABLES


class Bundle:
    """An open bundle; a context manager. Make one with :meth:`open`."""

    def __init__(self, path: Path, db: sqlite3.Connection, private: tempfile.TemporaryDirectory[str] | None) -> None:
        self.path = path
        self.from_wal = private is not None
        """Whether the evidence was read beside a write-ahead log: the capture did not end properly."""
        self._db = db
        self._private = private
        self._decoder = Decoder()
        self._stat = _identity(path)

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Open a bundle for reading.

        BundleInvalid when it is not one (its form, its schema, its headers), InputUnusable when it cannot be read,
        HostUnfit when there is no room for the private copy that a bundle beside its log needs.
        """
        path = _follow(Path(path))
        sqlite_file.check_file_header(_head(path), path.name)
        wal = path.with_name(path.name + "-wal")
        private = None
        if os.path.lexists(wal):
            private = _private_copy(path, wal)
        try:
            at = path if private is None else Path(private.name) / "bundle.db"
            db = sqlite_file.open_hostile(at, wal=private is not None)
            bundle = cls(path, db, private)
            bundle.headers  # noqa: B018 (read and checked here, so that open tells what is wrong)
        except BaseException:
            if private is not None:
                private.cleanup()
            raise
        return bundle

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file, the private copy and the decoder."""
        self._decoder.close()
        self._db.close()
        if self._private is not None:
            self._private.cleanup()

    @cached_property
    def headers(self) -> list[Header]:
        """The header of every leaf, in order; BundleInvalid when one is missing or not what a leaf is."""
        out: list[Header] = []
        query = (  # substr of nothing is NULL
            "SELECT idx,kind,typeof(kind),typeof(header),coalesce(substr(header,1,?),x''),typeof(payload) "
            "FROM leaf ORDER BY idx"
        )
        for idx, kind, *types, data, payload_type in self._query(query, (limits.MAX_HEADER_BYTES + 1,)):
            n = len(out)
            if idx != n or n >= limits.MAX_LEAVES:
                raise BundleInvalid(f"leaf {n}: missing; the next one has index {idx}")
            if types != [b"text", b"blob"] or payload_type not in (b"blob", b"null"):
                raise BundleInvalid(f"leaf {n}: kind, header and payload are {[*types, payload_type]!r}")
            h = header.parse(data, n)
            if kind != h.kind.encode():
                raise BundleInvalid(f"leaf {n}: the kind column says {kind!r:.40}, the header {h.kind}")
            if n and out[-1].kind == "seal":
                raise BundleInvalid(f"leaf {n - 1}: a seal, and leaf {n} follows it")
            _check_against_table(h)
            out.append(h)
        if not out:
            raise BundleInvalid("the bundle holds no leaf")
        return out

    def notes(self) -> Iterator[tuple[int, bytes]]:
        """(size, note) of every checkpoint, by size."""
        query = "SELECT size,typeof(note),coalesce(substr(CAST(note AS BLOB),1,?),x'') FROM checkpoint ORDER BY size"
        for size, kind, data in self._query(query, (limits.MAX_NOTE_BYTES + 1,)):
            if kind != b"text" or len(data) > limits.MAX_NOTE_BYTES:
                raise BundleInvalid(f"checkpoint {size}: not a text of at most {limits.MAX_NOTE_BYTES} bytes")
            yield size, data

    def payload(self, idx: int) -> bytes | None:
        """The payload of a leaf, salt included, found to have the header's digest; None when it is withheld."""
        h = self.headers[idx]
        found = next(self._query("SELECT length(payload) FROM leaf WHERE idx=?", (idx,)))[0]
        if found is None:
            return None
        if found != h.len:
            raise BundleInvalid(f"leaf {idx}: payload has {found} bytes, the header says {h.len}")
        data: bytes = next(self._query("SELECT payload FROM leaf WHERE idx=?", (idx,)))[0]
        digest = hashlib.sha256(data).hexdigest()
        if digest != h.sha256:
            raise BundleInvalid(f"leaf {idx}: payload has SHA-256 {digest}, the header says {h.sha256}")
        return data

    def data(self, idx: int) -> bytes | None:
        """The payload without its salt; None when it is withheld."""
        payload = self.payload(idx)
        return None if payload is None else payload[limits.SALT_BYTES :]

    @cached_property
    def open_body(self) -> dict[str, Any]:
        """The body of leaf 0: host, GPUs, options, sources, tool, challenge, identity."""
        return self._body(0)

    @cached_property
    def seal_body(self) -> dict[str, Any] | None:
        """The body of the seal (``manifest``, ``sealed_by``, ``totals``); None for an unsealed prefix."""
        last = self.headers[-1]
        return self._body(last.idx) if last.kind == "seal" else None

    def _body(self, idx: int) -> dict[str, Any]:
        data = self.data(idx)
        if data is None:
            raise BundleInvalid(f"leaf {idx}: the payload is missing, and that of this leaf is never withheld")
        try:
            body = canonical.loads_canonical(data)
        except BundleInvalid as e:
            raise BundleInvalid(f"leaf {idx}: {e.message}") from None
        if not isinstance(body, dict):
            raise BundleInvalid(f"leaf {idx}: body is a {type(body).__name__}, expected an object")
        return body

    def segments(self, table: str | None = None, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Rows]]:
        """(leaf, rows) of every leaf that holds rows of ``table`` (None: of any), decoded in a child with limits.

        ``columns`` decodes only those named, where the segment has them. Withheld leaves are passed over.
        """
        for h in self.headers:
            if h.has_rows and table in (None, h.table):
                payload = self.payload(h.idx)
                if payload is not None:
                    yield h.idx, self._decoder.decode(h, payload, columns)

    def artefacts(self) -> Iterator[tuple[int, str, bytes]]:
        """(leaf, name, bytes) of every artefact that is not withheld."""
        for h in self.headers:
            if h.kind == "artefact" and (data := self.data(h.idx)) is not None:
                yield h.idx, h.table or "", data

    def events(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """(leaf, name, body) of every critical event that is not rows and not withheld."""
        for h in self.headers:
            if h.kind == "event" and not h.has_rows and self.payload(h.idx) is not None:
                yield h.idx, h.table or "", self._body(h.idx)

    def check_root(self, root_b64: str) -> None:
        """BundleInvalid unless the headers have this root: who verifies and then opens again may meet another file."""
        root = base64.b64encode(Frontier(leaf_hash(h.to_bytes()) for h in self.headers).root()).decode()
        if root != root_b64:
            raise BundleInvalid(f"{self.path.name} was changed after it was verified")

    def check_unchanged(self) -> None:
        """BundleInvalid when the file was changed or replaced while it was being read."""
        if _identity(self.path) != self._stat:
            raise BundleInvalid(f"{self.path.name} was changed while it was being read")

    def _query(self, sql: str, parameters: tuple[int, ...] = ()) -> Iterator[tuple[Any, ...]]:
        cursor = self._db.cursor()
        row: tuple[Any, ...] | None = None
        while True:
            try:
                row = cursor.execute(sql, parameters).fetchone() if row is None else cursor.fetchone()
            except (sqlite3.Error, UnicodeError) as e:  # a message that quotes damaged text may not be text
                raise BundleInvalid(f"the file is damaged: {e}") from None
            if row is None:
                return
            yield row


def _check_against_table(h: Header) -> None:
    """A table that this version knows has columns of the types it knows; more columns are no error."""
    table = TABLES.get(h.table or "") if h.has_rows else None
    if table is None:
        return
    known = {c.name: c for c in table.columns}
    for spec in h.columns or ():
        column = known.get(spec.name)
        if column is None:
            continue
        expected = "text" if column.type == "text" else NUMPY_DTYPE[column.type]
        if expected != ("text" if spec.is_text else spec.dtype):
            raise BundleInvalid(f"leaf {h.idx}: column {spec.name} of {h.table} is {spec.dtype}, expected {expected}")


def _follow(path: Path) -> Path:
    """What a link points to, whose log and ``.seal`` lie beside it; unless a log or ``.seal`` lies beside the link."""
    if path.is_symlink() and not any(os.path.lexists(path.with_name(path.name + end)) for end in ("-wal", ".seal")):
        return Path(os.path.realpath(path))
    return path


def _head(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        raise InputUnusable(
            f"cannot read {path}: {e.strerror}", hint="give the file that audit capture wrote"
        ) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BundleInvalid(f"{path} is not a file", hint="give the file that audit capture wrote")
        return os.read(fd, 100)
    except OSError as e:
        raise InputUnusable(f"cannot read {path}: {e.strerror}") from None
    finally:
        os.close(fd)


def _identity(path: Path) -> tuple[int, ...]:
    try:
        s = path.stat()
    except OSError as e:
        raise InputUnusable(f"cannot read {path}: {e.strerror}") from None
    return (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns)


def _private_copy(path: Path, wal: Path) -> tempfile.TemporaryDirectory[str]:
    """Copies of the file and its log in a folder of our own, so that SQLite writes nothing beside the evidence.

    A rollback journal is left where it is: it may name other files for SQLite to delete, and no state of ours needs it.
    """
    if not stat.S_ISREG(os.lstat(wal).st_mode):
        raise BundleInvalid(f"{wal.name} beside the bundle is not a file")
    private = tempfile.TemporaryDirectory(prefix="gpu-audit-")
    before = _identity(path), _identity(wal)
    try:
        shutil.copyfile(path, Path(private.name) / "bundle.db")
        shutil.copyfile(wal, Path(private.name) / "bundle.db-wal")
    except OSError as e:
        private.cleanup()
        hint = "a bundle with a write-ahead log beside it is copied before it is read; set TMPDIR to a larger folder"
        raise HostUnfit(f"cannot copy {path.name} to {tempfile.gettempdir()}: {e.strerror}", hint=hint) from None
    if (_identity(path), _identity(wal)) != before:
        private.cleanup()
        raise InputUnusable(f"{path.name} is being written", hint="wait until the capture has ended")
    return private
