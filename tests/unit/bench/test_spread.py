"""Repeats, and what is told of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.spread import Spread, ratios, take_turns


def test_smallest_median_largest_of_an_odd_and_an_even_number() -> None:
    assert Spread.of([3, 1, 2]) == Spread(1, 2, 3, 3)
    assert Spread.of([4, 1, 2, 3]) == Spread(1, 2.5, 4, 4)


@given(st.lists(st.floats(1e-9, 1e9), min_size=1))
def test_the_spread_lies_within_the_values(values: list[float]) -> None:
    spread = Spread.of(values)
    assert (spread.low, spread.high, spread.repeats) == (min(values), max(values), len(values))
    assert spread.low <= spread.median <= spread.high


def test_no_values_have_no_spread() -> None:
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_a_ratio_is_taken_within_each_repeat() -> None:
    # the machine was ten times slower in the second repeat: the quotient of the medians would be 11 / 5.5
    assert ratios([2, 20], [1, 10]) == Spread(2, 2, 2, 2)
    assert ratios([2, 20, 300], [1, 40, 100]) == Spread(0.5, 2, 3, 3)


def test_a_ratio_needs_a_partner_for_each_value_and_a_positive_divisor() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratios([1, 2], [1])
    with pytest.raises(ValueError, match="divide by -1"):
        ratios([1, 2], [3, -1])


class Hand:
    """A clock that each way of doing things moves on."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.order = ""

    def way(self, name: str, seconds: float) -> str:
        self.order += name
        self.now_s += seconds
        return name


def test_the_order_is_reversed_every_other_time() -> None:
    hand = Hand()
    ways = {"a": lambda: hand.way("a", 1), "b": lambda: hand.way("b", 1), "c": lambda: hand.way("c", 1)}
    results = take_turns(ways, 3, 100, lambda: hand.now_s)
    assert hand.order == "abccbaabc"
    assert results == {"a": ["a"] * 3, "b": ["b"] * 3, "c": ["c"] * 3}


@pytest.mark.parametrize(("budget_s", "rounds"), [(0, 1), (7.9, 1), (8, 2), (12, 3), (100, 5)])
def test_no_round_begins_that_would_pass_the_budget(budget_s: float, rounds: int) -> None:
    hand = Hand()
    ways = {"a": lambda: hand.way("a", 1), "b": lambda: hand.way("b", 3)}
    results = take_turns(ways, 5, budget_s, lambda: hand.now_s)
    assert [len(r) for r in results.values()] == [rounds, rounds]
