"""The balance of allocations against a plain replay of the same calls, whatever their order, addresses and sizes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuaudit.analyze.balance import EITHER, Balance, read_balances
from tests.scenes import T0, Scene

CALLS = st.lists(
    st.tuples(
        st.sampled_from(["cudaMalloc", "cudaMallocManaged", "cudaFree", "cudaFreeAsync"]),
        st.integers(1, 5),  # address
        st.integers(0, 100),  # size
        st.sampled_from([0, 0, 0, 2]),  # return code
    ),
    max_size=40,
)


def replay(calls: list[tuple[str, int, int, int]]) -> tuple[list[int], int]:
    """Bytes held after each successful call, and how many calls did not match."""
    held: dict[int, int] = {}
    live, unmatched = [], 0
    for op, address, size, code in calls:
        if code:
            continue
        freed = held.pop(address, None)
        unmatched += (freed is None) if op.startswith("cudaFree") else (freed is not None)
        if not op.startswith("cudaFree"):
            held[address] = size
        live.append(sum(held.values()))
    return live, unmatched


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(CALLS, min_size=1, max_size=6), st.lists(st.integers(0, 4_100), min_size=2, max_size=9, unique=True))
def test_the_balance_is_that_of_a_replay(processes: list[list[tuple[str, int, int, int]]], edges: list[int]) -> None:
    scene = Scene()
    for pid, calls in enumerate(processes):
        for i, (op, address, size, code) in enumerate(calls):
            more: dict[str, Any] = {} if op.startswith("cudaFree") else {"size_bytes": size}
            scene.cuda(pid, op, T0 + 100 * i, 10, device_pointer=address, return_code=code, **more)
    balances = {b.pid: b for b in read_balances(scene.store(), EITHER)}
    for pid, calls in enumerate(processes):
        if not any(op.startswith("cudaMalloc") and not code for op, _, _, code in calls):
            assert pid not in balances
            continue
        live, unmatched = replay(calls)
        assert (balances[pid].live.tolist(), balances[pid].unmatched) == (live, unmatched)
        check_low_water(balances[pid], [T0 + e for e in sorted(edges)])


def check_low_water(balance: Balance, edges: list[int]) -> None:
    """The least held in each window: what was held when it began, and after each call within it."""
    steps = list(zip(balance.times.tolist(), balance.live.tolist(), strict=True))
    low = balance.low_water(np.array(edges, dtype=np.int64)).tolist()
    for least, (begin, end) in zip(low, pairwise(edges), strict=True):
        before = [v for t, v in steps if t <= begin]
        assert least == min([before[-1] if before else 0, *(v for t, v in steps if begin < t <= end)])
