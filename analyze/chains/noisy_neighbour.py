"""Chain: a thread was runnable and did not run, because several processes of another cgroup had its CPU.

Effect: slow calls, the lateness of a rank, or the wait for a thread that was itself waited for. Cause: the time in
which the same thread was runnable and off its CPU, while processes of one other cgroup had it, at least
:data:`CROWD` of them. One process that does so is told by name (chain "preempted"); of a crowd none explains
much, and what can be limited is their cgroup. Units: ns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze.causal import model, states, turns
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.causal.states import Chosen, States
from gpuaudit.analyze.chains.irq_load import is_handler
from gpuaudit.analyze.finding import Declaration, Quantity, Threshold

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

CROWD = Threshold(
    "crowd", 2, "count", "chosen: one process is told by its name; from two on the cgroup is what they have in common"
)

DECLARATION = Declaration(
    id="noisy_neighbour",
    kind="chain",
    title="Noisy neighbour",
    question="Was a thread ready to run, and kept from its CPU by processes of another cgroup, while its calls were "
    "slow?",
    inputs=(
        ("off_cpu", ("start_ns", "duration_ns", "pid", "tid", "op", "next_pid", "next_comm", "runqueue_ns", "cgroup_id",
                     "next_cgroup_id")),
        turns.INPUT,
        ("processes", ("pid", "cgroup", "cgroup_id")),
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "parent_ns")),
        ("nccl_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "parent_ns")),
    ),
    thresholds=(CROWD, *model.THRESHOLDS),
    texts={
        "noisy_neighbour": "For {explained} of {effect_time} ({share}) of {effect} the thread was ready to run and had "
        "no CPU, while {neighbours} processes of {culprit} had the CPU that it waited for: {names}.",
    },
    never_claims="That the call would have ended earlier by as much; nor that the neighbours used more than "
    "their share.",
    assumptions=(turns.ASSUMED,),
)  # fmt: skip

ROOT_ID = 1
"""Id of the root of the version 2 hierarchy, where threads of the kernel are, and everybody on hosts of version 1."""

MAX_NAMES = 3
"""Names of neighbours that are printed, the first by name."""


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Runnable time of each effect's thread, by the other cgroup whose processes ran instead."""
    why = states.unrecorded(context)
    if why is not None:
        return why
    if not context.store.sql("SELECT 1 FROM off_cpu WHERE next_cgroup_id IS NOT NULL LIMIT 1"):
        return _not_recorded()
    rows = context.store.sql(
        "SELECT cgroup_id, min(cgroup) FROM processes WHERE cgroup_id IS NOT NULL AND cgroup IS NOT NULL "
        "GROUP BY cgroup_id"
    )
    paths = {int(i): str(path) for i, path in rows}
    seen = states.of_effects(context, effects)
    crowd = int(context.policy.value(CROWD, DECLARATION.id))
    return {key: list(_by_cgroup(context, s, paths, crowd)) for key, s in seen.items()}


def _not_recorded() -> NotEvaluated:
    from gpuaudit.analyze.context import NotEvaluated  # noqa: PLC0415 - it imports what imports this

    return NotEvaluated("the cgroup of who ran instead was not recorded")


def _by_cgroup(context: Context, s: States, paths: Mapping[int, str], crowd: int) -> Iterator[Cause]:
    a = s.a
    other = (a["next_cgroup_id"] > ROOT_ID) & (a["next_cgroup_id"] != a["cgroup_id"]) & (a["next_pid"] > 0)
    other &= (
        (a["op"] == "preempted")
        & (a["cgroup_id"] != states.UNKNOWN)
        & ~np.array([is_handler(str(n)) for n in a["next_comm"]], dtype=bool)
    )
    for group in sorted(set(a["next_cgroup_id"][other].tolist())):
        chosen: Chosen = other & (a["next_cgroup_id"] == group)
        time = s.runnable(chosen)
        pids = set(a["next_pid"][chosen & (a["end_ns"] > s.runnable_from)].tolist())
        if not len(time) or len(pids) < crowd:
            continue
        culprit = f"cgroup {paths[group]}" if group in paths else f"the cgroup with id {group}"
        names = sorted({str(n) for n in a["next_comm"][chosen].tolist()})
        rows = s.evidence(context, chosen)
        yield Cause(
            culprit=culprit, time=time, evidence=rows, text="noisy_neighbour",
            what=f"its thread was ready to run and had no CPU, while processes of {culprit} ran there",
            values={
                "neighbours": Quantity(len(pids), "count", "derived", rows(time), "distinct next_pid"),
                "names": ", ".join(names[:MAX_NAMES]) + (", …" if len(names) > MAX_NAMES else ""),
            },
            subject={"cgroup": paths.get(group, str(group))},
        )  # fmt: skip


DETECTOR = Detector(
    precedence=48,
    kinds=frozenset({"slow_call", "api_silence", "throughput_drop", "late_arrival", model.WAITED_FOR, "slow_step"}),
    scope="same thread",
    find=find,
    refuted_by="The same calls as slow while that cgroup is stopped or on other CPUs.",
    experiment="Freeze the other cgroup for a moment (cgroup.freeze), or give it other CPUs (cpuset.cpus), and capture "
    "again.",
    next_step="Give the two cgroups CPUs of their own (cpuset), or lower the weight of the other (cpu.weight).",
)
