"""PyTorch profiler traces: every event a row or counted, times exact, whatever the trace's age, vendor or rank."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.analyze.store import Store
from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.bundle.reader import Bundle
from gpuaudit.bundle.verify import IMPORTED_NOTICE, verify
from gpuaudit.capture.importers.kineto_events import CATEGORIES, FIRST_FREE_PID
from tests.kineto_traces import (
    BASE_US,
    GPU_CATEGORIES,
    NAMES,
    PID,
    RecordedTraces,
    call,
    imported,
    kernel,
    load,
    operator,
    written,
)


@pytest.fixture(autouse=True)
def _keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_AUDIT_KEYS", str(tmp_path / "keys"))


@pytest.fixture(scope="module", params=NAMES)
def trace(request: pytest.FixtureRequest, recorded_traces: RecordedTraces) -> Any:
    """Each recorded trace: as JSON, as a store, and what the import said."""
    store, result = recorded_traces.of(request.param)
    return load(request.param), store, result.files[0]


def test_every_event_is_a_row_or_counted(trace: Any) -> None:
    whole, store, file = trace
    events = whole["traceEvents"]
    tables = Counter(
        CATEGORIES[e["cat"].lower()][0] for e in events if e["ph"] == "X" and e["cat"].lower() in CATEGORIES
    )
    for table, count in tables.items():
        assert store.row_count(table) == count, table
        assert file["rows"][table] == str(count)
    named = sum(e["ph"] == "M" and e["name"] == "process_name" and isinstance(e["pid"], int) for e in events)
    left_out = sum(int(x.rpartition(": ")[2]) for x in file["not_carried"] if x.rpartition(": ")[2].isdigit())
    if any("past 4096 bytes" in x for x in file["not_carried"]):
        left_out -= next(int(x.rpartition(": ")[2]) for x in file["not_carried"] if "past 4096 bytes" in x)
    assert tables.total() + named + left_out == len(events) == int(file["lines"])
    assert file["unreadable"] == "0"


def test_times_are_exact_to_the_nanosecond(trace: Any) -> None:
    """Threads too: some traces write the ids of threads as signed numbers."""
    whole, store, _ = trace
    base = whole.get("baseTimeNanoseconds", 0)
    expected = sorted(
        (base + int(e["ts"] * 1000), int(e["dur"] * 1000), e["name"], e["args"]["device"], e["args"]["correlation"])
        for e in whole["traceEvents"]
        if e.get("cat") in GPU_CATEGORIES
    )
    got = store.sql("SELECT start_ns, duration_ns, name, device, correlation FROM gpu_activities")
    assert sorted(got) == expected
    calls = sorted(
        (base + int(e["ts"] * 1000), int(e["dur"] * 1000), e["name"], e["args"]["correlation"], e["tid"] % 2**32)
        for e in whole["traceEvents"]
        if e.get("cat") == "cuda_runtime"
    )
    assert sorted(store.sql("SELECT start_ns, duration_ns, op, correlation, tid FROM cuda_calls")) == calls


def test_the_process_has_the_rank_of_the_trace(trace: Any) -> None:
    whole, store, file = trace
    info = whole.get("distributedInfo", {})
    (row,) = store.sql("SELECT pid, rank, world_size, comm FROM processes")
    assert row[1:3] == (info.get("rank"), info.get("world_size"))
    assert {row[0]} == {e["pid"] for e in whole["traceEvents"] if e.get("cat") in ("cpu_op", "user_annotation")}
    assert file["facts"]["rank"] == (str(info["rank"]) if "rank" in info else None)
    assert file["facts"]["backend"] == info.get("backend")
    assert len(file["facts"].get("devices", [])) == len(whole.get("deviceProperties", []))
    if store.row_count("gpu_activities"):
        assert store.sql("SELECT DISTINCT pid FROM gpu_activities") == [(row[0],)]


@pytest.fixture
def collectives(recorded_traces: RecordedTraces) -> Store:
    return recorded_traces.of("a100-world2-rank0-collectives")[0]


def test_metadata_of_collectives(collectives: Store) -> None:
    got = collectives.sql(
        "SELECT collective, group_name, group_size, group_ranks, in_elements, out_elements, datatype, correlation "
        "FROM gpu_activities WHERE collective IS NOT NULL"
    )
    expected = [
        (a["Collective name"], a["Process Group Name"], a["Group size"], a["Process Group Ranks"], a["In msg nelems"],
         a["Out msg nelems"], a["dtype"], a["correlation"])
        for e in load("a100-world2-rank0-collectives")["traceEvents"]
        if "Collective name" in (a := e.get("args", {})) and e["cat"] == "kernel"
    ]  # fmt: skip
    assert len(got) == 21
    assert sorted(got) == sorted(expected)


def test_an_operator_is_tied_to_its_kernels(collectives: Store) -> None:
    """The kernel's External id is that of the operator in which it was launched."""
    found = collectives.sql(
        "SELECT count(*), sum(CASE WHEN c.start_ns BETWEEN u.start_ns AND u.end_ns THEN 1 ELSE 0 END) "
        "FROM gpu_activities AS g JOIN user_ranges AS u ON u.correlation = g.external_id AND u.op = 'operator' "
        "JOIN cuda_calls AS c ON c.correlation = g.correlation WHERE g.op = 'kernel'"
    )
    ((linked, inside),) = found
    assert linked > 2000
    assert inside == linked


def test_copies_have_their_direction_and_memory(recorded_traces: RecordedTraces) -> None:
    store, _ = recorded_traces.of("train128-rank0")
    assert store.sql(
        "SELECT name, direction, pageable, min(size_bytes) > 0 FROM gpu_activities WHERE op = 'memcpy' GROUP BY ALL "
        "ORDER BY 1"
    ) == [
        ("Memcpy DtoD (Device -> Device)", 3, None, True), ("Memcpy DtoH (Device -> Pageable)", 2, 1, True),
        ("Memcpy HtoD (Pageable -> Device)", 1, 1, True), ("Memcpy HtoD (Pinned -> Device)", 1, 0, True),
    ]  # fmt: skip


def test_hip_calls_bring_their_arguments(recorded_traces: RecordedTraces) -> None:
    store, _ = recorded_traces.of("amd-mi250")
    assert store.sql(
        "SELECT DISTINCT op, size_bytes, direction, stream FROM cuda_calls WHERE op LIKE 'hipMemcpy%'"
    ) == [("hipMemcpyWithStream", 2560, 1, 0)]
    assert store.sql("SELECT count(grid_x), count(block_x) FROM cuda_calls WHERE op = 'hipLaunchKernel'")[0][0] > 0
    assert store.sql("SELECT DISTINCT direction, size_bytes FROM gpu_activities WHERE op = 'memcpy'") == [(1, None)]


def test_the_bundle_says_what_it_is(recorded_traces: RecordedTraces) -> None:
    path = recorded_traces.of("a100-world2-rank0-collectives")[1].path
    assert IMPORTED_NOTICE in verify(path).notices
    with Bundle.open(path) as bundle:
        assert [(g["index"], g["name"]) for g in bundle.open_body["gpus"]] == [
            (i, "NVIDIA A100-PG509-200") for i in range(8)
        ]


def test_capital_categories_of_old_traces(tmp_path: Path) -> None:
    """PyTorch before 1.13 wrote Kernel, Memcpy, Memset, Runtime and Operator, and ids in small letters."""
    old = [operator(cat="Operator", args={"external id": 5}), call(9, cat="Runtime"),
           kernel(9, BASE_US + 20, cat="Kernel"),
           kernel(9, BASE_US + 40, name="Memcpy HtoD (Pinned -> Device)", cat="Memcpy"),
           kernel(9, BASE_US + 60, name="Memset (Device)", cat="Memset")]  # fmt: skip
    store, _ = imported([written(tmp_path / "old.json", old)], tmp_path / "t.db")
    assert store.sql("SELECT op, pid, direction FROM gpu_activities ORDER BY start_ns") == [
        ("kernel", PID, None), ("memcpy", PID, 1), ("memset", PID, None),
    ]  # fmt: skip
    assert store.sql("SELECT op, correlation FROM cuda_calls") == [("cudaLaunchKernel", 9)]
    assert store.sql("SELECT op, correlation FROM user_ranges") == [("operator", 5)]


def test_work_without_its_call_is_kept(tmp_path: Path) -> None:
    """Also where it comes before any event of the host, and where it has no number at all."""
    events = [
        kernel(1, BASE_US + 5),
        call(1),
        kernel(2, BASE_US + 50),
        kernel(None, BASE_US + 70),
        kernel(0, BASE_US + 90),
    ]
    store, _ = imported([written(tmp_path / "t.json", events)], tmp_path / "t.db")
    assert store.sql("SELECT pid, correlation FROM gpu_activities ORDER BY start_ns") == [
        (PID, 1), (PID, 2), (PID, None), (PID, None),
    ]  # fmt: skip


def test_a_trace_of_the_gpu_alone_has_no_process(tmp_path: Path) -> None:
    store, _ = imported([written(tmp_path / "t.json", [kernel(1)])], tmp_path / "t.db")
    assert store.sql("SELECT pid, device FROM gpu_activities") == [(None, 0)]
    assert store.row_count("processes") == 0


def test_a_base_after_the_events_counts(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    events = json.dumps([operator(at=12.345, dur=0.001)])
    path.write_text(f'{{"traceEvents": {events}, "baseTimeNanoseconds": 1700000000000000000}}')
    store, _ = imported([path], tmp_path / "t.db")
    assert store.sql("SELECT start_ns, duration_ns FROM user_ranges") == [(1700000000000012345, 1)]
    assert store.row_count("clock") == 2


def test_finer_than_a_nanosecond_is_cut_off_at_both_ends(tmp_path: Path) -> None:
    """0.9996 + 0.0008 µs ends at 1.0004 µs: the duration is from 999 to 1,000 ns, not 0.8 cut to 0."""
    path = tmp_path / "t.json"
    event = json.dumps(operator()).replace(str(BASE_US), f"{BASE_US}.9996").replace('"dur": 10', '"dur": 0.0008')
    path.write_text(f'{{"traceEvents": [{event}]}}')
    store, result = imported([path], tmp_path / "t.db")
    assert store.sql("SELECT start_ns, duration_ns FROM user_ranges") == [(BASE_US * 1000 + 999, 1)]
    assert "cut off, in 1 events" in str(result.files[0]["assumptions"])


def test_an_axis_of_its_own_is_no_wall_clock(tmp_path: Path) -> None:
    own = written(tmp_path / "own.json", [operator(at=5_000_000)])
    store, result = imported([own], tmp_path / "t.db")
    assert store.row_count("clock") == 0
    assert "no wall clock" in str(result.files[0]["assumptions"])
    wall = written(tmp_path / "wall.json", [operator()])
    with pytest.raises(InputUnusable, match=r"wall\.json tells wall-clock time and own\.json does not"):
        imported([own, wall], tmp_path / "both.db")


def test_two_ranks_in_one_bundle(recorded_traces: RecordedTraces) -> None:
    store, _ = recorded_traces.of("train128-rank0", "train128-rank1")
    assert store.sql("SELECT rank, pid, world_size FROM processes ORDER BY rank") == [(0, 4037, 128), (1, 4045, 128)]
    assert store.sql("SELECT pid, device, count(*) FROM gpu_activities GROUP BY ALL ORDER BY 1") == [
        (4037, 0, 1204), (4045, 1, 1154),
    ]  # fmt: skip


def test_ranks_of_containers_that_share_a_process_id_stay_apart(tmp_path: Path) -> None:
    """Every pod has a process 77: rank 1's stands as another one, and the import says so."""
    files = [
        written(tmp_path / f"r{rank}.json", [call(1), kernel(1, BASE_US + 20)], distributedInfo={"rank": rank})
        for rank in (0, 1)
    ]
    store, result = imported(files, tmp_path / "t.db")
    assert store.sql("SELECT pid, pid_in_namespace, rank FROM processes ORDER BY rank") == [
        (PID, None, 0), (FIRST_FREE_PID, PID, 1),
    ]  # fmt: skip
    assert store.sql("SELECT pid FROM gpu_activities ORDER BY 1") == [(PID,), (FIRST_FREE_PID,)]
    assert f"Process {PID} stands as {FIRST_FREE_PID}" in str(result.files[1]["assumptions"])


def test_two_traces_of_one_rank_are_one_process(tmp_path: Path) -> None:
    files = [
        written(tmp_path / f"step{n}.json", [operator(at=BASE_US + n * 1000)], distributedInfo={"rank": 3})
        for n in (0, 1)
    ]
    store, result = imported(files, tmp_path / "t.db")
    assert store.sql("SELECT DISTINCT pid FROM user_ranges") == [(PID,)]
    assert "taken to be the same" in str(result.files[1]["assumptions"])


def test_an_array_of_events_and_one_line_or_many_are_the_same_trace(tmp_path: Path) -> None:
    events = [operator(), call(1, BASE_US + 1), kernel(1, BASE_US + 2)]
    texts = {
        "array.json": json.dumps(events), "line.json": json.dumps({"traceEvents": events}),
        "lines.json": json.dumps({"deviceProperties": [], "traceEvents": events}, indent=1),
    }  # fmt: skip
    rows = []
    for name, text in texts.items():
        path = tmp_path / f"{name}.gz"
        path.write_bytes(gzip.compress(text.encode()))
        store, _ = imported([path], tmp_path / f"{name}.db")
        rows.append(store.sql("SELECT start_ns, pid, name, correlation FROM gpu_activities"))
    assert rows == [[(BASE_US * 1000 + 2000, PID, "gemm", 1)]] * 3


def test_what_an_operator_says_of_itself_is_kept(tmp_path: Path) -> None:
    args = {"External id": 5, "Sequence number": 8, "Input Dims": [[2, 3], []], "Input type": ["float", "Scalar"],
            "Call stack": "", "scale": 0.5}  # fmt: skip
    path = written(tmp_path / "t.json", [operator(args=args)])
    store, _ = imported([path], tmp_path / "t.db")
    assert store.sql("SELECT correlation, detail FROM user_ranges") == [
        (5, '{"Input Dims":[[2,3],[]],"Input type":["float","Scalar"],"scale":"0.5"}')
    ]
