"""Exports of Nsight Systems as its documentation gives them, old, new and bad; not verified against a real file."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.analyze.store import Store
from gpuaudit.analyze.window import read_window
from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.bundle.reader import Bundle
from gpuaudit.bundle.verify import IMPORTED_NOTICE, verify
from gpuaudit.capture.importers import nsight_rows
from gpuaudit.capture.importers.run import ImportOptions, run_import
from tests.nsight_exports import BASE_NS, GPU_UUID, OTHER_TID, PID, TID, export, global_tid


@pytest.fixture(autouse=True)
def _keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_AUDIT_KEYS", str(tmp_path / "keys"))


def imported(path: Path) -> tuple[Store, dict[str, Any], dict[str, Any]]:
    """The store, what the import says, and leaf 0."""
    out = path.with_suffix(".db")
    run_import(ImportOptions((path,), out))
    assert IMPORTED_NOTICE in verify(out).notices
    with Bundle.open(out) as bundle:
        (told,) = json.loads({n: b for _, n, b in bundle.artefacts()}["imports"])
        return Store.from_bundle(bundle), told, bundle.open_body


@pytest.mark.parametrize("schema", ["2.7.1", "3.11.2", "3.20.1"])
def test_every_table_of_the_documented_schema_is_carried(tmp_path: Path, schema: str) -> None:
    store, told, body = imported(export(tmp_path / "report.sqlite", schema))
    assert store.sql(
        "SELECT start_ns - ?::UBIGINT, duration_ns, pid, op, name, device, context, stream, correlation, size_bytes, "
        "direction, pageable FROM gpu_activities ORDER BY start_ns", [BASE_NS]
    ) == [
        (500, 9_450, PID, "sync", "stream synchronize", 0, 1, 7, 14, None, None, None),
        (600, 100, PID, "sync", "context synchronize", 0, 1, -1, 15, None, None, None),
        (1_000, 8_000, PID, "kernel", "void gemm<float, (int)128>(float *, float *)", 0, 1, 7, 11, None, None, None),
        (9_100, 800, PID, "memcpy", "memcpy HtoD", 0, 1, 7, 12, 1 << 20, 1, 1),
        (10_000, 100, PID, "memcpy", "memcpy DtoH", 0, 1, 9, 13, 64, 2, 0),
        (10_200, 100, PID, "memset", "memset", 0, 1, 7, None, 4_096, None, None),
    ]  # fmt: skip
    assert store.sql(
        "SELECT grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes FROM gpu_activities WHERE op = 'kernel'"
    ) == [(8, 2, 1, 128, 1, 1, 1_536)]
    assert store.sql(
        "SELECT start_ns - ?::UBIGINT, duration_ns, pid, tid, op, return_code, correlation, parent_ns - ?::UBIGINT, "
        "parent_op FROM cuda_calls ORDER BY start_ns", [BASE_NS, BASE_NS]
    ) == [
        (100, 300, PID, TID, "cudaLaunchKernel", 0, 11, None, None),
        (150, 200, PID, TID, "cuLaunchKernel", 0, 11, 100, "cudaLaunchKernel"),
        (500, 9_460, PID, TID, "cudaStreamSynchronize", 0, 14, None, None),
        (9_970, 10, PID, TID, "cudaMemcpyAsync", 0, 12, None, None),
    ]  # fmt: skip
    assert store.sql("SELECT start_ns - ?::UBIGINT, duration_ns, tid, op, return_code FROM os_calls", [BASE_NS]) == [
        (200, 100, OTHER_TID, "pthread_cond_wait", 0)
    ]
    assert store.sql("SELECT start_ns - ?::UBIGINT, duration_ns, op, name FROM user_ranges ORDER BY 1", [BASE_NS]) == [
        (50, 19_950, "nvtx", "forward"), (60, None, "nvtx", "epoch"), (70, 0, "nvtx", "checkpoint"),
    ]  # fmt: skip
    named = "python3" if schema.startswith("3") else "name not recorded"
    assert store.sql("SELECT pid, comm FROM processes") == [(PID, named)]
    assert [(g["index"], g["uuid"], g["name"]) for g in body["gpus"]] == [(0, f"GPU-{GPU_UUID}", "NVIDIA H100")]
    assert body["host"]["hostname"] == "node7"
    assert told["format"] == "Nsight Systems SQLite export"
    assert any("not verified against a real file" in a for a in told["assumptions"])
    assert store.sql("SELECT start_ns - ?::UBIGINT, duration_ns, pid, tid, op, cpu_out, cpu, prev_state FROM off_cpu", [
        BASE_NS
    ]) == [(9_000, 400, PID, TID, "off", 0, 2, None)]  # fmt: skip
    assert "switches of threads of which the one before or after was not recorded: 2" in told["not_carried"]
    assert any("slept or was preempted" in w["text"] for w in told["weaknesses"])
    assert "NVTX events that define names, categories and domains: 1" in told["not_carried"]
    assert told["unreadable"] == "0"
    window = read_window(store)
    assert window.start_utc_ns == window.start_ns


def changed(tmp_path: Path, *statements: str, schema: str = "3.11.2") -> Path:
    path = export(tmp_path / "report.sqlite", schema)
    db = sqlite3.connect(path)
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()
    return path


def test_without_a_beginning_times_stand_as_they_are(tmp_path: Path) -> None:
    store, told, _ = imported(changed(tmp_path, "DROP TABLE TARGET_INFO_SESSION_START_TIME"))
    assert store.sql("SELECT min(start_ns) FROM cuda_calls") == [(100,)]
    assert any("does not tell" in a for a in told["assumptions"])
    assert read_window(store).start_utc_ns is None


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL RENAME COLUMN streamId TO stream", "KERNEL has no column streamId"),
        ("ALTER TABLE StringIds RENAME COLUMN value TO text", "StringIds has no column value"),
        ("UPDATE META_DATA_EXPORT SET value = '9.0' WHERE name = 'EXPORT_SCHEMA_VERSION'", "schema '9.0'"),
        ("UPDATE META_DATA_EXPORT SET value = 'x' WHERE name = 'EXPORT_SCHEMA_VERSION'", "schema 'x'"),
        ("INSERT INTO TARGET_INFO_SESSION_START_TIME VALUES (7, '', '')", "2 sessions"),
    ],
)  # fmt: skip
def test_what_nobody_has_documented_is_refused(tmp_path: Path, statement: str, says: str) -> None:
    with pytest.raises(InputUnusable, match=says):
        imported(changed(tmp_path, statement))
    assert not (tmp_path / "report.db").exists()


def test_rows_that_cannot_be_are_counted_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = changed(
        tmp_path, "UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET end = start - 1",
        "UPDATE CUPTI_ACTIVITY_KIND_MEMSET SET start = 9223372036854775807", "UPDATE OSRT_API SET nameId = 999",
        "UPDATE CUPTI_ACTIVITY_KIND_MEMCPY SET bytes = -1, copyKind = 77, globalPid = NULL, streamId = 'x' "
        "WHERE copyKind = 1",
    )  # fmt: skip
    store, told, _ = imported(path)
    assert told["unreadable"] == "3"
    assert "begins at" in " ".join(told["unreadable_examples"])
    assert store.sql("SELECT count(*) FROM gpu_activities WHERE op IN ('kernel', 'memset')") == [(0,)]
    assert store.sql(
        "SELECT pid, name, size_bytes, direction, stream FROM gpu_activities WHERE op = 'memcpy' ORDER BY start_ns"
    )[0] == (None, "memcpy of unknown kind", None, None, None)


def test_a_database_with_no_trace_in_it_is_refused(tmp_path: Path) -> None:
    drops = [f"DROP TABLE IF EXISTS {s.table}" for s in nsight_rows.SOURCES]
    with pytest.raises(InputUnusable, match="none of its tables"):
        imported(changed(tmp_path, *drops))


def test_two_sessions_do_not_share_processes(tmp_path: Path) -> None:
    """Equal numbers of two files may be two hosts' processes."""
    for name in ("a", "b"):
        export(tmp_path / f"{name}.sqlite")
    out = tmp_path / "both.db"
    run_import(ImportOptions((tmp_path / "a.sqlite", tmp_path / "b.sqlite"), out))
    with Bundle.open(out) as bundle:
        store = Store.from_bundle(bundle)
    assert len(store.sql("SELECT DISTINCT pid FROM cuda_calls")) == 2


def test_many_names_are_looked_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nsight_rows, "MAX_NAMES", 2)
    store, _, _ = imported(export(tmp_path / "report.sqlite"))
    assert store.sql("SELECT count(DISTINCT op) FROM cuda_calls") == [(4,)]


def test_time_off_a_cpu_lies_between_two_switches_of_the_same_thread(tmp_path: Path) -> None:
    """Out and back, back and out at one moment; an out that follows an out, and cells that cannot be, have no row."""
    me, other = global_tid(PID, TID), global_tid(PID, OTHER_TID)
    switches = (
        (100, 1, 0, me), (110, 2, 0, other), (130, 1, 1, me), (130, 1, 0, me), (150, 3, 1, me), (200, 0, 0, me),
        (210, 0, 0, me), (230, 0, 1, me), (240, 70_000, 0, me), (250, 0, 1, me), (260, 0, "'x'", other),
        (270, 2, 1, other),
    )  # fmt: skip
    rows = ", ".join(f"({at}, {cpu}, {came}, {who})" for at, cpu, came, who in switches)
    path = changed(tmp_path, "DELETE FROM SCHED_EVENTS", f"INSERT INTO SCHED_EVENTS VALUES {rows}")  # noqa: S608 - ours
    store, told, _ = imported(path)
    query = "SELECT start_ns - ?::UBIGINT, duration_ns, tid, cpu_out, cpu FROM off_cpu ORDER BY 1"
    assert store.sql(query, [BASE_NS]) == [
        (100, 30, TID, 1, 1), (110, 160, OTHER_TID, 2, 2), (130, 20, TID, 1, 3), (210, 20, TID, 0, 0),
        (240, 10, TID, None, 0),
    ]  # fmt: skip
    assert "switches of threads of which the one before or after was not recorded: 1" in told["not_carried"]
    assert told["unreadable"] == "1"


def test_switches_of_too_many_threads_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nsight_rows, "MAX_THREADS", 1)
    away = ", ".join(f"(20000, 0, 0, {global_tid(PID, TID + n)})" for n in range(3))
    with pytest.raises(InputUnusable, match="switches of more than 1 threads"):
        imported(changed(tmp_path, f"INSERT INTO SCHED_EVENTS VALUES {away}"))  # noqa: S608 - ours
