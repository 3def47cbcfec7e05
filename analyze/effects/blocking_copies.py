"""Blocking copies: time that a thread spent in copies that return when they are done, where it is a noticeable part.

Of a thread that the rule ``synchronous_copies`` would tell of, by its thresholds: at least so many of them, for at
least such a share of its observed time. Copies without rows of their own are not in it. Units: ns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze import intervals
from gpuaudit.analyze.call_meanings import BLOCKING_COPY
from gpuaudit.analyze.causal.model import Effect

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context
    from gpuaudit.analyze.threads import Thread

KIND = "blocking_copies"


def effects(context: Context) -> Sequence[Effect]:
    """One per thread."""
    from gpuaudit.analyze.threads import threads  # noqa: PLC0415 - it imports the context

    found = (_of_thread(context, t) for t in threads(context, BLOCKING_COPY))
    return [e for e in found if e is not None]


def _of_thread(context: Context, thread: Thread) -> Effect | None:
    from gpuaudit.analyze.rules.synchronous_copies import DECLARATION, MIN_CALLS, SHARE  # noqa: PLC0415 - the same

    calls = thread.calls(context, BLOCKING_COPY)
    time = intervals.intersect(calls.time, thread.observed)
    few = len(calls) < context.policy.value(MIN_CALLS, DECLARATION.id)
    if few or not len(time):
        return None
    if Fraction(intervals.measure(time), thread.length_ns) < context.policy.value(SHARE, DECLARATION.id):
        return None
    pid, tid = thread.pid, thread.tid
    return Effect(
        kind=KIND, key=f"{KIND}:{pid}:{tid}",
        name=f"the {len(calls)} blocking copies on thread {tid} of {context.process_name(pid)} ({pid})",
        pid=pid, tid=tid, op="copy", time=time,
        parts=np.stack([calls.columns["start_ns"], calls.columns["end_ns"]], axis=1), of_ns=thread.length_ns,
        evidence=_evidence(context, thread.where_op(BLOCKING_COPY)), subject={"pid": str(pid), "tid": str(tid)},
    )  # fmt: skip


def _evidence(context: Context, where: str) -> Callable[[], tuple[str, ...]]:
    return lambda: (context.book.where("cuda_calls", where),)
