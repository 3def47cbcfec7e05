"""How long something must last before a rule says it: windows that fired, of the windows with traffic.

A window is 2 s or 10 s long (``windows.py``), so that three of them are 6 s or 30 s. Idle windows are not among the
windows that are counted: a server that was busy for a tenth of the capture is judged by that tenth.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from gpuaudit.analyze.finding import Threshold

Limit = Callable[[Threshold], int | Fraction]
"""What a threshold is: its declared value, or what a policy sets for the rule at hand."""

WINDOWS = Threshold(
    "persistent_windows", 3, "count",
    "rules of the reference profiler for vLLM (2026-08), persistence gate: at least three windows", least=1,
)  # fmt: skip
SHARE = Threshold(
    "persistent_share", Fraction(1, 4), "share",
    "rules of the reference profiler for vLLM (2026-08), persistence gate: at least a quarter of the windows with "
    "traffic",
)  # fmt: skip
THRESHOLDS = (WINDOWS, SHARE)


def declared(threshold: Threshold) -> int | Fraction:
    """The declared value: the limits where no policy is given."""
    return threshold.value


def persistent(fired: int, active: int, limit: Limit = declared) -> bool:
    """Whether ``fired`` of ``active`` windows are enough; both bounds are included."""
    return active > 0 and fired >= limit(WINDOWS) and Fraction(fired, active) >= limit(SHARE)
