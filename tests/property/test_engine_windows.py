"""Quantiles of merged buckets and windows cut at any place, against a model that keeps every observation."""

from __future__ import annotations

import math
from bisect import bisect_left
from fractions import Fraction
from itertools import pairwise
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpuaudit.analyze.inference.model import Buckets
from gpuaudit.analyze.inference.quantiles import delta, merge, quantile
from gpuaudit.analyze.inference.series import Scrapes
from gpuaudit.analyze.inference.windows import SECOND_NS, cut, plan, window_length_s

EDGES = (0.001, 0.01, 0.1, 0.5, 1.0, 7.5, math.inf)
QUANTILES = st.fractions(0, 1, max_denominator=1_000)
OBSERVATIONS = st.lists(st.integers(1, 12_000), max_size=60)
"""In milliseconds."""


def _buckets(observed_ms: list[int]) -> Buckets:
    """The histogram of some observations."""
    counts = [0] * len(EDGES)
    for ms in observed_ms:
        counts[bisect_left([e * 1000 for e in EDGES], ms)] += 1
    return Buckets(EDGES, tuple(np.cumsum(counts).tolist()))


def _true(observed_ms: list[int], q: Fraction) -> Fraction:
    """The smallest observation that a share of ``q`` of all is not above."""
    ordered = sorted(observed_ms)
    return Fraction(ordered[max(0, math.ceil(q * len(ordered)) - 1)], 1000)


@given(OBSERVATIONS, QUANTILES)
def test_a_quantile_lies_in_the_bucket_of_the_true_one(observed: list[int], q: Fraction) -> None:
    found = quantile(_buckets(observed), q)
    assert (found is None) == (not observed)
    if found is None or q == 0:
        return
    true = _true(observed, q)
    at = bisect_left(EDGES, float(true))
    if EDGES[at] == math.inf:
        assert found.clamped
        assert found.value == Fraction(repr(EDGES[-2])) < true
    else:
        lower = Fraction(repr(EDGES[at - 1])) if at else Fraction(0)
        assert not found.clamped
        assert lower <= found.value <= Fraction(repr(EDGES[at]))


@given(OBSERVATIONS, QUANTILES, QUANTILES)
def test_a_higher_quantile_is_never_lower(observed: list[int], a: Fraction, b: Fraction) -> None:
    low, high = quantile(_buckets(observed), min(a, b)), quantile(_buckets(observed), max(a, b))
    if low is not None and high is not None and min(a, b) > 0:
        assert low.value <= high.value
        assert low.clamped <= high.clamped


@given(OBSERVATIONS, st.lists(st.integers(0, 60), max_size=8), st.randoms(use_true_random=False))
def test_windows_may_be_split_anywhere_and_merged_in_any_order(
    observed: list[int], splits: list[int], order: Random
) -> None:
    """Merging the deltas of any windows gives the histogram of the whole run."""
    bounds = sorted({0, len(observed), *(min(s, len(observed)) for s in splits)})
    ends = [_buckets(observed[:b]) for b in bounds]
    parts = [delta(EDGES, a.counts, b.counts) for a, b in pairwise(ends)]
    order.shuffle(parts)
    if parts:
        assert merge(parts) == _buckets(observed)


@given(OBSERVATIONS, OBSERVATIONS)
def test_other_edges_are_left_out_and_never_mixed(a: list[int], b: list[int]) -> None:
    other = Buckets((*EDGES[:-2], 8.0, math.inf), _buckets(b).counts)
    assert merge([_buckets(a), other, _buckets(a)]).counts == tuple(2 * c for c in _buckets(a).counts)
    close = Buckets((*EDGES[:-2], 7.5 + 5e-10, math.inf), _buckets(b).counts)
    assert merge([_buckets(a), close]).counts == _buckets(a + b).counts


@given(st.lists(st.integers(0, 50), min_size=1, max_size=7), st.lists(st.integers(0, 50), min_size=1, max_size=7))
def test_a_bucket_that_fell_empties_the_delta(before: list[int], after: list[int]) -> None:
    edges = tuple(float(i) for i in range(len(before)))
    found = delta(edges, before, after)
    gained = [b - a for a, b in zip(before, after, strict=False)]
    cumulative = gained == sorted(gained)  # a bucket holds what the one before it holds
    assert bool(found.edges) == (len(before) == len(after) and min(gained) >= 0 and cumulative)


@given(st.integers(0, 200_000))
def test_windows_fill_the_run(milliseconds: int) -> None:
    duration = Fraction(milliseconds, 1000)
    length = window_length_s(duration)
    lengths = plan(duration, length)
    assert length == (2 if duration <= 30 else 10)
    assert all(0 < x <= length for x in lengths)
    assert sum(lengths) == (duration or length)
    assert all(x == length for x in lengths[:-1])


GAPS_MS = st.lists(st.integers(1, 15_000), max_size=120)


@given(GAPS_MS, st.sets(st.integers(1, 119), max_size=3))
def test_every_scrape_is_in_one_window_and_all_time_in_at_most_one(gaps_ms: list[int], resets: set[int]) -> None:
    done = np.cumsum([5 * SECOND_NS, *(g * 1_000_000 for g in gaps_ms)], dtype=np.int64)
    flags = np.array([i in resets for i in range(len(done))])
    where = cut(Scrapes(done, done, flags, np.zeros(0, dtype=np.int64)))
    assert int((where.end - where.first).sum()) == len(done)
    assert (where.first[0], where.end[-1]) == (0, len(done))
    length = Fraction(int(done[-1] - done[0]), SECOND_NS)
    width = window_length_s(length)
    lengths = [Fraction(int(b - a), SECOND_NS) for a, b in zip(where.start_ns, where.end_ns, strict=True)]
    assert lengths == plan(length, width)
    spans = [
        (i, int(where.base[i]), int(where.last[i])) for i in range(len(where.end)) if where.end[i] > where.first[i]
    ]
    assert all(base <= last for _, base, last in spans)
    for (_, _, before), (i, base, _) in pairwise(spans):
        assert before <= base
        if before < base:  # time that belongs to no window: a restart, or polls that failed for more than a window
            assert flags[base] or int(where.start_ns[i] - done[before]) > width * SECOND_NS


@given(GAPS_MS)
def test_without_holes_the_windows_cover_all_time(gaps_ms: list[int]) -> None:
    """Deltas of the windows add up to the run's wherever no two scrapes are a window apart."""
    done = np.cumsum([0, *(min(g, 1_900) * 1_000_000 for g in gaps_ms)], dtype=np.int64)
    where = cut(Scrapes(done, done, np.zeros(len(done), dtype=bool), np.zeros(0, dtype=np.int64)))
    chosen = where.end > where.first
    covered = done[where.last[chosen]] - done[where.base[chosen]]
    assert int(covered.sum()) == int(done[-1] - done[0])
