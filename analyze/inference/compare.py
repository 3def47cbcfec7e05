"""Before and after of one engine: better, worse, mixed or no change, from three arms, and what the verdict needs.

The arms are the batch-relative efficiency (tokens/s over ceiling × min(running, ridge), in percentage points), p99 of
the time to first token, and generated tokens/s. Each is up (better), flat or down; a missing arm counts as flat. The
table has all 27 combinations; a latency that got worse vetoes an efficiency that got better. The single "worse" notes
are for display: none of them changes a verdict. Percentages are exact; None is absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from gpuaudit.analyze.finding import Threshold
from gpuaudit.analyze.inference.model import Number

Arm = Literal["up", "flat", "down"]
Verdict = Literal["Better", "Worse", "Mixed", "NoChange"]

_SOURCE = "before/after of the reference profiler for vLLM (2026-06): "
_NOTE = "before/after of the reference profiler for vLLM (2026-08), display only: "

EFFICIENCY_UP = Threshold("efficiency_up", 2, "points", _SOURCE + "better from +2 percentage points on")
EFFICIENCY_DOWN = Threshold("efficiency_down", -5, "points", _SOURCE + "worse from −5 percentage points on")
TTFT = Threshold("ttft_p99", Fraction(20, 100), "share", _SOURCE + "20 % of p99 of the time to first token")
THROUGHPUT = Threshold("throughput", Fraction(10, 100), "share", _SOURCE + "10 % of generated tokens/s")
WINDOWS = Threshold(
    "active_windows", 3, "count", "chosen as the persistence of the rules: fewer windows with traffic may be a moment"
)
LOAD_BAND = Threshold(
    "load_band", Fraction(10, 100), "share",
    "chosen as the cut of throughput: a difference of load below it cannot alone make a change that counts",
)  # fmt: skip
THRESHOLDS = (EFFICIENCY_UP, EFFICIENCY_DOWN, TTFT, THROUGHPUT, WINDOWS, LOAD_BAND)

U: Arm = "up"
F: Arm = "flat"
D: Arm = "down"

VETO = "latency veto"

TABLE: dict[tuple[Arm, Arm, Arm], tuple[Verdict, str]] = {
    (U, U, U): ("Better", ""),
    (U, U, F): ("Better", ""),
    (U, U, D): ("Better", ""),
    (U, F, U): ("Better", ""),
    (U, F, F): ("Better", ""),
    (U, F, D): ("Better", ""),
    (U, D, U): ("Mixed", VETO),
    (U, D, F): ("Mixed", VETO),
    (U, D, D): ("Worse", "latency and throughput worse"),
    (F, U, U): ("Better", "scheduler win"),
    (F, U, F): ("Better", "latency win"),
    (F, U, D): ("Mixed", "TTFT better, throughput down"),
    (F, F, U): ("Better", ""),
    (F, F, F): ("NoChange", ""),
    (F, F, D): ("Worse", ""),
    (F, D, U): ("Mixed", "throughput up, TTFT worse"),
    (F, D, F): ("Worse", "latency SLA violated"),
    (F, D, D): ("Worse", "latency and throughput worse"),
    (D, U, U): ("Better", "larger batch"),
    (D, U, F): ("Mixed", "TTFT better, efficiency down"),
    (D, U, D): ("Worse", "efficiency and throughput down"),
    (D, F, U): ("Mixed", "throughput up, efficiency down"),
    (D, F, F): ("Worse", "clear regression"),
    (D, F, D): ("Worse", "clear regression"),
    (D, D, U): ("Worse", ""),
    (D, D, F): ("Worse", ""),
    (D, D, D): ("Worse", "severe regression"),
}
"""Efficiency, time to first token (up: faster), throughput: verdict and, where it needs one, the reason."""


@dataclass(frozen=True)
class Direction:
    """A verdict and its reason, with the arms that gave it."""

    verdict: Verdict
    reason: str
    efficiency: Arm
    ttft: Arm
    throughput: Arm


def change_share(before: Number | None, after: Number | None) -> Fraction | None:
    """(after − before) / before; None where either is missing or ``before`` is not above 0."""
    if before is None or after is None or before <= 0:
        return None
    return (Fraction(after) - Fraction(before)) / Fraction(before)


def direction(
    efficiency_points: Number | None, throughput_share: Number | None, ttft_before: Number | None,
    ttft_after: Number | None,
) -> Direction:  # fmt: skip
    """The row of the table. Without an efficiency, throughput alone decides, and only past its cut."""
    slower = change_share(ttft_before, ttft_after)
    efficiency = _arm(efficiency_points, EFFICIENCY_UP.value, EFFICIENCY_DOWN.value)
    ttft = _arm(None if slower is None else -slower, TTFT.value, -TTFT.value)
    throughput = _arm(throughput_share, THROUGHPUT.value, -THROUGHPUT.value)
    if efficiency_points is None:
        return Direction(_by_throughput(throughput_share), "", efficiency, ttft, throughput)
    verdict, reason = TABLE[efficiency, ttft, throughput]
    if reason == VETO and slower is not None:
        reason = f"{VETO} (+{round(slower * 100)}%)"
    return Direction(verdict, reason, efficiency, ttft, throughput)


def _arm(change: Number | None, up: Number, down: Number) -> Arm:
    if change is None:
        return F
    if change >= up:
        return U
    return D if change <= down else F


def _by_throughput(change: Number | None) -> Verdict:
    if change is None or abs(Fraction(change)) <= THROUGHPUT.value:
        return "NoChange"
    return "Better" if change > 0 else "Worse"


@dataclass(frozen=True)
class Load:
    """What the minimum-evidence gate reads of one side; ``concurrency`` is mean running + waiting."""

    active_windows: int
    concurrency: Number | None
    requests_per_s: Number | None


def comparable(before: Load, after: Load) -> str:
    """Why two sides cannot be compared; empty where they can: windows enough on both, and the same load.

    The load is the same where the requests in the server (clients that wait for their answers) or the finished requests
    per second (clients that do not) differ by less than the band.
    """
    for name, side in (("before", before), ("after", after)):
        if side.active_windows < WINDOWS.value:
            return f"{name} has {side.active_windows} windows with traffic, at least {WINDOWS.value} are needed"
    if same_band(before.concurrency, after.concurrency) or same_band(before.requests_per_s, after.requests_per_s):
        return ""
    return "the load differs: neither requests in the server nor finished requests/s are within 10 % of each other"


def same_band(before: Number | None, after: Number | None) -> bool:
    """Whether the larger is at most 10 % above the smaller; what is missing or 0 is not."""
    if before is None or after is None or before <= 0 or after <= 0:
        return False
    low, high = sorted((Fraction(before), Fraction(after)))
    return high <= low * (1 + LOAD_BAND.value)


@dataclass(frozen=True)
class Note:
    """A figure whose change is called worse for display: relative drop, absolute drop or absolute rise."""

    metric: str
    kind: Literal["share drop", "drop", "rise"]
    bound: Threshold
    inclusive: bool


NOTES: tuple[Note, ...] = (
    Note("Throughput", "share drop", Threshold("note_throughput", Fraction(5, 100), "share", _NOTE + "5 %"), True),
    Note("Efficiency", "drop", Threshold("note_efficiency", 1, "points", _NOTE + "1 percentage point"), True),
    Note("Cost/1M", "rise", Threshold("note_cost", Fraction(1, 100), "USD/Mtoken", _NOTE + "more than $0.01"), False),
    Note("J/token", "rise", Threshold("note_energy", 20, "mJ/token", _NOTE + "more than 0.02 J"), False),
    Note("TTFT mean", "rise", Threshold("note_ttft", 5_000_000, "ns", _NOTE + "more than 5 ms"), False),
    Note("TPOT mean", "rise", Threshold("note_tpot", 500_000, "ns", _NOTE + "more than 0.5 ms"), False),
)


def worse(metric: str, before: Number | None, after: Number | None) -> bool:
    """Whether a figure is called worse; KeyError for a metric that has no note. What is missing is not worse."""
    note = {n.metric: n for n in NOTES}[metric]
    if before is None or after is None:
        return False
    change: Number | None = Fraction(after) - Fraction(before)
    if note.kind == "share drop":
        change = change_share(before, after)
    if change is None:
        return False
    amount = change if note.kind == "rise" else -change
    return amount >= note.bound.value if note.inclusive else amount > note.bound.value
