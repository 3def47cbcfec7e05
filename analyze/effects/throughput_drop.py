"""Throughput drop: seconds in which a process gave its GPU far less work than it does when it runs well.

Work are kernel and graph launches, made inside no other call of ``cuda_calls``, counted in seconds from the process's
first one; launches without rows of their own count where the middle of their window lies, if that is at most a second.
The *sustained peak* is the largest rate that at least :data:`SUSTAINED` of all observed seconds reach. A drop is a run
of at least :data:`LENGTH` of seconds below :data:`RATE` of it, between seconds that are not: neither start-up nor the
end of the work is one. Seconds that the source could not see belong to none, and API silence is its own effect. Units:
ns, launches per second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals, silence, unlisted
from gpuaudit.analyze.call_meanings import FIRST, GRAPH_LAUNCH, LAUNCH, any_of
from gpuaudit.analyze.causal.model import Effect
from gpuaudit.analyze.finding import Declaration, Threshold
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.store import NOT_OWN

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

KIND = "throughput_drop"

RATE = Threshold("drop_rate", Fraction(3, 5), "share", "design: below 0.6 of the sustained peak (analysis.md, effects)")
LENGTH = Threshold("drop_ns", 2_000_000_000, "ns", "design: for at least two seconds (analysis.md, effects)")
SUSTAINED = Threshold(
    "sustained_share", Fraction(1, 4), "share",
    "chosen: a rate that is reached in a quarter of all seconds is one that the process can keep up, and no burst",
)  # fmt: skip

DECLARATION = Declaration(
    id=KIND,
    kind="effect",
    title="Drop of throughput",
    question="Did a process give its GPU far less work for seconds than it does when it runs well?",
    inputs=(
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "parent_ns")),
        ("call_totals", ("start_ns", "duration_ns", "pid", "op", "count")),
    ),
    thresholds=(RATE, LENGTH, SUSTAINED),
    texts={},
    never_claims="That less was done: fewer launches are not less work where each does more.",
)

SECOND_NS = 1_000_000_000
MAX_SECONDS = 800_000
"""Nine days: a longer capture is not cut into seconds."""

LEAST_SECONDS = 8
"""A quarter of fewer seconds is one second, which is no sustained rate."""

WORK = any_of(LAUNCH, GRAPH_LAUNCH)

Counts = npt.NDArray[np.int64]


def effects(context: Context) -> Sequence[Effect]:
    """One per process with a drop, by process id."""
    if silence.unplaced_losses(context) > 0 or unlisted.complete_until(context, "cuda_calls") is not None:
        return []  # a rate of rows that were lost, or of which a selection was kept, is no rate of calls
    rows = context.store.sql(
        f"SELECT pid, min(start_ns), max(start_ns) FROM cuda_calls WHERE {context.means(WORK)} AND {FIRST} "
        f"AND {NOT_OWN} GROUP BY pid ORDER BY pid"
    )
    dropped = {int(pid): _drops(context, int(pid), int(first), int(last)) for pid, first, last in rows}
    dropped = {pid: runs for pid, runs in dropped.items() if len(runs)}
    silent = {s.pid: s.silent for s in context.silences} if dropped else {}
    observed = {int(pid): int(last - first) for pid, first, last in rows}
    found = (
        _effect(context, pid, runs, intervals.subtract(runs, silent.get(pid, intervals.EMPTY)), observed[pid])
        for pid, runs in dropped.items()
    )
    return [e for e in found if e.length_ns]


def _drops(context: Context, pid: int, first: int, last: int) -> Intervals:
    """Runs of low seconds that are long enough."""
    seconds = (last - first) // SECOND_NS  # whole ones: the last second has work in a part of it only
    if not LEAST_SECONDS <= seconds <= MAX_SECONDS:
        return intervals.EMPTY
    counts, seen = _counts(context, pid, first, seconds)
    rate, length, sustained = (context.policy.value(t, DECLARATION.id) for t in DECLARATION.thresholds)
    low = below(counts, seen, Fraction(rate), Fraction(sustained))
    if low is None:
        return intervals.EMPTY
    starts = first + np.flatnonzero(low) * SECOND_NS
    runs = intervals.from_bounds(starts, starts + SECOND_NS)
    return runs[runs[:, 1] - runs[:, 0] >= int(length)]


def _effect(context: Context, pid: int, runs: Intervals, time: Intervals, observed_ns: int) -> Effect:
    return Effect(
        kind=KIND, key=f"{KIND}:{pid}",
        name=f"the throughput drop of {context.process_name(pid)} ({pid})", pid=pid, tid=_launcher(context, pid),
        op="work", time=time, parts=runs, of_ns=observed_ns,
        evidence=_evidence(context, pid), subject={"pid": str(pid)},
        notes=("fewer launches are not less work where each does more",),
    )  # fmt: skip


def below(
    counts: Counts, seen: npt.NDArray[np.bool_], rate: Fraction, sustained: Fraction
) -> npt.NDArray[np.bool_] | None:
    """Seconds below ``rate`` of the sustained peak that lie between seconds at or above it; None without a peak."""
    ordered = np.sort(counts[seen])[::-1]
    if len(ordered) < LEAST_SECONDS:
        return None
    peak = int(ordered[max(ceil(len(ordered) * sustained), 1) - 1])
    if not peak:
        return None
    least = ceil(peak * rate)
    high = np.flatnonzero(seen & (counts >= least))
    low = seen & (counts < least)
    low[: high[0]] = False
    low[high[-1] :] = False
    return low


def _counts(context: Context, pid: int, first: int, seconds: int) -> tuple[Counts, npt.NDArray[np.bool_]]:
    """Launches in each second, and which seconds could be seen whole."""
    where = f"pid = {pid} AND {context.means(WORK)}"
    middle = f"(start_ns + duration_ns // 2 - {first})::BIGINT // {SECOND_NS}"
    rows = context.store.arrays(
        f"SELECT s, least(sum(n), {1 << 40})::BIGINT AS n FROM (SELECT (start_ns - {first})::BIGINT // {SECOND_NS} "
        f"AS s, 1 AS n FROM cuda_calls WHERE {where} AND {FIRST} UNION ALL SELECT {middle}, count FROM call_totals "
        f"WHERE {where} AND duration_ns <= {SECOND_NS} AND start_ns >= {first}) GROUP BY s ORDER BY s"
    )
    counts = np.zeros(seconds, dtype=np.int64)
    inside = (rows["s"] >= 0) & (rows["s"] < seconds)
    counts[rows["s"][inside]] = rows["n"][inside]
    seen = np.ones(seconds, dtype=bool)
    for start, end in _blind(context, pid, where).tolist():
        low = max(0, (start - first) // SECOND_NS)
        seen[low : max(low, -(-(end - first) // SECOND_NS))] = False
    return counts, seen


def _blind(context: Context, pid: int, where: str) -> Intervals:
    """Time in which launches could not be counted to the second."""
    from gpuaudit.analyze.threads import blind  # noqa: PLC0415 - it imports the context

    a = context.store.arrays(
        "SELECT start_ns::BIGINT AS a, end_ns::BIGINT AS b FROM call_totals "
        f"WHERE {where} AND duration_ns > {SECOND_NS}"
    )
    lost, _ = silence.lossy(context.store)
    return intervals.union(blind(context, pid), lost, context.window.asleep, intervals.from_bounds(a["a"], a["b"]))


def _launcher(context: Context, pid: int) -> int | None:
    """The thread that launches most."""
    rows = context.store.sql(
        f"SELECT tid FROM (SELECT tid, 1 AS n FROM cuda_calls WHERE pid = {pid} AND {context.means(WORK)} AND {FIRST} "
        f"UNION ALL SELECT tid, count FROM call_totals WHERE pid = {pid} AND {context.means(WORK)}) "
        "GROUP BY tid ORDER BY sum(n) DESC, tid LIMIT 1"
    )
    return int(rows[0][0]) if rows else None


def _evidence(context: Context, pid: int) -> Callable[[], tuple[str, ...]]:
    return lambda: context.book.present(("cuda_calls", "call_totals"), f"pid = {pid} AND {WORK.condition}")
