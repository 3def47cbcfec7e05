"""Causes that are a state of a GPU (throttled, shared, a bad link): claimed only where the state made a difference.

A state that held all the time explains nothing of why some calls are slow and others of the same operation are not. So
a claim needs a comparison: of the calls that began in the state at least :data:`TIMES` as large a part is slow as of
those that began outside it; for an effect that is not made of calls, the state covers at least as many times as large a
part of the effect as of the rest of the capture. Only time for which the state is known counts on either side. Units:
ns, or calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals
from gpuaudit.analyze.call_meanings import BLOCKING_COPY, OUTERMOST, SYNCHRONISE, Meaning, any_of
from gpuaudit.analyze.causal.model import Cause, Causes, Effect
from gpuaudit.analyze.finding import Quantity, Threshold
from gpuaudit.analyze.gpu_time import GpuTime
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.store import quoted
from gpuaudit.analyze.words import duration

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

TIMES = Threshold(
    "times_as_often", 2, "ratio",
    "chosen: calls that are slow twice as often in a state as outside it; less may be chance", least=1,
)  # fmt: skip
LEAST_OUTSIDE = Threshold(
    "least_outside", 10, "count",
    "design: fewer calls have no usual duration (least_calls of slow calls), so there is nothing to compare with",
    least=1,
)  # fmt: skip
THRESHOLDS = (TIMES, LEAST_OUTSIDE)

WAITS_FOR_GPU = any_of(SYNCHRONISE, BLOCKING_COPY)
"""Calls that return when the GPU has done what they wait for."""

KINDS = frozenset({"slow_call", "slow_step", "blocking_copies", "throughput_drop"})

SLOW_CALL = "slow_call"

SEVERAL = "the process held several GPUs, and a call does not say which one it waited for"


Evidence = Callable[[Intervals], tuple[str, ...]]


@dataclass(frozen=True)
class State:
    """A state of one GPU: ``time`` in which it held, of the ``known`` time. The rest is as in a cause."""

    culprit: str
    text: str
    what: str
    time: Intervals
    known: Intervals
    evidence: Evidence
    values: Mapping[str, Quantity | str] = field(default_factory=dict)
    subject: Mapping[str, str] = field(default_factory=dict)
    against: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contrast:
    """Slow and all, in the state and outside it: calls, or ns of the effect and of the capture."""

    slow_in: int
    all_in: int
    slow_out: int
    all_out: int
    calls: bool

    def holds(self, times: Fraction, least: int) -> bool:
        """Whether the state made a difference of so many times, told by at least so many calls outside it."""
        enough = self.all_out >= least if self.calls else self.all_out > 0
        return enough and self.slow_in > 0 and self.slow_in * self.all_out >= times * self.slow_out * self.all_in

    def __str__(self) -> str:
        if self.calls:
            return (
                f"{self.slow_in} of {self.all_in} of these calls that began then were slow, {self.slow_out} of "
                f"{self.all_out} of the others"
            )
        return (
            f"it is {duration(self.slow_in)} of the {duration(self.all_in)} of that state, and "
            f"{duration(self.slow_out)} of the {duration(self.all_out)} without it"
        )


Read = Callable[["Context", int, GpuTime], Sequence[State]]
"""The states of a GPU that concern the process of this id."""

Begins = npt.NDArray[np.int64]
"""When calls began."""


def causes(
    context: Context, effects: Sequence[Effect], detector: str, read: Read, calls: Meaning = WAITS_FOR_GPU
) -> Causes:
    """States of the GPUs that each effect's process held, where they made a difference; of slow calls those that mean
    one of ``calls``."""
    times = Fraction(context.policy.value(TIMES, detector))
    least = int(context.policy.value(LEAST_OUTSIDE, detector))
    of_process = cache(lambda pid: [s for g in context.gpus_by_pid.get(pid, []) for s in read(context, pid, g)])
    every = cache(partial(_begins, context))
    out: dict[str, list[Cause]] = {}
    for e in effects:
        if e.kind == SLOW_CALL and not calls.means(e.op):
            continue
        several = len(context.gpus_by_pid.get(e.pid, [])) > 1
        for state in of_process(e.pid):
            if not len(intervals.intersect(e.time, state.time)):
                continue
            compared = contrast(e, state, every)
            if compared.holds(times, least):
                out.setdefault(e.key, []).append(_cause(state, compared, several))
    return out


def all_of(context: Context, *tables: tuple[str, str]) -> Evidence:
    """Every row of each table that meets its condition, whatever time was allotted."""
    return lambda _: tuple(context.book.where(table, where) for table, where in tables)


def _cause(state: State, compared: Contrast, several: bool) -> Cause:
    return Cause(
        culprit=state.culprit, time=state.time, evidence=state.evidence, text=state.text, what=state.what,
        values={**state.values, "contrast": str(compared)}, subject=state.subject,
        against=(*state.against, *((SEVERAL,) if several else ())),
    )  # fmt: skip


def contrast(e: Effect, state: State, every: Callable[[int, str], Begins]) -> Contrast:
    """Slow and all, in and outside the state, of the time for which it is known; ``every``: calls by process and op."""
    free = intervals.subtract(state.known, state.time)
    if e.kind == SLOW_CALL:
        slow, calls = e.parts[:, 0], every(e.pid, e.op)
        return Contrast(
            _begin_in(slow, state.time), _begin_in(calls, state.time), _begin_in(slow, free), _begin_in(calls, free),
            calls=True,
        )  # fmt: skip
    return Contrast(
        intervals.measure(intervals.intersect(e.time, state.time)), intervals.measure(state.time),
        intervals.measure(intervals.intersect(e.time, free)), intervals.measure(free), calls=False,
    )  # fmt: skip


def _begins(context: Context, pid: int, op: str) -> Begins:
    table = "nccl_calls" if op.startswith(("nccl", "pnccl")) else "cuda_calls"
    a = context.store.arrays(
        f"SELECT start_ns::BIGINT AS a FROM {table} WHERE pid = {int(pid)} AND op = {quoted(op)} AND {OUTERMOST} "
        "AND duration_ns IS NOT NULL ORDER BY 1"
    )
    begins: Begins = a["a"]
    return begins


def _begin_in(starts: Begins, time: Intervals) -> int:
    if not len(time):
        return 0
    at = np.searchsorted(time[:, 0], starts, side="right") - 1
    return int(((at >= 0) & (starts < time[np.maximum(at, 0), 1])).sum())
