"""Weights, reservation and traffic told apart from calls, and refused where the calls leave a doubt."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuaudit.analyze import residency
from gpuaudit.analyze.allocations import (
    ALIVE,
    Allocations,
    Destinations,
    _place,
    read_allocations,
)
from gpuaudit.analyze.residency import OTHER, RESERVED, WEIGHTS, read_residency
from tests.scenes import MS, T0, S, Scene

MIB, GIB = 1 << 20, 1 << 30
PID = 7


def malloc(scene: Scene, at: int, address: int, size: int, op: str = "cudaMalloc", **more: int) -> Scene:
    return scene.cuda(PID, op, T0 + at * MS, MS, device_pointer=address, size_bytes=size, **more)


def load_copy(scene: Scene, at: int, address: int, size: int, direction: int = 1) -> Scene:
    return scene.cuda(
        PID, "cudaMemcpyAsync", T0 + at * MS, MS, device_pointer=address, size_bytes=size, direction=direction, stream=1
    )


def server(weights: int = 4, pools: int = 2, requests: int = 10) -> Scene:
    """4 × 1 GiB of weights in 256-MiB copies, 2 × 8 GiB reserved, then requests with a copy in and one out."""
    scene = Scene().clock().process(PID, start_ns=T0 + 100 * MS)
    at = 1_000
    for w in range(weights):
        base = 0x1000_0000_0000 + w * GIB
        malloc(scene, at, base, GIB)
        for part in range(4):
            at += 100
            load_copy(scene, at, base + part * 256 * MIB, 256 * MIB)
        at += 100
    malloc(scene, at, 0x5000_0000_0000, 4 * MIB)
    for p in range(pools):
        at += 50
        malloc(scene, at, 0x2000_0000_0000 + p * 8 * GIB, 8 * GIB)
    for _ in range(requests):
        at += 200
        load_copy(scene, at, 0x5000_0000_0000, 4096)
        load_copy(scene, at + 20, 0x7000_0000, 8192, direction=2)
    return scene


def test_the_three_phases_of_a_server() -> None:
    found = read_residency(server().context(), PID)
    assert found.reason == ""
    assert found.load == residency.Phase(T0 + 1_100 * MS, T0 + 2_901 * MS, 16, 4 * GIB)
    assert found.reservation is not None
    assert (found.reservation.calls, found.reservation.bytes) == (2, 16 * GIB)
    assert found.traffic is not None
    assert (found.traffic.calls, found.traffic.bytes) == (20, 10 * (4096 + 8192))
    assert Counter(found.kind.tolist()) == {WEIGHTS: 4, RESERVED: 2, OTHER: 1}
    assert found.live_bytes(T0 + 60 * S) == {WEIGHTS: 4 * GIB, RESERVED: 16 * GIB, OTHER: 4 * MIB}
    assert found.live_bytes(T0 + 1_500 * MS) == {WEIGHTS: GIB, RESERVED: 0, OTHER: 0}


def test_a_server_that_ran_before_the_capture_is_not_told_apart() -> None:
    scene = server()
    scene.rows["processes"][0]["start_ns"] = T0 - S
    found = read_residency(scene.context(), PID)
    assert "ran before the capture" in found.reason
    assert found.load is None
    assert set(found.kind.tolist()) == {OTHER}


def test_lost_records_and_gaps_are_doubts() -> None:
    scene = server()
    scene.lost["cuda_calls"] = 1
    assert read_residency(scene.context(), PID).reason == "1 records of cuda_calls were lost"
    scene = server()
    scene.add("gaps", start_ns=T0 + 2 * S, duration_ns=S, source="cuda", table_name="cuda_calls", reason="slow")
    assert read_residency(scene.context(), PID).reason == "calls were not recorded throughout"


def test_input_that_is_copied_all_the_time_is_no_load() -> None:
    """Every batch goes to an address of its own, every 11 s: no stretch holds nine tenths of the bytes."""
    scene = Scene().clock().process(PID, start_ns=T0 + 100 * MS)
    for i in range(5):
        malloc(scene, 1_000 + i * 11_000, (i + 1) << 40, GIB)
        load_copy(scene, 1_010 + i * 11_000, (i + 1) << 40, GIB)
    assert "spread over the capture" in read_residency(scene.context(), PID).reason


def test_small_copies_are_no_load_and_copies_that_come_again_neither() -> None:
    scene = Scene().clock().process(PID, start_ns=T0 + 100 * MS)
    malloc(scene, 1_000, 1 << 40, GIB)
    load_copy(scene, 1_100, 1 << 40, MIB)
    assert "moved 64 MiB" in read_residency(scene.context(), PID).reason
    for i in range(200):
        load_copy(scene, 2_000 + i, (1 << 40) + GIB // 2, 2 * MIB)
    assert "moved 64 MiB" in read_residency(scene.context(), PID).reason


def test_a_freed_pool_and_many_allocations_are_no_reservation() -> None:
    scene = server(pools=1)
    scene.cuda(PID, "cudaFree", T0 + 50 * S, MS, device_pointer=0x2000_0000_0000)
    found = read_residency(scene.context(), PID)
    assert found.reservation is None
    assert found.load is not None
    scene = server(pools=0)
    for i in range(1_025):
        malloc(scene, 10_000 + i, (0x3000 << 32) + i * GIB, 32 * MIB)
    assert read_residency(scene.context(), PID).reservation is None


def test_an_address_is_used_again_after_it_was_freed() -> None:
    scene = Scene().clock().process(PID)
    malloc(scene, 0, 1 << 40, GIB)
    load_copy(scene, 10, (1 << 40) + 5, 100)
    scene.cuda(PID, "cudaFree", T0 + 20 * MS, MS, device_pointer=1 << 40)
    malloc(scene, 30, 1 << 40, 2 * GIB, "cudaMallocAsync")
    load_copy(scene, 40, (1 << 40) + GIB, 200)
    malloc(scene, 50, 1 << 41, GIB, return_code=2)
    store = scene.store()
    made, _ = read_allocations(store, PID, T0 + S)
    assert made.size.tolist() == [GIB, 2 * GIB]
    assert made.end.tolist() == [T0 + 20 * MS, ALIVE]
    assert made.once.tolist() == [100, 200]
    assert made.alive(T0 + 25 * MS).tolist() == [False, False]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 2), st.integers(0, 8), st.integers(1, 6)), max_size=6),
    st.lists(st.tuples(st.integers(0, 7), st.integers(1, 3), st.integers(0, 9)), max_size=12),
)
def test_bytes_go_to_the_nearest_live_allocation_below(
    blocks: list[tuple[int, int, int, int]], copies: list[tuple[int, int, int]]
) -> None:
    """Against one copy at a time: (address, size, begin, life) and (address, count, time)."""
    columns = np.array(sorted(blocks, key=lambda b: b[2]), dtype=np.int64).reshape(-1, 4).T
    zero = np.zeros(len(blocks), dtype=np.int64)
    made = Allocations(columns[0], columns[1], columns[2], columns[2] + columns[3], zero, zero.copy(), zero, zero, zero)
    told = np.array(copies, dtype=np.int64).reshape(-1, 3).T
    _place(made, Destinations(told[0], told[1], 10 ** np.arange(len(copies), dtype=np.int64), told[2], told[2]))
    expected = [[0, 0] for _ in blocks]
    for n, (address, count, at) in enumerate(copies):
        live = [i for i in range(len(blocks)) if made.begin[i] <= at < made.end[i] and made.address[i] <= address]
        if live:
            near = max(live, key=lambda i: (made.address[i], made.begin[i], i))
            if address < made.address[near] + made.size[near]:
                expected[near][count > 1] += 10**n
    assert [list(x) for x in zip(made.once.tolist(), made.again.tolist(), strict=True)] == expected


def test_a_process_without_calls_says_so() -> None:
    found = read_residency(server().context(), 99)
    assert found.reason == "process 99: no call of it was recorded"
    assert len(found.allocations) == 0
