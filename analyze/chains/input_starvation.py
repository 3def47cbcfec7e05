"""Chain: a process gave its GPU nothing to do because its data workers had nothing ready for it.

Effect: API silence, a drop of throughput, idle time of a GPU by its own record, or waits of the calling thread that a
worker ended. Cause, by what its workers (the processes it started, whatever they are called) did at that moment:
*saturated*, the host's CPUs were full and most thread switches were theirs; *busy*, a worker computed for all of a
sampling period while the calling thread slept; *without a CPU*, a worker had work to do and somebody else its CPU while
the calling thread slept; *waiting*, a worker slept for a disk or a socket while the calling thread slept. Workers that
wait for an order (a pipe, a futex) are no evidence. Units: ns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze import intervals
from gpuaudit.analyze.call_rows import Rows, pids_of
from gpuaudit.analyze.causal import model, states
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.causal.states import States
from gpuaudit.analyze.effects import worker_waits
from gpuaudit.analyze.family import descendants
from gpuaudit.analyze.finding import Declaration, Quantity, Threshold
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.store import NOT_OWN
from gpuaudit.analyze.system_calls import ASYNCHRONOUS_IO, machine, numbers
from gpuaudit.analyze.words import duration

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

FULL = Threshold(
    "cpu_full_percent", 90, "count",
    "chosen: nine tenths of all CPUs in use (percent) leave less than one CPU free on a host of up to ten", most=100,
)  # fmt: skip
SAMPLE = Threshold(
    "host_sample_ns", 1_000_000_000, "ns",
    "chosen: a share of CPU time tells of the time before it was read, at most a second: samplers read once a second",
)  # fmt: skip
THEIRS = Threshold(
    "workers_switches", Fraction(1, 2), "share",
    "chosen: CPUs are full of what switches on them; below half of the switches somebody else fills them as well",
)  # fmt: skip
BUSY = Threshold(
    "worker_busy", Fraction(9, 10), "share",
    "chosen: a worker that computed for nine tenths of a sampling period was not waiting for orders",
)  # fmt: skip

DECLARATION = Declaration(
    id="input_starvation",
    kind="chain",
    title="Input starvation",
    question="Did a GPU get no work because data workers were saturated, or waited for their own input?",
    inputs=(
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op")),
        ("off_cpu", ("start_ns", "duration_ns", "pid", "tid", "op", "prev_state", "syscall", "runqueue_ns",
                     "waker_pid")),
        ("process_samples", ("start_ns", "pid", "user_ns", "system_ns")),
        ("host_samples", ("start_ns", "cpu_percent")),
        ("period_totals", ("start_ns", "duration_ns", "pid", "op", "count")),
        ("processes", ("pid", "parent_pid", "comm", "role")),
        ("lifecycle", ("pid", "op", "other_pid")),
    ),
    thresholds=(*model.THRESHOLDS, FULL, SAMPLE, THEIRS, BUSY, worker_waits.SHARE),
    texts={
        "saturated": "For {explained} of {effect_time} ({share}) of {effect} the CPUs of the host were full "
        "({cpu_least} % in use at least) and {switches_share} of all thread switches were those of the {workers} "
        "processes it had started: consistent with saturated data workers.",
        "busy": "For {explained} of {effect_time} ({share}) of {effect} its calling thread slept while at least one of "
        "the {workers} processes it had started computed all the time: consistent with saturated data workers.",
        "no_cpu": "For {explained} of {effect_time} ({share}) of {effect} its calling thread slept while at least one "
        "of the {workers} processes it had started had work to do and no CPU: consistent with saturated data workers.",
        "waiting": "For {explained} of {effect_time} ({share}) of {effect} its calling thread slept while at least one "
        "of the {workers} processes it had started waited for a disk or a socket: consistent with data workers "
        "that have no input.",
    },
    never_claims="That these processes load data: only that the process started them, and what they did; nor that its "
    "GPU had nothing to do while a thread waited for them, nor how fast it would have been with input.",
    assumptions=(
        "A share of CPU time tells of the time before its reading.",
        "The thread that makes most of the calls is the one that waits for input.",
    ),
)  # fmt: skip

READS = frozenset({"recvfrom", "recvmsg", "recvmmsg"}) | ASYNCHRONOUS_IO
"""Calls in which a thread waits for what a socket or a device delivers. A read of a pipe may be a wait for orders."""

_PERCENT = "CASE WHEN cpu_percent BETWEEN 0 AND 100 THEN floor(cpu_percent)::BIGINT ELSE -1 END"
"""SQL: whole per cent; -1 for what is none."""

MOST_SWITCHES = 1 << 60
"""Of a period; more is no evidence, and sums of two stay within int64."""

_WHAT = {
    "saturated": "the CPUs were full with the processes it had started",
    "busy": "its thread slept while a process it had started computed",
    "no_cpu": "its thread slept while a process it had started was ready to run and had no CPU",
    "waiting": "its thread slept while a process it had started waited for a disk or a socket",
}
_CULPRIT = {
    "saturated": "saturated data workers", "busy": "busy data workers", "no_cpu": "data workers without a CPU",
    "waiting": "data workers without input",
}  # fmt: skip


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """What the workers of each effect's process did."""
    from gpuaudit.analyze.context import NotEvaluated  # noqa: PLC0415 - it imports what imports this

    workers = {e.pid: descendants(context, e.pid) for e in effects}
    if not any(workers.values()):
        return NotEvaluated("no process that the silent ones started was recorded, so their workers are not known")
    tables = ("off_cpu", "process_samples", "host_samples")
    if not any(context.store.row_count(t) for t in tables):
        return NotEvaluated(
            context.quality.source_reason("off_cpu") or "nothing was recorded of what threads did off or on a CPU"
        )
    seen = states.of_effects(context, effects)
    return {e.key: list(_causes(context, e, workers[e.pid], seen.get(e.key))) for e in effects if workers[e.pid]}


def _causes(context: Context, e: Effect, workers: Sequence[int], own: States | None) -> Iterator[Cause]:
    full = _saturated(context, e, workers)
    if full is not None:
        yield _with_doubt(full, e, own)
    if own is None:
        return
    every = np.ones(len(own), dtype=bool)
    asleep = intervals.intersect(e.time, own.asleep(every))
    slept = own.evidence(context, every)
    number = _workers(context, workers)
    for kind, rows in (
        ("busy", _busy(context, workers)), ("no_cpu", _preempted(context, workers)),
        ("waiting", _waiting(context, workers)),
    ):  # fmt: skip
        time = intervals.intersect(asleep, rows.time)
        if len(time):
            yield Cause(
                culprit=_CULPRIT[kind], time=time, text=kind, what=_WHAT[kind], values={"workers": number},
                evidence=_both(rows.evidence(context), slept),
            )  # fmt: skip


def _both(
    one: Callable[[Intervals], tuple[str, ...]], other: Callable[[Intervals], tuple[str, ...]]
) -> Callable[[Intervals], tuple[str, ...]]:
    return lambda time: (*one(time), *other(time))


def _workers(context: Context, workers: Sequence[int]) -> Quantity:
    named = pids_of(workers)
    tables = ("processes", "off_cpu", "process_samples", "period_totals")
    rows = (
        *context.book.present(tables, named),
        *context.book.present(("lifecycle",), f"op = 'fork' AND other_{named}"),
    )
    return Quantity(len(workers), "count", "derived", rows, "processes that it started, and those that these did")


def _busy(context: Context, workers: Sequence[int]) -> Rows:
    """Readings of workers that computed for most of the time since the reading before: their time is that time."""
    columns = "(user_ns + system_ns)::BIGINT AS used, pid::BIGINT AS pid, leaf::BIGINT AS leaf, row::BIGINT AS row"
    known = f"{pids_of(workers)} AND user_ns IS NOT NULL AND system_ns IS NOT NULL"
    a = context.store.arrays(
        "SELECT a AS start_ns, b AS end_ns, n, leaf, row FROM (SELECT lag(start_ns) OVER w AS a, start_ns AS b, "
        f"used - lag(used) OVER w AS n, leaf, row FROM (SELECT start_ns::BIGINT AS start_ns, {columns} "
        f"FROM process_samples WHERE {known}) WINDOW w AS (PARTITION BY pid ORDER BY start_ns, leaf, row)) "
        "WHERE a < b ORDER BY 1, 2, leaf, row"
    )
    least = Fraction(context.policy.value(BUSY, DECLARATION.id))
    length = a["end_ns"] - a["start_ns"]
    busy = np.array(
        [n * least.denominator >= t * least.numerator for n, t in zip(a["n"].tolist(), length.tolist(), strict=True)],
        dtype=bool,
    )
    return Rows("process_samples", known, a).of(busy)


def _preempted(context: Context, workers: Sequence[int]) -> Rows:
    """Rows of workers' threads that somebody else took the CPU from: such a thread had something to do."""
    return Rows.read(context, "off_cpu", f"{pids_of(workers)} AND op = 'preempted'")


def _waiting(context: Context, workers: Sequence[int]) -> Rows:
    """Rows of workers' threads that slept for a disk, or in a call that waits for a socket or a device."""
    calls = ", ".join(map(str, sorted(numbers(READS, machine(context.store.open_body)))))
    disk = (
        f"(prev_state & {states.TASK_UNINTERRUPTIBLE} <> 0 AND prev_state & {states.TASK_NOLOAD} = 0 "
        "AND op = 'blocked')"
    )
    return Rows.read(context, "off_cpu", f"{pids_of(workers)} AND ({disk} OR syscall IN ({calls}))")


def _saturated(context: Context, e: Effect, workers: Sequence[int]) -> Cause | None:
    """Samples of the host with full CPUs, in periods whose thread switches were mostly those of the workers."""
    full = context.policy.value(FULL, DECLARATION.id)
    most = int(context.policy.value(SAMPLE, DECLARATION.id))
    a = context.store.arrays(
        f"SELECT greatest(coalesce(lag(start_ns) OVER (ORDER BY start_ns, leaf, row), 0)::BIGINT, start_ns::BIGINT - "
        f"{most}) AS start_ns, start_ns::BIGINT AS end_ns, {_PERCENT} AS cpu, "
        "leaf::BIGINT AS leaf, row::BIGINT AS row FROM host_samples ORDER BY 2, leaf, row"
    )
    samples = Rows("host_samples", f"cpu_percent >= {full}", a)
    samples = samples.of(samples.a["cpu"] >= full)
    theirs = _periods(context, workers)
    time = intervals.intersect(samples.time, theirs.time)
    if not len(intervals.intersect(time, e.time)):
        return None
    rows, totals = samples.evidence(context), _of_periods(context, theirs)
    both = (*rows(e.time), *totals(e.time))
    touched = samples.touching(intervals.intersect(time, e.time))
    mine, every = int(theirs.a["mine"].sum()), int(theirs.a["every"].sum())
    return Cause(
        culprit=_CULPRIT["saturated"], time=time, text="saturated", what=_WHAT["saturated"],
        evidence=_both(rows, totals),
        values={
            "workers": _workers(context, workers),
            "cpu_least": Quantity(
                int(samples.a["cpu"][touched].min()), "count", "derived", both, "least CPU in use of the samples (%)"
            ),
            "switches_share": Quantity(
                Fraction(mine, every), "share", "derived", both, "switches of these processes / all that were counted"
            ),
        },
    )  # fmt: skip


def _periods(context: Context, workers: Sequence[int]) -> Rows:
    """Periods in which at least the set share of all counted thread switches was the workers'."""
    switches = f"op = 'off_cpu' AND {NOT_OWN}"
    a = context.store.arrays(
        "SELECT start_ns::BIGINT AS start_ns, max(end_ns)::BIGINT AS end_ns, "
        f"least(coalesce(sum(count) FILTER ({pids_of(workers)}), 0), {MOST_SWITCHES})::BIGINT AS mine, "
        f"least(sum(count), {MOST_SWITCHES})::BIGINT AS every, min(leaf)::BIGINT AS leaf, min(row)::BIGINT AS row "
        f"FROM period_totals WHERE {switches} GROUP BY start_ns ORDER BY 1"
    )
    least = Fraction(context.policy.value(THEIRS, DECLARATION.id))
    pairs = zip(a["mine"].tolist(), a["every"].tolist(), strict=True)
    chosen = np.array([m > 0 and m * least.denominator >= n * least.numerator for m, n in pairs], dtype=bool)
    return Rows("period_totals", switches, a).of(chosen)


def _of_periods(context: Context, periods: Rows) -> Callable[[Intervals], tuple[str, ...]]:
    """Every row of the periods that a time touches."""

    def rows(time: Intervals) -> tuple[str, ...]:
        begins = sorted(set(periods.a["start_ns"][periods.touching(time)].tolist()))
        named = ", ".join(map(str, begins))
        return (context.book.where(periods.table, f"{periods.where} AND start_ns IN ({named})"),) if begins else ()

    return rows


def _with_doubt(cause: Cause, e: Effect, own: States | None) -> Cause:
    """What the calling thread itself did then: one that ran on a CPU was not waiting for anybody."""
    claimed = intervals.intersect(e.time, cause.time)
    if own is None:
        return replace(cause, against=("what the calling thread itself did in that time was not recorded",))
    off = intervals.intersect(claimed, own.time(np.ones(len(own), dtype=bool)))
    ran = intervals.measure(claimed) - intervals.measure(off)
    if not ran:
        return cause
    return replace(cause, against=(f"for {duration(ran)} of it the calling thread was not seen to be off a CPU",))


DETECTOR = Detector(
    precedence=80,
    kinds=frozenset({"api_silence", "throughput_drop", "gpu_idle", worker_waits.KIND}),
    scope="the process and those that it started",
    find=find,
    refuted_by="The same silence while its workers have batches ready and wait for orders.",
    experiment="Feed the process the same batch from memory again and again: with the input out of the way the silence "
    "is gone. Then give it more workers on more CPUs, or faster storage, and capture again.",
    next_step="Count the CPUs that the workers may use against their number; see what they wait for (audit query, "
    "off_cpu of their process ids), and read ahead.",
)
