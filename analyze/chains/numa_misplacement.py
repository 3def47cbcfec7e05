"""Chain: threads that give work to a GPU ran on CPUs that are not near it.

Effect: time in a process's CUDA calls, each moment once a thread. Cause: those of its calls that ended on a CPU outside
the set that NVML calls near (``cpu_affinity``) for the GPUs on which the process was seen. What is told is where the
calls ran, and what it cost is not known: a far CPU adds a hop to every register of the device and every copy from
memory of its own node, whose cost nothing here measures. Units: ns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from gpuaudit.analyze import gpu_facts, severity
from gpuaudit.analyze.call_meanings import OUTERMOST
from gpuaudit.analyze.finding import Chain, Declaration, Gain, Link, Quantity, Share, Threshold
from gpuaudit.analyze.store import NOT_OWN

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, Outcome

MOSTLY = Threshold(
    "far_share", Fraction(1, 2), "share",
    "chosen: a thread that is on far CPUs for half of its time in calls was not put near the GPU by anybody",
)  # fmt: skip
LEAST_CALLS = Threshold("least_calls", 100, "count", "chosen: fewer calls do not show where a thread usually runs")

DECLARATION = Declaration(
    id="numa_misplacement",
    kind="chain",
    title="CPU far from the GPU",
    question="Did the threads that give work to a GPU run on CPUs that are not near it?",
    inputs=(
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "cpu", "parent_ns")),
        ("nvml_processes", ("start_ns", "pid", "gpu_uuid")),
    ),
    thresholds=(MOSTLY, LEAST_CALLS, *severity.THRESHOLDS),
    texts={
        "numa_misplacement": "For {far} of {effect_time} ({share}) that process {process} spent in CUDA calls, they "
        "ran on CPUs {cpus}; near its GPUs are CPUs {near}.",
    },
    never_claims="That any time was lost by it: what a far CPU costs depends on what is copied, and was not measured.",
    assumptions=("A call ran on the CPU on which it ended.",),
)  # fmt: skip

MAX_CPUS = 8
"""CPUs that are named."""

_RANGE = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")

_CALLS = f"""
SELECT pid::BIGINT, cpu::BIGINT, count(*)::BIGINT, sum(duration_ns)::HUGEINT FROM cuda_calls
WHERE {NOT_OWN} AND {OUTERMOST} AND duration_ns IS NOT NULL AND cpu IS NOT NULL GROUP BY ALL ORDER BY ALL
"""


def evaluate(context: Context) -> Outcome:
    """One chain for each process whose calls were mostly made far from its GPUs."""
    from gpuaudit.analyze.context import Found, NotEvaluated  # noqa: PLC0415 - it imports what imports this

    facts = gpu_facts.read_facts(context.store)
    near = {uuid: parse_cpus(told["cpu_affinity"].value) for uuid, told in facts.items() if "cpu_affinity" in told}
    near = {uuid: cpus for uuid, cpus in near.items() if cpus}
    if not near:
        return NotEvaluated("which CPUs are near which GPU was not recorded")
    calls: dict[int, dict[int, tuple[int, int]]] = {}
    for pid, cpu, n, ns in context.store.sql(_CALLS):
        calls.setdefault(int(pid), {})[int(cpu)] = int(n), int(ns)
    if not calls:
        return NotEvaluated("no CUDA call with its CPU was recorded")
    looked, items = 0, list[Chain]()
    for pid, by_cpu in calls.items():
        uuids = {g.uuid for g in context.gpus_by_pid.get(pid, [])}
        if uuids and uuids <= near.keys():
            looked += 1
            items += _judged(context, pid, by_cpu, frozenset().union(*(near[u] for u in uuids)))
    if not looked:
        return NotEvaluated("no process that made CUDA calls was listed with a GPU whose near CPUs are known")
    return Found(items, f"processes looked at: {looked}")


def parse_cpus(text: str | int | None) -> frozenset[int]:
    """``"0-3,12"`` as a set; empty for anything else, and for ranges that no host has."""
    found: set[int] = set()
    for part in text.split(",") if isinstance(text, str) else []:
        m = _RANGE.fullmatch(part)
        if m is None or int(m[2] or m[1]) < int(m[1]) or int(m[2] or m[1]) > MAX_CPU:
            return frozenset()
        found |= set(range(int(m[1]), int(m[2] or m[1]) + 1))
    return frozenset(found)


MAX_CPU = 1 << 16
"""More CPUs than Linux is built for (NR_CPUS is at most 8,192 on x86-64)."""


def _judged(context: Context, pid: int, by_cpu: dict[int, tuple[int, int]], near: frozenset[int]) -> Iterator[Chain]:
    calls, whole = sum(n for n, _ in by_cpu.values()), sum(ns for _, ns in by_cpu.values())
    far_cpus = sorted(set(by_cpu) - near)
    far = sum(by_cpu[c][1] for c in far_cpus)
    enough = calls >= context.policy.value(LEAST_CALLS, DECLARATION.id)
    if not (enough and whole and Fraction(far, whole) >= context.policy.value(MOSTLY, DECLARATION.id)):
        return
    wide = f"pid = {pid} AND {OUTERMOST} AND duration_ns IS NOT NULL"
    of_far = f"{wide} AND cpu IN ({', '.join(map(str, far_cpus))})"
    evidence = (context.book.where("cuda_calls", of_far), context.book.where("cuda_calls", wide))
    time = Quantity(whole, "ns", "derived", (evidence[1],), "sum of duration_ns of its CUDA calls")
    lost = Quantity(far, "ns", "derived", evidence, "of that, of calls that ended on a CPU that is not near")
    share = Quantity(Fraction(far, whole), "share", "derived", evidence, "far / effect_time")
    rest = Quantity(whole - far, "ns", "derived", evidence, "effect_time − far")
    name = f"{pid} ({context.process_name(pid)})"
    yield Chain(
        id="",
        detector=DECLARATION.id,
        severity=severity.at_most(
            severity.of_share(far, context.window.length_ns, context.policy, DECLARATION.id), "notice"
        ),
        text="numa_misplacement",
        values={
            "process": name, "effect_time": time, "far": lost, "share": share, "cpus": _named(far_cpus),
            "near": _named(sorted(near)),
        },
        subject={"pid": str(pid)},
        links=(
            Link(
                effect=f"time in the CUDA calls of process {name}",
                cause="its threads ran on CPUs that are not near the GPU",
                effect_ns=time, overlap_ns=lost, explained=share, evidence=evidence,
            ),
        ),
        impact=lost,
        confidence="low",
        grade=context.quality.grade_of(tuple(t for t, _ in DECLARATION.inputs)),
        against=("what the distance cost was not measured: the calls may have taken as long on a near CPU",),
        refuted_by="The same calls as long with the process bound to the GPU's own node.",
        next_step="Bind the process to the node of its GPU (numactl --cpunodebind --membind, or a cpuset), each rank "
        "to its own.",
        evidence=evidence,
        experiment="Run once bound to the GPU's node and once to another, and compare the two captures (audit diff).",
        gain=Gain(Quantity(0, "ns", "derived", evidence, "nothing shows that time was lost"), lost),
        shares=(
            Share(DECLARATION.title, lost, share),
            Share(
                "near CPUs", rest,
                Quantity(1 - Fraction(far, whole), "share", "derived", evidence, "(effect_time − far) / effect_time"),
            ),
        ),
    )  # fmt: skip


def _named(cpus: list[int]) -> str:
    return ", ".join(map(str, cpus[:MAX_CPUS])) + (", …" if len(cpus) > MAX_CPUS else "")
