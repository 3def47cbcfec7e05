"""The exact rank test and the effect size, against what enumeration and published tables say."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest

from gpuaudit.analyze.comparison import rank_test


def by_enumeration(a: list[int], b: list[int]) -> Fraction:
    """The same p-value from every choice of which values are the first side's."""
    values = [*a, *b]
    ranks = [sum(v < x for v in values) * 2 + sum(v == x for v in values) + 1 for x in values]
    mean = Fraction(sum(ranks) * len(a), len(ranks))
    sums = [sum(chosen) for chosen in combinations(ranks, len(a))]
    return Fraction(sum(abs(s - mean) >= abs(sum(ranks[: len(a)]) - mean) for s in sums), len(sums))


@pytest.mark.parametrize("seed", range(12))
def test_the_p_value_is_that_of_all_choices(seed: int) -> None:
    draw = random.Random(seed)
    a = [draw.randrange(9) for _ in range(draw.randint(1, 6))]
    b = [draw.randrange(3, 12) for _ in range(draw.randint(1, 6))]
    assert rank_test.rank_sum_p(a, b) == by_enumeration(a, b)
    assert rank_test.rank_sum_p(b, a) == rank_test.rank_sum_p(a, b)


def test_known_values() -> None:
    assert rank_test.rank_sum_p([1, 2, 3], [4, 5, 6]) == Fraction(2, 20), "three against three never reach 1/20"
    assert rank_test.rank_sum_p([1, 2, 3, 4], [5, 6, 7, 8]) == Fraction(2, 70)
    assert rank_test.rank_sum_p([5, 5], [5, 5, 5]) == 1
    assert rank_test.rank_sum_p(list(range(16)), list(range(100, 116))) == Fraction(2, 601_080_390)


@pytest.mark.parametrize(("a", "b"), [([], [1]), ([1], []), ([1] * 40, [2] * 30)])
def test_what_cannot_be_counted_is_refused(a: list[int], b: list[int]) -> None:
    with pytest.raises(ValueError, match="values"):
        rank_test.rank_sum_p(a, b)


@pytest.mark.parametrize("seed", range(8))
def test_the_effect_size_is_that_of_all_pairs(seed: int) -> None:
    draw = random.Random(seed)
    a = [draw.randrange(30) for _ in range(draw.randint(1, 40))]
    b = [draw.randrange(10, 50) for _ in range(draw.randint(1, 40))]
    expected = Fraction(sum((y > x) - (y < x) for x in a for y in b), len(a) * len(b))
    assert rank_test.cliffs_delta(rank_test.counted(a), rank_test.counted(b)) == expected
    assert rank_test.cliffs_delta(rank_test.counted(b), rank_test.counted(a)) == -expected


def test_counts_beyond_64_bits_stay_exact() -> None:
    many = (np.array([1, 2]), np.array([1 << 40, 1 << 40]))
    assert rank_test.cliffs_delta(many, (np.array([2]), np.array([1 << 40]))) == Fraction(1, 2)
    with pytest.raises(ValueError, match="no pairs"):
        rank_test.cliffs_delta(many, rank_test.counted([]))


def test_sizes_have_names() -> None:
    names = [rank_test.size_of(Fraction(x, 1000)) for x in (0, -146, 147, 329, -330, 473, 474, -1000)]
    assert names == ["negligible", "negligible", "small", "small", "medium", "medium", "large", "large"]


def test_holm_is_the_step_down() -> None:
    """By hand: 0.01·3, then max(0.03, 0.02·2), then max(0.04, 0.9)."""
    p = [Fraction(9, 10), Fraction(1, 100), Fraction(2, 100)]
    assert rank_test.holm(p) == [Fraction(9, 10), Fraction(3, 100), Fraction(4, 100)]
    assert rank_test.holm([Fraction(3, 5), Fraction(3, 5)]) == [1, 1]
    assert rank_test.holm([]) == []
