"""The header of a leaf: what its payload is, when it was made, and which key signs the next checkpoint.

Canonical JSON with a fixed set of keys. A header read from a file is checked here completely, sizes included, before
its payload is looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from gpuaudit.bundle import canonical, limits
from gpuaudit.bundle.errors import BundleInvalid

VERSION = 1

Kind = Literal["open", "segment", "event", "clock", "gap", "artefact", "seal"]
KINDS: tuple[str, ...] = get_args(Kind)
ROW_KINDS = ("segment", "event", "clock", "gap")
"""Kinds whose payload may be rows of a table."""

Encoding = Literal["plain", "delta", "dict", "utf8"]
ENCODINGS: tuple[str, ...] = get_args(Encoding)
DTYPES = ("<u1", "<u2", "<u4", "<u8", "<i4", "<i8", "<f8")

NAME = re.compile(r"[a-z][a-z0-9_]{0,47}\Z")
"""A table, column, artefact or event."""
_HEX32 = re.compile(r"[0-9a-f]{64}\Z")
_DECIMAL = re.compile(r"(0|-?[1-9][0-9]{0,19})\Z")
_BOOT_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")


@dataclass(frozen=True)
class ColumnSpec:
    """How one column lies in the payload. ``offset`` counts from the start of the payload, salt included.

    ``raw_len`` is the size of the frame's content: validity bitmap (where ``valid``), then what ``encoding`` says.
    ``entries`` is the number of dictionary entries (``dict`` only).
    """

    name: str
    dtype: str
    unit: str
    encoding: Encoding
    shuffle: bool
    valid: bool
    entries: int | None
    offset: int
    length: int
    raw_len: int

    def fixed_len(self, rows: int) -> int:
        """Bytes of the content that follow from the header alone: all but the bytes of text."""
        bitmap = (rows + 7) // 8 if self.valid else 0
        return bitmap + 4 * (self.entries or 0) + rows * np.dtype(self.dtype).itemsize

    @property
    def is_text(self) -> bool:
        """Whether the column holds text."""
        return self.encoding in ("dict", "utf8")


@dataclass(frozen=True)
class Header:
    """One leaf header; see ``docs/reference/bundle-format.md`` for every key.

    ``table`` names the table of rows, or the artefact or event; None in ``open`` and ``seal``. ``seen``, ``written``
    and ``lost`` are counts for the table since the capture began. Keys are hex; times are in ns.
    """

    idx: int
    kind: Kind
    sha256: str
    len: int
    raw_len: int
    rows: int | None
    table: str | None
    columns: tuple[ColumnSpec, ...] | None
    boot_id: str
    boot_ns: int
    utc_ns: int
    seen: int | None
    written: int | None
    lost: int | None
    next_key: str | None
    epoch0: str | None = None

    def to_bytes(self) -> bytes:
        """The canonical bytes that are hashed."""
        body: dict[str, Any] = {
            "v": VERSION, "idx": self.idx, "kind": self.kind, "sha256": self.sha256, "len": self.len,
            "raw_len": self.raw_len, "rows": self.rows, "table": self.table,
            "columns": None if self.columns is None else [vars(c) for c in self.columns],
            "boot_id": self.boot_id, "boot_ns": str(self.boot_ns), "utc_ns": str(self.utc_ns),
            "seen": _decimal(self.seen), "written": _decimal(self.written), "lost": _decimal(self.lost),
            "next_key": self.next_key,
        }  # fmt: skip
        if self.idx == 0:
            body["epoch0"] = self.epoch0
        return canonical.dumps(body)

    @property
    def has_rows(self) -> bool:
        """Whether the payload is rows of ``table`` (else it is a JSON body or an artefact's bytes)."""
        return self.columns is not None


def _decimal(value: int | None) -> str | None:
    return None if value is None else str(value)


def parse(data: bytes, idx: int) -> Header:
    """The header of leaf ``idx``; BundleInvalid, naming the leaf, unless every key is as it must be."""
    try:
        if len(data) > limits.MAX_HEADER_BYTES:
            raise BundleInvalid(f"header has {len(data)} bytes, more than {limits.MAX_HEADER_BYTES}")
        header = _parse(canonical.loads_canonical(data))
        if header.idx != idx:
            raise BundleInvalid(f"header says idx {header.idx}")
        _check(header)
    except BundleInvalid as e:
        raise BundleInvalid(f"leaf {idx}: {e.message}") from None
    return header


def _parse(body: Any) -> Header:
    f = _Fields(body, "header")
    version = f.take("v", int)
    if version != VERSION:
        raise BundleInvalid(f"format version {version}, expected {VERSION}")
    idx = f.count("idx", limits.MAX_LEAVES)
    columns = f.take("columns", list, None)
    header = Header(
        idx=idx, kind=f.choice("kind", KINDS), sha256=f.text("sha256", _HEX32),
        len=f.count("len", limits.MAX_PAYLOAD_BYTES), raw_len=f.count("raw_len", limits.MAX_PAYLOAD_BYTES),
        rows=f.optional_count("rows", limits.MAX_ROWS), table=f.optional_text("table", NAME),
        columns=None if columns is None else tuple(_column(c) for c in columns[: limits.MAX_COLUMNS + 1]),
        boot_id=f.text("boot_id", _BOOT_ID), boot_ns=f.decimal("boot_ns", 2**63), utc_ns=f.decimal("utc_ns", 2**63),
        seen=f.optional_decimal("seen"), written=f.optional_decimal("written"), lost=f.optional_decimal("lost"),
        next_key=f.optional_text("next_key", _HEX32), epoch0=f.text("epoch0", _HEX32) if idx == 0 else None,
    )  # fmt: skip
    f.done()
    return header


def _column(body: Any) -> ColumnSpec:
    f = _Fields(body, "column")
    spec = ColumnSpec(
        name=f.text("name", NAME), dtype=f.choice("dtype", DTYPES), unit=f.take("unit", str),
        encoding=f.choice("encoding", ENCODINGS), shuffle=f.take("shuffle", bool), valid=f.take("valid", bool),
        entries=f.optional_count("entries", limits.MAX_ROWS), offset=f.count("offset", limits.MAX_PAYLOAD_BYTES),
        length=f.count("length", limits.MAX_PAYLOAD_BYTES), raw_len=f.count("raw_len", limits.MAX_RAW_BYTES),
    )  # fmt: skip
    f.done()
    return spec


def _check(h: Header) -> None:
    if (h.kind == "open") != (h.idx == 0):
        raise BundleInvalid(f"kind is {h.kind}; leaf 0 is the open leaf, and there is no other")
    if (h.kind == "seal") != (h.next_key is None):
        raise BundleInvalid(f"kind is {h.kind} and next_key is {h.next_key}; only the seal has none")
    if (h.table is None) != (h.kind in ("open", "seal")):
        raise BundleInvalid(f"kind is {h.kind} and table is {h.table}")
    if h.len < limits.SALT_BYTES:
        raise BundleInvalid(f"payload of {h.len} bytes is shorter than its salt")
    counters = (h.rows, h.seen, h.written, h.lost)
    if h.columns is None:
        if any(c is not None for c in counters) or h.kind in ("segment", "clock", "gap"):
            raise BundleInvalid("counters and columns stand together, and rows need both")
        if h.raw_len != h.len - limits.SALT_BYTES:
            raise BundleInvalid(f"raw_len is {h.raw_len}, expected {h.len - limits.SALT_BYTES}")
    else:
        if h.rows is None or None in counters or h.kind not in ROW_KINDS:
            raise BundleInvalid(f"kind is {h.kind}; rows need a table and the counters rows, seen, written, lost")
        _check_columns(h, h.columns, h.rows)


def _check_columns(h: Header, columns: tuple[ColumnSpec, ...], rows: int) -> None:
    """Names, places and sizes of the columns, against each other and against the limits."""
    if not 0 < len(columns) <= limits.MAX_COLUMNS or len({c.name for c in columns}) != len(columns):
        raise BundleInvalid(f"{len(columns)} columns; expected 1 to {limits.MAX_COLUMNS} of different names")
    at = limits.SALT_BYTES
    for c in columns:
        where = f"column {c.name}"
        if c.offset != at:
            raise BundleInvalid(f"{where}: offset is {c.offset}, expected {at}")
        at += c.length
        if (c.entries is not None) != (c.encoding == "dict") or (c.entries or 0) > rows:
            raise BundleInvalid(f"{where}: {c.entries} dictionary entries for {rows} rows, encoding {c.encoding}")
        allowed = {"dict": ("<u1", "<u2", "<u4"), "utf8": ("<u4",), "delta": DTYPES[:-1], "plain": DTYPES}[c.encoding]
        if c.dtype not in allowed:
            raise BundleInvalid(f"{where}: dtype {c.dtype} does not go with encoding {c.encoding}")
        fixed = c.fixed_len(rows)
        if c.raw_len < fixed or (not c.is_text and c.raw_len != fixed):
            raise BundleInvalid(f"{where}: raw_len is {c.raw_len}, expected {fixed}{' or more' if c.is_text else ''}")
    if at != h.len:
        raise BundleInvalid(f"the columns end at {at}, the payload at {h.len}")
    if h.raw_len != sum(c.raw_len for c in columns) or h.raw_len > limits.MAX_RAW_BYTES:
        raise BundleInvalid(f"raw_len is {h.raw_len}: not the sum of the columns, or more than {limits.MAX_RAW_BYTES}")


class _Fields:
    """Takes keys out of a JSON object, each with its type, and insists that none is left over."""

    def __init__(self, body: Any, what: str) -> None:
        if not isinstance(body, dict):
            raise BundleInvalid(f"{what} is a {type(body).__name__}, expected an object")
        self._body = dict(body)
        self._what = what

    def take(self, key: str, *types: type | None) -> Any:
        """The value of ``key``, which must be of one of ``types`` exactly (None: may be null)."""
        if key not in self._body:
            raise BundleInvalid(f"{self._what} has no key {key}")
        value = self._body.pop(key)
        if not (value is None and None in types) and type(value) not in types:
            raise BundleInvalid(f"{self._what}: {key} is {value!r:.60}")
        return value

    def text(self, key: str, pattern: re.Pattern[str]) -> str:
        value: str = self.take(key, str)
        if not pattern.match(value):
            raise BundleInvalid(f"{self._what}: {key} is {value!r:.60}")
        return value

    def optional_text(self, key: str, pattern: re.Pattern[str]) -> str | None:
        return self.take(key, None) if self._body.get(key, 0) is None else self.text(key, pattern)

    def choice(self, key: str, allowed: tuple[str, ...]) -> Any:
        value = self.take(key, str)
        if value not in allowed:
            raise BundleInvalid(f"{self._what}: {key} is {value!r:.60}, expected one of {', '.join(allowed)}")
        return value

    def count(self, key: str, most: int) -> int:
        value: int = self.take(key, int)
        if not 0 <= value <= most:
            raise BundleInvalid(f"{self._what}: {key} is {value}, expected 0 to {most}")
        return value

    def optional_count(self, key: str, most: int) -> int | None:
        return self.take(key, None) if self._body.get(key, 0) is None else self.count(key, most)

    def decimal(self, key: str, end: int) -> int:
        value = int(self.text(key, _DECIMAL))
        if not 0 <= value < end:
            raise BundleInvalid(f"{self._what}: {key} is {value}, expected less than {end}")
        return value

    def optional_decimal(self, key: str) -> int | None:
        return self.take(key, None) if self._body.get(key, 0) is None else self.decimal(key, 2**64)

    def done(self) -> None:
        if self._body:
            raise BundleInvalid(f"{self._what} has unknown keys {sorted(self._body)!r:.100}")
