"""Rule: a thread that is bound by launching kernels, and whether what it launches is small.

For each thread: the time inside launches that returned at once (at most ``launch_ns``; a longer one waited because the
queue was full, which means that the GPU has enough to do), as a share of the time from its first launch to its last.
Whether kernels are short is not recorded; how many threads a launch asks for is. Unit of the impact: ns of the thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import call_sites, call_totals, intervals, severity
from gpuaudit.analyze.call_meanings import LAUNCH as LAUNCHES
from gpuaudit.analyze.call_totals import Aggregated
from gpuaudit.analyze.context import Context, Outcome
from gpuaudit.analyze.drafts import about_process, derived, worst
from gpuaudit.analyze.finding import Declaration, Finding, Fix, Quantity, Threshold
from gpuaudit.analyze.gpu_time import UNKNOWN
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.threads import Calls, Thread, outcome, threads

MIN_LAUNCHES = Threshold("min_launches", 1_000, "count", "chosen: fewer are no habit, and no rate", least=2)
LAUNCH = Threshold(
    "launch_ns", 50_000, "ns",
    "chosen: a launch that is only queued takes some microseconds, and a probe adds one or two; ten times that is a "
    "wait",
)  # fmt: skip
SHARE = Threshold(
    "launch_share", Fraction(1, 4), "share",
    "chosen: a thread that spends a quarter of its time only in queueing kernels spends much of the rest preparing "
    "them",
)  # fmt: skip
SMALL = Threshold(
    "small_threads", 2_048, "count",
    "CUDA C++ Programming Guide, technical specifications per compute capability: 2,048 resident threads per "
    "multiprocessor (8.0, 9.0, 10.0), so a launch below it cannot fill even one",
)  # fmt: skip
SMALL_SHARE = Threshold(
    "small_share", Fraction(1, 2), "share", "chosen: most of the launches, so that they set the pace"
)

DECLARATION = Declaration(
    id="tiny_launches",
    kind="rule",
    title="Bound by launches",
    question="Does a thread spend much of its time launching kernels, and are they small?",
    inputs=(("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "grid_x", "grid_y", "grid_z", "block_x",
                            "block_y", "block_z")),
            ("gaps", ("start_ns", "duration_ns", "source", "table_name", "pid"))),
    thresholds=(MIN_LAUNCHES, LAUNCH, SHARE, SMALL, SMALL_SHARE, *severity.THRESHOLDS),
    texts={
        "tiny_launches": "Thread {thread} of process {process} spent {inside} of {observed} ({share}) in queueing "
        "{launches} launches, {rate}, of {median} with {gap} between them (medians); {small} of them asked for fewer "
        "than {threshold} threads. Where they were made: {sites}.",
        "launch_bound": "Thread {thread} of process {process} spent {inside} of {observed} ({share}) in queueing "
        "{launches} launches, {rate}, of {median} with {gap} between them (medians). Where they were made: {sites}.",
    },
    never_claims="That the kernels were short or the GPU idle: their time on the GPU is not recorded. A launch of few "
    "threads may run long.",
    assumptions=("A launch that returned within launch_ns was only queued.",
                 "Launches of graphs are one call for many kernels, and are not counted."),
)  # fmt: skip

NS_PER_S = 10**9
NO_ROW = "none of the launches has a row of its own"
MOST_THREADS = 1 << 62
FACTORS = ("grid_y", "grid_z", "block_x", "block_y", "block_z")


def _threads_sql() -> str:
    """SQL: threads that a launch asks for, at most :data:`MOST_THREADS`; :data:`UNKNOWN` where it is not known."""
    product = "grid_x::HUGEINT"
    for factor in FACTORS:
        product = f"least({product} * {factor}, {MOST_THREADS})"
    told = " AND ".join(f"{c} IS NOT NULL" for c in ("grid_x", *FACTORS))
    return f"CASE WHEN {told} THEN {product} ELSE {UNKNOWN} END::BIGINT AS threads"


def evaluate(context: Context) -> Outcome:
    """One finding per thread."""
    all_threads = threads(context, LAUNCHES)
    items = [f for t in all_threads if (f := _of_thread(context, t)) is not None]
    return outcome(context, worst(items), f"threads that launched kernels: {len(all_threads)}")


@dataclass
class _Rows:
    """Launches of one thread that have a row, in order of time; times in ns."""

    observed: Intervals
    """Of the thread."""
    queued_inside: int = 0
    """Observed time inside launches that were only queued, each moment once."""
    small: int = 0
    durations: list[npt.NDArray[np.unsignedinteger]] = field(default_factory=list)
    gaps: list[npt.NDArray[np.unsignedinteger]] = field(default_factory=list)
    """From the end of a launch to the start of the next."""
    first_ns: int | None = None
    """Start of the first that took any time."""
    reach_ns: int = 0
    """The latest end of those that took any time."""
    _queued_to_ns: int = 0
    _last_end_ns: int | None = None

    def add(self, calls: Calls, queue_ns: int, small: int) -> None:
        """Launches that began after all before: times that they share with those before are counted already."""
        start, end, sizes = (calls.columns[name] for name in ("start_ns", "end_ns", "threads"))
        if not len(calls):
            return
        duration = calls.duration
        queued = intervals.from_bounds(start[duration <= queue_ns], end[duration <= queue_ns])
        if len(queued):
            new = intervals.clip(queued, self._queued_to_ns, intervals.FAR)
            self.queued_inside += intervals.measure(intervals.intersect(new, self.observed))
            self._queued_to_ns = max(self._queued_to_ns, int(queued[-1, 1]))
        some = duration > 0
        if some.any():
            self.first_ns = int(start[some.argmax()]) if self.first_ns is None else self.first_ns
            self.reach_ns = max(self.reach_ns, int(end[some].max()))
        ended, next_start = end[:-1], start[1:]
        if self._last_end_ns is not None:
            ended, next_start = np.append(self._last_end_ns, ended), start
        self.gaps.append(_narrow(np.maximum(next_start - ended, 0)))
        self._last_end_ns = int(end[-1])
        self.durations.append(_narrow(duration))
        self.small += int(((sizes != UNKNOWN) & (sizes < small)).sum())

    def __len__(self) -> int:
        return sum(map(len, self.durations))

    @property
    def reach(self) -> Intervals:
        """From the start of the first that took any time to the end of the last."""
        return intervals.EMPTY if self.first_ns is None else intervals.single(self.first_ns, self.reach_ns)


def _narrow(values: npt.NDArray[np.int64]) -> npt.NDArray[np.unsignedinteger]:
    """The same, which are not negative, in half the bytes where they are shorter than four seconds."""
    return values.astype(np.uint32 if values.max(initial=0) <= np.iinfo(np.uint32).max else np.uint64)


@dataclass(frozen=True)
class _Launching:
    """Launches of one thread: those with a row of their own, those without (``fast``, and of them those that were
    ``only_queued``), and the observed time from the first to the last."""

    calls: _Rows
    observed: Intervals
    fast: Aggregated
    only_queued: Aggregated

    @property
    def inside(self) -> int:
        """ns inside launches that were only queued."""
        return min(self.calls.queued_inside + self.only_queued.sum_ns, intervals.measure(self.observed))

    @property
    def count(self) -> int:
        """Launches."""
        return len(self.calls) + self.fast.calls


def _of_thread(context: Context, thread: Thread) -> Finding | None:
    smaller = int(context.policy.value(SMALL, DECLARATION.id))
    queue_ns = int(context.policy.value(LAUNCH, DECLARATION.id))
    calls = _Rows(thread.observed)
    for some in thread.calls_by_time(context, LAUNCHES, (_threads_sql(),)):  # there may be many millions
        calls.add(some, queue_ns, smaller)
    fast = call_totals.of_thread(context.store, thread.pid, thread.tid, LAUNCHES)
    if len(calls) + fast.calls < context.policy.value(MIN_LAUNCHES, DECLARATION.id):
        return None
    times = intervals.union(calls.reach, fast.windows)
    span = intervals.clip(thread.observed, int(times[0, 0]), int(times[-1, 1])) if len(times) else intervals.EMPTY
    only = call_totals.of_thread(context.store, thread.pid, thread.tid, LAUNCHES, queue_ns)
    seen = _Launching(calls, span, fast, only)
    observed = intervals.measure(span)
    if not observed or Fraction(seen.inside, observed) < context.policy.value(SHARE, DECLARATION.id) or not seen.inside:
        return None
    tiny = bool(len(calls)) and Fraction(calls.small, len(calls)) >= context.policy.value(SMALL_SHARE, DECLARATION.id)
    rows = (context.book.where("cuda_calls", thread.where_op(LAUNCHES)), *fast.evidence(context.book))
    impact = derived(seen.inside, "ns", rows, f"time inside launches of at most launch_ns{only.plus_sum}")
    values: dict[str, Quantity | str] = {
        "thread": str(thread.tid),
        "sites": call_sites.sentence(context, thread.where_op(LAUNCHES)),
        "inside": impact,
        **_values(context, rows, seen),
    }
    fix = Fix(
        "Fuse small kernels, or record the sequence once and launch it as a CUDA graph", "", "", "",
        "a graph has to be recorded again when shapes change",
    )  # fmt: skip
    grave = severity.of_share(seen.inside, observed, context.policy, DECLARATION.id)
    return about_process(
        context, DECLARATION, thread.pid, text="tiny_launches" if tiny else "launch_bound",
        severity=severity.at_most(grave, "warning"), values=values, impact=impact, tid=thread.tid, fixes=(fix,),
    )  # fmt: skip


def _values(context: Context, rows: tuple[str, ...], seen: _Launching) -> dict[str, Quantity]:
    observed, count, of_rows = intervals.measure(seen.observed), seen.count, seen.fast.of_rows
    return {
        "observed": derived(observed, "ns", rows, "first launch to the end of the last, less time not observed"),
        "share": derived(Fraction(seen.inside, observed), "share", rows, "inside / observed"),
        "launches": derived(count, "count", rows, f"rows of the calls{seen.fast.plus_count}"),
        "rate": derived(Fraction(count * NS_PER_S, observed), "1/s", rows, "launches / observed"),
        "median": derived(_median(seen.calls.durations), "ns", rows, f"median duration of a launch{of_rows}", NO_ROW),
        "gap": derived(
            _median(seen.calls.gaps), "ns", rows, f"median time from the end of a launch to the next{of_rows}", NO_ROW
        ),
        "small": derived(seen.calls.small, "count", rows, f"launches with grid × block below threshold{of_rows}"),
        "threshold": Quantity(int(context.policy.value(SMALL, DECLARATION.id)), "count", "assumed"),
    }


def _median(parts: Sequence[npt.NDArray[np.unsignedinteger]]) -> int | None:
    values = np.concatenate([np.zeros(0, dtype=np.uint32), *parts])
    values.sort()
    return int(values[(len(values) + 1) // 2 - 1]) if len(values) else None
