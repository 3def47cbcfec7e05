"""Allocator calls: time that a thread spent in allocating and freeing memory, where it is a noticeable part.

Of a thread with at least :data:`LEAST_CALLS` such calls that took at least :data:`SHARE` of its observed time. Calls
without rows of their own are not in it. Units: ns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze import intervals
from gpuaudit.analyze.call_meanings import ALLOCATE, ALLOCATE_HOST, ALLOCATE_MANAGED, FREE, FREE_HOST, any_of
from gpuaudit.analyze.causal.model import Effect
from gpuaudit.analyze.finding import Threshold

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context
    from gpuaudit.analyze.threads import Thread

KIND = "allocator_calls"

SHARE = Threshold(
    "allocator_share", Fraction(1, 20), "share",
    "the share from which a finding is a warning: a program in its steady state has its memory",
)  # fmt: skip
LEAST_CALLS = Threshold("allocator_calls", 20, "count", "chosen: fewer are the set-up of a program, not a habit")
THRESHOLDS = (SHARE, LEAST_CALLS)

ALLOCATOR = any_of(ALLOCATE, ALLOCATE_MANAGED, ALLOCATE_HOST, FREE, FREE_HOST)


def effects(context: Context) -> Sequence[Effect]:
    """One per thread."""
    from gpuaudit.analyze.threads import threads  # noqa: PLC0415 - it imports the context

    found = (_of_thread(context, t) for t in threads(context, ALLOCATOR))
    return [e for e in found if e is not None]


def _of_thread(context: Context, thread: Thread) -> Effect | None:
    calls = thread.calls(context, ALLOCATOR)
    time = intervals.intersect(calls.time, thread.observed)
    if len(calls) < LEAST_CALLS.value or not len(time):
        return None
    if Fraction(intervals.measure(time), thread.length_ns) < SHARE.value:
        return None
    pid, tid = thread.pid, thread.tid
    return Effect(
        kind=KIND, key=f"{KIND}:{pid}:{tid}",
        name=f"the {len(calls)} allocator calls on thread {tid} of {context.process_name(pid)} ({pid})",
        pid=pid, tid=tid, op="allocate", time=time,
        parts=np.stack([calls.columns["start_ns"], calls.columns["end_ns"]], axis=1), of_ns=thread.length_ns,
        evidence=_evidence(context, thread.where_op(ALLOCATOR)), subject={"pid": str(pid), "tid": str(tid)},
    )  # fmt: skip


def _evidence(context: Context, where: str) -> Callable[[], tuple[str, ...]]:
    return lambda: (context.book.where("cuda_calls", where),)
