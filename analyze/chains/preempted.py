"""Chain: a thread was runnable and did not run, because something else had its CPU.

Effect: slow calls, or the lateness of a rank. Cause: the time in which the same thread was runnable and off its CPU:
all of a preemption, and of a sleep the part after the wake-up (``runqueue_ns``). The culprit is who had the CPU, turn
by turn (``causal/turns.py``); where turns were not recorded, who ran at the switch, and for a sleeper that was woken
one that takes that CPU from it anyway. Units: ns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze.causal import model, neighbours, states, turns
from gpuaudit.analyze.causal.leading import MAX_CULPRITS, codes, leading
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.causal.states import Chosen, States
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
        turns.INPUT,
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "parent_ns")),
        ("nccl_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "parent_ns")),
    ),
    thresholds=model.THRESHOLDS,
    texts={
        "preempted": "For {explained} of {effect_time} ({share}) of {effect} the thread was ready to run and had no "
        "CPU, while {culprit} ran there ({cpus}).",
        "preempted_unknown": "For {explained} of {effect_time} ({share}) of {effect} the thread was ready to run and "
        "had no CPU; who ran instead was not seen.",
    },
    never_claims="That the call would have ended earlier by as much: a thread that waits for its GPU loses nothing by "
    "being off its CPU. Nor why the other was allowed to run there.",
    assumptions=(
        turns.ASSUMED,
        "Where that is not recorded: who took a CPU from the thread during the effect, and ran there when the thread "
        "went to sleep, ran there too when it was woken and came back to that CPU.",
    ),
)  # fmt: skip

NOBODY = "nobody that was seen"

OTHERS = "other processes, each for less"

MAX_CPUS = 8
"""CPUs that are named, the lowest ones."""

IDLE = 0
"""Process of the idle task: it takes no CPU from anybody."""


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Runnable time of each effect's thread, by who ran instead."""
    why = states.untold(context, f"{states.TOLD} OR runqueue_ns IS NOT NULL")
    if why is not None:
        return why
    seen = states.of_effects(context, effects)
    return {key: list(_by_culprit(context, s)) for key, s in seen.items()}


def _by_culprit(context: Context, s: States) -> Iterator[Cause]:
    a = s.a
    known = _known(s)
    ns = a["end_ns"] - s.runnable_from
    named, rest = leading(codes(a["next_pid"], a["next_comm"]), ns, known, (a["next_pid"], a["next_comm"]))
    for chosen in named:
        at = int(np.flatnonzero(chosen)[0])
        yield from _cause(context, s, chosen, int(a["next_pid"][at]), str(a["next_comm"][at]))
    yield from _cause(context, s, rest, IDLE, OTHERS)
    yield from _cause(context, s, ~known, IDLE, NOBODY)


def _cause(context: Context, s: States, chosen: Chosen, pid: int, name: str) -> Iterator[Cause]:
    time = s.runnable(chosen)
    if not len(time):
        return
    culprit = _named(s, pid, name)
    ran = f"its thread was ready to run and had no CPU, while {culprit} ran there{_rank(s, chosen)}"
    tids = sorted(set(s.a["next_tid"][chosen].tolist()) - {states.UNKNOWN, IDLE})[:MAX_CULPRITS] if pid else []
    yield Cause(
        culprit=culprit, time=time, evidence=s.evidence(context, chosen),
        text="preempted_unknown" if name == NOBODY else "preempted",
        what="its thread was ready to run and had no CPU; who ran instead was not seen" if name == NOBODY else ran,
        values={"cpus": _cpus(s, chosen)}, subject={"culprit_pid": str(pid)} if pid else {},
        ran=tuple((pid, tid) for tid in tids), further=neighbours.follow(context, pid, tids),
        observer=pid in context.observers,
    )  # fmt: skip


def _known(s: States) -> Chosen:
    """Rows of which it is known who ran instead.

    Where the thread was preempted, or the row is a part of a wait: who ran then. Where it slept and was woken, who ran
    at the switch is not who kept it from the CPU later, unless the same thread took that very CPU from it at another
    time of the effect, and it came back there.
    """
    a = s.a
    place = codes(a["next_tid"], a["cpu_out"])
    preempted = a["op"] == "preempted"
    back = (a["cpu_out"] == a["cpu"]) & np.isin(place, place[preempted])
    out: Chosen = (a["next_pid"] > IDLE) & (preempted | back)
    return out


def _cpus(s: States, chosen: Chosen) -> str:
    """The CPUs that the thread had left, and whether it came back to the same one every time, as a pinned one must."""
    left = sorted({int(c) for c in s.a["cpu_out"][chosen]} - {states.UNKNOWN})
    if not left:
        return "CPU not recorded"
    named = ", ".join(map(str, left[:MAX_CPUS])) + (", …" if len(left) > MAX_CPUS else "")
    back = bool((s.a["cpu_out"] == s.a["cpu"]).all())
    if len(left) > 1:
        return f"CPUs {named}"
    return f"CPU {named}, to which the thread came back every time" if back else f"CPU {named}"


def _rank(s: States, chosen: Chosen) -> str:
    """That the other one goes first by the kernel's priorities (a lower number), where both were recorded."""
    own, other = s.a["priority"][chosen], s.a["next_priority"][chosen]
    higher = (own != states.UNKNOWN) & (other != states.UNKNOWN) & (other < own)
    return ", at a higher priority" if higher.any() and higher.all() else ""


def _named(s: States, pid: int, name: str) -> str:
    if not pid:
        return name
    return f"{name} (of its own process, {pid})" if pid == int(s.a["pid"][0]) else f"{name} ({pid})"


DETECTOR = Detector(
    precedence=50,
    kinds=frozenset({"slow_call", "api_silence", "throughput_drop", "late_arrival", model.WAITED_FOR, "slow_step"}),
    scope="same thread",
    find=find,
    refuted_by="The same calls as slow with the thread alone on its CPU.",
    experiment="Pin the thread to a CPU that nothing else may use (taskset and a cpuset cgroup, or isolcpus), and "
    "capture again.",
    next_step="See what else runs on the CPU (audit query: cpu_occupants by comm, or off_cpu by next_comm), and move "
    "one of the two.",
)
