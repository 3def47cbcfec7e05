"""Chain: a collective, or the synchronisation after it, was slow because a rank had not come yet.

Effect: slow calls, or slow steps. Cause: the time from the median arrival of the others to the arrival of a late rank,
in the calls that carry the wait of this rank for that collective (``waits.py``): the very rows, or those within a step
whose thread made the collective. No collective ends before its last rank has entered it, so that this time is served
before everything that the waiting thread itself went through: had it not been preempted, it would have waited all the
same. What made the other rank late are the next links. Units: ns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import imposed, intervals, lateness, waits
from gpuaudit.analyze.barriers import same_rows
from gpuaudit.analyze.causal import model, states
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.collectives import Collectives, call_threads
from gpuaudit.analyze.effects import late_arrivals, slow_steps
from gpuaudit.analyze.finding import Declaration
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.lateness import Lateness
from gpuaudit.analyze.syncs import NONE

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

DECLARATION = Declaration(
    id="peer_late",
    kind="chain",
    title="Waiting for a late rank",
    question="Was a collective, or the synchronisation after it, slow because another rank had not entered it yet?",
    inputs=(
        ("nccl_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "comm_id", "rank", "nranks", "stream")),
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "stream", "handle", "parent_ns")),
    ),
    thresholds=(imposed.COMPARED, *model.THRESHOLDS),
    texts={
        "peer_late": "For {explained} of {effect_time} ({share}) of {effect} the calls waited for a collective that "
        "{culprit} had not entered yet, though half of the others had.",
    },
    never_claims="Why the other rank was late, nor that the calls would have ended earlier by as much: what their own "
    "GPUs had to do meanwhile is not known.",
    assumptions=(
        "What is late, and of how many ranks, is decided by the thresholds of the detector of late ranks.",
        "The n-th collective of one rank is the n-th of every other (NCCL's own requirement).",
    ),
)  # fmt: skip

OWN_WORK = "what the waiting ranks' own GPUs had to do meanwhile was not recorded and may have taken as long"


@dataclass(frozen=True)
class _Wait:
    """Of one process, its waits for one late rank: a row of ``carrier``, ``time`` and ``saved`` for each collective,
    and the thread (``tid``) that entered it."""

    c: Collectives
    late: int
    at: npt.NDArray[np.intp]
    carrier: Intervals
    time: Intervals
    saved: npt.NDArray[np.int64]
    tid: npt.NDArray[np.int64]

    def within(self, effect: Effect) -> npt.NDArray[np.bool_]:
        """Which of them are calls of the effect: the same rows, or of a step, calls of its thread that lie in it."""
        if effect.kind != slow_steps.KIND:
            return same_rows(self.carrier, effect.parts)
        at = np.searchsorted(effect.parts[:, 0], self.carrier[:, 0], side="right") - 1
        inside: npt.NDArray[np.bool_] = (at >= 0) & (self.carrier[:, 1] <= effect.parts[np.maximum(at, 0), 1])
        same: npt.NDArray[np.bool_] = self.tid == effect.tid
        return np.logical_and(inside, same)


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """For each effect, the late ranks that its calls waited for."""
    judged = [c for c in context.collectives if not c.not_evaluated]
    if not judged:
        return _nothing(context)
    least = int(context.policy.value(imposed.COMPARED, DECLARATION.id))
    waiting: dict[int, list[_Wait]] = defaultdict(list)
    for c in judged:
        for pid, wait in _waits(context, c, least):
            waiting[pid].append(wait)
    return {e.key: list(_causes(context, e, waiting[e.pid])) for e in effects if e.pid in waiting}


def _nothing(context: Context) -> NotEvaluated:
    from gpuaudit.analyze.context import NotEvaluated  # noqa: PLC0415 - it imports what imports this

    reasons = [f"communicator {c.name}: {c.not_evaluated}" for c in context.collectives]
    if not reasons and context.without_identity:
        reasons = ["no communicator's identity was recorded"]
    return NotEvaluated(
        "; ".join(reasons) or context.quality.source_reason("nccl") or "no NCCL collective was recorded"
    )


def _waits(context: Context, c: Collectives, least: int) -> Iterator[tuple[int, _Wait]]:
    """Per waiting process and late rank."""
    judged = lateness.judge(c.arrival, context.late_limits)
    held, _ = waits.carriers(c, context.window.end_ns)
    tids = call_threads(context.store, c)
    for late in range(len(c.ranks)):
        at = np.flatnonzero(judged.late & (judged.last == late))
        if not len(at):
            continue
        before = np.delete(c.arrival, late, axis=0).max(axis=0)[at]
        for r in range(len(c.ranks)):
            if r == late or c.pids[r] == c.pids[late]:
                continue
            carrier = held[r, at]
            low = np.maximum(carrier[:, 0], judged.median[at])
            high = np.minimum(carrier[:, 1], c.arrival[late, at])
            alone = np.maximum(high - np.maximum(low, before), 0)
            saved = np.minimum(alone, _longer(c, judged, r, at, least))
            yield c.pids[r], _Wait(c, late, at, carrier, np.stack([low, high], axis=1), saved, tids[r, at])


def _longer(c: Collectives, judged: Lateness, r: int, at: npt.NDArray[np.intp], least: int) -> npt.NDArray[np.int64]:
    """By how much rank ``r`` took longer than its median in collectives of the kind that nobody entered late; 0 where
    fewer than ``least`` of them tell."""
    through = np.where(c.sync_end[r] == NONE, c.call_end[r], c.sync_end[r])
    took = through - c.arrival[r]
    out = np.zeros(len(at), dtype=np.int64)
    for kind in np.unique(c.kind[at]).tolist():
        control = np.flatnonzero(~judged.late & (c.kind == kind) & (through != NONE))
        mine = (c.kind[at] == kind) & (through[at] != NONE)
        if len(control) >= least:
            usual = int(np.sort(took[control])[(len(control) - 1) // 2])
            out[mine] = np.maximum(took[at][mine] - usual, 0)
    return out


def _causes(context: Context, effect: Effect, waiting: Sequence[_Wait]) -> Iterator[Cause]:
    """The waits that lie in the effect's own calls: the same row, not just the same time."""
    for w in waiting:
        mine = w.within(effect)
        time = intervals.from_bounds(w.time[mine, 0], w.time[mine, 1])
        if not len(time):
            continue
        rank, pid = w.c.ranks[w.late], w.c.pids[w.late]
        saved = _once(w.carrier[mine], w.saved[mine])
        culprit = f"rank {rank} ({context.process_name(pid)} {pid}) of communicator {w.c.name}"
        yield Cause(
            culprit=culprit, time=time, evidence=_evidence(context, w), text="peer_late",
            what=f"{culprit} had not entered the collective yet",
            subject={"comm": w.c.name, "rank": str(rank), "culprit_pid": str(pid)},
            against=(OWN_WORK,), gain_low_ns=_at_most(saved), because=_lateness(context, w),
        )  # fmt: skip


def _once(carriers: Intervals, saved: npt.NDArray[np.int64]) -> int:
    """What is saved of each call; of several collectives that one call waits for, the one of which most is."""
    calls, number = np.unique(carriers, axis=0, return_inverse=True)
    most = np.zeros(len(calls), dtype=np.int64)
    np.maximum.at(most, number.reshape(-1), saved)
    return int(most.sum())


def _at_most(saved: int) -> Callable[[int], int]:
    return lambda allotted: min(allotted, saved)


def _lateness(context: Context, w: _Wait) -> tuple[str, ...]:
    """The effects that hold the late rank's own time, one for each of its threads."""
    rank = w.c.ranks[w.late]
    rows = context.store.sql(f"SELECT DISTINCT tid FROM nccl_calls WHERE {w.c.where} AND rank = {rank} ORDER BY tid")
    return tuple(late_arrivals.key(w.c.name, rank, int(tid)) for (tid,) in rows)


def _evidence(context: Context, w: _Wait) -> Callable[[Intervals], tuple[str, ...]]:
    """The calls of all ranks for the collectives that were waited for in the time."""

    def rows(time: Intervals) -> tuple[str, ...]:
        shared = states.overlapping(w.time[:, 0], w.time[:, 1], time)
        keys = w.c.call_keys[:, w.at[shared]].reshape(-1, 2)
        return (context.book.listed("nccl_calls", keys, w.c.where),)

    return rows


DETECTOR = Detector(
    precedence=5,
    kinds=frozenset({"slow_call", slow_steps.KIND}),
    scope="same rank, same collective, the very call that carries its wait",
    find=find,
    refuted_by="GPU timing that shows the kernels of this rank busy, not waiting, until the late rank came.",
    experiment="Take away what makes the other rank late (its next links), and capture again: these calls are then as "
    "fast as the others.",
    next_step="Look at the late rank, not at this one.",
    one_chain=True,
)
