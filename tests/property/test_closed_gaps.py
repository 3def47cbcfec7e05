"""Silence is read with short gaps between calls closed: the long ones, and all that lies outside the life, are as they
were."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpuaudit.analyze import intervals
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.silence import _closed

moments = st.integers(0, 60)
calls = st.lists(st.tuples(moments, st.integers(1, 8)), max_size=12)


def long_ones(time: Intervals, least: int) -> list[list[int]]:
    return [x for x in time.tolist() if x[1] - x[0] >= least]


@given(calls, moments, moments, st.integers(1, 12))
def test_only_short_gaps_within_the_life_are_closed(made: list[tuple[int, int]], a: int, b: int, least: int) -> None:
    times = intervals.from_bounds([at for at, _ in made], [at + ns for at, ns in made])
    life = intervals.single(min(a, b), max(a, b))
    closed = _closed(times, min(a, b), max(a, b), least)
    assert len(closed) <= len(times)
    assert long_ones(intervals.subtract(life, closed), least) == long_ones(intervals.subtract(life, times), least)
    assert intervals.subtract(closed, life).tolist() == intervals.subtract(times, life).tolist()
    assert intervals.subtract(times, closed).tolist() == []
