"""Effects of one shape: calls of a kind that take a noticeable part of a thread's time, whatever each of them takes.

Calls without rows of their own are not in it. Units: ns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze import intervals
from gpuaudit.analyze.call_meanings import Meaning
from gpuaudit.analyze.causal.model import Effect

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context
    from gpuaudit.analyze.threads import Thread


@dataclass(frozen=True)
class Habit:
    """``what`` reads "the 40 blocking copies of …", ``op`` stands for the call in tables; a thread has the habit from
    ``least_calls`` and ``least_share`` of its observed time on. ``begins``: by process, when it can begin; calls
    before are something else."""

    kind: str
    meaning: Meaning
    what: str
    op: str
    least_calls: int | Fraction
    least_share: int | Fraction
    begins: Mapping[int, int] = field(default_factory=dict)


def effects(context: Context, habit: Habit) -> Sequence[Effect]:
    """One per thread that has the habit."""
    from gpuaudit.analyze.threads import threads  # noqa: PLC0415 - it imports the context

    found = (_of_thread(context, habit, t) for t in threads(context, habit.meaning))
    return [e for e in found if e is not None]


def _of_thread(context: Context, habit: Habit, thread: Thread) -> Effect | None:
    begin = habit.begins.get(thread.pid, 0)
    calls = thread.calls(context, habit.meaning).since(begin)
    time = intervals.intersect(calls.time, thread.observed)
    if len(calls) < habit.least_calls or not len(time):
        return None
    if Fraction(intervals.measure(time), thread.length_ns) < habit.least_share:
        return None
    pid, tid = thread.pid, thread.tid
    return Effect(
        kind=habit.kind, key=f"{habit.kind}:{pid}:{tid}",
        name=f"the {len(calls)} {habit.what} on thread {tid} of {context.process_name(pid)} ({pid})",
        pid=pid, tid=tid, op=habit.op, time=time,
        parts=np.stack([calls.columns["start_ns"], calls.columns["end_ns"]], axis=1), of_ns=thread.length_ns,
        evidence=_evidence(context, f"{thread.where_op(habit.meaning)} AND start_ns >= {begin}"),
        subject={"pid": str(pid), "tid": str(tid)},
    )  # fmt: skip


def _evidence(context: Context, where: str) -> Callable[[], tuple[str, ...]]:
    return lambda: (context.book.where("cuda_calls", where),)
