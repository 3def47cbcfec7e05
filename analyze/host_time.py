"""What a process did on the host while its GPU had nothing to do: waited for peers, was blocked, or gave it no work."""

from __future__ import annotations

from gpuaudit.analyze import call_totals, intervals, unlisted
from gpuaudit.analyze.call_meanings import BLOCKING_COPY, LIBRARIES, SYNCHRONISE, any_of
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.intervals import Intervals

BLOCKING = any_of(SYNCHRONISE, BLOCKING_COPY)
"""Calls that return when the GPU has done what they wait for (CUDA Runtime API, API synchronisation behaviour)."""

CALL_TABLES = ("cuda_calls", "nccl_calls", "nccl_comms")


class HostTime:
    """Sets of time per process, each read once. A set that could not be observed is empty."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._blocked: dict[int, Intervals] = {}
        self._starving: dict[int, Intervals] = {}

    def waiting(self, pid: int) -> Intervals:
        """In a collective, or the synchronisation after it, that not all observed ranks had entered yet."""
        return intervals.union(*(time for _, time in self._context.waiting.get(pid, [])))

    def blocked(self, pid: int) -> Intervals:
        """At least one thread in one of :data:`BLOCKING`."""
        if pid not in self._blocked:
            self._blocked[pid] = self._calls(pid, ("cuda_calls",), BLOCKING.condition)
        return self._blocked[pid]

    def starving(self, pid: int) -> Intervals:
        """Between the first and the last recorded call of the process, in none of them, with nothing lost.

        Time in which the probes could not see is left out: a call may be missing there.
        """
        if pid not in self._starving:
            inside = self._calls(pid, CALL_TABLES, "true")
            if not len(inside) or any(self._context.quality.lost(t) for t in CALL_TABLES):
                self._starving[pid] = intervals.EMPTY
            else:
                life = intervals.single(int(inside[0, 0]), int(inside[-1, 1]))
                self._starving[pid] = intervals.subtract(intervals.subtract(life, inside), unseen(self._context, pid))
        return self._starving[pid]

    def _calls(self, pid: int, tables: tuple[str, ...], condition: str) -> Intervals:
        parts = " UNION ALL ".join(
            f"SELECT start_ns::BIGINT AS a, coalesce(end_ns, {self._context.window.end_ns})::BIGINT AS b "
            f"FROM {t} WHERE {condition} AND pid = {pid}"
            for t in tables
        )
        a = self._context.store.arrays(f"SELECT a, b FROM ({parts}) ORDER BY 1, 2")
        return intervals.from_bounds(a["a"], a["b"])


def unseen(context: Context, pid: int) -> Intervals:
    """Time in which calls of a process were not seen one by one: gaps, windows in which they were aggregated, and what
    an import kept a selection of."""
    tables = ", ".join(f"'{t}'" for t in CALL_TABLES)
    a = context.store.arrays(
        f"SELECT start_ns::BIGINT AS a, coalesce(end_ns, {context.window.end_ns})::BIGINT AS b FROM gaps "
        f"WHERE (source IN ('cuda', 'nccl', 'rccl') OR source IN {LIBRARIES} OR table_name IN ({tables})) "
        f"AND (pid IS NULL OR pid = {pid}) ORDER BY 1, 2"
    )
    gaps = intervals.from_bounds(a["a"], a["b"])
    return intervals.union(gaps, call_totals.windows(context.store, pid), unlisted.blind(context, pid))
