"""What memory of a process holds: weights loaded once, a pool reserved after that, and traffic that comes again.

Three phases, told from calls alone and before anything is classified by a model:

- *load*: the stretch of one-time copies from the host (no other copy went to the same address, while what held it
  existed) with no pause above :data:`PAUSE`, that moved most bytes. Copies into large memory that was made after the
  first of them, stays, and is filled for less than half are none of it.
- *reservation*: large allocations made after the load, alive at the end of the capture, into which nothing was copied
  from the host; what engines do with the memory that is left, for their KV cache.
- *traffic*: copies of either direction after both.

Nothing is told in doubt: a process that ran before the capture, records that were lost, a gap in the source, one-time
copies that are spread over the capture, or too few bytes to be a model's weights give a reason instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import call_totals
from gpuaudit.analyze.allocations import ALIVE, Allocations, Destinations, read_allocations
from gpuaudit.analyze.call_meanings import ALLOCATE, COPY, FREE, any_of
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Threshold
from gpuaudit.analyze.shards import calls_seen

PAUSE = Threshold(
    "load_pause_ns", 10_000_000_000, "ns",
    "chosen: between files of a model a loader reads from disk for seconds; a longer pause parts a load from what "
    "follows",
)  # fmt: skip
LEAST_LOAD = Threshold(
    "least_load_bytes", 64 << 20, "bytes",
    "chosen: the weights of the smallest model that is served take more; less is input or a table",
)  # fmt: skip
ONE_LOAD_NUM, ONE_LOAD_DEN = 9, 10
"""A load holds at least nine tenths of all bytes that were copied once, or there is not one load."""
LARGE = Threshold(
    "large_allocation_bytes", 32 << 20, "bytes",
    "chosen: above the 20 MiB from which the caching allocator of PyTorch asks for a segment of its own",
)  # fmt: skip
FEW = Threshold(
    "few_allocations", 1_024, "count",
    "chosen: a pool is one allocation, or one or two per layer; the deepest models have fewer than 200 layers",
)  # fmt: skip

HOLDING_OR_COPYING = any_of(ALLOCATE, FREE, COPY)

WEIGHTS, RESERVED, OTHER = "weights", "reserved", "other"


@dataclass(frozen=True)
class Phase:
    """A phase: its time, calls and bytes."""

    start_ns: int
    end_ns: int
    calls: int
    bytes: int


@dataclass(frozen=True)
class Residency:
    """One process. ``kind`` says of each allocation whether it holds weights, is reserved, or other.

    With a ``reason`` nothing is told apart: phases are None and every allocation is other.
    """

    pid: int
    allocations: Allocations
    kind: npt.NDArray[np.str_]
    load: Phase | None = None
    reservation: Phase | None = None
    traffic: Phase | None = None
    reason: str = ""

    def live_bytes(self, at_ns: int) -> dict[str, int]:
        """Bytes of the allocations that exist at a moment, by kind."""
        alive = self.allocations.alive(at_ns)
        return {
            kind: sum(self.allocations.size[alive & (self.kind == kind)].tolist())
            for kind in (WEIGHTS, RESERVED, OTHER)
        }


def read_residency(context: Context, pid: int) -> Residency:
    """What the calls of a process say."""
    made, copied = read_allocations(context.store, pid, context.window.end_ns)
    kind = np.full(len(made), OTHER, dtype="<U8")
    reason = _unseen(context, pid) or ("" if len(made) else "no allocation of device memory was recorded")
    one_time = _one_time(made, copied)
    load = None if reason else _load(copied, one_time)
    if not reason and load is None:
        reason = f"no stretch of one-time copies from the host moved {int(LEAST_LOAD.value) >> 20} MiB"
    if load is None or reason:
        return Residency(pid, made, kind, reason=reason)
    once = sum(copied.bytes[one_time].tolist())
    if load.bytes * ONE_LOAD_DEN < once * ONE_LOAD_NUM:
        why = f"one-time copies are spread over the capture: {load.bytes} of {once} bytes lie in the longest stretch"
        return Residency(pid, made, kind, reason=why)
    held = (made.begin <= load.end_ns) & (made.end > load.end_ns)
    kind[held & (2 * made.once >= made.size) & (made.again == 0)] = WEIGHTS
    pool = (made.begin > load.end_ns) & (made.end == ALIVE) & (made.size >= int(LARGE.value))
    pool &= (made.once == 0) & (made.again == 0)
    reservation = None
    if 0 < int(pool.sum()) <= int(FEW.value):
        kind[pool] = RESERVED
        begin, size = made.begin[pool], made.size[pool]
        reservation = Phase(int(begin.min()), int(begin.max()), len(size), sum(size.tolist()))
    after = reservation.end_ns if reservation is not None else load.end_ns
    return Residency(pid, made, kind, load, reservation, _traffic(context, pid, after))


def _unseen(context: Context, pid: int) -> str:
    seen, why = calls_seen(context, pid)
    if why:
        return why
    if lost := context.quality.lost("cuda_calls"):
        return f"{lost} records of cuda_calls were lost"
    if fast := call_totals.of_process(context.store, pid, HOLDING_OR_COPYING):
        return f"{fast} allocations, frees and copies of it were aggregated in the kernel, without their addresses"
    return "calls were not recorded throughout" if len(seen) != 1 else _began_before(context, pid)


def _began_before(context: Context, pid: int) -> str:
    rows = context.store.sql(f"SELECT max(start_ns)::BIGINT FROM processes WHERE pid = {int(pid)}")
    begun = rows[0][0]
    if begun is None:
        return "when the process began was not recorded"
    if int(begun) < context.window.start_ns:
        return "the process ran before the capture, so that its load was not seen"
    return ""


def _one_time(made: Allocations, copied: Destinations) -> npt.NDArray[np.bool_]:
    """Destinations of one copy, but for those in large memory that was made later, stays, and is mostly not filled so:
    a block that comes back into a cache, soon after the load, is no part of it."""
    once: npt.NDArray[np.bool_] = copied.count == 1
    if not once.any() or not len(made):
        return once
    pool = (made.begin > copied.first[once].min()) & (made.end == ALIVE) & (made.size >= int(LARGE.value))
    pool &= 2 * made.once < made.size
    holder = made.holders(copied.address, copied.first)
    out: npt.NDArray[np.bool_] = once & ~((holder >= 0) & pool[holder])
    return out


def _load(copied: Destinations, once: npt.NDArray[np.bool_]) -> Phase | None:
    """The stretch of one-time copies that moved most bytes, of equal ones the first."""
    if not once.any():
        return None
    first, last, size = copied.first[once], copied.last[once], copied.bytes[once]
    parts = np.flatnonzero(first[1:] - np.maximum.accumulate(last)[:-1] > int(PAUSE.value)) + 1
    edges = [0, *parts.tolist(), len(first)]
    stretches = [Phase(int(first[a]), int(last[a:b].max()), b - a, sum(size[a:b].tolist())) for a, b in pairwise(edges)]
    best = max(stretches, key=lambda p: (p.bytes, -p.start_ns))
    return best if best.bytes >= int(LEAST_LOAD.value) else None


def _traffic(context: Context, pid: int, after_ns: int) -> Phase | None:
    start, end, calls, size = context.store.sql(
        f"SELECT min(start_ns)::BIGINT, max(coalesce(end_ns, {context.window.end_ns}))::BIGINT, count(*), "
        "coalesce(sum(size_bytes), 0)::HUGEINT FROM cuda_calls "
        f"WHERE {traffic_where(pid, after_ns)}"
    )[0]
    return None if start is None else Phase(int(start), int(end), int(calls), int(size))


def traffic_where(pid: int, after_ns: int) -> str:
    """SQL condition of the copies of the traffic."""
    return f"pid = {int(pid)} AND {COPY.first} AND start_ns > {int(after_ns)}"
