"""Before and after: all 27 rows against the reference's own summary of them, the veto, and the gate."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuaudit.analyze.inference import compare
from gpuaudit.analyze.inference.compare import Arm, Load, comparable, direction

ARMS: tuple[Arm, ...] = get_args(Arm)
POINTS = {"up": Fraction(3), "flat": Fraction(0), "down": Fraction(-6)}
TTFT_AFTER = {"up": Fraction(70), "flat": Fraction(100), "down": Fraction(130)}
THROUGHPUT = {"up": Fraction(15, 100), "flat": Fraction(0), "down": Fraction(-15, 100)}


def summary(efficiency: Arm, ttft: Arm, throughput: Arm) -> str:
    """The reference's prose, sentence by sentence."""
    if efficiency == "up":
        slower = "Worse" if throughput == "down" else "Mixed"
        return slower if ttft == "down" else "Better"
    if efficiency == "flat":
        return {
            "up": "Mixed" if throughput == "down" else "Better",
            "flat": {"up": "Better", "flat": "NoChange", "down": "Worse"}[throughput],
            "down": "Mixed" if throughput == "up" else "Worse",
        }[ttft]
    if ttft == "up":
        return {"up": "Better", "flat": "Mixed", "down": "Worse"}[throughput]
    return "Mixed" if (ttft, throughput) == ("flat", "up") else "Worse"


@pytest.mark.parametrize("row", list(product(ARMS, repeat=3)), ids="-".join)
def test_every_row(row: tuple[Arm, Arm, Arm]) -> None:
    found = direction(POINTS[row[0]], THROUGHPUT[row[2]], Fraction(100), TTFT_AFTER[row[1]])
    assert (found.efficiency, found.ttft, found.throughput) == row
    assert found.verdict == summary(*row)


def test_the_table_is_whole() -> None:
    assert set(compare.TABLE) == set(product(ARMS, repeat=3))


@pytest.mark.parametrize(
    ("points", "arm"),
    [(2, "up"), (Fraction(199, 100), "flat"), (-5, "down"), (Fraction(-499, 100), "flat"), (None, "flat")],
)
def test_the_cuts_of_efficiency(points: Fraction | int | None, arm: Arm) -> None:
    assert direction(points, None, None, None).efficiency == arm


@pytest.mark.parametrize(("after", "arm"), [(120, "down"), (119, "flat"), (80, "up"), (81, "flat")])
def test_the_cuts_of_latency(after: int, arm: Arm) -> None:
    assert direction(3, None, 100, after).ttft == arm


def test_without_efficiency_throughput_decides_alone_and_latency_vetoes_nothing() -> None:
    assert direction(None, Fraction(12, 100), 100, 500).verdict == "Better"
    assert direction(None, Fraction(10, 100), 100, 100).verdict == "NoChange"
    assert direction(None, Fraction(-11, 100), 100, 50).verdict == "Worse"


@given(
    points=st.fractions(-50, 50), change=st.fractions(-1, 3), before=st.integers(1, 1000), after=st.integers(1, 5000)
)
def test_worse_latency_never_ends_better(points: Fraction, change: Fraction, before: int, after: int) -> None:
    found = direction(points, change, before, after)
    if found.ttft == "down":
        assert found.verdict in {"Mixed", "Worse"}


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (Load(2, 8, 1), Load(3, 8, 1), "before has 2 windows"),
        (Load(3, 8, 1), Load(0, 8, 1), "after has 0 windows"),
        (Load(3, 10, 1), Load(3, 20, 2), "the load differs"),
        (Load(3, None, None), Load(3, 20, 2), "the load differs"),
        (Load(3, 0, 0), Load(3, 0, 0), "the load differs"),
        (Load(3, 10, 1), Load(3, 11, 5), ""),
        (Load(3, 10, 5), Load(3, 90, Fraction(55, 10)), ""),
        (Load(3, 10, 1), Load(3, Fraction(111, 10), 2), "the load differs"),
    ],
)
def test_what_makes_two_sides_comparable(before: Load, after: Load, why: str) -> None:
    found = comparable(before, after)
    assert found.startswith(why)
    assert bool(found) is bool(why)
    assert bool(comparable(after, before)) is bool(why), "whichever side comes first"


@pytest.mark.parametrize(
    ("metric", "before", "after", "worse"),
    [
        ("Throughput", 100, 95, True),
        ("Throughput", 100, 96, False),
        ("Efficiency", 40, 39, True),
        ("Efficiency", 40, Fraction(391, 10), False),
        ("Cost/1M", 1, Fraction(101, 100), False),
        ("J/token", 3000, 3021, True),
        ("J/token", 3000, 3020, False),
        ("TTFT mean", 100_000_000, 105_000_001, True),
        ("TTFT mean", 100_000_000, 105_000_000, False),
        ("TPOT mean", 20_000_000, 20_500_001, True),
        ("TPOT mean", 20_000_000, None, False),
        ("Throughput", 0, 0, False),
    ],
)
def test_the_notes(metric: str, before: Fraction | int, after: Fraction | int | None, worse: bool) -> None:
    assert compare.worse(metric, before, after) is worse
