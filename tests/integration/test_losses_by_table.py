"""What finds the ring of another table full is counted there too: the producer's own number, less what came through."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from gpuaudit.bundle.tables import TABLES
from gpuaudit.capture import libbpf
from gpuaudit.capture.ring import HEADER_BYTES
from gpuaudit.capture.selection import Selection
from gpuaudit.capture.system_calls import parse_device
from tests.doubles.build import build
from tests.integration.recording import recording, start, truth, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

RANDOM = "1:R"
"""The workload's device: /dev/random, /dev/null."""


def test_ioctls_beyond_the_ring_are_lost_by_number(tmp_path: Path) -> None:
    """Holes in each CPU's sequence numbers are as many as its counter says, and all together what the program made."""
    page, program = os.sysconf("SC_PAGE_SIZE"), build("ioctls", tmp_path)
    process = start(program, "--out", tmp_path / "truth", "--threads", "2", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        wait_for_line(process, "at start")
        selection = Selection(pids=frozenset({process.pid}), sources=frozenset({"ioctl"}))
        sizes = {"ioctls": page}
        with recording(selection, ioctl_devices=(parse_device(RANDOM),), ring_sizes_bytes=sizes) as r:
            process.stdin.write("\n")
            process.stdin.flush()
            process.stdout.readline()
            r.drain()
            counters = {cpu: c for (table, cpu), c in r.counters.read().items() if table == "ioctls" and c.seen}
    finally:
        process.kill()
        process.communicate()
    made, rows = len(truth(tmp_path / "truth")), r.rows["ioctls"]
    assert len(rows) == (page - 1) // (TABLES["ioctls"].record_dtype().itemsize + HEADER_BYTES)
    assert sum(c.seen for c in counters.values()) == made
    assert sum(c.lost for c in counters.values()) == made - len(rows) > 0
    for cpu, c in counters.items():
        numbers = {row["seq"] for row in rows if row["cpu"] == cpu}
        assert len(set(range(c.seen)) - numbers) == c.lost


def test_what_the_kernel_did_not_run_a_program_for_is_a_gap(doubles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No program is run on a CPU on which it runs already. The kernel counts that, and the evidence tells it."""
    monkeypatch.setattr(libbpf, "recursion_misses", lambda _fd: 3)
    with recording(Selection(pids=frozenset(), sources=frozenset({"cuda", "off_cpu"}))) as r:
        assert r.capture.prepare([str(doubles / "libcudart.so.13")]) == []
        r.finish()
    told = {
        (g["source"], g["reason"].split()[5]) for g in r.rows["gaps"] if g["reason"].startswith("3 times the program")
    }
    functions = {op for _, op in told if op.startswith(("enter_", "leave_"))}
    assert len(functions) == 2
    assert {source for source, op in told if op in functions} == {"cuda"}
    assert {source for source, op in told if op in ("sched_switch", "sched_migrate_task")} == {"off_cpu"}
    assert {p["op"] for p in r.rows["probes"] if p["misses"] == 3} == {op for _, op in told}
