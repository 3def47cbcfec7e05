"""What a recorded call means, whichever library it was made through: CUDA runtime, CUDA driver or HIP.

One table for all analyses: meaning → names. The three libraries name the same thing alike (``cudaMalloc``,
``cuMemAlloc_v2``, ``hipMalloc``), so that one pattern holds them; ``_v2`` and ``_v3`` are later forms, ``_ptsz``,
``_ptds`` and ``_spt`` the twins of the per-thread default stream. Sources: CUDA Runtime API, CUDA Driver API and HIP
reference.

A call that another recorded one made on the same thread has a parent. Three ways to count, and each number is of one:

- :data:`OUTERMOST`: made inside no other recorded call of any table. Their time may be added up.
- :data:`FIRST`: made inside no other call of ``cuda_calls``. What NCCL allocates, copies or launches is among them; the
  driver's call inside the runtime's is not, so that nothing is counted twice.
- all rows, where a set of time is meant: a call inside another adds nothing to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

OUTERMOST = "parent_ns IS NULL"
"""SQL condition of a call that no other recorded call made."""

FIRST = "(parent_op IS NULL OR NOT regexp_matches(parent_op, '^(__)?(cu|hip)'))"
"""SQL condition, in ``cuda_calls``: no other call of that table made it."""

_LATER = "(_v[2-9])?(_ptsz|_ptds|_spt)?"
_VIA = "(__)?(cuda|cu|hip)"


@dataclass(frozen=True)
class Meaning:
    """``pattern``: a regular expression (RE2) that the whole API name matches, later forms and twins aside."""

    name: str
    pattern: str

    @property
    def condition(self) -> str:
        """SQL condition on ``op``: the calls that mean this, those inside others too."""
        return f"regexp_full_match(op, '({self.pattern}){_LATER}')"

    def means(self, op: str) -> bool:
        """Whether a call of this name means it."""
        return re.fullmatch(f"(?:{self.pattern}){_LATER}", op) is not None

    @property
    def first(self) -> str:
        """The same, each only once."""
        return f"{self.condition} AND {FIRST}"


ALLOCATE = Meaning(
    "allocate device memory",
    "(cuda|hip)Malloc(Async|FromPoolAsync|Pitch|3D)?|hipExtMallocWithFlags|(cu|hip)MemAlloc(Async|FromPoolAsync|Pitch)?"
    "|hipMemAlloc|(cu|hip)MemMap",
)
"""Mapped physical memory (``cuMemMap``) is at an address and can be used: it counts as allocated, ``cuMemCreate`` as
making what is mapped."""
MAP = Meaning("map device memory", "(cu|hip)MemMap")
ALLOCATE_MANAGED = Meaning("allocate managed memory", "(cuda|hip)MallocManaged|(cu|hip)MemAllocManaged")
ALLOCATE_HOST = Meaning(
    "allocate pinned host memory",
    "(cuda|hip)(MallocHost|HostAlloc|HostMalloc)|(cu|hip)Mem(AllocHost|HostAlloc)|(cuda|hip)HostRegister|cuMemHostRegister",
)
FREE = Meaning("free device memory", "(cuda|hip)Free(Async)?|(cu|hip)MemFree(Async)?|(cu|hip)MemUnmap")
FREE_HOST = Meaning(
    "free pinned host memory", "(cuda|hip)(FreeHost|HostFree|HostUnregister)|cuMem(FreeHost|HostUnregister)"
)
COPY = Meaning("copy", f"{_VIA}Memcpy.*|hipDrvMemcpy.*")
BLOCKING_COPY = Meaning(
    "blocking copy",
    "(cuda|hip)Memcpy((2D|3D)?(ToArray|FromArray|ArrayToArray)?|To(Array|Symbol)|From(Array|Symbol)|WithStream)"
    "|cuMemcpy(HtoD|DtoH|AtoH|HtoA|2D|2DUnaligned|3D)?|hipMemcpy(HtoD|DtoH|AtoH|HtoA|Param2D)"
    "|hipDrvMemcpy(2DUnaligned|3D)",
)
"""Returns when the bytes are where they belong (CUDA Runtime API, API synchronisation behaviour); copies from device to
device and between devices return at once and are not among them."""
PEER_COPY = Meaning("copy from GPU to GPU", f"{_VIA}Memcpy(3D)?Peer(Async)?")
ASYNCHRONOUS_COPY = Meaning("asynchronous copy", f"{_VIA}Memcpy.*Async|hipDrvMemcpy.*Async")
SET = Meaning("set memory", f"{_VIA}Memset.*")
LAUNCH = Meaning(
    "launch a kernel",
    f"{_VIA}Launch(Cooperative)?Kernel(ExC|Ex)?|hip(Ext|Module|ExtModule)LaunchKernel|hipModuleLaunchCooperativeKernel"
    "|hipDrvLaunchKernelEx|(cuda|cu|hip)LaunchCooperativeKernelMultiDevice|hipExtLaunchMultiKernelMultiDevice"
    "|cuLaunch(Grid(Async)?)?|hipHccModuleLaunchKernel|hipLaunchByPtr",
)
GRAPH_LAUNCH = Meaning("launch a graph", f"{_VIA}GraphLaunch")
STREAM_SYNC = Meaning("wait for a stream", f"{_VIA}StreamSynchronize")
DEVICE_SYNC = Meaning(
    "wait for a device", "(cuda|hip)DeviceSynchronize|cudaThreadSynchronize|cudaExecutionCtxSynchronize"
    "|(cu|hip)CtxSynchronize",
)  # fmt: skip
EVENT_SYNC = Meaning("wait for an event", f"{_VIA}EventSynchronize")
STREAM_QUERY = Meaning("ask whether a stream is done", f"{_VIA}StreamQuery")
EVENT_QUERY = Meaning("ask whether an event is done", f"{_VIA}EventQuery")
"""Neither waits, and neither stands in :data:`MEANINGS`: asked again and again, they are a wait of the host's own."""
EVENT_RECORD = Meaning("record an event", f"{_VIA}EventRecord(WithFlags)?")
STREAM_WAIT = Meaning("make a stream wait for an event", f"{_VIA}StreamWaitEvent")
GRAPH_MAKE = Meaning("make or update a graph", f"{_VIA}(Graph(Instantiate.*|ExecUpdate|Clone)|StreamEndCapture)")
MODULE_LOAD = Meaning("load code", "(cu|hip)Module(Load.*)|(cu|cuda)LibraryLoad.*")

MEANINGS: tuple[Meaning, ...] = (
    ALLOCATE_MANAGED, ALLOCATE_HOST, ALLOCATE, FREE_HOST, FREE, BLOCKING_COPY, COPY, SET, LAUNCH, GRAPH_LAUNCH,
    STREAM_SYNC, DEVICE_SYNC, EVENT_SYNC, EVENT_RECORD, STREAM_WAIT, GRAPH_MAKE, MODULE_LOAD,
)  # fmt: skip
"""In the order in which a name is looked up: it means the first that it matches."""

OTHER = "other"

LIBRARIES = "('cudart', 'driver', 'hip')"
"""SQL: libraries of the probe table whose calls are rows of ``cuda_calls``."""


def any_of(*meanings: Meaning) -> Meaning:
    """Calls that mean one of these."""
    return Meaning(" or ".join(m.name for m in meanings), "|".join(m.pattern for m in meanings))


SYNCHRONISE = any_of(STREAM_SYNC, DEVICE_SYNC, EVENT_SYNC)
"""The host waits for work of the GPU."""


def meaning_sql(names: Mapping[str, str] | None = None) -> str:
    """SQL: the name of what a call means, or ``other``; ``names`` replaces names."""
    cases = " ".join(f"WHEN {m.condition} THEN '{(names or {}).get(m.name, m.name)}'" for m in MEANINGS)
    return f"CASE {cases} ELSE '{OTHER}' END"
