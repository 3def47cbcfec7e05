"""Threads that are off their CPU for causes that the test has made: each interval names the right one, and no other."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpuaudit.capture.selection import Selection
from tests.doubles.build import build
from tests.integration.recording import DEADLINE_S, Recording, Row, recording, start, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf"), pytest.mark.alone]

INTERRUPTIBLE, UNINTERRUPTIBLE = 1, 2
"""Bits of prev_state: include/linux/sched.h."""

READ, POLL, PREAD64, NANOSLEEP, FUTEX, CLOCK_NANOSLEEP = 0, 7, 17, 35, 202, 230
"""arch/x86/entry/syscalls/syscall_64.tbl."""

NICE_0, NICE = 120, 7
"""Kernel priority of a thread that nobody made nicer; what the workload adds to that of one."""

FIFO_1 = 98
"""Kernel priority of the other program: 99 less its real-time priority of 1."""


@dataclass
class Captured:
    """One capture, and what the workload says of its threads, by cause."""

    recording: Recording
    pid: int
    hog_pid: int
    cpu: int
    other_cpu: int
    cgroup_id: int
    hog_cgroup_id: int
    causes: dict[str, Row]

    def rows(self, cause: str, **wanted: object) -> list[Row]:
        """Intervals of the thread with this cause."""
        return self.recording.of("off_cpu", tid=self.causes[cause]["tid"], **wanted)


@contextmanager
def block_device(folder: Path) -> Iterator[str]:
    """A disk of 8 MiB: what is read from it past the cache comes from another thread of the kernel, later."""
    image = folder / "disk"
    image.write_bytes(os.urandom(8 << 20))
    done = subprocess.run(["losetup", "--find", "--show", image], check=True, capture_output=True, text=True)
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def cgroups(folder: Path, names: tuple[str, ...]) -> Iterator[list[Path]]:
    """New cgroups of version 2, wherever that hierarchy is mounted, else mounted for this."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text("utf-8").splitlines()]
    mounted = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]
    root = mounted[0] if mounted else folder
    if not mounted:
        subprocess.run(["mount", "-t", "cgroup2", "none", root], check=True)
    made: list[Path] = []
    try:
        for name in names:
            made.append(root / name)
            made[-1].mkdir()
        yield made
    finally:
        for path in made:
            path.rmdir()
        if not mounted:
            subprocess.run(["umount", root], check=True)


def say(process: subprocess.Popen[str]) -> None:
    """One line, for which the program waits."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def facts_until(process: subprocess.Popen[str], point: str) -> dict[str, Row]:
    """What the program says until it has come to a point."""
    assert process.stdout is not None
    found: dict[str, Row] = {}
    for line in process.stdout:
        if line.strip() == f"at {point}":
            return found
        fact = json.loads(line)
        found[fact["cause"]] = fact
    raise AssertionError(f"the program ended before {point}: {process.communicate()[1]}")


@pytest.fixture(scope="module")
def captured(doubles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Captured]:
    """The workload runs and has waiting threads before the capture begins, and one still waits when it ends."""
    folder = tmp_path_factory.mktemp("causes")
    program, cpus = build("waits", folder), sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    with ExitStack() as stack:
        device = stack.enter_context(block_device(folder))
        ours, theirs = stack.enter_context(cgroups(folder, (f"waits-{os.getpid()}", f"hog-{os.getpid()}")))
        hog = start(doubles / "spin", "--cpu", str(cpus[-1]), "--ms", "600000", "--name", "the hog", "--burst-ms", "5")
        process = start(
            program, "--cudart", doubles / "libcudart.so.13", "--disk", device, "--cpu", str(cpus[-1]),
            "--other-cpu", str(cpus[0]), stdin=subprocess.PIPE,
        )  # fmt: skip
        try:
            (theirs / "cgroup.procs").write_text(str(hog.pid), "ascii")
            (ours / "cgroup.procs").write_text(str(process.pid), "ascii")
            wait_for_line(hog, "at spin")
            causes = facts_until(process, "ready")
            with recording(Selection(sources=frozenset({"cuda", "off_cpu"}))) as r:
                end = time.monotonic() + DEADLINE_S
                while not r.of("libraries", pid=process.pid):
                    assert time.monotonic() < end, "the workload is not found"
                    r.capture.scan()
                say(process)
                causes |= facts_until(process, "done")
                r.finish()
                yield Captured(
                    r, process.pid, hog.pid, cpus[-1], cpus[0], ours.stat().st_ino, theirs.stat().st_ino, causes
                )
        finally:
            for child in (process, hog):
                child.kill()
                child.communicate()


def test_each_blocking_call_is_named(captured: Captured) -> None:
    """A nap, a futex, a pipe and poll: as often as it happened, with the call's own first argument."""
    for cause, numbers in (
        ("nap", {NANOSLEEP, CLOCK_NANOSLEEP}),
        ("futex", {FUTEX}),
        ("pipe", {READ}),
        ("poll", {POLL}),
    ):
        told = captured.causes[cause]
        rows = [r for r in captured.rows(cause, op="blocked", syscall_arg=told["argument"]) if r["syscall"] in numbers]
        if cause == "nap" and rows[0]["syscall"] == NANOSLEEP:
            continue  # its argument is an address on the stack
        # the waker looks whether it sleeps before it wakes it; a nap can be over before it has begun
        assert len(rows) == told["rounds"] or (cause == "nap" and 0 < len(rows) < told["rounds"]), cause
        assert all(r["prev_state"] & INTERRUPTIBLE for r in rows), cause


def test_asleep_on_a_disk_is_another_state(captured: Captured) -> None:
    """Both ways to wait for one cannot be interrupted: the call that reads is named, a page fault has no call."""
    read = [r for r in captured.rows("disk", op="blocked") if r["syscall"] == PREAD64]
    assert 0 < len(read) <= captured.causes["disk"]["rounds"]  # the disk can be faster than the way to sleep
    assert {r["syscall_arg"] for r in read} == {captured.causes["disk"]["argument"]}
    fault = captured.rows("fault", op="blocked", syscall=None)
    assert fault
    assert {r["syscall_arg"] for r in fault} == {None}
    assert all(r["prev_state"] & UNINTERRUPTIBLE for r in (*read, *fault))
    for cause in ("nap", "futex", "pipe", "poll"):
        assert not [r for r in captured.rows(cause) if r["prev_state"] & UNINTERRUPTIBLE and r["syscall"] == PREAD64]


def test_who_woke_it(captured: Captured) -> None:
    """The main thread ends the waits on futex, pipe and poll."""
    for cause in ("futex", "pipe", "poll"):
        argument = captured.causes[cause]["argument"]
        rows = captured.rows(cause, op="blocked", syscall_arg=argument)
        assert {(r["waker_pid"], r["waker_tid"]) for r in rows} == {(captured.pid, captured.pid)}, cause


def test_waiting_for_a_cpu_is_told_from_sleep(captured: Captured) -> None:
    """Whoever is preempted waits all the time, whoever slept from the wake on; the hog's bursts are 5 ms long."""
    rows = [r for r in captured.recording.of("off_cpu", pid=captured.pid) if r["duration_ns"] is not None]
    for r in rows:
        if r["op"] == "preempted":
            assert r["runqueue_ns"] == r["duration_ns"]
        elif r["wake_ns"] is None:
            assert r["runqueue_ns"] is None
        else:
            assert r["runqueue_ns"] == r["start_ns"] + r["duration_ns"] - r["wake_ns"]
    naps = [r for r in captured.rows("late", op="blocked") if r["syscall"] in (NANOSLEEP, CLOCK_NANOSLEEP)]
    assert max(r["runqueue_ns"] for r in naps) >= 1_000_000
    assert all(r["duration_ns"] > r["runqueue_ns"] for r in naps)


def test_priority_and_cgroup_of_both(captured: Captured) -> None:
    """The preempted thread is the nicer one, in its cgroup; who ran instead has a real-time priority, in another."""
    rows = captured.rows("late", op="preempted", next_pid=captured.hog_pid)
    assert rows
    assert {r["next_comm"] for r in rows} == {"the hog"}
    assert {r["cpu_out"] for r in rows} == {captured.cpu}
    assert {(r["priority"], r["next_priority"]) for r in rows} == {(NICE_0 + NICE, FIFO_1)}
    assert captured.cgroup_id != captured.hog_cgroup_id
    assert {(r["cgroup_id"], r["next_cgroup_id"]) for r in rows} == {(captured.cgroup_id, captured.hog_cgroup_id)}
    assert {r["priority"] for r in captured.rows("futex")} == {NICE_0}
    assert {r["cgroup_id"] for r in captured.recording.of("off_cpu", pid=captured.pid)} == {captured.cgroup_id}


def test_moves_between_cpus(captured: Captured) -> None:
    """A thread that sends itself to and fro is moved as often, from and to the right CPUs."""
    told = captured.causes["move"]
    rows = captured.recording.of("migrations", tid=told["tid"])[-told["rounds"] :]
    there, back = (captured.cpu, captured.other_cpu), (captured.other_cpu, captured.cpu)
    assert [(r["from_cpu"], r["to_cpu"]) for r in rows] == [back if i % 2 else there for i in range(told["rounds"])]
    assert {r["pid"] for r in rows} == {captured.pid}


def test_threads_that_slept_before_the_capture_are_there(captured: Captured) -> None:
    """One that never wakes has one interval, without an end; who ran instead of it was not seen."""
    hung, woken = captured.causes["hung"], captured.causes["woken"]
    (forever,) = captured.rows("hung")
    assert (forever["began_before"], forever["duration_ns"], forever["wake_ns"]) == (1, None, None)
    assert (forever["op"], forever["syscall"], forever["syscall_arg"]) == ("blocked", FUTEX, hung["argument"])
    assert (forever["next_pid"], forever["next_tid"], forever["next_comm"]) == (None, None, None)
    assert (forever["priority"], forever["cgroup_id"]) == (NICE_0, captured.cgroup_id)
    first, *_ = captured.rows("woken")
    assert (first["began_before"], first["waker_tid"], first["syscall_arg"]) == (1, captured.pid, woken["argument"])
    assert first["runqueue_ns"] == first["start_ns"] + first["duration_ns"] - first["wake_ns"]
    main, *_ = captured.recording.of("off_cpu", tid=captured.pid)
    assert (main["began_before"], main["syscall"], main["syscall_arg"]) == (1, READ, 0)
    assert (main["waker_pid"], main["waker_comm"]) == (os.getpid(), Path("/proc/self/comm").read_text().strip())
    later = [r for r in captured.recording.of("off_cpu", pid=captured.pid) if r["began_before"]]
    assert {r["tid"] for r in later} == {hung["tid"], woken["tid"], captured.pid}
