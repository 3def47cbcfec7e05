"""CUDA graphs that Nsight Systems records as a whole (its default since 2022): the GPU worked while one ran."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from gpuaudit.analyze.gpu_activity import read_devices
from gpuaudit.analyze.sections.gpu_activity import evaluate
from gpuaudit.analyze.store import Store
from gpuaudit.bundle.reader import Bundle
from gpuaudit.capture.importers.run import ImportOptions, run_import
from tests.nsight_exports import BASE_NS, PID, export, global_tid
from tests.scenes import MS, T0, Scene

TABLE = (
    "CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT "
    "NULL, contextId INTEGER NOT NULL, greenContextId INTEGER, streamId INTEGER NOT NULL, correlationId INTEGER, "
    "globalPid INTEGER, graphId INTEGER NOT NULL, graphExecId INTEGER NOT NULL)"
)


def test_a_graph_that_was_recorded_as_a_whole_is_work_of_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU works from 1,000 to 9,900 ns but for 100 ns, and 10,300 to 90,300 ns more in a graph."""
    monkeypatch.setenv("GPU_AUDIT_KEYS", str(tmp_path / "keys"))
    path = export(tmp_path / "report.sqlite")
    with sqlite3.connect(path) as db:
        db.execute(TABLE)
        add = "INSERT INTO CUPTI_ACTIVITY_KIND_GRAPH_TRACE VALUES (?, ?, 0, 1, NULL, 7, ?, ?, 5, 6)"
        db.execute(add, (10_300, 90_300, 21, global_tid(PID, 0)))
        db.execute(add, (0, 0, 22, global_tid(PID, 0)))
    db.close()
    run_import(ImportOptions((path,), tmp_path / "out.db"))
    with Bundle.open(tmp_path / "out.db") as bundle:
        store = Store.from_bundle(bundle)
        imports = {n: b for _, n, b in bundle.artefacts()}["imports"].decode()
    rows = store.sql(
        "SELECT start_ns, duration_ns, device, stream, correlation, graph FROM gpu_activities WHERE op = 'graph'"
    )
    assert rows == [(BASE_NS + 10_300, 80_000, 0, 7, 21, 5)]
    assert "executions of graphs without a recorded time: 1" in imports
    (device,) = read_devices(store)
    assert device.idle.tolist() == [[BASE_NS + a, BASE_NS + b] for a, b in ((9_000, 9_100), (9_900, 10_000),
                                                                         (10_100, 10_200))]  # fmt: skip


def test_what_ran_in_it_is_said_to_be_unknown() -> None:
    scene = Scene().clock()
    scene.add("gpu_activities", start_ns=T0, duration_ns=MS, pid=7, op="kernel", name="k", device=0, stream=7)
    scene.add("gpu_activities", start_ns=T0 + MS, duration_ns=MS, pid=7, op="graph", name="graph", device=0, stream=7)
    (times,) = [t for t in evaluate(scene.context()).tables if t.id == "times"]
    told = dict(zip((c[0] for c in times.columns), times.rows[0], strict=True))
    assert [getattr(told[c], "value", None) for c in ("span", "idle", "compute")] == [2 * MS, 0, MS]
    assert times.notes == (
        "1 executions of CUDA graphs were recorded as a whole: what ran in them is in no column but span and idle.",
    )
