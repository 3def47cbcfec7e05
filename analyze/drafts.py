"""Findings before the analysis numbers them, with what all findings of a kind have in common filled in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

from gpuaudit.analyze.context import UNNUMBERED, Context
from gpuaudit.analyze.finding import Declaration, Finding, Fix, Quantity, Severity
from gpuaudit.analyze.nvml_values import Device


def derived(
    value: int | Fraction | None, unit: str, evidence: tuple[str, ...], formula: str, why: str = ""
) -> Quantity:
    """A quantity made from evidence; ``why`` says why there is none."""
    return Quantity(value, unit, "derived", evidence, formula, why if value is None else "")


def gathered(values: Iterable[Quantity | str], first: Sequence[str] = ()) -> tuple[str, ...]:
    """Evidence ids of quantities, each once, in order, after those given."""
    ids = [*first, *(e for v in values if isinstance(v, Quantity) for e in v.evidence)]
    return tuple(dict.fromkeys(ids))


MAX_FINDINGS = 100
"""Findings of one rule in a document: the worst are told, and a hundred are more than anybody reads."""


def worst(items: Sequence[Finding]) -> list[Finding]:
    """At most :data:`MAX_FINDINGS`: the gravest, then those with the largest impact; in the order given."""
    if len(items) <= MAX_FINDINGS:
        return list(items)
    grave = ("critical", "warning", "notice")
    order = sorted(range(len(items)), key=lambda i: (grave.index(items[i].severity), -(items[i].impact.value or 0), i))
    return [items[i] for i in sorted(order[:MAX_FINDINGS])]


def about_gpu(
    context: Context, rule: Declaration, gpu: Device, *, text: str, severity: Severity,
    values: dict[str, Quantity | str], impact: Quantity, fixes: tuple[Fix, ...] = (),
) -> Finding:  # fmt: skip
    """A finding about one GPU; its grade is that of the rule's inputs."""
    return Finding(
        id=UNNUMBERED,
        rule=rule.id,
        severity=severity,
        text=text,
        values={"gpu": gpu.name, **values},
        subject={"gpu": gpu.uuid, "gpu_index": str(gpu.index)},
        impact=impact,
        grade=context.quality.grade_of(t for t, _ in rule.inputs),
        evidence=gathered(values.values(), impact.evidence),
        fixes=fixes,
    )


def about_process(
    context: Context, rule: Declaration, pid: int, *, text: str, severity: Severity, values: dict[str, Quantity | str],
    impact: Quantity, tid: int | None = None, gpu: Device | None = None, fixes: tuple[Fix, ...] = (),
) -> Finding:  # fmt: skip
    """A finding about one process, or one of its threads; ``gpu`` where it concerns its use of that GPU."""
    name = context.process_name(pid)
    subject = {"pid": str(pid), "comm": name}
    if tid is not None:
        subject["tid"] = str(tid)
    if gpu is not None:
        subject |= {"gpu": gpu.uuid, "gpu_index": str(gpu.index)}
        values = {"gpu": gpu.name, **values}
    return Finding(
        id=UNNUMBERED,
        rule=rule.id,
        severity=severity,
        text=text,
        values={"process": f"{pid} ({name})", **values},
        subject=subject,
        impact=impact,
        grade=context.quality.grade_of(t for t, _ in rule.inputs),
        evidence=gathered(values.values(), impact.evidence),
        fixes=fixes,
    )
