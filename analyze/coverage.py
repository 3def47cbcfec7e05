"""How much of the GPUs' time a rule could judge: "clear" is said of that time only, and says how much it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from gpuaudit.analyze import intervals
from gpuaudit.analyze.context import Context, Found, NotEvaluated, Outcome
from gpuaudit.analyze.finding import Finding, Threshold
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.words import duration

JUDGED = Threshold(
    "judged_share", Fraction(1, 10), "share",
    "chosen: of a GPU that could be judged for less than a tenth of the window nothing is called clear",
)  # fmt: skip


def outcome(
    context: Context, items: Sequence[Finding], known: Mapping[str, Intervals], what: str, rule_id: str
) -> Outcome:
    """``known`` is the time, by GPU UUID, for which ``what`` was told.

    Without a finding, a rule is clear only if every GPU that was listed or sampled could be judged for
    :data:`JUDGED` of the window (or what the policy sets for ``rule_id``).
    """
    window = context.window
    length = {u: intervals.measure(intervals.clip(t, window.start_ns, window.end_ns)) for u, t in known.items()}
    gpus = sorted({*known, *_listed(context)})
    judged = [u for u in gpus if length.get(u, 0) >= context.policy.value(JUDGED, rule_id) * window.length_ns]
    told = f"{sum(1 for u in gpus if length.get(u))} of {len(gpus)} GPUs evaluated; samples that tell {what} cover "
    told += f"{duration(sum(length.values()))} of {duration(len(gpus) * window.length_ns)} of GPU time"
    return Found(items, told) if items or len(judged) == len(gpus) else NotEvaluated(told)


def _listed(context: Context) -> list[str]:
    """UUIDs that the recorder listed in leaf 0, whether or not it ever got a sample of them."""
    gpus = context.store.open_body.get("gpus")
    rows = gpus if isinstance(gpus, list) else []
    return [g["uuid"] for g in rows if isinstance(g, dict) and isinstance(g.get("uuid"), str)]
