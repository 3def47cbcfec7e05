"""Slow steps: those that took far longer than steps of the same kind on the same thread usually do.

Steps and kinds as in :mod:`gpuaudit.analyze.steps`; slow by the thresholds of slow calls: more than three times the
median of the kind, among its slowest hundredth, of at least ten. One effect per thread and kind. Units: ns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze import intervals
from gpuaudit.analyze.causal.model import Effect
from gpuaudit.analyze.effects import slow_calls

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context
    from gpuaudit.analyze.steps import Steps

KIND = "slow_step"

MAX_KINDS = 16
"""Kinds of one thread that are looked at, the most frequent first."""


def effects(context: Context) -> Sequence[Effect]:
    """One per thread and kind of step with a slow one."""
    return [
        e for s in context.steps for k in range(min(len(s.names), MAX_KINDS))
        if (e := _of_kind(context, s, k)) is not None
    ]  # fmt: skip


def name(kind: tuple[int, int]) -> str:
    """A kind of step in words."""
    graphs, kernels = kind
    return f"{graphs} graph{'' if graphs == 1 else 's'} and {kernels} kernel{'' if kernels == 1 else 's'}"


def _of_kind(context: Context, s: Steps, k: int) -> Effect | None:
    from gpuaudit.analyze.steps import outliers  # noqa: PLC0415 - the same

    mine = np.flatnonzero(s.kinds == k)
    slow, median = outliers(s.durations[mine], *slow_calls.limits_of(context))
    if not slow.any():
        return None
    parts = np.stack([s.starts[mine[slow]], s.ends[mine[slow]]], axis=1)
    which = "the slow step" if len(parts) == 1 else f"the {len(parts)} slow steps"
    return Effect(
        kind=KIND, key=f"{KIND}:{s.pid}:{s.tid}:{s.names[k][0]}:{s.names[k][1]}",
        name=f"{which} of {name(s.names[k])} on thread {s.tid} of {context.process_name(s.pid)} ({s.pid})",
        pid=s.pid, tid=s.tid, op="step", time=intervals.from_bounds(parts[:, 0], parts[:, 1]), parts=parts,
        of_ns=int(s.ends[-1] - s.starts[0]), evidence=_evidence(context, s, parts, median),
        subject={"pid": str(s.pid), "tid": str(s.tid)},
    )  # fmt: skip


def _evidence(context: Context, s: Steps, parts: intervals.Intervals, median: int) -> Callable[[], tuple[str, ...]]:
    """Calls of the slow steps, by their bounds; of many, all that the thread's steps are made of."""

    def rows() -> tuple[str, ...]:
        if len(parts) > MAX_LISTED or not median:
            return (context.book.where("cuda_calls", s.where),)
        bounds = " OR ".join(f"start_ns BETWEEN {a} AND {b}" for a, b in parts.tolist())
        return (context.book.where("cuda_calls", f"{s.where} AND ({bounds})"),)

    return rows


MAX_LISTED = 100
"""Steps that a query names one by one."""
