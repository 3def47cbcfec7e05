"""Rule: a thread that spends much of its time in blocking copies.

For each thread: the time inside copies that return when they are done (cudaMemcpy, cuMemcpyHtoD …), as a share of its
observed time, first to last recorded call; bytes and sizes by direction, and how many copies are small. Unit of the
impact: ns of the thread.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from gpuaudit.analyze import call_sites, call_totals, intervals, severity
from gpuaudit.analyze.call_meanings import BLOCKING_COPY
from gpuaudit.analyze.context import Context, Outcome
from gpuaudit.analyze.drafts import about_process, derived, worst
from gpuaudit.analyze.finding import Declaration, Finding, Fix, Quantity, Threshold
from gpuaudit.analyze.gpu_time import UNKNOWN, bounded
from gpuaudit.analyze.threads import Calls, Thread, outcome, threads

SHARE = Threshold(
    "copy_share", Fraction(1, 20), "share",
    "the share from which a finding is a warning: a thread in blocking copies gives the GPU nothing else to do",
)  # fmt: skip
MIN_CALLS = Threshold("min_calls", 20, "count", "chosen: fewer copies are the loading of a model, not a habit", least=1)
SMALL = Threshold(
    "small_bytes", 65_536, "bytes",
    "CUDA C++ Programming Guide, asynchronous concurrent execution: copies from host to device of 64 KB or less return "
    "early; at that size the call costs more than the bytes",
)  # fmt: skip

DECLARATION = Declaration(
    id="synchronous_copies",
    kind="rule",
    title="Synchronous copies",
    question="Does a thread wait in blocking copies for a noticeable part of its time?",
    inputs=(("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "size_bytes", "direction")),
            ("gaps", ("start_ns", "duration_ns", "source", "table_name", "pid"))),
    thresholds=(SHARE, MIN_CALLS, SMALL, *severity.THRESHOLDS),
    texts={
        "synchronous_copies": "Thread {thread} of process {process} was in blocking copies for {copied} of {observed} "
        "observed ({share}): {calls} copies of {size} in all ({directions}), {median} at the median; of at most "
        "{threshold}: {small}. Where they were made: {sites}."
    },
    never_claims="That the GPU was idle meanwhile, or whether the host memory was pageable or pinned: the call does "
    "not tell; nor that an asynchronous copy would have been hidden behind other work.",
    assumptions=("A thread is observed from its first recorded call to its last one.",
                 "Time in a copy includes its wait for work given to the stream before it."),
)  # fmt: skip

DIRECTIONS = ("host to host", "host to device", "device to host", "device to device", "direction by address")
"""cudaMemcpyKind of driver_types.h, 0 to 4."""


def evaluate(context: Context) -> Outcome:
    """One finding per thread."""
    all_threads = threads(context, BLOCKING_COPY)
    items = [f for t in all_threads if (f := _of_thread(context, t)) is not None]
    return outcome(context, worst(items), f"threads that made blocking copies: {len(all_threads)}")


def _of_thread(context: Context, thread: Thread) -> Finding | None:
    calls = thread.calls(
        context,
        BLOCKING_COPY,
        (f"{bounded('size_bytes')} AS size", f"coalesce(direction, {UNKNOWN})::BIGINT AS direction"),
    )
    fast = call_totals.of_thread(context.store, thread.pid, thread.tid, BLOCKING_COPY)
    count = len(calls) + fast.calls
    observed = thread.length_ns
    copied = min(intervals.measure(intervals.intersect(calls.time, thread.observed)) + fast.sum_ns, observed)
    if count < context.policy.value(MIN_CALLS, DECLARATION.id) or not copied:
        return None
    share = Fraction(copied, observed)
    if share < context.policy.value(SHARE, DECLARATION.id):
        return None
    rows = (context.book.where("cuda_calls", thread.where_op(BLOCKING_COPY)), *fast.evidence(context.book))
    every = (context.book.where("cuda_calls", thread.where), *rows[1:])
    sizes = np.sort(calls.columns["size"][calls.columns["size"] != UNKNOWN])
    limit = int(context.policy.value(SMALL, DECLARATION.id))
    median = int(sizes[(len(sizes) + 1) // 2 - 1]) if len(sizes) else None
    impact = derived(
        copied, "ns", rows, f"time inside at least one of the calls, within the observed time{fast.plus_sum}"
    )
    values: dict[str, Quantity | str] = {
        "thread": str(thread.tid),
        "sites": call_sites.sentence(context, thread.where_op(BLOCKING_COPY)),
        "copied": impact,
        "observed": derived(observed, "ns", every, "first to last call of the thread, less time not observed"),
        "share": derived(share, "share", every, "copied / observed"),
        "calls": derived(count, "count", rows, f"rows of the calls{fast.plus_count}"),
        "size": derived(sum(sizes.tolist()) + fast.size_bytes, "bytes", rows, "sum of the sizes that were recorded"),
        "median": derived(median, "bytes", rows, f"median size{fast.of_rows}", "no size was recorded"),
        "small": derived(int((sizes <= limit).sum()), "count", rows, f"copies of at most threshold{fast.of_rows}"),
        "threshold": Quantity(limit, "bytes", "assumed"),
        "directions": _directions(calls, fast.calls),
    }
    fix = Fix(
        "Copy from pinned memory with cudaMemcpyAsync on a stream of its own, and put small copies together", "", "",
        "",
        "the host has to wait for the copy where the data are used; pinned memory cannot be swapped out",
    )  # fmt: skip
    grave = severity.of_share(copied, observed, context.policy, DECLARATION.id)
    return about_process(
        context, DECLARATION, thread.pid, text="synchronous_copies", severity=severity.at_most(grave, "warning"),
        values=values, impact=impact, tid=thread.tid, fixes=(fix,),
    )  # fmt: skip


def _directions(calls: Calls, without_rows: int) -> str:
    kinds = calls.columns["direction"]
    out = [f"{name}: {n}" for k, name in enumerate(DIRECTIONS) if (n := int((kinds == k).sum()))]
    rest = without_rows + len(calls) - int(np.isin(kinds, range(len(DIRECTIONS))).sum())
    return ", ".join([*out, *([f"direction not known: {rest}"] if rest else [])])
