"""How grave a finding is, by the share of time it touches; never by how often something was counted."""

from __future__ import annotations

from fractions import Fraction

from gpuaudit.analyze.finding import Severity, Threshold
from gpuaudit.analyze.policy import Policy

CRITICAL_SHARE = Threshold(
    "critical_share", Fraction(1, 5), "share",
    "chosen: a fifth of the observed time is a fifth of the bill for it, and worth waking somebody for",
)  # fmt: skip
WARNING_SHARE = Threshold(
    "warning_share", Fraction(1, 20), "share",
    "chosen: a twentieth of the observed time is more than run-to-run variation of a training step usually explains",
)  # fmt: skip
THRESHOLDS = (CRITICAL_SHARE, WARNING_SHARE)


def of_share(touched: int, observed: int, policy: Policy, rule_id: str) -> Severity:
    """Severity for ``touched`` of ``observed`` ns, by the thresholds that hold for the rule."""
    share = Fraction(touched, observed) if observed else Fraction(0)
    if share >= policy.value(CRITICAL_SHARE, rule_id):
        return "critical"
    return "warning" if share >= policy.value(WARNING_SHARE, rule_id) else "notice"


def at_most(grave: Severity, most: Severity) -> Severity:
    """``grave``, but no graver than ``most``: where nothing shows that the GPU itself lost the time."""
    order: tuple[Severity, ...] = ("notice", "warning", "critical")
    return min(grave, most, key=order.index)
