"""Findings about one engine by root cause: a group each for memory, concurrency and prefill, with one primary.

Within a group the finding of the lowest layer is the primary, of equal layers the one with the higher score; the others
are held as supporting evidence, with the reason. Before that, what another finding explains is held under it, across
groups: KV pressure under weights that do not fit, a small batch under prompts that take all the time. Groups stand in
the order of their primaries' layers: what is to be fixed first stands first (docs/decisions/0009-root-cause-groups.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Finding, Group
from gpuaudit.analyze.inference import limiter, physics
from gpuaudit.analyze.inference.model import EngineRun, Number

R1, R2, R2B, R3 = "r1_under_batching", "r2_kv_pressure", "r2b_admission_backlog", "r3_prefix_reuse"
R4, R5, R6, R7 = "r4_oom_risk", "r5_concurrency_saturation", "r6_prefill_bound", "r7_configured_limit"

KINDS: dict[str, tuple[str, ...]] = {"memory": (R4, R2, R2B), "concurrency": (R5, R7, R1), "prefill": (R6, R3)}
"""Which rules tell of the same root."""

LAYERS: dict[str, int] = {R4: 2, R2: 2, R2B: 2, R5: 3, R1: 4, R3: 5, R6: 5, R7: 6}
"""Lower is nearer to the root (reference profiler, 2026-08); of one layer the higher score goes first."""

EXPLAINED_BELOW_GB = Fraction(-3)
"""R4 explains KV pressure only past the 3 GB that its own estimate of the activations could be wrong by."""

REASONS: dict[tuple[str, str], str] = {
    (R4, R2): "the weights do not fit by more than the estimate could be wrong: the full cache follows from it",
    (R4, R2B): "the weights do not fit by more than the estimate could be wrong: the backlog follows from it",
    (R6, R1): "prompts take the time in which a larger batch would decode: the small batch follows from it",
}
"""Why one finding holds another, across layers and groups."""


@dataclass(frozen=True)
class Facts:
    """What decides whether one finding explains another; None is "not known".

    ``headroom_gb`` is what R4 computed; waiting, running and KV use (share) are means over the run.
    """

    headroom_gb: Number | None = None
    waiting: Number | None = None
    kv_mean: Number | None = None
    running: Number | None = None
    ridge: Number | None = None


def groups(context: Context, findings: Sequence[Finding]) -> list[Group]:
    """The groups of all engines, numbered; findings keep their ids and stay where they are."""
    out: list[Group] = []
    for run in context.engine_runs:
        mine = [f for f in findings if f.rule in LAYERS and f.subject.get("engine") == str(run.engine)]
        out += of_engine(str(run.engine), mine, facts_of(run))
    return [Group(f"G{i}", g.kind, g.engine, g.primary, g.supporting) for i, g in enumerate(out, start=1)]


def facts_of(run: EngineRun) -> Facts:
    """The facts of a recorded engine."""
    totals = run.totals
    return Facts(physics.headroom_gb(run), totals.waiting, totals.kv_mean_share, totals.running, physics.ridge(run))


def soft_field(facts: Facts) -> bool:
    """Little traffic, no queue and room in the cache: a small batch then needs no other explanation."""
    if facts.waiting is None or facts.kv_mean is None or facts.running is None:
        return False
    short = facts.waiting < limiter.WAITING.value and facts.kv_mean < limiter.KV_FULL.value
    return short and facts.running < limiter.traffic_bound(facts.ridge)


def explained(rule: str, present: set[str], facts: Facts) -> str | None:
    """The rule whose finding explains that of ``rule``, or None."""
    below = facts.headroom_gb is not None and facts.headroom_gb < EXPLAINED_BELOW_GB
    if rule in {R2, R2B} and R4 in present and below:
        return R4
    return R6 if rule == R1 and R6 in present and not soft_field(facts) else None


def of_engine(engine: str, findings: Sequence[Finding], facts: Facts) -> list[Group]:
    """The groups of one engine, not numbered yet."""
    present = {f.rule for f in findings}
    holder = {f.id: explained(f.rule, present, facts) for f in findings}
    out: list[tuple[int, Fraction, Group]] = []
    for kind, rules in KINDS.items():
        free = sorted((f for f in findings if f.rule in rules and holder[f.id] is None), key=_order)
        if not free:
            continue
        primary, *others = free
        held = [(f.id, _why_held(primary, f)) for f in others]
        held += [(f.id, REASONS[by, f.rule]) for f in findings if (by := holder[f.id]) is not None and by in rules]
        group = Group("", kind, engine, primary.id, tuple(held))
        out.append((LAYERS[primary.rule], -(primary.score or Fraction(0)), group))
    return [g for _, _, g in sorted(out, key=lambda x: x[:2])]


def _order(finding: Finding) -> tuple[int, Fraction]:
    return LAYERS[finding.rule], -(finding.score or Fraction(0))


def _why_held(primary: Finding, held: Finding) -> str:
    if LAYERS[held.rule] > LAYERS[primary.rule]:
        return "another finding of this group is nearer to the root; look at this one when that is fixed"
    return "of the same layer as the group's primary finding, with a lower or equal score (impact × confidence)"
