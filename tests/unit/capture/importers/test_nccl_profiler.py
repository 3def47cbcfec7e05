"""Traces of NCCL's example profiler as its README prints one; not verified against a trace of a GPU host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.analyze.store import Store
from gpuaudit.analyze.window import read_window
from gpuaudit.bundle.reader import Bundle
from gpuaudit.capture.importers.run import ImportOptions, run_import

COMM = 673_864_846_479_792_718
ARGS: dict[str, Any] = {
    "SeqNum": 0,
    "CommHash": COMM,
    "Rank": 1,
    "Count": 32_768,
    "Datatype": "ncclFloat32",
    "Algorithm": "RING",
}


@pytest.fixture(autouse=True)
def _keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_AUDIT_KEYS", str(tmp_path / "keys"))


def event(name: str, category: str, phase: str, ts: str, id: int = 0, **args: Any) -> str:
    more = f', "args": {json.dumps(args)}' if args else ""
    return (
        f'{{"name": "{name}", "cat": "{category}", "ph": "{phase}", "id": {id}, "pid": 4157654, "tid": 1, "ts": {ts}'
        f"{more}}}"
    )


def imported(tmp_path: Path, *events: str) -> tuple[Store, dict[str, Any]]:
    path = tmp_path / "trace-host-1.txt"
    path.write_text("[\n" + "".join(f"{e},\n" for e in events) + "{}]\n")
    run_import(ImportOptions((path,), tmp_path / "trace.db"))
    with Bundle.open(tmp_path / "trace.db") as bundle:
        (told,) = json.loads({n: b for _, n, b in bundle.artefacts()}["imports"])
        return Store.from_bundle(bundle), told


def test_the_documented_trace_is_read_exactly(tmp_path: Path) -> None:
    store, told = imported(
        tmp_path,
        event("Group", "GROUP", "b", "764234.611328", groupId=0),
        event("AllReduce", "COLL", "b", "764237.294922", **ARGS),
        event("Recv", "PROXY", "b", "768464.936523", Channel=0, Peer=0),
        event("AllReduce", "COLL", "e", "772209.317383"),
        event("Send", "P2P", "b", "772300.5", 3, CommHash=COMM, Rank=1, Peer=2, Count=7, Datatype="ncclInt8"),
        event("Group", "GROUP", "e", "772209.418945"),
    )
    assert store.sql(
        "SELECT start_ns, duration_ns, pid, op, comm_id, rank, peer, count, datatype, size_bytes FROM nccl_calls "
        "ORDER BY start_ns"
    ) == [
        (764_237_294, 7_972_023, 4_157_654, "ncclAllReduce", COMM, 1, None, 32_768, 7, 131_072),
        (772_300_500, None, 4_157_654, "ncclSend", COMM, 1, 2, 7, 0, 7),
    ]  # fmt: skip
    assert told["format"] == "NCCL profiler trace"
    assert {"events of kind GROUP: 2", "events of kind PROXY: 1"} <= set(told["not_carried"])
    assert read_window(store).start_utc_ns is None, "the axis is no wall clock"


def test_events_that_cannot_be_are_counted(tmp_path: Path) -> None:
    store, told = imported(
        tmp_path,
        event("AllReduce", "COLL", "b", "10", **ARGS),
        event("AllReduce", "COLL", "e", "9"),
        event("AllGather", "COLL", "e", "9"),
        event("AllReduce", "COLL", "b", "-1", 1, **ARGS),
        event("AllReduce", "COLL", "b", "1e400", 2, **ARGS),
        event("AllReduce", "COLL", "b", "NaN", 2, **ARGS),
        event("AllReduce", "COLL", "b", "20", 3),
        event("all", "COLL", "b", "20", 3, **ARGS),
        event("Broadcast", "COLL", "b", "30", 4, **{**ARGS, "Count": 2**64 - 1}),
        "[[[[",
    )
    assert told["unreadable"] == "8"
    assert store.sql("SELECT op, size_bytes FROM nccl_calls") == [("ncclBroadcast", None)]
