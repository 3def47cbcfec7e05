"""Interval sets against the plainest model there is: sets of integers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpuaudit.analyze import intervals
from gpuaudit.analyze.intervals import Intervals

bounds = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)


def model(pairs: list[tuple[int, int]]) -> set[int]:
    return {t for a, b in pairs for t in range(a, b)}


def made(pairs: list[tuple[int, int]]) -> Intervals:
    return intervals.from_bounds([a for a, _ in pairs], [b for _, b in pairs])


def same(got: Intervals, want: set[int]) -> None:
    assert model([(int(a), int(b)) for a, b in got]) == want
    assert intervals.measure(got) == len(want)
    assert (got[:, 0] < got[:, 1]).all()
    assert (got[1:, 0] > got[:-1, 1]).all()


@given(bounds, bounds)
def test_set_operations(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    same(made(a), model(a))
    same(intervals.union(made(a), made(b)), model(a) | model(b))
    same(intervals.intersect(made(a), made(b)), model(a) & model(b))
    same(intervals.subtract(made(a), made(b)), model(a) - model(b))


@given(bounds, bounds, bounds)
def test_several(a: list[tuple[int, int]], b: list[tuple[int, int]], c: list[tuple[int, int]]) -> None:
    same(intervals.union(made(a), made(b), made(c)), model(a) | model(b) | model(c))
    same(intervals.intersect_all([made(a), made(b), made(c)]), model(a) & model(b) & model(c))


@given(bounds, st.integers(0, 60), st.integers(0, 60))
def test_clip(a: list[tuple[int, int]], low: int, length: int) -> None:
    same(intervals.clip(made(a), low, low + length), model(a) & set(range(low, low + length)))


@given(bounds, st.integers(0, 2**61))
def test_times_of_a_machine_that_runs_long(a: list[tuple[int, int]], shift: int) -> None:
    """Nothing is lost to floating point at times near 2^61 ns."""
    far = intervals.from_bounds([x + shift for x, _ in a], [y + shift for _, y in a])
    assert (far - shift == made(a)).all()


def test_nothing() -> None:
    same(intervals.intersect_all([]), set())
    same(intervals.union(), set())
    assert intervals.EMPTY.shape == (0, 2)
    assert intervals.EMPTY.dtype == np.int64
