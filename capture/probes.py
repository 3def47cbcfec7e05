"""The probe table: which functions of which libraries are watched, and where their arguments lie.

The rows stand in ``capture/probe_rows``, one file per library. A new probe is one row there and needs no new BPF code:
rows become the descriptions in the BPF map ``ops`` (:func:`pack_op`), which one entry and one return program follow.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cache

from gpuaudit.bundle.tables import RING_TABLES, TABLES
from gpuaudit.capture.probe_rows.cudart import CUDART
from gpuaudit.capture.probe_rows.driver import DRIVER
from gpuaudit.capture.probe_rows.hip import HIP
from gpuaudit.capture.probe_rows.nccl import NCCL, RCCL
from gpuaudit.capture.probe_types import REGISTERS, Flag, From, Library, Mode, Place, Places, Probe

SLOTS = 20
MAX_OPS = 2048
DATATYPES = 32
"""Sizes of the BPF maps, as in capture/bpf/ops.h."""

__all__ = [
    "CUDART", "DRIVER", "HIP", "LIBRARIES", "NCCL", "NCCL_DATATYPE_BYTES", "OP_IDS", "PROBE_TABLE", "RCCL", "SELF_TEST",
    "Flag", "From", "Library", "Mode", "Place", "Places", "Probe", "describe", "library_for", "op_id", "pack_op",
]  # fmt: skip

LIBRARIES: tuple[Library, ...] = (CUDART, DRIVER, HIP, NCCL, RCCL)

SELF_TEST = Probe("self test", "", flags=Flag.COUNT_ONLY)
"""Op 0: counts its hits and records nothing; for the host check and the cost calibration."""

PROBE_TABLE: tuple[Probe, ...] = tuple(
    {id(p): p for p in (SELF_TEST, *(p for x in LIBRARIES for p in x.probes))}.values()
)
"""Every probe once, those that NCCL and RCCL share too; the op id of a record is the index here."""

OP_IDS: dict[str, int] = {p.op: i for i, p in reversed(list(enumerate(PROBE_TABLE)))}
"""Op id of each name; of several rows with that name (for different versions of a library) the first."""

_IDS = {id(p): i for i, p in enumerate(PROBE_TABLE)}


def op_id(probe: Probe) -> int:
    """The op id of a row of :data:`PROBE_TABLE`."""
    return _IDS[id(probe)]


NCCL_DATATYPE_BYTES: tuple[int, ...] = (1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1)
"""Size of each ncclDataType_t, index = value: int8, uint8, int32, uint32, int64, uint64, float16, float32, float64,
bfloat16, float8e4m3, float8e5m2 (nccl.h of NCCL 2.24 and later; the first ten are older and unchanged)."""


_OP = struct.Struct("<IIII")
_SLOT = struct.Struct("<BBBBHHIBBH")
_ON_THE_STACK = (From.STACK, From.STACK_ID)
_FOLDS = (From.STACK_ID, From.POINTER_ID, From.POINTEE_ID)


def pack_op(probe: Probe) -> bytes:
    """The ``struct op`` of capture/bpf/ops.h; ValueError when the row does not fit its table."""
    if probe.flags & Flag.COUNT_ONLY:
        return _OP.pack(0, int(probe.flags), 0, 0) + bytes(_SLOT.size * SLOTS)
    if len(probe.slots) > SLOTS:
        raise ValueError(f"probe {probe.op}: {len(probe.slots)} values, at most {SLOTS}")
    packed = b"".join(_pack_slot(probe, name, place) for name, place in probe.slots)
    success = sum(1 << code for code in probe.success)
    head = _OP.pack(RING_TABLES.index(probe.table) + 1, int(probe.flags), len(probe.slots), success)
    return head + packed.ljust(_SLOT.size * SLOTS, b"\0")


@cache
def _columns(table: str) -> dict[str, tuple[int, int, int]]:
    """Column → its offset in the record, its width in bytes, and its bit of ``valid_mask`` (0: it has no nulls)."""
    valid = {c.name: 1 << bit for bit, c in enumerate(TABLES[table].nullable_in_ring)}
    return {n: (at, int(dtype[-1]), valid.get(n, 0)) for n, dtype, at in TABLES[table].record_fields() if n != "pad"}


def _pack_slot(probe: Probe, name: str, place: Place) -> bytes:
    """The ``struct slot``."""
    if name not in _columns(probe.table):
        raise ValueError(f"probe {probe.op}: {probe.table} has no column {name}")
    at, width, valid = _columns(probe.table)[name]
    size = place.bytes or width
    if width not in (4, 8) or size not in (1, 2, 4, 8) or size > width or (place.source in _FOLDS and size != 8):
        raise ValueError(f"probe {probe.op}: {name} has {width} bytes")
    registers = place.source not in _ON_THE_STACK and place.source != From.CONSTANT
    if place.index < 0 or place.index > (len(REGISTERS) - 1 if registers else 255) or not 0 <= place.offset < 1 << 16:
        raise ValueError(f"probe {probe.op}: {name} is at {place}")
    if (place.mode != Mode.SET and not valid) or (place.mode == Mode.TIMES and width != 8):
        raise ValueError(f"probe {probe.op}: {name} cannot be multiplied or made null")
    return _SLOT.pack(place.source, place.index, place.shift_bits, width, at, place.offset, valid, place.mode, size, 0)


def library_for(file_name: str) -> Library | None:
    """The row of the probe table that a mapped file with this base name belongs to."""
    for library in LIBRARIES:
        if library.matches(file_name):
            return library
    return None


def describe(probes: Iterable[Library] = LIBRARIES) -> list[dict[str, object]]:
    """The probe table for people and for JSON: one mapping per probe."""
    return [
        {
            "library": library.name, "files": library.files, "op": p.op, "symbols": list(p.names), "table": p.table,
            "versions": p.versions, "values": _values(p), "note": library.note,
        }
        for library in probes
        for p in library.probes
    ]  # fmt: skip


def _values(probe: Probe) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for name, place in probe.slots:
        found.setdefault(name, []).append(str(place))
    return {name: " ".join(texts) for name, texts in found.items()}
