"""Launches of a thread that are read in slices of time tell what all of them do at once: time inside, gaps, reach."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpuaudit.analyze import intervals
from gpuaudit.analyze.rules.tiny_launches import _median, _Rows
from gpuaudit.analyze.threads import Calls

QUEUED_NS = 6
FEW_THREADS = 5

moments = st.integers(0, 60)
launches = st.lists(st.tuples(moments, st.sampled_from([0, 1, 4, 6, 7, 30, 1 << 33]), st.integers(-1, 9)), max_size=14)
spans = st.lists(st.tuples(moments, st.integers(0, 20)), max_size=3)


@given(launches, st.lists(moments, max_size=4), spans)
def test_slices_tell_what_the_whole_does(
    made: list[tuple[int, int, int]], cuts: list[int], seen: list[tuple[int, int]]
) -> None:
    made = sorted(made, key=lambda x: x[0])
    observed = intervals.from_bounds([a for a, _ in seen], [a + n for a, n in seen])
    rows = _Rows(observed)
    edges = [-1, *sorted(cuts), 61]
    for low, high in pairwise(edges):
        mine = np.array([x for x in made if low <= x[0] < high], dtype=np.int64).reshape(-1, 3)
        start, end = mine[:, 0], mine[:, 0] + mine[:, 1]
        rows.add(Calls({"start_ns": start, "end_ns": end, "threads": mine[:, 2]}), QUEUED_NS, FEW_THREADS)
    queued = [(a, a + n) for a, n, _ in made if n <= QUEUED_NS]
    moments_inside = {t for a, b in queued for t in range(a, b)}
    assert rows.queued_inside == sum(any(a <= t < a + n for a, n in seen) for t in moments_inside)
    assert len(rows) == len(made)
    assert rows.small == sum(0 <= n < FEW_THREADS for _, _, n in made)
    some = [(a, a + n) for a, n, _ in made if n]
    assert rows.reach.tolist() == ([[some[0][0], max(b for _, b in some)]] if some else [])
    durations = sorted(n for _, n, _ in made)
    gaps = sorted(max(b[0] - a[0] - a[1], 0) for a, b in pairwise(made))
    for got, want in ((rows.durations, durations), (rows.gaps, gaps)):
        assert _median(got) == (want[(len(want) + 1) // 2 - 1] if want else None)
