"""The interval join in SQL against the plainest join there is, over lengths from a nanosecond to a century."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuaudit.analyze import intervals
from gpuaudit.analyze.causal.during import THREAD, During, rows_during, thread_key
from gpuaudit.analyze.overlap_join import BUCKET_NS, LEVELS, RATIO
from gpuaudit.analyze.store import BATCH_ROWS, Store
from tests.scenes import MS, T0, Scene

Row = tuple[int, int, int]

edges = st.sampled_from([BUCKET_NS * RATIO**n for n in range(LEVELS)])
starts = st.one_of(st.integers(0, 10**11), edges, edges.map(lambda e: max(e - 1, 0)), st.integers(0, 1 << 61))
lengths = st.one_of(st.integers(-5, 10**9), edges, edges.map(lambda e: e - 1), st.integers(0, 1 << 61))
relations = st.lists(st.tuples(st.integers(0, 2), starts, lengths), max_size=12)
"""(key, start, length); lengths of every level, and on both sides of its border."""


@pytest.fixture(scope="module")
def store() -> Store:
    return Scene().clock().store()


def columns(rows: list[Row]) -> dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    a = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return {"id": np.arange(len(a)), "k": a[:, 0], "a": a[:, 1].copy(), "b": a[:, 1] + a[:, 2]}


@settings(max_examples=60, deadline=None)
@given(left=relations, right=relations)
def test_every_pair_once(store: Store, left: list[Row], right: list[Row]) -> None:
    want = [
        (i, j, max(a, c), min(a + n, c + m))
        for (i, (k, a, n)), (j, (q, c, m)) in product(enumerate(left), enumerate(right))
        if k == q and n > 0 and m > 0 and a < c + m and c < a + n
    ]
    with store.relation("x", columns(left)), store.relation("y", columns(right)):
        assert sorted(store.sql("SELECT l, r, a, b FROM overlapping('x', 'y')")) == sorted(want)


def test_an_hour_of_sleep_is_few_rows(store: Store) -> None:
    """What a join costs: copies of a long interval do not grow with it."""
    hour = [(0, 0, 3600 * 10**9)]
    short = [(0, 10**9 * i, 1000) for i in range(50)]
    with store.relation("x", columns(hour)), store.relation("y", columns(short)):
        assert store.sql("SELECT count(*) FROM overlapping('x', 'y')") == [(50,)]
    assert 3600 * 10**9 // (BUCKET_NS * RATIO**2) < 10


threads = st.sampled_from([(7, 7), (7, 8), (0, 7), (2**32 - 1, 2**32 - 1)])
offs = st.lists(
    st.tuples(threads, st.integers(0, 50), st.one_of(st.none(), st.integers(0, 30))), min_size=1, max_size=8
)
asked = st.lists(
    st.tuples(threads, st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=3)), max_size=4
)


@settings(max_examples=25, deadline=None)
@given(rows=offs, sets=asked, in_parts=st.booleans())
def test_rows_during_sets_of_time(
    rows: list[tuple[tuple[int, int], int, int | None]],
    sets: list[tuple[tuple[int, int], list[tuple[int, int]]]],
    in_parts: bool,
) -> None:
    """The row counts where its thread is the one asked for and a moment of it lies in the set; open ones to the end.
    So it is where the table is joined leaf by leaf, here of a row each."""
    scene = Scene().clock(T0, T0 + 100 * MS, 10 * MS)
    for (pid, tid), at, length in rows:
        scene.add(
            "off_cpu", start_ns=T0 + at * MS, duration_ns=None if length is None else length * MS, pid=pid, tid=tid,
            op="blocked", comm="a", prev_state=1, cpu_out=0,
        )  # fmt: skip
    context = scene.context(segments=len(rows) if in_parts else 1)
    wanted = {}
    for n, (thread, t) in enumerate(sets):
        time = intervals.from_bounds([T0 + a * MS for a, _ in t], [T0 + (a + d) * MS for a, d in t])
        wanted[f"{n}"] = (thread_key(*thread), time)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpuaudit.analyze.store.BATCH_ROWS", 1 if in_parts else BATCH_ROWS)
        got = rows_during(context, During("off_cpu", THREAD, {"tid": "tid::BIGINT"}), wanted)
    first = min(x.index for x in context.store.leaves if x.table == "off_cpu")
    for name, (key, time) in wanted.items():
        want = []
        for i, (thread, at, length) in enumerate(rows):
            end = context.window.end_ns if length is None else T0 + (at + length) * MS
            touching = intervals.intersect(time, intervals.single(T0 + at * MS, end))
            if thread_key(*thread) == key and len(touching):
                want.append((T0 + at * MS, end, i))
        mine = got.get(name, {x: np.array([]) for x in ("start_ns", "end_ns", "leaf", "row")})
        place = mine["leaf"] - first + mine["row"]
        assert list(zip(mine["start_ns"].tolist(), mine["end_ns"].tolist(), place.tolist(), strict=True)) == sorted(
            want, key=lambda w: (w[0], w[2])
        )
