"""NCCL (nccl.h of 2.32 and earlier) and RCCL, which has NCCL's names.

``ncclX`` is a weak alias of ``pncclX`` at the same address: one probe. Older PyTorch wheels carry NCCL inside
libtorch_cuda.so. The ``Config`` forms take one argument more, behind the others.
"""

from __future__ import annotations

from gpuaudit.capture.probe_rows.places import R8, R9, RCX, RDI, RDX, RSI, names, out, stack
from gpuaudit.capture.probe_types import Flag, From, Library, Place, Places, Probe

_SUCCESS = (0, 7)
"""ncclSuccess, and ncclInProgress: a non-blocking communicator has its handle when the call returns (ncclResult_t)."""


def _calls(words: str, **places: Places) -> tuple[Probe, ...]:
    """Rows of ``nccl_calls``; the size follows from count and datatype."""
    flags = Flag.FIND_COMM | (Flag.SIZE if "count" in places else Flag.NONE)
    return tuple(Probe(op, "nccl_calls", places, (op, f"p{op}"), flags) for op in names(words))


def _comms(words: str, flags: Flag = Flag.FIND_COMM, **places: Places) -> tuple[Probe, ...]:
    """Rows of ``nccl_comms``."""
    return tuple(
        Probe(op, "nccl_comms", places, (op, f"p{op}"), flags | Flag.STATE, _SUCCESS) for op in names(words)
    )  # fmt: skip


def _folded(source: From, register: Place) -> Place:
    """The identity of the ncclUniqueId that the pointer in a register leads to."""
    return Place(source, register.index)


_SENT = {"count": RDX, "datatype": RCX}
"""Behind the two buffers."""
_MOVED = {"count": RSI, "datatype": RDX}
"""Behind the one buffer."""

COLLECTIVES: tuple[Probe, ...] = (
    *_calls(
        "ncclAllReduce ncclAllReduceConfig ncclReduceScatter ncclReduceScatterConfig",
        **_SENT, reduce_op=R8, comm_handle=R9, stream=stack(0),
    ),
    *_calls(
        "ncclReduce ncclReduceConfig", **_SENT, reduce_op=R8, root=R9, comm_handle=stack(0), stream=stack(1)
    ),
    *_calls(
        "ncclBroadcast ncclBroadcastConfig ncclGather ncclGatherConfig ncclScatter ncclScatterConfig",
        **_SENT, root=R8, comm_handle=R9, stream=stack(0),
    ),
    *_calls(
        "ncclAllGather ncclAllGatherConfig ncclAlltoAll ncclAlltoAllConfig", **_SENT, comm_handle=R8, stream=R9
    ),
    *_calls("ncclBcast", **_MOVED, root=RCX, comm_handle=R8, stream=R9),
    *_calls("ncclSend ncclRecv", **_MOVED, peer=RCX, comm_handle=R8, stream=R9),
    *_calls("ncclPutSignal", **_MOVED, peer=RCX, comm_handle=stack(3), stream=stack(4)),
    *_calls("ncclSignal", peer=RDI, comm_handle=R8, stream=R9),
    *_calls("ncclWaitSignal", comm_handle=RDX, stream=RCX),
)  # fmt: skip

COMMUNICATORS: tuple[Probe, ...] = (
    *_comms("ncclGetUniqueId", Flag.NONE, comm_id=_folded(From.POINTEE_ID, RDI)),
    *_comms(
        "ncclCommInitRank ncclCommInitRankConfig", Flag.MAKE_COMM, comm_handle=out(RDI), nranks=RSI,
        comm_id=Place(From.STACK_ID, 0), rank=RDX,
    ),
    *_comms(
        "ncclCommInitRankScalable", Flag.MAKE_COMM, comm_handle=out(RDI), nranks=RSI, rank=RDX,
        comm_id=_folded(From.POINTER_ID, R8),
    ),
    *_comms("ncclCommInitAll", Flag.MAKE_ALL, comm_handle=out(RDI), nranks=RSI),
    *_comms("ncclCommSplit", Flag.SPLIT_COMM, parent_handle=RDI, color=RSI, key=RDX, comm_handle=out(RCX)),
    *_comms("ncclCommShrink", Flag.SPLIT_COMM, parent_handle=RDI, comm_handle=out(RCX)),
    *_comms(
        "ncclCommGrow", Flag.MAKE_COMM | Flag.PARENT_COMM, parent_handle=RDI, nranks=RSI, rank=RCX,
        comm_id=_folded(From.POINTER_ID, RDX), comm_handle=out(R8),
    ),
    *_comms("ncclCommGetUniqueId", Flag.PARENT_COMM, parent_handle=RDI, comm_id=_folded(From.POINTEE_ID, RSI)),
    *_comms("ncclCommDestroy ncclCommAbort", Flag.FIND_COMM | Flag.DROP_COMM, comm_handle=RDI),
    *_comms(
        "ncclCommFinalize ncclCommRevoke ncclCommSuspend ncclCommResume ncclCommCuDevice ncclCommRegister "
        "ncclCommDeregister ncclCommWindowRegister ncclCommWindowDeregister",
        comm_handle=RDI,
    ),
    *_comms("ncclCommUserRank", Flag.FIND_COMM | Flag.LEARN_COMM, comm_handle=RDI, rank=out(RSI)),
    *_comms("ncclCommCount", Flag.FIND_COMM | Flag.LEARN_COMM, comm_handle=RDI, nranks=out(RSI)),
    *_comms("ncclRedOpCreatePreMulSum", comm_handle=R8),
    *_comms("ncclRedOpDestroy", comm_handle=RSI),
    *_comms("ncclGroupStart ncclGroupEnd ncclGroupSimulateEnd", Flag.NONE),
)  # fmt: skip
"""ncclCommInitRankScalable may be given several ids, the same for every rank: the first is the identity. Ranks that
ncclCommGrow is called by give the id of the grown communicator, or none: then its identity is not known."""

NCCL = Library(
    "nccl", "nccl", r"libnccl(-[0-9a-f]+)?\.so(\.[0-9]+)*|libtorch_cuda\.so", r"nccl[A-Z]\w*",
    (*COLLECTIVES, *COMMUNICATORS),
)  # fmt: skip

_RCCL_ONLY: tuple[Probe, ...] = (
    *_calls("ncclAllToAll", **_SENT, comm_handle=R8, stream=R9),
    *_calls("ncclAllToAllv", datatype=stack(0), comm_handle=stack(1), stream=stack(2)),
)

RCCL = Library(
    "rccl", "nccl", r"librccl\.so(\.[0-9]+)*", r"nccl[A-Z]\w*", (*COLLECTIVES, *COMMUNICATORS, *_RCCL_ONLY),
    note="rows as data, tested on doubles: not on the real library",
)  # fmt: skip
"""RCCL (rccl.h): NCCL's functions, and an all-to-all of its own."""
