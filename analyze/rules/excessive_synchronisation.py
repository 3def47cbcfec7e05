"""Rule: a thread that spends much of its time in synchronisations, and makes them again and again.

For each thread: the time inside waits for a stream, a device or an event (of the CUDA runtime, the driver or HIP), as
a share of its observed time (first to last recorded call), and how often per second. Only both together are a finding:
a wait at the end of a long step is how results are fetched. Unit of the impact: ns of the thread.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from gpuaudit.analyze import call_sites, call_totals, intervals, severity
from gpuaudit.analyze.call_meanings import GRAPH_LAUNCH, LAUNCH, SYNCHRONISE, any_of
from gpuaudit.analyze.context import Context, Outcome
from gpuaudit.analyze.drafts import about_process, derived, worst
from gpuaudit.analyze.finding import Declaration, Finding, Fix, Quantity, Threshold
from gpuaudit.analyze.threads import Thread, outcome, threads

SHARE = Threshold(
    "sync_share", Fraction(1, 5), "share",
    "chosen: below a fifth of a thread's time its synchronisations are not what it spends its time on",
)  # fmt: skip
RATE = Threshold(
    "syncs_per_s", 100, "1/s",
    "chosen: a step longer than 10 ms needs no more than one; more often means inside a step",
)  # fmt: skip
MIN_CALLS = Threshold("min_calls", 100, "count", "chosen: fewer calls are a start or an end, not a habit", least=1)

DECLARATION = Declaration(
    id="excessive_synchronisation",
    kind="rule",
    title="Excessive synchronisation",
    question="Does a thread wait for the GPU so often that the GPU can hardly be given work ahead?",
    inputs=(("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op")),
            ("gaps", ("start_ns", "duration_ns", "source", "table_name", "pid"))),
    thresholds=(SHARE, RATE, MIN_CALLS, *severity.THRESHOLDS),
    texts={
        "excessive_synchronisation": "Thread {thread} of process {process} was in synchronisations for {waited} of "
        "{observed} observed ({share}): {calls} calls, {rate}, of {median} (median); launches for each: {per_launch}. "
        "Where they were made: {sites}."
    },
    never_claims="That the GPU was idle meanwhile, or that a wait could be left out: the host may need the result. "
    "Time on the GPU is not recorded by these calls.",
    assumptions=("A thread is observed from its first recorded call to its last one.",),
)  # fmt: skip

NS_PER_S = 10**9
LAUNCHES = any_of(LAUNCH, GRAPH_LAUNCH)


def evaluate(context: Context) -> Outcome:
    """One finding per thread."""
    all_threads = threads(context, SYNCHRONISE)
    items = [f for t in all_threads if (f := _of_thread(context, t)) is not None]
    return outcome(context, worst(items), f"threads that made synchronisations: {len(all_threads)}")


def _of_thread(context: Context, thread: Thread) -> Finding | None:
    calls = thread.calls(context, SYNCHRONISE)
    fast = call_totals.of_thread(context.store, thread.pid, thread.tid, SYNCHRONISE)
    count = len(calls) + fast.calls
    observed = thread.length_ns
    waited = min(intervals.measure(intervals.intersect(calls.time, thread.observed)) + fast.sum_ns, observed)
    if count < context.policy.value(MIN_CALLS, DECLARATION.id) or not waited:
        return None
    share, rate = Fraction(waited, observed), Fraction(count * NS_PER_S, observed)
    if share < context.policy.value(SHARE, DECLARATION.id) or rate < context.policy.value(RATE, DECLARATION.id):
        return None
    launched = call_totals.of_thread(context.store, thread.pid, thread.tid, LAUNCHES)
    launches = len(thread.calls(context, LAUNCHES)) + launched.calls
    rows = (context.book.where("cuda_calls", thread.where_op(SYNCHRONISE)), *fast.evidence(context.book))
    every = (context.book.where("cuda_calls", thread.where), *rows[1:], *launched.evidence(context.book))
    ordered = np.sort(calls.duration)
    impact = derived(
        waited, "ns", rows, f"time inside at least one of the calls, within the observed time{fast.plus_sum}"
    )
    values: dict[str, Quantity | str] = {
        "thread": str(thread.tid),
        "sites": call_sites.sentence(context, thread.where_op(SYNCHRONISE)),
        "waited": impact,
        "observed": derived(observed, "ns", every, "first to last call of the thread, less time not observed"),
        "share": derived(share, "share", every, "waited / observed"),
        "calls": derived(count, "count", rows, f"rows of the calls{fast.plus_count}"),
        "rate": derived(rate, "1/s", every, "calls / observed"),
        "median": derived(
            int(ordered[(len(ordered) + 1) // 2 - 1]) if len(ordered) else None,
            "ns",
            rows,
            f"median duration of the calls{fast.of_rows}",
            "none has a row of its own",
        ),
        "per_launch": derived(Fraction(launches, count), "ratio", every, "launches of the thread / calls"),
    }
    fix = Fix(
        "Wait once per step instead of after each operation: leave out synchronisations that no result is read after, "
        "or wait for an event where one is needed", "", "", "",
        "errors of a kernel show later; memory that was given to the GPU has to stay valid longer",
    )  # fmt: skip
    grave = severity.of_share(waited, observed, context.policy, DECLARATION.id)
    return about_process(
        context, DECLARATION, thread.pid, text="excessive_synchronisation", severity=severity.at_most(grave, "warning"),
        values=values, impact=impact, tid=thread.tid, fixes=(fix,),
    )  # fmt: skip
