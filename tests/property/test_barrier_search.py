"""Finding the collectives of a call by search gives what comparing it with every one gives."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpuaudit.analyze.barriers import Barriers, same_rows
from gpuaudit.analyze.syncs import NONE

BOUNDS = st.tuples(st.integers(0, 6), st.integers(0, 6))
"""Few values, so that many are equal in one end or both."""


def made(calls: list[tuple[int, int]], waits: list[tuple[int, int] | None]) -> Barriers:
    calls = sorted(calls, key=lambda x: x[0])
    n = len(calls)
    none = np.full((n, 2), NONE, dtype=np.int64)
    syncs = np.array([w or (NONE, NONE) for w in waits[:n]], dtype=np.int64).reshape(-1, 2)
    texts = np.array([""] * n)
    return Barriers(
        1, np.arange(n) % 2, np.array(calls, dtype=np.int64).reshape(-1, 2), syncs, none, none,
        np.zeros(n, dtype=np.int64), texts, texts, texts,
    )  # fmt: skip


@given(
    st.lists(BOUNDS, min_size=1, max_size=8).flatmap(
        lambda calls: st.tuples(
            st.just(calls), st.lists(st.none() | BOUNDS, min_size=len(calls), max_size=len(calls)), BOUNDS
        )
    )
)
def test_search_and_comparison_agree(
    given: tuple[list[tuple[int, int]], list[tuple[int, int] | None], tuple[int, int]],
) -> None:
    calls, waits, (start, end) = given
    b = made(calls, waits)
    by_comparison = np.flatnonzero((b.calls == [start, end]).all(axis=1) | (b.syncs == [start, end]).all(axis=1))
    assert b.at(start, end).tolist() == by_comparison.tolist()
    assert b.carries(np.array([[start, end]])).tolist() == [bool(len(by_comparison))]


@given(st.lists(BOUNDS, max_size=8), st.lists(BOUNDS, max_size=8))
def test_rows_of_one_set_among_another(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    found = same_rows(np.array(a, dtype=np.int64).reshape(-1, 2), np.array(b, dtype=np.int64).reshape(-1, 2))
    assert found.tolist() == [x in b for x in a]


@given(
    st.lists(BOUNDS, min_size=1, max_size=8),
    st.lists(st.none() | BOUNDS, min_size=8, max_size=8),
    st.lists(st.integers(0, 40), min_size=2, max_size=6, unique=True),
)
def test_what_lies_in_the_steps_of_a_thread(
    calls: list[tuple[int, int]], waits: list[tuple[int, int] | None], cuts: list[int]
) -> None:
    """Thread 0 made every second collective; steps follow each other from cut to cut."""
    b = made(calls, waits)
    steps = list(itertools.pairwise(sorted(cuts)))
    mine = [tuple(x) for rows in (b.calls, b.syncs) for x in rows[b.tid == 0].tolist() if NONE not in x]
    inside = sorted({x for x in mine if any(a <= x[0] < e and x[1] <= e for a, e in steps)})
    assert [tuple(x) for x in b.within(np.array(steps, dtype=np.int64), 0).tolist()] == inside
