"""The probe table: which functions of which libraries are watched, and where their arguments lie.

A new probe is one row here and needs no new BPF code: the rows become the descriptions in the BPF map ``ops``
(:func:`pack_op`), which one entry and one return program follow. Argument places are those of the System V ABI for
x86-64: six integer registers, then the stack; a ``dim3`` takes two registers (x and y, then z); ``ncclUniqueId`` is
128 bytes by value and therefore lies on the stack.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from functools import cache

from gpuaudit.bundle.tables import RING_TABLES, TABLES
from gpuaudit.capture.probe_types import REGISTERS, Flag, From, Library, Mode, Place, Places, Probe

SLOTS = 20
MAX_OPS = 2048
DATATYPES = 32
"""Sizes of the BPF maps, as in capture/bpf/ops.h."""

__all__ = [
    "LIBRARIES", "NCCL_DATATYPE_BYTES", "OP_IDS", "PROBE_TABLE", "SELF_TEST", "Flag", "From", "Library", "Mode",
    "Place", "Places", "Probe", "describe", "library_for", "op_id", "pack_op",
]  # fmt: skip


def _register(index: int, shift_bits: int = 0) -> Place:
    return Place(From.REGISTER, index, shift_bits)


def _stack(index: int) -> Place:
    return Place(From.STACK, index)


_ALLOCATION = {"device_pointer": Place(From.POINTEE, 0), "size_bytes": _register(1)}
_COPY = {
    "device_pointer": _register(0), "source_pointer": _register(1), "size_bytes": _register(2),
    "direction": _register(3),
}  # fmt: skip
_COPY_ASYNC = {**_COPY, "stream": _register(4)}
_LAUNCH = {
    "function": _register(0),
    "grid_x": _register(1), "grid_y": _register(1, 32), "grid_z": _register(2),
    "block_x": _register(3), "block_y": _register(3, 32), "block_z": _register(4),
    "shared_bytes": _stack(0), "stream": _stack(1),
}  # fmt: skip
_STREAM = {"stream": _register(0)}


def _cuda(op: str, places: Mapping[str, Places]) -> Probe:
    return Probe(op, "cuda_calls", places)


def _collective(op: str, **places: Place) -> Probe:
    common = {"count": _register(2), "datatype": _register(3)}
    return Probe(op, "nccl_calls", {**common, **places}, (op, f"p{op}"), Flag.FIND_COMM | Flag.SIZE)


def _comm_init(op: str) -> Probe:
    places = {
        "comm_handle": Place(From.POINTEE, 0), "nranks": _register(1), "comm_id": Place(From.STACK_ID, 0),
        "rank": _register(2),
    }  # fmt: skip
    # ncclInProgress is 7: a non-blocking communicator has its handle when the call returns (nccl.h, ncclResult_t).
    return Probe(op, "nccl_comms", places, (op, f"p{op}"), Flag.MAKE_COMM, success=(0, 7))


def _comm_end(op: str) -> Probe:
    return Probe(op, "nccl_comms", {"comm_handle": _register(0)}, (op, f"p{op}"), Flag.FIND_COMM | Flag.DROP_COMM)


CUDART = Library(
    "cudart", "cuda", r"libcudart(-[0-9a-f]+)?\.so(\.[0-9]+)*", r"cuda[A-Z]\w*",
    (
        _cuda("cudaMalloc", _ALLOCATION),
        _cuda("cudaMallocManaged", _ALLOCATION),
        _cuda("cudaMallocAsync", {**_ALLOCATION, "stream": _register(2)}),
        _cuda("cudaMallocAsync_ptsz", {**_ALLOCATION, "stream": _register(2)}),
        _cuda("cudaMallocFromPoolAsync", {**_ALLOCATION, "stream": _register(3)}),
        _cuda("cudaMallocFromPoolAsync_ptsz", {**_ALLOCATION, "stream": _register(3)}),
        _cuda("cudaMallocHost", _ALLOCATION),
        _cuda("cudaHostAlloc", _ALLOCATION),
        _cuda("cudaFree", {"device_pointer": _register(0)}),
        _cuda("cudaFreeAsync", {"device_pointer": _register(0), "stream": _register(1)}),
        _cuda("cudaFreeAsync_ptsz", {"device_pointer": _register(0), "stream": _register(1)}),
        _cuda("cudaFreeHost", {"device_pointer": _register(0)}),
        _cuda("cudaMemcpy", _COPY),
        _cuda("cudaMemcpy_ptds", _COPY),
        _cuda("cudaMemcpyAsync", _COPY_ASYNC),
        _cuda("cudaMemcpyAsync_ptsz", _COPY_ASYNC),
        _cuda("cudaLaunchKernel", _LAUNCH),
        _cuda("cudaLaunchKernel_ptsz", _LAUNCH),
        _cuda("cudaStreamSynchronize", _STREAM),
        _cuda("cudaStreamSynchronize_ptsz", _STREAM),
        _cuda("cudaDeviceSynchronize", {}),
        _cuda("cudaEventSynchronize", {}),
    ),
)  # fmt: skip
"""The CUDA runtime (cuda_runtime_api.h). ``_ptds`` and ``_ptsz`` are the per-thread default stream twins: code of
their own, exported beside the plain names in CUDA 12 and 13."""

NCCL = Library(
    "nccl", "nccl", r"libnccl(-[0-9a-f]+)?\.so(\.[0-9]+)*|libtorch_cuda\.so", r"nccl[A-Z]\w*",
    (
        _comm_init("ncclCommInitRank"),
        _comm_init("ncclCommInitRankConfig"),
        _comm_end("ncclCommDestroy"),
        _comm_end("ncclCommAbort"),
        _collective("ncclAllReduce", reduce_op=_register(4), comm_handle=_register(5), stream=_stack(0)),
        _collective("ncclAllGather", comm_handle=_register(4), stream=_register(5)),
        _collective("ncclReduceScatter", reduce_op=_register(4), comm_handle=_register(5), stream=_stack(0)),
        _collective("ncclBroadcast", root=_register(4), comm_handle=_register(5), stream=_stack(0)),
    ),
)  # fmt: skip
"""NCCL (nccl.h). ``ncclX`` is a weak alias of ``pncclX`` at the same address: one probe. Older PyTorch wheels carry
NCCL inside libtorch_cuda.so."""

LIBRARIES = (CUDART, NCCL)

SELF_TEST = Probe("self test", "", flags=Flag.COUNT_ONLY)
"""Op 0: counts its hits and records nothing; for the host check and the cost calibration."""

PROBE_TABLE: tuple[Probe, ...] = (SELF_TEST, *(p for library in LIBRARIES for p in library.probes))
"""Every probe; the op id of a record is the index here."""

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
    if place.mode != Mode.SET and not valid or (place.mode == Mode.TIMES and width != 8):
        raise ValueError(f"probe {probe.op}: {name} cannot be multiplied or made null")
    return _SLOT.pack(
        place.source, place.index, place.shift_bits, width, at, place.offset, valid, place.mode, size, 0
    )


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
