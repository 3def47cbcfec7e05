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


rows = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=8).map(
    lambda pairs: np.array([(a, a + n) for a, n in pairs], dtype=np.int64).reshape(-1, 2)
)
"""Parts in any order, which may overlap or be empty."""


@given(rows, bounds)
def test_coverage(parts: Intervals, by: list[tuple[int, int]]) -> None:
    want = [len(model([(a, b)]) & model(by)) for a, b in parts.tolist()]
    assert intervals.coverage(parts, made(by)).tolist() == want


@given(rows, bounds)
def test_nearest(parts: Intervals, to: list[tuple[int, int]]) -> None:
    members = made(to)
    index, gap = intervals.nearest(parts, members)
    for (a, b), i, g in zip(parts.tolist(), index.tolist(), gap.tolist(), strict=True):
        ranked = sorted((max(c - b, a - d, 0), not (a < b and c < b and a < d), n)
                        for n, (c, d) in enumerate(members.tolist()))  # fmt: skip
        assert (i, g) == ((ranked[0][2], ranked[0][0]) if ranked else (-1, -1))


@given(rows, bounds, st.integers(0, 2**61))
def test_coverage_and_neighbours_do_not_depend_on_the_origin(
    parts: Intervals, to: list[tuple[int, int]], shift: int
) -> None:
    members = made(to)
    far = intervals.from_bounds(members[:, 0] + shift, members[:, 1] + shift)
    assert (intervals.coverage(parts + shift, far) == intervals.coverage(parts, members)).all()
    for there, here in zip(intervals.nearest(parts + shift, far), intervals.nearest(parts, members), strict=True):
        assert (there == here).all()


def test_nothing() -> None:
    same(intervals.intersect_all([]), set())
    same(intervals.union(), set())
    assert intervals.EMPTY.shape == (0, 2)
    assert intervals.EMPTY.dtype == np.int64
