"""When threads of a process were blocked in memory copies: inside the calls, waiting for them, and between them.

All of it is read from calls seen at the CUDA runtime, the driver or HIP, each once, on CLOCK_BOOTTIME, as sets of time,
so that a call told in two rows counts as much as one told in one. A call still open when the capture ended reaches to
the capture's end.

- *copies*: inside a call that copies memory (``cudaMemcpy``, ``cuMemcpyHtoD``, their asynchronous and per-thread twins
  …).
- *waits*: inside the synchronisation of a stream that, since it was last synchronised, was given asynchronous copies
  and no kernel; or of the device, where that holds for all its streams.
- *gaps*: from the end of a copy, or of such a wait, to the next copy of the same thread, with no other recorded call
  between them and at most :data:`GAP` apart: a transfer cut into pieces.
- *mixed*: inside a synchronisation that had both copies and kernels to wait for; which of them took how long is not
  recorded, so this is kept apart. Waits for an event are in none of them: what an event follows is not recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import call_meanings, intervals
from gpuaudit.analyze.call_meanings import any_of
from gpuaudit.analyze.finding import Threshold
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.store import Store

GAP = Threshold(
    "copy_gap_ns", 10_000_000, "ns",
    "chosen: pieces of one transfer, staged through a pinned buffer, follow each other within microseconds to a few "
    "milliseconds; a longer pause is the host doing something else",
)  # fmt: skip

COPY, LAUNCH, STREAM_SYNC, DEVICE_SYNC, OTHER = range(5)

KIND = (
    f"CASE WHEN {call_meanings.COPY.condition} THEN {COPY} "
    f"WHEN {any_of(call_meanings.LAUNCH, call_meanings.GRAPH_LAUNCH).condition} THEN {LAUNCH} "
    f"WHEN {call_meanings.STREAM_SYNC.condition} THEN {STREAM_SYNC} "
    f"WHEN {call_meanings.DEVICE_SYNC.condition} THEN {DEVICE_SYNC} ELSE {OTHER} END"
)
"""SQL: what a call of ``cuda_calls`` is."""

_STREAM = (
    "CASE WHEN stream IS NULL THEN -1 WHEN stream = 0 AND op LIKE '%\\_pts_' ESCAPE '\\' THEN -2 - tid::BIGINT "
    "ELSE (stream % 9223372036854775807)::BIGINT END"
)
"""SQL: the stream; the default stream of a thread is that thread's own."""

COPY_CALLS = any_of(call_meanings.COPY, call_meanings.SYNCHRONISE).condition
"""SQL condition of the calls that blocked time is made of."""

Array = npt.NDArray[np.int32]
Chosen = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Blocked:
    """Sets of time of one process; they may overlap each other where threads do different things at once."""

    copies: Intervals
    waits: Intervals
    gaps: Intervals
    mixed: Intervals

    @cached_property
    def certain(self) -> Intervals:
        """At least one thread was in a copy, waited for copies alone, or was between two copies."""
        return intervals.union(self.copies, self.waits, self.gaps)

    @cached_property
    def possible(self) -> Intervals:
        """The same, and the synchronisations that had both copies and kernels to wait for."""
        return intervals.union(self.certain, self.mixed)


NOTHING = Blocked(intervals.EMPTY, intervals.EMPTY, intervals.EMPTY, intervals.EMPTY)


def read_blocked(store: Store, pid: int, end_ns: int, gap_ns: int = int(GAP.value)) -> Blocked:
    """What the calls of one process say; calls that are still open end at ``end_ns``."""
    a = store.arrays(
        f"SELECT tid, {KIND}::UTINYINT AS kind, {call_meanings.ASYNCHRONOUS_COPY.condition} AS asynchronous, "
        f"{_STREAM} AS stream, start_ns::BIGINT AS start_ns, coalesce(end_ns, {end_ns})::BIGINT AS end_ns "
        f"FROM cuda_calls WHERE pid = {int(pid)} AND {call_meanings.FIRST} ORDER BY start_ns, leaf, row"
    )
    return of_calls(a, gap_ns)


def of_calls(a: dict[str, npt.NDArray[Any]], gap_ns: int) -> Blocked:
    """The same from columns, one entry per call in order of time: ``tid``, ``kind``, ``asynchronous``, ``stream``,
    ``start_ns``, ``end_ns``."""
    if not len(a["kind"]):
        return NOTHING
    for_copies, for_both = _waits(a)
    copies = a["kind"] == COPY
    return Blocked(
        _of(a, copies), _of(a, for_copies), _gaps(a, copies, for_copies, gap_ns), _of(a, for_both)
    )  # fmt: skip


def _of(a: dict[str, npt.NDArray[Any]], chosen: Chosen) -> Intervals:
    return intervals.from_bounds(a["start_ns"][chosen], a["end_ns"][chosen])


def _waits(a: dict[str, npt.NDArray[Any]]) -> tuple[Chosen, Chosen]:
    """Synchronisations that waited for copies alone, and those that had copies and kernels to wait for."""
    device = a["kind"] == DEVICE_SYNC
    at = np.arange(len(device), dtype=np.int32)  # a process has fewer than 2^31 calls, and memory is what they cost
    emptied = _before(_last(at, device))
    alone, both = _given(a, at, np.zeros(1, dtype=np.int32), emptied, device)
    stream = a["kind"] == STREAM_SYNC
    order = np.argsort(a["stream"], kind="stable").astype(np.int32)
    order = order[~device[order]]
    first = np.ones(len(order), dtype=bool)
    streams = a["stream"][order]
    first[1:] = streams[1:] != streams[:-1]
    begin = np.maximum.accumulate(np.where(first, at[: len(order)], 0))
    of_streams = _given(a, order, begin, emptied, stream)
    return alone | of_streams[0], both | of_streams[1]


def _given(
    a: dict[str, npt.NDArray[Any]], calls: Array, begin: Array, device: Array, judged: Chosen
) -> tuple[Chosen, Chosen]:
    """Of the ``judged`` synchronisations among ``calls``: given copies alone, and given copies and kernels.

    ``calls`` are grouped, each group in order of time from its position ``begin`` on. What was given before the last
    judged call of the group, or before the last synchronisation of the ``device``, is done.
    """
    position = np.arange(len(calls), dtype=np.int32)
    kind = a["kind"][calls]
    done = _before(_last(position, judged[calls]))

    def pending(chosen: Chosen) -> Chosen:
        last = _last(position, chosen)
        given = (last >= begin) & (last > np.where(done >= begin, done, -1))
        out: Chosen = given & (calls[np.maximum(last, 0)] > device[calls])
        return out

    copied = pending((kind == COPY) & a["asynchronous"][calls].astype(bool)) & judged[calls]
    launched = pending(kind == LAUNCH)
    alone, both = np.zeros(len(judged), dtype=bool), np.zeros(len(judged), dtype=bool)
    alone[calls[copied & ~launched]] = True
    both[calls[copied & launched]] = True
    return alone, both


def _last(at: Array, chosen: Chosen) -> Array:
    """For each position the last chosen one up to it, -1 for none."""
    out: Array = np.maximum.accumulate(np.where(chosen, at, -1))
    return out


def _before(last: Array) -> Array:
    """The same, up to the position before."""
    return np.concatenate([np.full(1, -1, dtype=last.dtype), last[:-1]])


def _gaps(a: dict[str, npt.NDArray[Any]], copies: Chosen, waits: Chosen, gap_ns: int) -> Intervals:
    order = np.argsort(a["tid"], kind="stable").astype(np.int32)
    starts, ends = [intervals.EMPTY[:, 0]], [intervals.EMPTY[:, 0]]
    tids = a["tid"][order]
    for mine in np.split(order, np.flatnonzero(tids[1:] != tids[:-1]) + 1):
        reached = np.maximum.accumulate(a["end_ns"][mine])
        before, after = reached[:-1], a["start_ns"][mine][1:]
        follows = (copies | waits)[mine][:-1] & copies[mine][1:] & (after - before <= gap_ns)
        starts.append(before[follows])
        ends.append(after[follows])
    return intervals.from_bounds(np.concatenate(starts), np.concatenate(ends))
