"""Chain: a thread was runnable and did not run, because something else had its CPU.

Effect: slow calls, or the lateness of a rank. Cause: the time in which the same thread was runnable and off its CPU:
all of a preemption, and of a sleep the part after the wake-up (``runqueue_ns``). The culprit is who ran instead at the
switch, where that was seen. Units: ns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpuaudit.analyze.causal import model, neighbours, states
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.causal.states import States
from gpuaudit.analyze.finding import Declaration

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

DECLARATION = Declaration(
    id="preempted",
    kind="chain",
    title="Preempted",
    question="Was a thread ready to run, and kept from a CPU, while its calls were slow?",
    inputs=(
        ("off_cpu", ("start_ns", "duration_ns", "pid", "tid", "op", "next_pid", "next_comm", "runqueue_ns", "cpu_out")),
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "parent_ns")),
        ("nccl_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "parent_ns")),
    ),
    thresholds=model.THRESHOLDS,
    texts={
        "preempted": "For {explained} of {effect_time} ({share}) of {effect} the thread was ready to run and had no "
        "CPU, while {culprit} ran on the CPU it had been taken from.",
        "preempted_unknown": "For {explained} of {effect_time} ({share}) of {effect} the thread was ready to run and "
        "had no CPU; who ran instead was not seen.",
    },
    never_claims="That the call would have ended earlier by as much: a thread that waits for its GPU loses nothing by "
    "being off its CPU. Nor why the other was allowed to run there.",
    assumptions=("Who ran at the switch ran for the whole interval.",),
)  # fmt: skip

NOBODY = "nobody that was seen"


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Runnable time of each effect's thread, by who ran instead."""
    why = unrecorded(context)
    if why is not None:
        return why
    seen = states.of_effects(context, effects)
    return {key: list(_by_culprit(context, s)) for key, s in seen.items()}


def unrecorded(context: Context) -> NotEvaluated | None:
    """Why nobody can say what a thread did off its CPU, where so."""
    if context.store.row_count("off_cpu"):
        return None
    from gpuaudit.analyze.context import NotEvaluated  # noqa: PLC0415 - it imports what imports this

    return NotEvaluated(context.quality.source_reason("off_cpu") or "no interval off a CPU was recorded")


def _by_culprit(context: Context, s: States) -> Iterator[Cause]:
    pids, names = s.a["next_pid"], s.a["next_comm"]
    for pid, name in sorted({(int(p), str(n)) for p, n in zip(pids, names, strict=True)}):
        chosen = (pids == pid) & (names == name)
        time = s.runnable(chosen)
        if not len(time):
            continue
        # The idle task (0) ran: nobody had taken the CPU, the thread was on its way to it.
        known = pid > 0
        culprit = f"{name} ({pid})" if known else NOBODY
        yield Cause(
            culprit=culprit, time=time, evidence=s.evidence(context, chosen),
            text="preempted" if known else "preempted_unknown",
            what=f"its thread was ready to run and had no CPU, while {culprit} ran there",
            subject={"culprit_pid": str(pid)} if known else {},
            further=neighbours.follow(context, pid, sorted(set(s.a["next_tid"][chosen].tolist()))),
        )  # fmt: skip


DETECTOR = Detector(
    precedence=50,
    kinds=frozenset({"slow_call", "late_arrival"}),
    scope="same thread",
    find=find,
    refuted_by="The same calls as slow with the thread alone on its CPU.",
    experiment="Pin the thread to a CPU that nothing else may use (taskset and a cpuset cgroup, or isolcpus), and "
    "capture again.",
    next_step="See what else runs on the CPU (audit query, off_cpu by next_comm), and move one of the two.",
)
