"""Chain: a thread was runnable and did not run, because interrupts were served on its CPU.

Effect: slow calls, the lateness of a rank, or the wait for a thread that was itself waited for. Cause: time in which
the same thread was preempted, runnable and off its CPU, while the kernel's own thread for interrupts ran there:
ksoftirqd/CPU (software interrupts, as of a network card under load) or irq/NUMBER-NAME (the threaded part of a
device's handler). Interrupts that are served on top of the running thread take its time without a switch and are not
seen. Units: ns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze.causal import model, states, turns
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.causal.states import States
from gpuaudit.analyze.finding import Declaration

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

DECLARATION = Declaration(
    id="irq_load",
    kind="chain",
    title="Interrupts on its CPU",
    question="Was a thread ready to run, and kept from its CPU by interrupts served there, while its calls were slow?",
    inputs=(
        ("off_cpu", ("start_ns", "duration_ns", "pid", "tid", "op", "next_pid", "next_tid", "next_comm", "runqueue_ns",
                     "cpu_out")),
        turns.INPUT,
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "parent_ns")),
        ("nccl_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "parent_ns")),
    ),
    thresholds=model.THRESHOLDS,
    texts={
        "irq_load": "For {explained} of {effect_time} ({share}) of {effect} the thread was ready to run and had no "
        "CPU, while {culprit} was served where it had run.",
    },
    never_claims="Which device the interrupts came from where the kernel serves software interrupts; nor anything "
    "about interrupts that were served on top of the running thread: they are no time off a CPU.",
    assumptions=(
        "A thread named as the kernel names its own threads for interrupts is one: no other process calls itself so.",
        turns.ASSUMED,
    ),
)  # fmt: skip

_SERVED = re.compile(r"ksoftirqd/[0-9]{1,5}|irq/[0-9]{1,6}-.{0,15}")
"""Names that the kernel gives: ksoftirqd/%u (kernel/softirq.c), irq/%d-%s (kernel/irq/manage.c)."""


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Runnable time of each effect's thread while interrupts were served, by CPU and handler."""
    why = states.untold(context)
    if why is not None:
        return why
    seen = states.of_effects(context, effects)
    return {key: list(_by_handler(context, s)) for key, s in seen.items()}


def is_handler(comm: str) -> bool:
    """Whether a thread of this name serves interrupts."""
    return _SERVED.fullmatch(comm) is not None


def _by_handler(context: Context, s: States) -> Iterator[Cause]:
    a = s.a
    names = {str(n) for n in a["next_comm"].tolist() if is_handler(str(n))}
    # A thread of the kernel is alone in its process.
    kernel = (a["op"] == "preempted") & (a["next_pid"] > 0) & (a["next_pid"] == a["next_tid"])
    found = {(n, int(c)) for n in names for c in a["cpu_out"][kernel & (a["next_comm"] == n)].tolist()}
    for name, cpu in sorted(found):
        chosen = np.asarray(kernel & (a["next_comm"] == name) & (a["cpu_out"] == cpu), dtype=bool)
        time = s.runnable(chosen)
        if len(time):
            yield Cause(
                culprit=f"interrupt work of {name}, CPU {cpu}", time=time, evidence=s.evidence(context, chosen),
                text="irq_load", what=f"its thread was ready to run, and interrupts were served by {name} on CPU {cpu}",
                subject={"cpu": str(cpu)},
            )  # fmt: skip


DETECTOR = Detector(
    precedence=46,
    kinds=frozenset({"slow_call", "api_silence", "throughput_drop", "late_arrival", model.WAITED_FOR, "slow_step"}),
    scope="same thread",
    find=find,
    refuted_by="The same calls as slow with the device's interrupts on other CPUs.",
    experiment="Move the interrupts off the CPU (/proc/irq/*/smp_affinity_list, irqbalance's banned CPUs), or pin the "
    "thread to another, and capture again.",
    next_step="See which interrupts grow there (/proc/interrupts, /proc/softirqs), and move the device's queues or the "
    "thread.",
)
