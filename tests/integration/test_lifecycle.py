"""Lives of processes: every fork, program, end and signal that kills, with its sender; in the order they happened."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from gpuaudit.capture import libbpf
from gpuaudit.capture.selection import Selection
from tests.doubles.build import build
from tests.integration.recording import Recording, Row, recording, start, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

LIVES = """
import ctypes, json, os, signal, sys, threading, time

def forked(act):
    pid = os.fork()
    if not pid:
        act()
        os._exit(99)
    return pid

def in_thread():  # the last thread ends the process: its first one is gone
    def last():
        time.sleep(0.05)
        os._exit(6)
    threading.Thread(target=last).start()
    ctypes.CDLL(None).pthread_exit(None)

def handled():  # a signal that is handled or ignored, or only stops, kills nobody
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD, signal.SIGWINCH):
        os.kill(os.getpid(), number)
    os._exit(5)

sys.stdin.readline()
told = {"pid": os.getpid(), "children": {}}
for name, act in {
    "code": lambda: os._exit(3),
    "program": lambda: os.execv("/bin/sh", ["sh", "-c", "exit 4"]),
    "segfault": lambda: ctypes.string_at(0),
    "threads": in_thread,
    "handled": handled,
}.items():
    pid = told["children"][name] = forked(act)
    os.waitpid(pid, 0)
for name, number in {"terminated": signal.SIGTERM, "killed": signal.SIGKILL, "real-time": signal.SIGRTMAX}.items():
    pid = told["children"][name] = forked(signal.pause)
    os.kill(pid, number)
    os.waitpid(pid, 0)
print(json.dumps(told), flush=True)
"""

ENDS = {
    "code": (3, None), "program": (4, None), "segfault": (None, signal.SIGSEGV), "threads": (6, None),
    "handled": (5, None), "terminated": (None, signal.SIGTERM), "killed": (None, signal.SIGKILL),
    "real-time": (None, signal.SIGRTMAX),
}  # fmt: skip


def test_every_fork_program_end_and_fatal_signal(tmp_path: Path) -> None:
    process = start(sys.executable, "-c", LIVES, stdin=-1)
    selection = Selection(pids=frozenset({process.pid}), sources=frozenset({"lifecycle"}), role="workload")
    with recording(selection) as r:
        assert r.capture.refused == {}
        out, err = process.communicate("\n")
        assert process.returncode == 0, err
        r.finish()
    told = json.loads(out)
    assert r.lost() == 0
    assert [row["other_pid"] for row in r.of("lifecycle", op="fork", pid=process.pid)] == list(
        told["children"].values()
    )
    assert {row["tid"] for row in r.of("lifecycle", op="fork", pid=process.pid)} == {process.pid}
    for name, pid in told["children"].items():
        mine = r.of("lifecycle", pid=pid)
        code, number = ENDS[name]
        (end,) = [row for row in mine if row["op"] == "exit"]
        assert (end["exit_code"], end["signal"]) == (code, number), name
        assert mine[-1] is end
        assert [row["comm"] for row in mine if row["op"] == "exec"] == (["sh"] if name == "program" else [])
        check_signals(name, [row for row in mine if row["op"] == "signal"], process.pid)
    (own,) = r.of("lifecycle", pid=process.pid, op="exit")
    assert own["exit_code"] == 0
    assert {row["cgroup_id"] for row in r.of("lifecycle")} <= {own["cgroup_id"]}
    assert r.seen("lifecycle") == len(r.rows["lifecycle"])


def check_signals(name: str, signals: list[Row], parent: int) -> None:
    sent = [(s["signal"], s["other_pid"], s["signal_code"]) for s in signals]
    if name == "segfault":
        assert sent == [(signal.SIGSEGV, None, 1)]  # SEGV_MAPERR: the kernel sent it
    elif name in ("terminated", "killed", "real-time"):
        assert sent == [(ENDS[name][1], parent, 0)]  # SI_USER
        assert signals[0]["other_comm"] == Path(sys.executable).name[:15]
    else:
        assert sent == []


def test_the_whole_host_tells_of_traced_processes_and_their_children(doubles: Path, tmp_path: Path) -> None:
    """A child of a process that maps CUDA is followed into the programs it runs; a process without CUDA is not."""
    code = (
        "import ctypes, subprocess, sys\n"
        "ctypes.CDLL(sys.argv[1]).cudaDeviceSynchronize()\n"
        "print('at loaded', flush=True); sys.stdin.readline()\n"
        "subprocess.run(['sh', '-c', 'sh -c \"exit 9\"; exit 8'])\n"
    )
    process = start(sys.executable, "-c", code, doubles / "libcudart.so.13", stdin=-1)
    wait_for_line(process, "at loaded")
    with recording(Selection(sources=frozenset({"cuda", "lifecycle"}))) as r:
        r.step()
        bystander = start("sh", "-c", "exit 2")
        bystander.communicate()
        process.communicate("\n")
        r.finish()
    assert r.of("lifecycle", pid=bystander.pid) == []
    (child,) = [row["other_pid"] for row in r.of("lifecycle", pid=process.pid, op="fork")]
    (grandchild,) = [row["other_pid"] for row in r.of("lifecycle", pid=child, op="fork")]
    ends = {row["pid"]: row["exit_code"] for row in r.of("lifecycle", op="exit")}
    assert (ends[process.pid], ends[child], ends[grandchild]) == (0, 8, 9)
    exited = r.of("processes", op="exited")
    (whole,), (end,) = (
        [row for row in rows if row["pid"] == process.pid] for rows in (exited, r.of("lifecycle", op="exit"))
    )
    assert whole["start_ns"] + whole["duration_ns"] >= end["start_ns"], "it would have ended before it did"
    assert not {child, grandchild} & {row["pid"] for row in exited}, "they map no CUDA library"


WAVES, CHILDREN = 2, 5_000
MAPS_OF_THREADS = ("targets", "threads", "open_off_cpu", "open_reclaims", "open_transfers", "open_ioctls")
"""Maps of the programs that are keyed by the number of a process or thread."""


def test_ten_thousand_short_lives(doubles: Path, tmp_path: Path) -> None:
    """Every call of those that called, every fork and end of all; afterwards nothing of them is left with us."""
    crowd, library, go = build("crowd", doubles), doubles / "libcudart.so.13", tmp_path / "go"
    sources = frozenset({"cuda", "lifecycle", "off_cpu", "memory", "sockets"})
    selection = Selection(sources=sources, pids=frozenset(), role="workload")
    resident = []
    everybody: set[int] = set()
    with recording(selection) as r:
        r.capture.prepare([str(library)])
        for _ in range(WAVES):
            process = start(crowd, "--children", str(CHILDREN), "--cudart", library, "--start-file", go)
            wait_for_line(process, "at start")
            r.capture.include(process.pid)
            r.step()
            descriptors = open_descriptors()
            go.touch()
            made = json.loads(r.run(process))
            r.step()
            go.unlink()
            everybody |= check_wave(r, process.pid, made)
            assert open_descriptors() <= descriptors
            for name in MAPS_OF_THREADS:
                assert not everybody & numbers_in(r, name), name
            r.rows.clear()
            resident.append(resident_bytes())
        assert r.lost() == 0
        r.finish()
    assert resident[-1] - resident[0] < 16 << 20


def check_wave(r: Recording, parent: int, made: dict[str, int]) -> set[int]:
    """What one wave made is in the evidence, once; the processes of the wave."""
    children = [row["other_pid"] for row in r.of("lifecycle", op="fork", pid=parent)]
    assert len(children) == len(set(children)) == made["children"] == CHILDREN
    lives = {op: Counter(row["pid"] for row in r.of("lifecycle", op=op)) for op in ("exec", "exit")}
    assert lives["exit"] == Counter([*children, parent])
    assert sum(lives["exec"].values()) == len(lives["exec"]) == made["executed"] > 0
    calls = r.of("cuda_calls")
    callers = {row["pid"]: row["size_bytes"] - 1 for row in calls}  # a child's size is its index and one
    assert len(calls) == made["calls"] > 0
    assert len(callers) == made["loaded"]
    assert callers.keys() <= set(children)
    for op in ("found", "exited"):
        assert sorted(row["pid"] for row in r.of("processes", op=op, role="workload")) == sorted(callers)
    every = CHILDREN // made["loaded"]
    codes = {row["pid"]: row["exit_status"] for row in r.of("processes", op="exited", role="workload")}
    assert codes == {pid: index // every % 7 for pid, index in callers.items()}
    return {*children, parent}


def numbers_in(r: Recording, name: str) -> set[int]:
    """Keys of a map, of the one part that has it."""
    for part in r.capture._parts:
        try:
            fd = part.map_fd(name)
        except KeyError:
            continue
        return {int.from_bytes(key, "little") for key in libbpf.map_keys(fd, 4)}
    raise AssertionError(f"no part has a map called {name}")


def open_descriptors() -> int:
    """How many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_bytes() -> int:
    """Of this process, which attaches, drains and keeps rows here."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
