"""Steps of a thread that feeds a GPU: work given, and waited for, again and again; in a server, prefill and decode.

A *step* goes from the start of the first launch (of a kernel or graph) after the last wait, to the end of the next wait
(a synchronisation, or a blocking copy back to the host). Its *kind* is
how many graphs and how many kernels it launched: a decode step of a server gives the same work every time, most often
as one graph, and a prefill step other work. The kind that most steps have is the *repeating* one. Steps that touch
time in which calls of the thread were counted in the kernel, or not seen, are left out: what they launched is not
known. Calls inside other calls of ``cuda_calls`` do not count. Units: ns.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals
from gpuaudit.analyze.call_meanings import BLOCKING_COPY, FIRST, GRAPH_LAUNCH, LAUNCH, SYNCHRONISE, any_of
from gpuaudit.analyze.causal.states import overlapping
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.store import NOT_OWN
from gpuaudit.analyze.threads import blind

LEAST_STEPS = 20
"""Of a thread with fewer nothing is told: chosen, twice what a usual duration takes (least_calls of slow calls)."""

MAX_CALLS = 5_000_000
"""Launches and waits of one thread that are held in memory, about 90 MB; a thread with more is left out."""

MAX_THREADS = 256
"""Threads that are looked at, those with most waits first."""

TO_HOST = 2
"""cudaMemcpyDeviceToHost (driver_types.h)."""

WAIT, GRAPH, KERNEL = range(3)

GIVES = any_of(LAUNCH, GRAPH_LAUNCH)

Kind = tuple[int, int]
"""Graphs and kernels launched."""

Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Steps:
    """Steps of one thread, in order of time; ``kinds`` numbers the rows of ``names``, most frequent first."""

    pid: int
    tid: int
    starts: Array
    ends: Array
    asked: Array
    """When the wait that closes each began."""
    kinds: Array
    names: tuple[Kind, ...]
    where: str
    """SQL condition of the calls that they are made of."""

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def durations(self) -> Array:
        """ns of each."""
        out: Array = self.ends - self.starts
        return out


def _waits(context: Context) -> str:
    back = f"coalesce(direction, {TO_HOST}) = {TO_HOST}"
    return f"({context.means(SYNCHRONISE)} OR ({context.means(BLOCKING_COPY)} AND {back}))"


def read_steps(context: Context) -> list[Steps]:
    """Every thread with enough steps, by process and thread."""
    waits, gives = _waits(context), context.means(GIVES)
    rows = context.store.sql(
        f"SELECT pid, tid FROM cuda_calls WHERE ({gives} OR {waits}) AND {FIRST} AND {NOT_OWN} GROUP BY pid, tid "
        f"HAVING count(*) FILTER ({waits}) >= {LEAST_STEPS} AND count(*) <= {MAX_CALLS} "
        f"ORDER BY count(*) FILTER ({waits}) DESC, pid, tid LIMIT {MAX_THREADS}"
    )
    found = [_of_thread(context, int(pid), int(tid)) for pid, tid in sorted(rows)]
    return [s for s in found if len(s) >= LEAST_STEPS]


def _of_thread(context: Context, pid: int, tid: int) -> Steps:
    waits_sql = _waits(context)
    where = f"pid = {pid} AND tid = {tid} AND ({context.means(GIVES)} OR {waits_sql}) AND {FIRST}"
    class_sql = f"CASE WHEN {waits_sql} THEN {WAIT} WHEN {context.means(GRAPH_LAUNCH)} THEN {GRAPH} ELSE {KERNEL} END"
    a = context.store.arrays_by_start(
        f"SELECT start_ns::BIGINT AS start_ns, end_ns::BIGINT AS end_ns, ({class_sql})::UTINYINT AS class "
        f"FROM cuda_calls WHERE {where} AND end_ns IS NOT NULL"
    )
    what = a["class"]
    # Numbers the step that each call belongs to: a wait is the last call of its step.
    waits = np.flatnonzero(what == WAIT)
    step = np.searchsorted(waits, np.arange(len(what)))
    gives = np.flatnonzero((what != WAIT) & (step < len(waits)))
    number, first = np.unique(step[gives], return_index=True)
    starts, ends = a["start_ns"][gives[first]], a["end_ns"][waits[number]]
    asked = a["start_ns"][waits[number]]
    graphs = np.bincount(step[what == GRAPH], minlength=len(waits) + 1)[number]
    kernels = np.bincount(step[what == KERNEL], minlength=len(waits) + 1)[number]
    seen = ~overlapping(starts, ends, _unseen(context, pid, tid))
    pairs = list(zip(graphs[seen].tolist(), kernels[seen].tolist(), strict=True))
    names = tuple(kind for kind, _ in sorted(Counter(pairs).items(), key=lambda x: (-x[1], x[0])))
    place = {kind: i for i, kind in enumerate(names)}
    kinds = np.array([place[p] for p in pairs], dtype=np.int64)
    return Steps(pid, tid, starts[seen], ends[seen], asked[seen], kinds, names, where)


def _unseen(context: Context, pid: int, tid: int) -> intervals.Intervals:
    a = context.store.arrays(
        f"SELECT start_ns::BIGINT AS a, end_ns::BIGINT AS b FROM call_totals WHERE pid = {pid} AND tid = {tid} "
        f"AND count > 0 AND {context.means(any_of(GIVES, SYNCHRONISE))} ORDER BY 1, 2"
    )
    return intervals.union(intervals.from_bounds(a["a"], a["b"]), blind(context, pid), context.window.asleep)


def outliers(durations: Array, times: Fraction, slowest: Fraction, least: int) -> tuple[npt.NDArray[np.bool_], int]:
    """Which are more than ``times`` the median and among the ``slowest`` share, of at least ``least``; and the median.
    The values at rank ceil(q·n) are used."""
    n = len(durations)
    if n < least:
        return np.zeros(n, dtype=bool), 0
    ordered = np.sort(durations)
    median = int(ordered[(n + 1) // 2 - 1])
    top = int(ordered[max(ceil(n * (1 - slowest)), 1) - 1])
    limit = min(int(times * median), int(ordered[-1]))  # within int64, whatever a policy sets
    return (durations > limit) & (durations >= top), median
