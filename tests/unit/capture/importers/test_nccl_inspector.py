"""Logs of the NCCL Inspector as its README documents them, verbose and not; not verified against a GPU host's log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.analyze.store import Store
from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.bundle.reader import Bundle
from gpuaudit.capture.importers import nccl_inspector
from gpuaudit.capture.importers.run import ImportOptions, run_import

AT_US = 1_752_867_229_000_000
COMM = 0xE62DEDAA97644A


@pytest.fixture(autouse=True)
def _keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_AUDIT_KEYS", str(tmp_path / "keys"))


def record(
    at_us: int, rank: int = 0, *, verbose: bool = True, version: str = "v4.0", **more: Any
) -> dict[str, Any]:  # fmt: skip
    """A ReduceScatter that the host began at ``at_us``, and whose two channels ran from 122 µs to 41 ms after it."""
    body: dict[str, Any] = {
        "coll": "ReduceScatter", "coll_sn": 1, "coll_msg_size_bytes": 2_147_483_648, "coll_exec_time_us": 41_057,
        "coll_timing_source": "kernel_gpu", "coll_algobw_gbs": 418.4, "coll_busbw_gbs": 366.1,
    }  # fmt: skip
    if verbose:
        body["event_trace_ts"] = {
            "coll_start_ts": at_us, "coll_stop_ts": at_us + 5,
            "kernel_events": [
                {"channel_id": c, "kernel_start_ts": at_us + 122 + c, "kernel_stop_ts": at_us + 41_000 + c,
                 "kernel_record_ts": 0} for c in range(2)
            ],
        }  # fmt: skip
    return {
        "header": {"id": hex(COMM), "rank": rank, "n_ranks": 2, "nnodes": 1},
        "metadata": {"inspector_output_format_version": version, "git_rev": "", "rec_mechanism": "profiler_plugin",
                     "dump_timestamp_us": at_us + 100_000, "hostname": "node7", "pid": 500 + rank},
        "coll_perf": body, **more,
    }  # fmt: skip


def imported(tmp_path: Path, *records: dict[str, Any] | str) -> tuple[Store, dict[str, Any]]:
    path = tmp_path / "inspector.log"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    run_import(ImportOptions((path,), tmp_path / "inspector.db", force=True))
    with Bundle.open(tmp_path / "inspector.db") as bundle:
        (told,) = json.loads({n: b for _, n, b in bundle.artefacts()}["imports"])
        return Store.from_bundle(bundle), told


def test_a_verbose_log_has_the_call_and_its_kernels(tmp_path: Path) -> None:
    store, told = imported(tmp_path, record(AT_US), record(AT_US + 50_000))
    assert store.sql(
        "SELECT start_ns, duration_ns, pid, op, comm_id, rank, nranks, size_bytes FROM nccl_calls ORDER BY start_ns"
    ) == [
        (at * 1_000, 5_000, 500, "ncclReduceScatter", COMM, 0, 2, 2_147_483_648) for at in (AT_US, AT_US + 50_000)
    ]  # fmt: skip
    assert store.sql(
        "SELECT start_ns, duration_ns, name, collective, group_size, device FROM gpu_activities ORDER BY 1 LIMIT 1"
    ) == [((AT_US + 122) * 1_000, (41_001 - 122) * 1_000, "ncclReduceScatter", "ReduceScatter", 2, None)]
    assert told["format"] == "NCCL Inspector log"
    assert any("not verified" in a for a in told["assumptions"])


def test_without_times_how_long_is_counted_and_when_is_not_made_up(tmp_path: Path) -> None:
    short = record(AT_US, verbose=False)
    short["coll_perf"]["coll_exec_time_us"] = 1_000.5
    store, told = imported(tmp_path, record(AT_US, verbose=False), short, record(AT_US + 2_000_000, verbose=False))
    assert store.sql("SELECT count(*) FROM nccl_calls") == [(0,)]
    second = AT_US * 1_000
    assert store.sql(
        "SELECT start_ns, duration_ns, pid, op, count, sum_ns, min_ns, max_ns FROM period_totals ORDER BY start_ns"
    ) == [
        (second, 10**9, 500, "ncclReduceScatter execution", 2, 42_057_000, 1_000_000, 41_057_000),
        (second + 2 * 10**9, 10**9, 500, "ncclReduceScatter execution", 1, 41_057_000, 41_057_000, 41_057_000),
    ]  # fmt: skip
    assert any("NCCL_INSPECTOR_DUMP_VERBOSE" in w["text"] for w in told["weaknesses"])


def test_of_many_totals_those_so_far_are_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl_inspector, "MAX_WRITTEN_APART", 2)
    store, _ = imported(tmp_path, *(record(AT_US + i * 1_000_000, verbose=False) for i in range(5)))
    assert store.sql("SELECT count(*), sum(count) FROM period_totals") == [(5, 5)]


def test_sends_other_records_and_ranks_of_other_hosts(tmp_path: Path) -> None:
    send = record(AT_US, version="v5.0")
    body = send.pop("coll_perf")
    send["p2p_perf"] = {
        "p2p": "Send", "p2p_peer": 1, "p2p_msg_size_bytes": 64, "p2p_exec_time_us": 7,
        "event_trace_ts": {"p2p_start_ts": AT_US, "p2p_stop_ts": AT_US + 1, "kernel_events": []},
    }  # fmt: skip
    proxy = {k: v for k, v in record(AT_US).items() if k != "coll_perf"} | {"proxy_perf": body}
    elsewhere = record(AT_US, rank=0)
    elsewhere["metadata"]["hostname"], elsewhere["header"]["nnodes"] = "node8", 2
    store, told = imported(tmp_path, send, proxy, elsewhere)
    assert store.sql("SELECT op, peer, size_bytes FROM nccl_calls WHERE op = 'ncclSend'") == [("ncclSend", 1, 64)]
    assert len(store.sql("SELECT DISTINCT pid FROM nccl_calls")) == 2, "equal numbers on two hosts are two processes"
    assert "records of proxy_perf: 1" in told["not_carried"]
    assert any("several hosts" in w["text"] and w["kind"] == "clocks" for w in told["weaknesses"])


def test_lines_that_are_no_records_are_counted(tmp_path: Path) -> None:
    bad = record(AT_US)
    bad["header"]["id"] = "7"
    unnamed = record(AT_US)
    unnamed["coll_perf"]["coll"] = "\x1b[2J"
    store, told = imported(tmp_path, record(AT_US), "{", "[]", "[" * 100_000, '{"header": 1}', bad, unnamed, "")
    assert told["unreadable"] == "6"
    assert store.sql("SELECT count(*) FROM nccl_calls") == [(1,)]


def test_a_format_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputUnusable, match=r"format 'v9\.0'"):
        imported(tmp_path, record(AT_US, version="v9.0"))
    assert not (tmp_path / "inspector.db").exists()
