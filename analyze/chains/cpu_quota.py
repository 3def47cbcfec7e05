"""Chain: a thread was ready to run and was not let, because its cgroup had used up its CPU quota.

Effect: slow calls, the lateness of a rank, or the wait for a thread that was itself waited for. Cause: time in which
the same thread was runnable and off its CPU, in intervals that the throttling of its cgroup accounts for. The kernel
does not say which interval was a throttling; its counters say how long and in how many enforcement periods the cgroup
was throttled between two readings. Of the thread's intervals that ended between them (or soon after, when the counter
had been read before the thread ran again) those that began runnable with its CPU going idle (only a throttled thread
is runnable while its CPU idles) are taken first, then the longest, as many as periods were throttled and until they
are as long as the throttled time. What an interval has more than that is its end, in which the quota was refilled and
the thread waited for a CPU: that is not claimed. Units: ns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import cgroup_limits, intervals
from gpuaudit.analyze.causal import model, recorded, states
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.causal.states import States
from gpuaudit.analyze.cgroup_limits import Throttled
from gpuaudit.analyze.finding import Declaration, Quantity, Threshold
from gpuaudit.analyze.words import duration

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

FITS = Threshold(
    "fits_ratio", Fraction(3, 2), "ratio",
    "chosen: when the quota is refilled the counter stops, and the thread still has to get its CPU back (measured on "
    "Linux 6.18: 5 % more on an idle host, half as much again on a busy one); what is longer is another cause",
)  # fmt: skip

DECLARATION = Declaration(
    id="cpu_quota",
    kind="chain",
    title="CPU quota used up",
    question="Was a thread ready to run, and held back because its cgroup had used up its CPU quota?",
    inputs=(
        ("off_cpu", ("start_ns", "duration_ns", "pid", "tid", "op", "next_pid", "runqueue_ns")),
        ("cgroup_cpu", ("start_ns", "cgroup", "version", "throttled_periods", "throttled_ns", "quota_ns", "period_ns")),
        ("process_samples", ("pid", "cpu_cgroup", "cpu_cgroup_version")),
    ),
    thresholds=(FITS, *model.THRESHOLDS),
    texts={
        "cpu_quota": "For {explained} of {effect_time} ({share}) of {effect} the thread was ready to run and was not "
        "let, while {culprit} was used up: {quota} of CPU time in every {period}. Between the readings around it the "
        "cgroup was throttled for {throttled} in {throttled_periods} periods.",
    },
    never_claims="That the thread would have had a CPU without the quota, unless its CPU went idle meanwhile; nor "
    "which thread of the cgroup used the quota up.",
    assumptions=(
        "A thread is throttled at most once in an enforcement period, and no longer than its cgroup was on all CPUs "
        "together.",
        "A process stays in the cgroup in which it was sampled.",
    ),
)  # fmt: skip


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Per effect, for each throttled cgroup above its process, the intervals that the throttling accounts for."""
    why = _unrecorded(context)
    if why is not None:
        return why
    limits, groups = cgroup_limits.throttled(context), cgroup_limits.limited_by(context)
    found: dict[str, list[Cause]] = {}
    for place, limit in limits.items():
        windows = {e.key: _touched(limit, e) for e in effects if place in groups.get(e.pid, ())}
        asked = [replace(e, time=_time(limit, windows[e.key])) for e in effects if e.key in windows]
        seen = states.of_effects(context, asked)
        siblings = np.array(sorted(pid for pid, above in groups.items() if place in above), dtype=np.int64)
        for e in asked:
            if e.key in seen:
                # Counters are of waits as a whole: one throttled period accounts for one of them.
                causes = _causes(context, limit, windows[e.key], seen[e.key].uncut, siblings)
                found.setdefault(e.key, []).extend(causes)
    return found


def _unrecorded(context: Context) -> NotEvaluated | None:
    from gpuaudit.analyze.context import NotEvaluated  # noqa: PLC0415 - it imports what imports this

    why = states.unrecorded(context) or recorded.unrecorded(context, "cgroup_cpu", "reading of CPU counters", "memory")
    if why is not None:
        return why
    if not context.store.sql("SELECT 1 FROM process_samples WHERE cpu_cgroup IS NOT NULL LIMIT 1"):
        return NotEvaluated("which cgroup limits the CPU time of a process was not recorded")
    return None


def _touched(limit: Throttled, e: Effect) -> npt.NDArray[np.intp]:
    """Windows whose counter may tell of an interval that overlaps the effect: those it meets, and both beside them."""
    inside = np.flatnonzero(states.overlapping(limit.start, limit.end, e.time))
    return np.unique(np.clip(np.concatenate([inside - 1, inside, inside + 1]), 0, len(limit.start) - 1))


def _time(limit: Throttled, windows: npt.NDArray[np.intp]) -> intervals.Intervals:
    return intervals.from_bounds(limit.start[windows], limit.end[windows])


def _causes(
    context: Context, limit: Throttled, windows: npt.NDArray[np.intp], s: States, siblings: npt.NDArray[np.int64]
) -> Iterator[Cause]:
    # Where a thread of the same cgroup took the CPU from it, the cgroup was not throttled there.
    preempted = s.a["op"] == "preempted"
    possible = (s.a["end_ns"] > s.runnable_from) & ~(preempted & np.isin(s.a["next_pid"], siblings))
    most = Fraction(context.policy.value(FITS, DECLARATION.id))
    ends = _accounted(limit, windows, s, possible, most)
    chosen = ends > s.runnable_from
    if not chosen.any():
        return
    time = intervals.from_bounds(s.runnable_from[chosen], ends[chosen])
    other = intervals.measure(intervals.subtract(time, s.runnable(_idle(s))))
    version, path = limit.place
    counters = (context.book.listed("cgroup_cpu", limit.rows[windows], f"version = {version} AND throttled_ns > 0"),)
    rows = s.evidence(context, chosen)
    yield Cause(
        culprit=f"the CPU quota of cgroup {path}",
        time=time,
        evidence=lambda allotted: (*rows(allotted), *counters),
        text="cpu_quota",
        what=f"its thread was ready to run, and its cgroup {path} had used up its CPU quota",
        values={
            "quota": Quantity(limit.quota_ns, "ns", "measured", counters, "quota_ns"),
            "period": Quantity(limit.period_ns, "ns", "measured", counters, "period_ns"),
            "throttled": Quantity(int(limit.ns[windows].sum()), "ns", "derived", counters, "growth of throttled_ns"),
            "throttled_periods": Quantity(
                int(limit.periods[windows].sum()), "count", "derived", counters, "growth of throttled_periods"
            ),
        },
        subject={"cgroup": path},
        against=(
            f"for {duration(other)} its CPU was not seen idle meanwhile: whether the quota or another thread kept it "
            "waiting cannot be told from the counters",
        )
        if other
        else (),
        gain_low_ns=(lambda _: 0) if other else (lambda allotted: allotted),
    )


def _idle(s: States) -> states.Chosen:
    """Rows that began runnable while the CPU went idle."""
    out: states.Chosen = (s.a["op"] == "preempted") & (s.a["next_pid"] == 0)
    return out


def _accounted(
    limit: Throttled, windows: npt.NDArray[np.intp], s: States, possible: states.Chosen, most: Fraction
) -> npt.NDArray[np.int64]:
    """Of each row until when so many throttled periods and so long a throttled time account for it; 0 where not."""
    start, end, length = s.runnable_from, s.a["end_ns"], s.a["end_ns"] - s.runnable_from
    periods = {w: int(limit.periods[w]) for w in windows.tolist()}
    left = {w: int(limit.ns[w]) for w in windows.tolist()}
    within = np.searchsorted(limit.end, end)  # the window that it ended in, or the first one after
    until = np.zeros(len(s), dtype=np.int64)
    at = np.flatnonzero(possible)
    for i in at[np.lexsort((start[at], -length[at], ~_idle(s)[at]))].tolist():
        w, ns = int(within[i]), int(length[i])
        counted = [w] if w < len(limit.start) and end[i] > limit.start[w] else []
        counted += [w - 1] if w and start[i] < limit.end[w - 1] else []
        for into in counted:
            if periods.get(into, 0) and ns <= left[into] * most:
                periods[into] -= 1
                until[i] = start[i] + min(ns, left[into])
                left[into] -= min(ns, left[into])
                break
    return until


DETECTOR = Detector(
    precedence=10,
    kinds=frozenset({"slow_call", "api_silence", "throughput_drop", "late_arrival", model.WAITED_FOR, "slow_step"}),
    scope="same thread, and the cgroups of its process",
    find=find,
    refuted_by="The same calls as slow with the quota lifted.",
    experiment="Lift the quota of the cgroup (cpu.max to max, cpu.cfs_quota_us to -1, or the container without a CPU "
    "limit), and capture again.",
    next_step="Compare the quota with what the process has threads for (audit query, cgroup_cpu), and raise it or have "
    "fewer threads.",
)
