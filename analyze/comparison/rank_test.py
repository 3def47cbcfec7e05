"""An exact rank test for two small samples, and an effect size for two large ones: integers and fractions throughout.

*Test*: Wilcoxon's rank sum with midranks for ties, against its permutation distribution (every choice of which values
belong to which side is equally likely if the sides do not differ), counted in full: no normal approximation. Two-sided:
the share of choices whose rank sum lies at least as far from its mean as the observed one. *Effect size*: Cliff's delta
(1993), the share of pairs in which the second side is larger less the share in which it is smaller: −1 to 1, 0 where
neither tends to be larger. *Several tests*: Holm's step-down adjustment (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import comb

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.finding import Threshold

NEGLIGIBLE = Threshold(
    "negligible_delta", Fraction(147, 1000), "ratio", "Romano et al. 2006: Cliff's delta below 0.147 is negligible"
)
SMALL = Threshold("small_delta", Fraction(33, 100), "ratio", "Romano et al. 2006: below 0.33 the effect is small")
MEDIUM = Threshold("medium_delta", Fraction(474, 1000), "ratio", "Romano et al. 2006: below 0.474 it is medium")
THRESHOLDS = (NEGLIGIBLE, SMALL, MEDIUM)

MAX_VALUES = 64
"""Values of both sides together: the distribution is counted in time that grows with their fourth power."""

Counted = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Distinct values, ascending, and how often each occurs."""


def counted(values: Sequence[int]) -> Counted:
    """Values as distinct ones with their counts."""
    distinct, counts = np.unique(np.array(values, dtype=np.int64), return_counts=True)
    return distinct, counts.astype(np.int64)


def rank_sum_p(a: Sequence[int], b: Sequence[int]) -> Fraction:
    """Two-sided p-value; ValueError where a side is empty or there are more values than can be counted."""
    if not a or not b or len(a) + len(b) > MAX_VALUES:
        raise ValueError(f"{len(a)} and {len(b)} values: each side needs one, both at most {MAX_VALUES}")
    ranks = _doubled_midranks([*a, *b])
    observed, mean = sum(ranks[: len(a)]), Fraction(sum(ranks) * len(a), len(ranks))
    ways = _ways(ranks, len(a))
    far = sum(n for total, n in enumerate(ways) if abs(total - mean) >= abs(observed - mean))
    return Fraction(far, comb(len(ranks), len(a)))


def _doubled_midranks(values: Sequence[int]) -> list[int]:
    """Twice the rank of each value, equal ones sharing the mean of theirs: whole numbers."""
    ordered = sorted(values)
    first = {v: i for i, v in reversed(list(enumerate(ordered, start=1)))}
    last = {v: i for i, v in enumerate(ordered, start=1)}
    return [first[v] + last[v] for v in values]


def _ways(ranks: Sequence[int], chosen: int) -> list[int]:
    """How many choices of ``chosen`` of the ranks have each sum."""
    table = [[0] * (sum(ranks) + 1) for _ in range(chosen + 1)]
    table[0][0] = 1
    for r in ranks:
        for k in range(chosen, 0, -1):
            below, here = table[k - 1], table[k]
            for total in range(r, len(here)):
                if below[total - r]:
                    here[total] += below[total - r]
    return table[chosen]


def holm(p_values: Sequence[Fraction]) -> list[Fraction]:
    """Adjusted p-values, in the order given: each is the least level at which its own test would be rejected."""
    order = sorted(range(len(p_values)), key=lambda i: (p_values[i], i))
    out = [Fraction(1)] * len(p_values)
    least = Fraction(0)
    for step, i in enumerate(order):
        least = max(least, min(Fraction(1), p_values[i] * (len(p_values) - step)))
        out[i] = least
    return out


def cliffs_delta(a: Counted, b: Counted) -> Fraction:
    """Of all pairs, those in which ``b`` is larger less those in which it is smaller; ValueError for an empty side."""
    (av, an), (bv, bn) = a, b
    pairs = int(an.sum()) * int(bn.sum())
    if not pairs:
        raise ValueError("a side without values has no pairs")
    upto = np.concatenate([[0], np.cumsum(an)])
    smaller = upto[np.searchsorted(av, bv, side="left")]
    larger = upto[-1] - upto[np.searchsorted(av, bv, side="right")]
    # Differences of counts are summed as Python integers: their products may pass 64 bits.
    return Fraction(sum(int(d) * int(n) for d, n in zip(smaller - larger, bn, strict=True)), pairs)


def size_of(delta: Fraction) -> str:
    """Negligible, small, medium or large."""
    size = abs(delta)
    if size < NEGLIGIBLE.value:
        return "negligible"
    return "small" if size < SMALL.value else "medium" if size < MEDIUM.value else "large"
