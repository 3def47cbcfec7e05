"""Chain: steps that a thread paced itself, because it did little but launch.

Effect: steps whose closing wait found the GPU done (:mod:`gpuaudit.analyze.effects.host_paced`), of processes without
the GPU's own record. Cause: in them, calls that gave the GPU work and returned at once, and the gaps of at most
``near_ns`` from the end of one to the start of the next in the same step, less time in which the thread was off its
CPU. Longer gaps, and the time after the last call, are other work of the host and stay unexplained; where they are most
of the steps nothing is claimed. With the GPU's record the chain ``launch_bound`` speaks. Units: ns.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals
from gpuaudit.analyze.call_meanings import FIRST
from gpuaudit.analyze.call_rows import Rows
from gpuaudit.analyze.causal import model, states
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.chains.launch_bound import NEAR
from gpuaudit.analyze.effects import host_paced
from gpuaudit.analyze.finding import Declaration, Quantity, Threshold
from gpuaudit.analyze.medians import median
from gpuaudit.analyze.words import duration

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated
    from gpuaudit.analyze.intervals import Intervals

MOST = Threshold(
    "launching_share", Fraction(1, 2), "share",
    "chosen: where less than half of the steps is launching, something else of the host sets their pace",
)  # fmt: skip

DECLARATION = Declaration(
    id="launch_paced",
    kind="chain",
    title="Paced by launching",
    question="Did a thread take as long for its steps as it took to launch them, while the GPU kept up?",
    inputs=(
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "direction", "parent_op")),
        ("off_cpu", ("start_ns", "duration_ns", "pid", "tid")),
    ),
    thresholds=(*model.THRESHOLDS, NEAR, MOST),
    texts={
        "launch_paced": "For {explained} of {effect_time} ({share}) of {effect} the thread did little but give its "
        "GPU work: {launches} calls of {median} with {gap} between them (medians). The wait that ends such a step "
        "found the GPU done, and took {wait} (median).",
    },
    never_claims="That the GPU was idle meanwhile, or that steps would be shorter by as much: how long it worked is "
    "not recorded. At the end of these steps it had kept up with the host; before that, it may have been behind.",
    assumptions=("A call that returned within launch_ns of the effect was only queued.",),
)  # fmt: skip

Array = npt.NDArray[np.int64]


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Time of launching, by thread."""
    off = states.of_effects(context, effects)
    found = ((e.key, _of_thread(context, e, off.get(e.key))) for e in effects)
    return {key: [cause] for key, cause in found if cause is not None}


def _of_thread(context: Context, e: Effect, off: states.States | None) -> Cause | None:
    calls, between, gaps = _launching(context, e)
    away = intervals.EMPTY if off is None else off.time(np.ones(len(off), dtype=bool))
    time = intervals.intersect(e.time, intervals.subtract(intervals.union(calls.time, between), away))
    rest = e.length_ns - intervals.measure(time)
    if Fraction(intervals.measure(time), e.length_ns) < context.policy.value(MOST, DECLARATION.id):
        return None
    s = next(s for s in context.steps if (s.pid, s.tid) == e.thread)
    waits = (s.ends - s.asked)[np.isin(s.starts, e.parts[:, 0])]
    # They are too many to be named one by one: those of all steps from the first paced one to the last.
    rows = (context.book.where("cuda_calls", f"{calls.where} AND {_within(e)}"),)
    other = (
        f"for {duration(rest)} of these steps the thread did something else: the GPU may have caught up in that time"
    )
    return Cause(
        culprit="launches", time=time, evidence=lambda _: rows, text="launch_paced",
        what="its thread did little but give the GPU work, and the GPU had kept up when it was asked",
        values={
            "launches": Quantity(len(calls), "count", "derived", rows, "calls that gave work and returned at once"),
            "median": median(calls.a["end_ns"] - calls.a["start_ns"], "ns", rows, "median duration of them"),
            "gap": median(gaps, "ns", rows, "median of the gaps of at most near_ns from the end of one to the next"),
            "wait": median(waits, "ns", e.evidence(), "median duration of the waits that end the steps"),
        },
        against=(
            *([other] if rest else []),
            "what records calls makes each of them longer by a few microseconds: without it the GPU may set the pace",
        ),
    )  # fmt: skip


def _within(e: Effect) -> str:
    return f"start_ns BETWEEN {int(e.parts[0, 0])} AND {int(e.parts[-1, 1])}"


def _launching(context: Context, e: Effect) -> tuple[Rows, Intervals, Array]:
    """Calls of the steps that gave work and returned at once; the short gaps between them; and those gaps' lengths."""
    from gpuaudit.analyze.paced_steps import gives_work  # noqa: PLC0415 - it imports the context

    queue_ns = int(context.policy.value(host_paced.QUEUE, host_paced.KIND))
    where = f"pid = {e.pid} AND tid = {e.tid} AND {gives_work(context)} AND {FIRST} AND duration_ns <= {queue_ns}"
    rows = Rows.read(context, "cuda_calls", where)
    rows = rows.of(rows.touching(e.time))
    start, end = rows.a["start_ns"], rows.a["end_ns"]
    step = np.searchsorted(e.parts[:, 0], start, side="right")
    gaps = np.maximum(start[1:] - end[:-1], 0)
    near = (gaps <= int(context.policy.value(NEAR, DECLARATION.id))) & (step[1:] == step[:-1])
    return rows, intervals.from_bounds(end[:-1][near], start[1:][near]), gaps[near]


DETECTOR = Detector(
    precedence=126,
    kinds=frozenset({host_paced.KIND}),
    scope="same thread",
    find=find,
    inferred=True,
    gravest="warning",
    refuted_by="The GPU's own record of the same steps (a profiler's trace) in which it works for most of them: "
    "launches are then hidden behind its work, and cheaper ones shorten nothing.",
    experiment="Give each step more to do with as many launches (a larger batch): while steps take as long as before, "
    "launching sets their pace. Or launch the sequence as one CUDA graph.",
    next_step="See whether the steps launch the same kernels in the same order: that suits a CUDA graph "
    '(torch.compile with mode="reduce-overhead"). Else fuse the small ones.',
)
