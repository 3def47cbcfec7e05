"""Segments, counters and losses of the recorder, over a writer that only remembers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from gpuaudit.bundle.canonical import dumps
from gpuaudit.bundle.columns import Rows, from_records, row_count
from gpuaudit.bundle.errors import HostUnfit
from gpuaudit.bundle.table import Table
from gpuaudit.bundle.tables import TABLES
from gpuaudit.capture.recorder import Recorder, SegmentLimits
from gpuaudit.capture.ring import to_rows

PAIR = {"start_ns": 1, "duration_ns": 0, "realtime_ns": 5, "monotonic_ns": 1}


@dataclass
class Memory:
    """Keeps what was sealed; refuses from ``full_after`` segments on."""

    full_after: int = 1 << 30
    segments: list[tuple[str, int, int, int, int]] = field(default_factory=list)
    rows: list[tuple[str, Rows]] = field(default_factory=list)
    critical: list[bool] = field(default_factory=list)
    artefacts: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    def append_segment(
        self, table: Table, rows: Rows, *, seen: int, written: int, lost: int, critical: bool = False
    ) -> int:
        if len(self.segments) >= self.full_after:
            raise HostUnfit("disk full")
        self.segments.append((table.name, row_count(rows), seen, written, lost))
        self.critical.append(critical)
        self.rows.append((table.name, rows))
        return len(self.segments)

    def append_artefact(self, name: str, body: Mapping[str, Any]) -> int:
        if len(self.segments) >= self.full_after:
            raise HostUnfit("disk full")
        self.artefacts.append((name, body))
        return len(self.segments)


@dataclass
class Clock:
    now: int = 1_000

    def __call__(self) -> int:
        return self.now


def recorder(writer: Memory, clock: Clock, **limits: int) -> Recorder:
    return Recorder(writer, limits=SegmentLimits(**limits), now_ns=clock)


def drained(table: str, cpus: list[int]) -> Rows:
    records = np.zeros(len(cpus), TABLES[table].record_dtype())
    records["cpu"] = cpus
    return to_rows(table, records)


def test_a_segment_closes_by_rows_and_a_large_batch_becomes_several() -> None:
    memory = Memory()
    r = recorder(memory, Clock(), rows=10)
    r.add_records("clock", [PAIR] * 9)
    assert r.tick() == 0
    r.add_records("clock", [PAIR] * 16)
    assert r.tick() == 1
    assert [(rows, written) for _, rows, _, written, _ in memory.segments] == [(10, 10), (10, 20), (5, 25)]
    assert r.tick() == 0


def test_a_segment_closes_by_bytes() -> None:
    memory = Memory()
    r = recorder(memory, Clock(), raw_bytes=32 * 3)  # a clock row has four columns of 8 bytes
    r.add_records("clock", [PAIR] * 2)
    assert r.tick() == 0
    r.add_records("clock", [PAIR])
    assert r.tick() == 1


def test_a_segment_closes_by_age_of_its_first_row() -> None:
    memory, clock = Memory(), Clock()
    r = recorder(memory, clock, age_ns=100)
    r.add_records("clock", [PAIR])
    clock.now += 99
    r.add_records("clock", [PAIR])
    assert r.tick() == 0
    clock.now += 1
    assert r.tick() == 1
    assert memory.segments == [("clock", 2, 2, 2, 0)]


def test_open_segments_together_stay_within_the_limit() -> None:
    memory = Memory()
    r = recorder(memory, Clock(), total_raw_bytes=1_000)
    r.add_records("clock", [PAIR] * 40)
    r.add_drained("nccl_comms", drained("nccl_comms", [0] * 10))
    held = r.held_bytes
    assert held > 1_000
    assert r.tick() == 1
    assert memory.segments[0][0] == "clock"  # the largest goes first
    assert r.held_bytes < held


def test_a_storm_of_gaps_is_sealed_once_a_second_and_each_reason_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuaudit.capture.recorder.CRITICAL_BURST", 3)
    memory, clock = Memory(), Clock()
    r = recorder(memory, clock)
    for i in range(200):
        r.gap("nvml", f"late {i % 2}", i, i)
        r.gap("engines", f"late {i}", i, i)
        r.tick()
        clock.now += 1_000_000
    assert len(memory.segments) == 3
    clock.now += 1_000_000_000
    assert r.tick() == 1
    assert r.totals()["gaps"]["written"] == "400"
    assert r.gap_reasons["nvml"] == ["late 0", "late 1"]
    assert len(r.gap_reasons["engines"]) == 64


def test_gaps_do_not_wait() -> None:
    memory = Memory()
    r = recorder(memory, Clock())
    r.gap("nvml", "the library is absent", 10, 30, table="nvml_samples")
    assert r.tick() == 1
    (name, rows) = memory.rows[0]
    assert name == "gaps"
    assert rows["duration_ns"].to_list() == [20]
    assert r.gap_reasons == {"nvml": ["the library is absent"]}


def test_ring_counters_are_the_kernels_and_losses_are_told_once_per_change() -> None:
    memory, clock = Memory(), Clock()
    r = recorder(memory, clock)
    r.add_drained("cuda_calls", drained("cuda_calls", [0, 0, 3]))
    r.ring_counters("cuda_calls", {0: 4, 3: 1}, {0: 2, 3: 0})
    r.flush()
    assert ("cuda_calls", 3, 5, 3, 2) in memory.segments
    r.flush()  # nothing changed: no further row
    losses = [rows for name, rows in memory.rows if name == "losses"]
    assert len(losses) == 1
    told = {name: losses[0][name].to_list() for name in ("table_name", "cpu", "seen", "written", "lost")}
    assert told == {
        "table_name": ["cuda_calls"] * 2, "cpu": [0, 3], "seen": [4, 1], "written": [2, 1], "lost": [2, 0],
    }  # fmt: skip
    assert r.lost() == 2
    totals = r.totals()["cuda_calls"]
    assert int(totals["seen"]) == int(totals["written"]) + int(totals["lost"])


def test_what_is_left_in_a_ring_at_the_end_is_lost() -> None:
    r = recorder(Memory(), Clock())
    r.add_drained("off_cpu", drained("off_cpu", [0, 1, 1]))
    r.ring_counters("off_cpu", {0: 5, 1: 2}, {0: 1, 1: 0})
    r.settle()
    r.flush()
    assert r.totals()["off_cpu"] == {"seen": "7", "written": "3", "lost": "4", "segments": "1"}


def test_rows_that_do_not_fit_are_lost_and_a_gap_says_so() -> None:
    memory = Memory()
    r = recorder(memory, Clock())
    r.add_records("clock", [PAIR, {"start_ns": "yesterday"}])
    r.add("clock", from_records(TABLES["gaps"], [{"start_ns": 0, "source": "x", "reason": "y"}]))
    r.flush()
    assert r.totals()["clock"] == {"seen": "3", "written": "1", "lost": "2", "segments": "1"}
    reasons = [reason for name, rows in memory.rows if name == "gaps" for reason in rows["reason"].to_list()]
    assert len(reasons) == 2
    assert "yesterday" in str(reasons[0]) or "null" in str(reasons[0])


def test_one_bad_row_among_many_costs_no_other() -> None:
    memory = Memory()
    r = recorder(memory, Clock())
    rows = [{**PAIR, "start_ns": i} for i in range(100)]
    rows[37] = {**PAIR, "realtime_ns": 1 << 70}
    r.add_records("clock", rows)
    r.flush()
    assert r.totals()["clock"] == {"seen": "100", "written": "99", "lost": "1", "segments": "1"}
    kept = [t for name, rows_ in memory.rows if name == "clock" for t in rows_["start_ns"].to_list()]
    assert kept == [i for i in range(100) if i != 37]


def test_a_full_disk_keeps_what_is_sealed_and_counts_the_rest_as_lost() -> None:
    memory, clock = Memory(full_after=1), Clock()
    r = recorder(memory, clock, rows=4)
    clock.now = 2_000
    r.add_records("clock", [PAIR] * 10)
    with pytest.raises(HostUnfit):
        r.tick()
    assert r.drop_held() == (6, 2_000)
    memory.full_after = 10
    r.gap("recorder", "the disk is full", 0, None)
    r.flush()
    assert r.totals()["clock"] == {"seen": "10", "written": "4", "lost": "6", "segments": "1"}
    assert memory.segments[-1][0] == "gaps"


def test_names_that_are_not_unicode_do_not_stop_a_capture() -> None:
    memory = Memory()
    r = recorder(memory, Clock())
    r.gap("cuda", b"\xff\xfe".decode("utf-8", "surrogateescape"), 0, 1)
    r.flush()
    assert memory.rows[0][1]["reason"].to_list() == ["\\udcff\\udcfe"]
    assert dumps(r.gap_reasons) == rb'{"cuda":["\\udcff\\udcfe"]}'  # they stand in the last artefact


EVENT = {"start_ns": 1, "duration_ns": 0, "gpu_index": 0, "gpu_uuid": "GPU-1", "op": "xid", "event_type": 8}


def test_a_critical_row_is_sealed_at_the_next_tick_before_anything_else() -> None:
    memory, clock = Memory(), Clock()
    r = recorder(memory, clock, rows=2)
    r.add_records("clock", [PAIR, PAIR])
    r.add_critical("nvml_events", [EVENT, EVENT])
    assert r.tick() == 2
    assert [(s[0], s[1]) for s in memory.segments] == [("nvml_events", 2), ("clock", 2)]
    assert memory.critical == [True, False]


def test_a_victim_is_sealed_at_the_next_tick() -> None:
    """The next one that the kernel kills for memory may be the recorder."""
    memory, clock = Memory(), Clock()
    r = recorder(memory, clock)
    r.add_drained("off_cpu", drained("off_cpu", [0]))
    r.add_drained("oom_kills", drained("oom_kills", [0]))
    assert r.tick() == 1
    assert [(s[0], s[1]) for s in memory.segments] == [("oom_kills", 1)]
    assert memory.critical == [True]


def test_a_storm_of_critical_rows_is_sealed_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuaudit.capture.recorder.CRITICAL_BURST", 3)
    memory, clock = Memory(), Clock()
    r = recorder(memory, clock)
    for _ in range(10):
        r.add_critical("nvml_events", [EVENT])
        r.tick()
        clock.now += 1_000_000
    assert len(memory.segments) == 3
    clock.now += 1_000_000_000
    assert r.tick() == 1
    assert memory.segments[-1][1] == 7
    assert r.totals()["nvml_events"]["written"] == "10"


def test_an_artefact_that_cannot_be_written_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory()
    monkeypatch.setattr(memory, "append_artefact", lambda _, body: dumps(body))
    r = recorder(memory, Clock())
    r.artefact("gpus", {"memory_bytes": (1 << 64) - 1})
    r.flush()
    (reason,) = memory.rows[0][1]["reason"].to_list()
    assert str(reason).startswith("the artefact gpus could not be written: canonical JSON: 18446744073709551615 is")


def test_an_artefact_is_sealed_once_and_kept_while_the_disk_is_full() -> None:
    memory = Memory(full_after=0)
    r = recorder(memory, Clock())
    r.artefact("gpus", {"a": 1})
    with pytest.raises(HostUnfit):
        r.tick()
    memory.full_after = 1
    r.tick()
    r.flush()
    assert memory.artefacts == [("gpus", {"a": 1})]
