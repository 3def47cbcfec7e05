"""The synthetic scenario: the same rows from the same seed, and the truths it is made to hold."""

from __future__ import annotations

import hashlib
import json
from statistics import median

import pytest

from gpuaudit.bundle.errors import UsageError
from gpuaudit.bundle.tables import TABLES
from gpuaudit.capture import scenario_late_rank as late
from gpuaudit.capture.clock_source import ClockSource
from gpuaudit.capture.scenario import (
    VIRTUAL_START_BOOT_NS,
    Draw,
    ScenarioSource,
    TimedRow,
    VirtualClock,
    load_scenario,
)  # fmt: skip
from tests.unit.capture.sinks import ListSink

SEED_1_SHA256 = "0e3ee8a3a342adf2a7e605487e9561bed360db872ad728a9d8dea977d823a6d2"
"""Of the rows of seed 1: a change means that every synthetic bundle changes, which the CHANGELOG must say."""


def digest(rows: list[TimedRow]) -> str:
    text = json.dumps([[r.at_ns, r.table, dict(r.row)] for r in rows], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def play(seed: int = 1) -> ListSink:
    clock, sink = VirtualClock(), ListSink()
    source = ScenarioSource(load_scenario("late-rank"), seed, clock)
    while not source.ended:
        source.poll(sink)
    source.stop(sink)
    return sink


@pytest.fixture(scope="module")
def played() -> ListSink:
    return play()


def test_the_same_seed_gives_the_same_rows() -> None:
    assert digest(late.rows(1)) == SEED_1_SHA256
    assert digest(late.rows(2)) != SEED_1_SHA256


def test_splitmix64_is_the_published_one() -> None:
    draw = Draw(1234567)
    assert [draw.below(1 << 64) for _ in range(3)] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423,
    ]  # fmt: skip


def test_every_ring_row_has_a_place_in_its_cpus_sequence(played: ListSink) -> None:
    for table in (t.name for t in TABLES.values() if t.ring):
        rows = played.rows[table]
        per_cpu: dict[int, list[int]] = {}
        for row in rows:
            per_cpu.setdefault(row["cpu"], []).append(row["seq"])
        assert all(seq == list(range(len(seq))) for seq in per_cpu.values())
        assert played.counters.get(table, ({},))[0] == {cpu: len(seq) for cpu, seq in per_cpu.items()}


def test_nothing_comes_before_it_has_ended_or_after_the_capture(played: ListSink) -> None:
    end = VIRTUAL_START_BOOT_NS + late.DURATION_NS
    for table, rows in played.rows.items():
        for row in rows:
            assert VIRTUAL_START_BOOT_NS <= row["start_ns"] <= end, table
            assert row["start_ns"] + (row.get("duration_ns") or 0) <= end, table


def test_calls_of_a_thread_do_not_overlap(played: ListSink) -> None:
    last: dict[int, int] = {}
    calls = [r for t in ("cuda_calls", "nccl_calls", "nccl_comms", "off_cpu") for r in played.rows[t]]
    for row in sorted(calls, key=lambda r: r["start_ns"]):
        assert row["start_ns"] >= last.get(row["tid"], 0)
        last[row["tid"]] = row["start_ns"] + row["duration_ns"]


def test_rank_2_is_late_in_the_steps_that_say_so(played: ListSink) -> None:
    arrivals: dict[int, list[int]] = {}
    for row in sorted(played.rows["nccl_calls"], key=lambda r: r["start_ns"]):
        arrivals.setdefault(row["rank"], []).append(row["start_ns"])
    assert set(arrivals) == set(range(late.RANKS))
    steps = len(arrivals[0])
    assert all(len(a) == steps for a in arrivals.values())
    assert steps > late.LATE_STEPS.stop
    for step in range(steps):
        others = [arrivals[r][step] for r in range(late.RANKS) if r != late.LATE_RANK]
        lateness = arrivals[late.LATE_RANK][step] - median(others)
        assert (lateness > late.LATE_NS * 3 / 4) == (step in late.LATE_STEPS)


def test_the_cause_covers_the_lateness(played: ListSink) -> None:
    preempted = [r for r in played.rows["off_cpu"] if r["op"] == "preempted"]
    assert len(preempted) == len(late.LATE_STEPS)
    assert {r["next_comm"] for r in preempted} == {"zstd"}
    assert all(r["duration_ns"] >= late.LATE_NS and r["prev_state"] == 0 for r in preempted)
    turns = {(r["start_ns"], r["duration_ns"], r["tid"], r["comm"], r["cpu"]) for r in played.rows["cpu_occupants"]}
    waits = {(r["start_ns"], r["duration_ns"], r["next_tid"], r["next_comm"], r["cpu_out"]) for r in preempted}
    assert turns == waits


def test_one_gpu_is_allocated_but_idle_and_its_process_silent(played: ListSink) -> None:
    end = VIRTUAL_START_BOOT_NS + late.DURATION_NS
    silent_pid = 4100 + late.SILENT_RANK
    last_call = max(r["start_ns"] + r["duration_ns"] for r in played.rows["cuda_calls"] if r["pid"] == silent_pid)
    assert end - last_call > 5_000_000_000
    assert not [r for r in played.rows["processes"] if r["pid"] == silent_pid and r["op"] == "exited"]
    tail = [r for r in played.rows["nvml_samples"] if r["start_ns"] > last_call + 1_000_000_000]
    held = {r["gpu_index"]: r["memory_used_bytes"] for r in tail}
    assert held.pop(late.SILENT_RANK) > 10 << 30
    assert set(held.values()) == {0}
    assert {r["gpu_utilization_percent"] for r in tail} == {0}


def test_gpu_0_is_throttled_for_8_s(played: ListSink) -> None:
    throttled = [r for r in played.rows["nvml_samples"] if r["event_reasons"]]
    assert {r["gpu_index"] for r in throttled} == {0}
    assert {r["event_reasons"] for r in throttled} == {4}
    assert sum(r["duration_ns"] for r in throttled) == late.THROTTLE_NS[1] - late.THROTTLE_NS[0]
    assert all(r["clock_sm_mhz"] < r["clock_sm_max_mhz"] for r in throttled)


def test_probe_totals_are_the_calls_there_are_rows_for(played: ListSink) -> None:
    hits = {r["op"]: r["hits"] for r in played.rows["probes"] if r["hits"] is not None}
    for op in ("cudaLaunchKernel", "ncclAllReduce", "ncclCommInitRank"):
        rows = [r for t in ("cuda_calls", "nccl_calls", "nccl_comms") for r in played.rows[t] if r["op"] == op]
        assert hits[op] == len(rows)


def test_an_unknown_scenario_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="late-rank"):
        load_scenario("early-rank")


def test_the_virtual_clock_gives_pairs() -> None:
    clock, sink = VirtualClock(), ListSink()
    source = ClockSource(clock.pair, clock.boot_ns)
    source.start(sink)
    for _ in range(12):
        clock.advance(1_000_000_000)
        source.poll(sink)
    source.stop(sink)
    starts = [r["start_ns"] - VIRTUAL_START_BOOT_NS for r in sink.rows["clock"]]
    assert starts == [0, 5_000_000_000, 10_000_000_000, 12_000_000_000]
