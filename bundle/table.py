"""What a table of evidence is: columns with type, unit and meaning, and the layouts that follow from them.

The tables themselves stand in ``bundle/tables.py`` and its siblings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

ColumnType = Literal["u8", "u16", "u32", "u64", "i32", "i64", "f64", "text"]
RingType = Literal["", "op", "comm", "address", "f32"]

NUMPY_DTYPE: dict[str, str] = {
    "u8": "<u1", "u16": "<u2", "u32": "<u4", "u64": "<u8", "i32": "<i4", "i64": "<i8", "f64": "<f8", "text": "<u4",
}  # fmt: skip
"""Little-endian dtype of a column's values; text is a code into the column's dictionary."""

SQL_TYPE: dict[str, str] = {
    "u8": "UTINYINT", "u16": "USMALLINT", "u32": "UINTEGER", "u64": "UBIGINT", "i32": "INTEGER", "i64": "BIGINT",
    "f64": "DOUBLE", "text": "VARCHAR",
}  # fmt: skip
C_TYPE: dict[str, str] = {
    "u8": "__u8", "u16": "__u16", "u32": "__u32", "u64": "__u64", "i32": "__s32", "i64": "__s64",
}  # fmt: skip

COMM_LEN_BYTES = 16
"""TASK_COMM_LEN of the Linux kernel (include/linux/sched.h)."""
RING_BYTES: dict[str, int] = {"comm": COMM_LEN_BYTES, "address": 16}
"""Length of a text column's bytes in a BPF record."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}\Z")


@dataclass(frozen=True)
class Column:
    """One column: name, type, unit and meaning; ``ring`` says how a text column sits in a BPF record.

    ``ring="op"``: a ``__u32`` index into the probe table, which user space turns into the API's own name.
    ``ring="comm"``: ``char[16]``, NUL-padded. ``ring="address"``: the 16 bytes of an IPv6 address, an IPv4 one as
    ::ffff:a.b.c.d. ``ring="f32"``: the bits of a float. ``in_ring=False``: user space adds the column after the drain.
    ``always_in_ring``: every BPF record has it, and only rows of imports may lack it, so it needs no bit of validity.
    """

    name: str
    type: ColumnType
    unit: str
    meaning: str
    nullable: bool = False
    ring: RingType = ""
    in_ring: bool = True
    always_in_ring: bool = False


@dataclass(frozen=True)
class Table:
    """One kind of evidence. ``ring`` tables are filled from a BPF ring of their own with fixed-size records."""

    name: str
    meaning: str
    columns: tuple[Column, ...]
    ring: bool = False

    def __post_init__(self) -> None:
        names = [c.name for c in self.columns]
        if len(set(names)) != len(names) or not all(_NAME.match(n) for n in (self.name, *names)):
            raise ValueError(f"table {self.name}: bad or repeated name in {names}")
        if self.ring and len(self.nullable_in_ring) > 32:
            raise ValueError(f"table {self.name}: more than 32 nullable columns do not fit valid_mask")

    def column(self, name: str) -> Column:
        """The column called ``name``; KeyError if there is none."""
        for c in self.columns:
            if c.name == name:
                return c
        raise KeyError(f"table {self.name} has no column {name}")

    @property
    def ring_columns(self) -> tuple[Column, ...]:
        """Columns of the BPF record, largest first, so that natural alignment leaves no implicit padding."""
        return tuple(sorted((c for c in self.columns if c.in_ring), key=lambda c: -_ring_size(c)))

    @property
    def nullable_in_ring(self) -> tuple[Column, ...]:
        """Nullable columns of the record, in declared order: bit i of ``valid_mask`` set means column i is valid."""
        return tuple(c for c in self.columns if c.in_ring and c.nullable and not c.always_in_ring)

    def record_fields(self) -> list[tuple[str, str, int]]:
        """(name, numpy dtype, offset) of every field of the BPF record, explicit padding included."""
        out: list[tuple[str, str, int]] = []
        at = 0
        for name, dtype, size in [
            *((c.name, _ring_dtype(c), _ring_size(c)) for c in self.ring_columns if _ring_size(c) >= 4),
            ("valid_mask", "<u4", 4),
            *((c.name, _ring_dtype(c), _ring_size(c)) for c in self.ring_columns if _ring_size(c) < 4),
        ]:
            align = 1 if dtype[0] in "SV" else size
            if at % align:
                raise ValueError(f"table {self.name}: {name} at {at} is not aligned")
            out.append((name, dtype, at))
            at += size
        if at % 8:
            out.append(("pad", f"V{8 - at % 8}", at))
        return out

    def record_dtype(self) -> np.dtype[np.void]:
        """The numpy dtype of one BPF ring record (without the ring's own 8-byte header)."""
        fields = self.record_fields()
        return np.dtype([(n, d) for n, d, _ in fields])


def _ring_size(c: Column) -> int:
    if c.ring in RING_BYTES:
        return RING_BYTES[c.ring]
    return 4 if c.ring in ("op", "f32") else np.dtype(NUMPY_DTYPE[c.type]).itemsize


def _ring_dtype(c: Column) -> str:
    if c.ring == "comm":
        return f"S{RING_BYTES[c.ring]}"
    if c.ring == "address":
        return f"V{RING_BYTES[c.ring]}"
    if c.ring == "f32":
        return "<f4"
    return "<u4" if c.ring == "op" else NUMPY_DTYPE[c.type]


def col(name: str, type: ColumnType, unit: str, meaning: str, **kw: bool | RingType) -> Column:
    return Column(name, type, unit, meaning, **kw)  # type: ignore[arg-type]


START = col("start_ns", "u64", "ns", "start of the interval, CLOCK_BOOTTIME")
DURATION = col(
    "duration_ns", "u64", "ns", "length of the interval; null while open when the capture ended", nullable=True
)
PID = col("pid", "u32", "", "process id (thread group id) in the host's PID namespace")
TID = col("tid", "u32", "", "thread id in the host's PID namespace")
CPU = col("cpu", "u16", "", "CPU that wrote the record; null in imports that do not tell it", nullable=True,
    always_in_ring=True)  # fmt: skip
SEQ = col("seq", "u64", "", "sequence number on that CPU in this table; a lost record leaves a hole")
RETURN_CODE = col("return_code", "i32", "", "what the call returned; null while open", nullable=True)


def op(meaning: str) -> Column:
    return col("op", "text", "", meaning, ring="op")
