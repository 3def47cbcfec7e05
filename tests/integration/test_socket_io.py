"""Sends and receives, added up in the kernel, against what two processes count of their own: every sum is exact."""

from __future__ import annotations

import json
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpuaudit.capture.selection import Selection
from tests.doubles.build import build
from tests.integration.recording import DEADLINE_S, Recording, Row, recording, start, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10

SOCKETS, CROWD, RING_BYTES = 11, 80, 4096
"""Sockets and directions that the workload uses, and those it uses once; a ring of 30 records, fewer than a window."""

WAITED_NS = 30_000_000
"""WAIT_MS of the workload: the receiver of the first stream waits for its sender so long at least."""


@dataclass
class Captured:
    """One capture of the workload, and what it counted, by process, socket and direction."""

    recording: Recording
    process: subprocess.Popen[str]
    truth: dict[tuple[int, int, int], Row]

    def rows(self, key: tuple[int, int, int]) -> list[Row]:
        """The rows of one socket and direction."""
        pid, inode, receive = key
        return self.recording.of("socket_io", pid=pid, inode=inode, receive=receive)


@pytest.fixture(scope="module")
def captured(doubles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Captured]:
    """Windows end all the time while threads send and receive; where it stops, what it did by then has come in."""
    program = build("transfers", tmp_path_factory.mktemp("transfers"))
    cudart = doubles / "libcudart.so.13"
    selection = Selection(sources=frozenset({"cuda", "sockets"}))
    with recording(selection, ring_sizes_bytes={"socket_io": RING_BYTES}) as r:
        r.capture.prepare([str(cudart)])
        process = start(program, "--cudart", cudart, stdin=subprocess.PIPE)
        assert process.stdin is not None
        try:
            for point in ("half", "shared"):
                wait_for_line(process, f"at {point}")
                r.capture.tick()
                r.capture.tick()  # finds the ring full: what has no room stays, and is added to
                r.drain()
                assert point != "half" or len(r.of("socket_io")) < CROWD
                assert sum(row["size_bytes"] for row in r.of("socket_io", pid=process.pid, receive=1)) > 0
                process.stdin.write("\n")
                process.stdin.flush()
            end = time.monotonic() + DEADLINE_S
            while process.poll() is None:
                assert time.monotonic() < end, "the workload does not end"
                r.capture.tick()
                r.drain()
            r.finish()
            out, err = process.communicate()
            assert process.returncode == 0, err
        finally:
            process.kill()
            process.communicate()
        told = [json.loads(line) for line in out.splitlines()]
        yield Captured(r, process, {(t["pid"], t["inode"], t["receive"]): t for t in told})


def test_sums_are_what_the_program_counts(captured: Captured) -> None:
    """Calls, failures, those that were not ready, bytes: of both processes, of every socket, in both directions."""
    assert len(captured.truth) == SOCKETS + CROWD
    assert len({pid for pid, _, _ in captured.truth}) == 2
    assert any(t["not_ready"] for t in captured.truth.values())
    assert any(t["errors"] > t["not_ready"] for t in captured.truth.values())
    for key, told in captured.truth.items():
        sums: dict[str, int] = defaultdict(int)
        for row in captured.rows(key):
            for name in ("count", "errors", "not_ready", "size_bytes"):
                sums[name] += row[name]
        assert dict(sums) == {
            "count": told["calls"], "errors": told["errors"], "not_ready": told["not_ready"],
            "size_bytes": told["bytes"],
        }, told  # fmt: skip
    assert captured.recording.lost() == 0


def test_nothing_else_is_a_socket(captured: Captured) -> None:
    """The workload also reads and writes pipes and reads a file; nothing more is added up for its processes."""
    pids = {pid for pid, _, _ in captured.truth}
    rows = [row for row in captured.recording.of("socket_io") if row["pid"] in pids]
    assert {(r["pid"], r["inode"], r["receive"]) for r in rows} == set(captured.truth)
    assert {r["op"] for r in rows} == {"send", "receive"}
    assert all((r["op"] == "receive") == (r["receive"] == 1) for r in rows)


def test_time_spent_is_within_what_the_caller_saw(captured: Captured) -> None:
    """Sum and longest never exceed the caller's own clock; a receive that waited for its sender says so."""
    for key, told in captured.truth.items():
        rows = captured.rows(key)
        assert 0 < sum(r["sum_ns"] for r in rows) <= told["sum_ns"]
        assert 0 < max(r["max_ns"] for r in rows) <= told["max_ns"]
        assert all(r["max_ns"] <= r["sum_ns"] and r["max_ns"] <= r["duration_ns"] for r in rows)
    (waited,) = (
        key for key, t in captured.truth.items() if t["family"] == AF_INET and t["receive"] and not t["errors"]
    )
    assert max(r["max_ns"] for r in captured.rows(waited)) >= WAITED_NS // 2  # it may wait later than its sender


def test_addresses_and_ports_are_those_of_the_socket(captured: Captured) -> None:
    """IPv4 and IPv6 as getsockname(2) and getpeername(2) have them; a Unix socket has none."""
    families = set()
    for key, told in captured.truth.items():
        families.add(told["family"])
        for row in captured.rows(key):
            expected: tuple[object, ...] = (told["local"], told["local_port"], told["remote"], told["remote_port"])
            if told["family"] == AF_UNIX:
                expected = (None, None, None, None)
            assert row["family"] == told["family"]
            assert (row["local_address"], row["local_port"], row["remote_address"], row["remote_port"]) == expected
    assert families == {AF_UNIX, AF_INET, AF_INET6}


def test_windows_are_apart(captured: Captured) -> None:
    """The socket that two threads share was sent while they used it: each window has an end of its own.

    A call counts where it ends, so that a window may begin before the one before it does.
    """
    busiest = max(captured.truth, key=lambda key: int(captured.truth[key]["calls"]))
    rows = captured.rows(busiest)
    assert len(rows) >= 2
    ends = [r["start_ns"] + r["duration_ns"] for r in rows]
    assert len(set(ends)) == len(ends)
    assert sum(r["count"] for r in rows) == captured.truth[busiest]["calls"]
