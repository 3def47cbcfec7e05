"""More calls than the budget has rows for, and more than a ring has room for: sums never lie, and every loss shows."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from gpuaudit.bundle.tables import TABLES
from gpuaudit.capture import attach
from gpuaudit.capture.parts import CALLS
from gpuaudit.capture.ring import HEADER_BYTES
from gpuaudit.capture.ring_source import RingSource
from gpuaudit.capture.selection import Selection
from gpuaudit.capture.settings import SLOW_NS, WINDOW_NS, Settings
from tests.doubles.build import build
from tests.integration.recording import DEADLINE_S, Recording, Row, recording, start, truth
from tests.unit.capture.sinks import ListSink

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

BUDGET_PER_S = 3000
PORTION = 16
"""Rows that a CPU is given at a time, as in capture/bpf/totals.h."""

STORM = "import ctypes as C, sys; sys.exit(C.CDLL(sys.argv[1]).storm(2, 40000, 1500, sys.argv[2].encode()))"


@pytest.fixture(scope="module")
def storm(tmp_path_factory: pytest.TempPathFactory, doubles: Path) -> Path:
    return build("storm", tmp_path_factory.mktemp("storm"))


def record_storm(library: Path, path: Path) -> Recording:
    with recording(settings=Settings(budget_per_s=BUDGET_PER_S)) as r:
        assert r.capture.prepare([str(library)]) == []
        process = start(sys.executable, "-c", STORM, library, path)
        end = time.monotonic() + DEADLINE_S
        while process.poll() is None:
            assert time.monotonic() < end, "the storm does not end"
            r.step()
            r.capture.tick()
        assert process.communicate()[1] == ""
        assert process.returncode == 0
        r.finish()
        assert r.lost() == 0
        assert sum(p["unmatched"] or 0 for p in r.rows["probes"] if p["path"] == str(library)) == 0
    return r


def check_sums(r: Recording, path: Path) -> None:
    """Rows and totals together are what each thread did: calls, bytes, refusals; and no more time than it took."""
    for made in truth(path):
        rows = r.of("cuda_calls", tid=made["tid"], op=made["op"])
        totals = r.of("call_totals", tid=made["tid"], op=made["op"])
        assert len(rows) + sum(t["count"] for t in totals) == made["count"]
        size = sum(row["size_bytes"] or 0 for row in rows) + sum(t["size_bytes"] for t in totals)
        assert size == made["size_bytes"]
        assert sum(row["return_code"] != 0 for row in rows) + sum(t["errors"] for t in totals) == made["errors"]
        inside_ns = sum(row["duration_ns"] for row in rows) + sum(t["sum_ns"] for t in totals)
        assert 0 < inside_ns <= made["outside_ns"]
        if made["op"] in ("cudaEventSynchronize", "cudaMalloc"):  # slow, and one that changes what exists
            assert not totals


def check_totals(totals: list[Row]) -> None:
    """Each is of one bucket, and its own figures agree."""
    for t in totals:
        assert t["low_ns"] <= t["min_ns"] <= t["max_ns"] < t["high_ns"]
        assert t["min_ns"] * t["count"] <= t["sum_ns"] <= t["max_ns"] * t["count"]
        assert t["duration_ns"] >= t["max_ns"]
        assert t["max_ns"] < SLOW_NS
        assert t["nested"] == (t["op"] == "cudaStreamQuery")
        assert (t["low_ns"], t["high_ns"]) == bucket(t["min_ns"])


def bucket(ns: int) -> tuple[int, int]:
    """Bounds of a duration's bucket: four in each doubling."""
    quarter = Fraction(1 << (ns.bit_length() - 1), 4)
    n = ns // quarter
    return math.ceil(n * quarter), math.ceil((n + 1) * quarter)


def test_above_the_budget_calls_are_counted_exactly(storm: Path, tmp_path: Path) -> None:
    r = record_storm(storm, tmp_path / "truth")
    check_sums(r, tmp_path / "truth")
    mine = {made["tid"] for made in truth(tmp_path / "truth")}  # the host may have other workloads
    totals = [t for t in r.of("call_totals") if t["tid"] in mine]
    check_totals(totals)
    assert {t["op"] for t in totals} == {"cudaMemcpyAsync", "cudaStreamSynchronize", "cudaStreamQuery"}
    assert len({(t["tid"], t["op"], t["low_ns"]) for t in totals}) < len(totals)  # sent more than once
    # A row that is neither slow nor changes what exists was within the budget of its window.
    plenty = {"cudaMalloc", "cudaEventSynchronize"}
    windows: dict[int, int] = defaultdict(int)
    for row in r.of("cuda_calls"):
        if row["tid"] in mine and row["op"] not in plenty and row["duration_ns"] < SLOW_NS:
            windows[(row["start_ns"] + row["duration_ns"]) // WINDOW_NS] += 1
    budget = BUDGET_PER_S * WINDOW_NS // 1_000_000_000
    assert 0 < max(windows.values()) <= budget + PORTION * (os.cpu_count() or 1)


def test_sizes_whose_sum_leaves_64_bits(storm: Path) -> None:
    """What a program asks for may be any number: two such calls have no sum, so each that finds one is a row."""
    code = (
        "import ctypes as C, sys; copy = C.CDLL(sys.argv[1]).cudaMemcpyAsync\n"
        "for _ in range(100): copy(None, None, C.c_size_t(1 << 63), 1, None)"
    )
    with recording(settings=Settings(budget_per_s=1, sample_every=0)) as r:
        r.capture.prepare([str(storm)])
        process = start(sys.executable, "-c", code, storm)
        r.run(process)
        r.finish()
    rows, totals = (r.of(table, pid=process.pid) for table in ("cuda_calls", "call_totals"))
    assert len(rows) + sum(t["count"] for t in totals) == 100
    assert {row["size_bytes"] for row in rows} | {t["size_bytes"] for t in totals} == {1 << 63}
    assert {t["count"] for t in totals} == {1}


def test_what_finds_no_room_among_the_sums_is_a_row(
    storm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for two sums in each map nearly all calls are rows, and nothing is counted twice or not at all."""
    small = replace(CALLS, maps={**CALLS.maps, "totals_even": 2, "totals_odd": 2})
    monkeypatch.setattr(attach, "CALLS", small)
    r = record_storm(storm, tmp_path / "truth")
    check_sums(r, tmp_path / "truth")
    assert any(r.of("call_totals", tid=made["tid"]) for made in truth(tmp_path / "truth"))


CALLER = """
import ctypes as C, json, os, sys, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
cudart = C.CDLL(sys.argv[1])
now = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME)
for line in sys.stdin:
    name, count = line.split()
    call, begin = getattr(cudart, name), now()
    for _ in range(int(count)): call(None)
    print(json.dumps([begin, now()]), flush=True)
"""


def make_calls(process: subprocess.Popen[str], count: int, name: str = "cudaFree") -> tuple[int, int]:
    """Have the process call so often; when it began and when it was done."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{name} {count}\n")
    process.stdin.flush()
    begin, end = json.loads(process.stdout.readline())
    return int(begin), int(end)


def test_a_flood_beyond_the_ring(doubles: Path) -> None:
    """Counters, holes in the sequence and gaps all say what the producer knows: how many were lost, and when."""
    cudart, page = doubles / "libcudart.so.13", os.sysconf("SC_PAGE_SIZE")
    process = start(sys.executable, "-c", CALLER, cudart, stdin=subprocess.PIPE)
    selection = Selection(pids=frozenset({process.pid}))
    sink = ListSink()
    with recording(selection, ring_sizes_bytes={"cuda_calls": page}, settings=Settings(budget_per_s=0)) as r:
        r.capture.prepare([str(cudart)])
        source = RingSource(r.capture.rings, r.capture.counters_fd)
        floods = []
        for count in (500, 700):
            floods.append(make_calls(process, count))
            end = time.monotonic() + DEADLINE_S
            while len(sink.gaps) < len(floods):  # told once nothing more was lost for a while
                assert time.monotonic() < end, "the losses are not told"
                source.poll(sink)
        calm = make_calls(process, 5)
        source.poll(sink)
        for _ in range(4):  # twice what the ring holds, emptied while the recorder is busy with something else
            make_calls(process, 10)
            source.relieve()
        assert sum(row["seq"] >= 1205 for row in sink.rows["cuda_calls"]) == 0
        source.poll(sink)
        process.communicate()
        r.capture.finish()
        source.stop(sink)
    rows = sorted(sink.rows["cuda_calls"], key=lambda row: row["seq"])
    (cpu,) = {row["cpu"] for row in rows}
    seen, lost = sink.counters["cuda_calls"]
    assert seen[cpu] == 500 + 700 + 45
    assert lost[cpu] == 500 + 700 + 45 - len(rows)
    kept = len(rows[:-45]) // 2
    assert [row["seq"] for row in rows] == [*range(kept), *range(500, 500 + kept), *range(1200, 1245)]
    first, second = sink.gaps
    for gap, count, flood, before, after in (
        (first, 500 - kept, floods[0], rows[kept - 1], rows[kept]),
        (second, 700 - kept, floods[1], rows[2 * kept - 1], rows[2 * kept]),
    ):
        assert gap["reason"] == f"the ring of cuda_calls was full on CPU {cpu}: {count} records were lost"
        assert (gap["source"], gap["table"]) == ("cuda", "cuda_calls")
        assert flood[0] <= before["start_ns"] + before["duration_ns"] < gap["start_ns"]
        assert gap["start_ns"] < gap["end_ns"] <= flood[1] < after["start_ns"]
    assert calm[0] <= rows[-45]["start_ns"]


def test_a_recorder_that_is_late_loses_nothing(doubles: Path) -> None:
    """Within the budget, and nobody drains: calls that change what exists are rows until half of the ring is full,
    others until three quarters are, and then they are added up. The last quarter is kept for slow calls."""
    cudart, page = doubles / "libcudart.so.13", os.sysconf("SC_PAGE_SIZE")
    process = start(sys.executable, "-c", CALLER, cudart, stdin=subprocess.PIPE)
    selection, settings = Selection(pids=frozenset({process.pid})), Settings(budget_per_s=1 << 30)
    with recording(selection, ring_sizes_bytes={"cuda_calls": page}, settings=settings) as r:
        r.capture.prepare([str(cudart)])
        made = {"cudaFree": 300, "cudaStreamSynchronize": 400}
        for name, count in made.items():
            make_calls(process, count, name)
        process.communicate()
        r.finish()
        assert r.lost() == 0
    size = TABLES["cuda_calls"].record_dtype().itemsize + HEADER_BYTES
    slow = [row for row in r.of("cuda_calls") if row["duration_ns"] >= SLOW_NS]  # a busy machine may make some
    rows = {name: len(r.of("cuda_calls", op=name)) for name in made}
    for name, count in made.items():
        assert rows[name] + sum(t["count"] for t in r.of("call_totals", op=name)) == count
    assert page // 2 // size <= rows["cudaFree"] <= page // 2 // size + 1 + len(slow)
    assert page * 3 // 4 // size <= sum(rows.values()) <= page * 3 // 4 // size + 1 + len(slow)


def test_one_in_so_many_is_a_row_beyond_the_budget(doubles: Path) -> None:
    cudart = doubles / "libcudart.so.13"
    process = start(sys.executable, "-c", CALLER, cudart, stdin=subprocess.PIPE)
    settings = Settings(budget_per_s=1, sample_every=10)
    with recording(Selection(pids=frozenset({process.pid})), settings=settings) as r:
        r.capture.prepare([str(cudart)])
        begin, end = make_calls(process, 2000, "cudaStreamSynchronize")
        process.communicate()
        r.finish()
    rows = [row for row in r.of("cuda_calls") if row["duration_ns"] < SLOW_NS]
    slow = len(r.of("cuda_calls")) - len(rows)
    assert len(rows) + slow + sum(t["count"] for t in r.of("call_totals")) == 2000
    windows = end // WINDOW_NS - begin // WINDOW_NS + 1
    assert (2000 - slow) // 10 <= len(rows) <= (2000 - slow) // 10 + PORTION * windows


def test_calls_deeper_than_are_followed_are_counted(tmp_path: Path) -> None:
    """Eight calls of one thread are followed at once. Those further inside have no row, and are told of."""
    library = build("nested", tmp_path, flags=["-O0"])
    code = "import ctypes as C, sys; C.CDLL(sys.argv[1]).cudaFree(C.c_void_p(20))"
    with recording() as r:
        r.capture.prepare([str(library)])
        process = start(sys.executable, "-c", code, library)
        r.run(process)
        r.finish()
    rows = r.of("cuda_calls", pid=process.pid)
    assert [row["op"] for row in rows] == ["cudaFree"] + ["cudaMalloc"] * 7
    assert [row["return_code"] for row in rows] == [20, *range(20, 13, -1)]
    (malloc,) = [p for p in r.of("probes", path=str(library), op="cudaMalloc") if p["hits"] is not None]
    assert (malloc["hits"], malloc["unmatched"]) == (21, 28)  # fourteen entries and their fourteen returns
    assert [g["reason"].split()[0] for g in r.of("gaps", source="cuda") if "not recorded" in g["reason"]] == ["14"]
