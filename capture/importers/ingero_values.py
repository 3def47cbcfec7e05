"""Values of an Ingero database: what its numbers of source and op mean, and cells checked before they are believed.

Facts: the tool's own source and the four public databases in ``tests/data/ingero``. Rows of CUDA, driver and graph
calls carry the time of *entry*; rows of switches, disks and sockets the time of the *end*. 64-bit arguments are stored
signed. The pid of a scheduler row is a thread id.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gpuaudit.capture.importers.cells import Unreadable
from gpuaudit.capture.importers.foreign_sqlite import Cell
from gpuaudit.capture.importers.model import MAX_TIME_NS

CUDA, HOST, DRIVER, BLOCK, TCP, NET, GRAPH = 1, 3, 4, 5, 6, 7, 8
"""Numbers of column ``source``."""

U64 = (1 << 64) - 1
U32 = (1 << 32) - 1
SECTOR_BYTES = 512
"""Unit of block I/O sizes in the kernel's tracepoints, whatever the device's own."""
MIB = 1 << 20

Arguments = Literal["none", "malloc", "sized", "free", "launch", "copy", "copy_2d", "sync"]


@dataclass(frozen=True)
class Call:
    """A call of the CUDA API: its exported name, and what its two arguments are."""

    name: str
    arguments: Arguments = "none"


CALLS: dict[tuple[int, int], Call] = {
    (CUDA, 1): Call("cudaMalloc", "malloc"),
    (CUDA, 2): Call("cudaFree", "free"),
    (CUDA, 3): Call("cudaLaunchKernel", "launch"),
    (CUDA, 4): Call("cudaMemcpy", "copy"),
    (CUDA, 5): Call("cudaStreamSynchronize", "sync"),
    (CUDA, 6): Call("cudaDeviceSynchronize"),
    (CUDA, 7): Call("cudaMemcpyAsync", "copy"),
    (CUDA, 8): Call("cudaMallocManaged", "sized"),
    (CUDA, 9): Call("cudaMemcpy2D", "copy_2d"),
    (CUDA, 10): Call("cudaMemcpy2DAsync", "copy_2d"),
    (CUDA, 11): Call("cudaMemcpyPeer", "copy"),
    (CUDA, 12): Call("cudaMemcpyPeerAsync", "copy"),
    (DRIVER, 1): Call("cuLaunchKernel", "launch"),
    (DRIVER, 2): Call("cuMemcpy", "sized"),
    (DRIVER, 3): Call("cuMemcpyAsync", "sized"),
    (DRIVER, 4): Call("cuCtxSynchronize"),
    (DRIVER, 5): Call("cuMemAlloc_v2", "sized"),
    (DRIVER, 6): Call("cuMemAllocManaged", "sized"),
    (GRAPH, 1): Call("cudaStreamBeginCapture"),
    (GRAPH, 2): Call("cudaStreamEndCapture"),
    (GRAPH, 3): Call("cudaGraphInstantiate"),
    (GRAPH, 4): Call("cudaGraphLaunch"),
}
"""(source, op) of a call; the database's own table ``ops`` lacks some of them."""

SWITCH, WAKEUP, PAGES, OOM, EXEC, EXIT, FORK, PAGES_SUM, SWITCH_SUM = 1, 2, 3, 4, 5, 6, 7, 20, 21
"""Numbers of column ``op`` of source :data:`HOST`."""

COUNTED: dict[tuple[int, int], str] = {
    **{key: call.name for key, call in CALLS.items()},
    (HOST, SWITCH): "off_cpu", (HOST, WAKEUP): "wakeup", (HOST, PAGES): "page_allocation", (HOST, OOM): "oom_kill",
    (HOST, EXEC): "exec", (HOST, EXIT): "exit", (HOST, FORK): "fork", (HOST, PAGES_SUM): "page_allocation",
    (HOST, SWITCH_SUM): "off_cpu", (BLOCK, 1): "block_read", (BLOCK, 2): "block_write", (BLOCK, 3): "block_discard",
    (TCP, 1): "tcp_retransmit", (NET, 1): "sendto", (NET, 2): "recvfrom",
}  # fmt: skip
"""Our names of what is counted in totals."""

INSTANT = frozenset({"wakeup", "page_allocation", "oom_kill", "exec", "exit", "fork", "tcp_retransmit"})
"""Counted events that have no duration: a sum of 0 there says nothing."""

SIZED: dict[str, int] = {
    **{c.name: 1 for c in CALLS.values() if c.arguments in ("malloc", "sized", "copy")},
    "page_allocation": 1, "block_read": SECTOR_BYTES, "block_write": SECTOR_BYTES, "block_discard": SECTOR_BYTES,
}  # fmt: skip
"""What the sum of the first argument is worth in bytes, where it is a size."""

BLOCK_OPS: dict[int, tuple[str, int]] = {1: ("read", 0), 2: ("write", 1), 3: ("discard", 3)}
"""op of source :data:`BLOCK` → our name and REQ_OP of include/linux/blk_types.h."""

LIFE_OPS: dict[int, tuple[str, int]] = {FORK: ("fork", 0), EXEC: ("exec", 1), EXIT: ("exit", 2)}
"""op of source :data:`HOST` → our name and number in ``lifecycle``."""

SHORT_NAMES = {
    "cudaStreamSync": "cudaStreamSynchronize", "cudaDeviceSync": "cudaDeviceSynchronize", "cuMemAlloc": "cuMemAlloc_v2",
    "graphLaunch": "cudaGraphLaunch", "graphInstantiate": "cudaGraphInstantiate",
}  # fmt: skip
"""The tool's names that are not those of the API."""


def whole(value: Cell, what: str, least: int = 0, most: int = U32) -> int:
    """An integer within bounds; Unreadable for anything else that the cell holds."""
    if not isinstance(value, int) or not least <= value <= most:
        raise Unreadable(f"{what} is {value!r:.40}, expected {least} to {most}")
    return value


def unsigned(value: Cell, what: str) -> int:
    """A 64-bit number that SQLite holds signed."""
    return whole(value, what, -(1 << 63), (1 << 63) - 1) & U64


def time_ns(value: Cell, what: str = "timestamp") -> int:
    """ns since 1970."""
    return whole(value, what, 0, MAX_TIME_NS - 1)


def number(value: Cell, what: str) -> float:
    """A finite number."""
    if not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > U64:
        raise Unreadable(f"{what} is {value!r:.40}, expected a number")
    return float(value)


def text(value: Cell, most: int) -> str:
    """Text of bounded length that is Unicode; anything else is no text."""
    found = value[:most] if isinstance(value, str) else ""
    return found if found.isascii() else found.encode("utf-8", "backslashreplace").decode("utf-8")[:most]


def named(op: str) -> str:
    """The API's name for what the tool calls an operation in a conclusion."""
    return SHORT_NAMES.get(op, op)
