"""The compute/stall ratio: within 0–1, the same however calls and samples are cut, and never raised by a copy."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuaudit.analyze.blocked import COPY, DEVICE_SYNC, LAUNCH, STREAM_SYNC, Blocked, of_calls
from gpuaudit.analyze.busy import SCALE, Busy
from gpuaudit.analyze.stall import Measured, Series, Stall
from tests.scenes import MS, T0, S

END = T0 + 4 * S
STEP = 50 * MS
GAP = 2 * STEP

calls = st.lists(
    st.tuples(
        st.sampled_from(["cudaMemcpy", "cudaMemcpyAsync", "cudaLaunchKernel", "cudaStreamSynchronize",
                         "cudaDeviceSynchronize"]),
        st.integers(1, 2), st.integers(1, 2), st.integers(0, 6), st.one_of(st.none(), st.integers(0, 6)),
    ),
    max_size=25,
)  # fmt: skip
"""(operation, thread, stream, pause before it, length) in steps of 50 ms, one after the other on each thread."""
shares = st.lists(st.one_of(st.none(), st.integers(0, SCALE)), min_size=1, max_size=16)
"""Kernel time of quarters of a second; None: not told."""

Call = tuple[str, int, int, int, int | None]
Row = tuple[int, int, str, int, int]


def timed(given_calls: list[Call]) -> list[Row]:
    """(start, end, operation, thread, stream) of each call; at most one per thread is open, and it is the last one."""
    out: list[Row] = []
    clock = {1: T0, 2: T0}
    for op, tid, stream, pause, length in given_calls:
        at = clock[tid] + pause * STEP
        if at < END:
            clock[tid] = END if length is None else at + length * STEP
            out.append((at, clock[tid], op, tid, stream))
    return out


def blocked(rows: list[Row]) -> Blocked:
    rows = sorted(rows, key=lambda r: r[0])
    kinds = {"cudaMemcpy": COPY, "cudaMemcpyAsync": COPY, "cudaLaunchKernel": LAUNCH,
             "cudaStreamSynchronize": STREAM_SYNC, "cudaDeviceSynchronize": DEVICE_SYNC}  # fmt: skip
    columns = {
        "start_ns": [r[0] for r in rows], "end_ns": [r[1] for r in rows], "kind": [kinds[r[2]] for r in rows],
        "asynchronous": [r[2] == "cudaMemcpyAsync" for r in rows], "tid": [r[3] for r in rows],
        "stream": [r[4] for r in rows],
    }  # fmt: skip
    return of_calls({k: np.array(v, dtype=bool if k == "asynchronous" else np.int64) for k, v in columns.items()}, GAP)


def busy(told: list[int | None], parts: int = 1) -> Busy:
    """Each quarter of a second cut into ``parts`` rows of the same share."""
    size = 250 * MS // parts
    spans = [
        (T0 + i * 250 * MS + k * size, T0 + i * 250 * MS + (k + 1) * size)
        for i, share in enumerate(told)
        if share is not None
        for k in range(parts)
    ]
    values = [share for share in told if share is not None for _ in range(parts)]
    return Busy(np.array(spans, dtype=np.int64).reshape(-1, 2), np.array(values, dtype=np.int64))


def made(told: Busy, time: Blocked) -> Stall:
    return Stall(told, time.certain, time.possible, T0, END)


@settings(max_examples=150, deadline=None)
@given(calls, shares)
def test_every_ratio_lies_between_nothing_and_one_and_the_bounds_hold(c: list[Call], told: list[int | None]) -> None:
    stall = made(busy(told), blocked(timed(c)))
    m = stall.whole
    assert 0 <= m.busy_ns + m.stalled_ns <= m.observed_ns <= END - T0
    assert (m.ratio is None) == (m.busy_scaled == m.stalled_scaled == 0)
    if m.ratio is not None and m.lowest is not None and m.highest is not None:
        assert 0 <= m.lowest <= m.ratio <= m.highest <= 1
    for values in (stall.seconds.known, stall.minutes.known):
        assert ((values >= 0) & (values <= SCALE)).all()


@settings(max_examples=150, deadline=None)
@given(calls, shares, st.sampled_from([2, 5, 10]))
def test_cutting_rows_changes_nothing(c: list[Call], told: list[int | None], parts: int) -> None:
    whole = blocked(timed(c))
    one, many = made(busy(told), whole), made(busy(told, parts), whole)
    assert one.whole == many.whole
    assert same(one.seconds, many.seconds)
    halves = [part for row in timed(c) for part in cut(row)]
    assert made(busy(told), blocked(halves)).whole == one.whole


def cut(row: Row) -> list[Row]:
    """A blocking copy told in two rows that meet."""
    start, end, op, tid, stream = row
    middle = (start + end) // 2
    halves = [(start, middle, op, tid, stream), (middle, end, op, tid, stream)]
    return halves if op == "cudaMemcpy" else [row]


def same(a: Series, b: Series) -> bool:
    return bool((a.starts == b.starts).all() and (a.ratios == b.ratios).all())


@settings(max_examples=200, deadline=None)
@given(calls, shares, st.tuples(st.integers(0, 79), st.integers(0, 20), st.integers(1, 3), st.integers(1, 2)))
def test_a_blocking_copy_more_never_raises_the_ratio(
    c: list[Call], told: list[int | None], more: tuple[int, int, int, int]
) -> None:
    at, length, tid, stream = more
    start = T0 + at * STEP
    after = [*timed(c), (start, start + length * STEP, "cudaMemcpy", tid, stream)]
    low, high = made(busy(told), blocked(after)).whole, made(busy(told), blocked(timed(c))).whole
    for name in ("ratio", "lowest", "highest"):
        a, b = ratio(low, name), ratio(high, name)
        assert b is None or (a is not None and a <= b)


def ratio(m: Measured, name: str) -> Fraction | None:
    value = getattr(m, name)
    assert value is None or isinstance(value, Fraction)
    return value
