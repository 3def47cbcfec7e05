"""The waste ledger: every nanosecond of observed GPU time in exactly one row, whatever the evidence looks like."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuaudit.analyze import intervals
from gpuaudit.analyze.waste import KEYS, ledger, waste
from tests.scenes import MS, T0, Scene

samples = st.lists(
    st.tuples(
        st.integers(0, 1), st.integers(0, 40), st.integers(0, 6), st.sampled_from([None, 0, 0, 70]),
        st.sets(st.integers(50, 52), max_size=2),
    ),
    max_size=30,
)  # fmt: skip
syncs = st.lists(
    st.tuples(st.integers(50, 52), st.integers(0, 40), st.one_of(st.none(), st.integers(0, 10))), max_size=20
)


@settings(max_examples=40, deadline=None)
@given(samples, syncs)
def test_the_rows_add_up_and_never_overlap(
    polls: list[tuple[int, int, int, int | None, set[int]]], calls: list[tuple[int, int, int | None]]
) -> None:
    scene = Scene().clock(end=T0 + 5)
    for gpu, at, length, busy, pids in polls:
        scene.sample(T0 + at * MS, length * MS, gpu, sorted(pids), gpu_utilization_percent=busy)
    for pid, at, duration in calls:
        scene.cuda(pid, "cudaStreamSynchronize", T0 + at * MS, None if duration is None else duration * MS, stream=1)
    context = scene.context()
    entries = ledger(context)
    for g in context.gpus:
        mine = [e.time for e in entries if e.gpu.uuid == g.uuid]
        together = intervals.union(*mine)
        assert (together == g.covered).all()
        assert sum(map(intervals.measure, mine)) == intervals.measure(g.covered)
    section = waste(context, None)
    total = int(section["observed"]["value"] or 0)
    assert sum(int(r["gpu_time"]["value"]) for r in section["rows"]) == total
    assert sum(int(r["gpu_time"]["value"]) for r in section["by_key"]) == total
    assert {r["key"] for r in section["rows"]} <= set(KEYS)
