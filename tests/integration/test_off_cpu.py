"""Why a thread was off its CPU: preempted and asleep are different things, and nobody is blamed without reason."""

from __future__ import annotations

import errno
import json
import os
import time
from itertools import pairwise
from pathlib import Path

import pytest

from gpuaudit.bundle.tables_host import OCCUPANTS_FROM_NS
from gpuaudit.capture import libbpf
from gpuaudit.capture.source import boottime_ns
from tests.integration.recording import recording, start, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

TASK_INTERRUPTIBLE = 1


@pytest.mark.alone
def test_preempted_by_a_hog_on_the_same_core(doubles: Path) -> None:
    """Two busy threads share a core: intervals in which the hog ran instead say preempted, and name the hog."""
    cpu = str(sorted(os.sched_getaffinity(0))[-1])
    cudart = doubles / "libcudart.so.13"
    with recording() as r:
        r.capture.prepare([str(cudart)])
        # in bursts at real-time priority: it takes the core from the victim, whoever else is on this host
        hog = start(
            doubles / "spin", "--cpu", cpu, "--ms", "600000", "--name", "the hog", "--burst-ms", "5"
        )  # fmt: skip
        wait_for_line(hog, "at spin")
        victim = start(doubles / "spin", "--cpu", cpu, "--ms", "1000", "--cudart", cudart, "--name", "the victim")
        try:
            r.run(victim)
        finally:
            hog.kill()
            hog.communicate()
        r.finish()
        mine = r.of("off_cpu", pid=victim.pid, tid=victim.pid)
        by_hog = [row for row in mine if row["next_pid"] == hog.pid]
        assert len(by_hog) >= 3
        assert {(row["op"], row["prev_state"], row["next_comm"]) for row in by_hog} == {("preempted", 0, "the hog")}
        assert {row["comm"] for row in by_hog} == {"the victim"}
        assert {row["cpu_out"] for row in by_hog} == {int(cpu)}
        # a preempted thread was never asleep, so nobody woke it
        assert {(row["wake_ns"], row["waker_pid"], row["waker_comm"]) for row in by_hog} == {(None, None, None)}
        assert r.of("off_cpu", pid=hog.pid) == []  # maps no probed library: not traced


def test_a_thread_that_only_sleeps_was_never_preempted(doubles: Path) -> None:
    """Its naps are blocked, interruptible, and woken by a timer, which is no thread."""
    cudart = doubles / "libcudart.so.13"
    with recording() as r:
        r.capture.prepare([str(cudart)])
        process = start(doubles / "sleeper", "--cudart", cudart, "--naps", "15", "--realtime", "1")
        said = json.loads(r.run(process).splitlines()[-1])
        r.finish()
        mine = r.of("off_cpu", tid=said["sleeper_tid"])
        assert {row["op"] for row in mine} == {"blocked"}
        naps = [row for row in mine if row["comm"] == "sleeper" and row["waker_pid"] is None]
        assert len(naps) == said["naps"]
        # 10 ms each from before the thread has left its CPU, in which a hypervisor may keep it for a while.
        assert all(row["duration_ns"] >= 5_000_000 for row in naps)
        assert all(row["prev_state"] & TASK_INTERRUPTIBLE for row in naps)
        assert all(row["start_ns"] < row["wake_ns"] <= row["start_ns"] + row["duration_ns"] for row in naps)


def test_a_wait_names_the_thread_that_ended_it(doubles: Path) -> None:
    """The synchronisation of a stream ends when the stream's own thread says so."""
    cudart = doubles / "libcudart.so.13"
    with recording() as r:
        r.capture.prepare([str(cudart)])
        environment = {**os.environ, "DOUBLE_CUDA_KERNEL_US": "20000"}
        process = start(doubles / "sleeper", "--cudart", cudart, "--naps", "5", env=environment)
        caller = json.loads(r.run(process).splitlines()[-1])["caller_tid"]
        r.finish()
        first, *slow = r.of("cuda_calls", op="cudaDeviceSynchronize", tid=caller)
        assert first["start_ns"] < slow[0]["start_ns"]
        assert len(slow) == 5
        for call in slow:
            waits = [
                row
                for row in r.of("off_cpu", tid=caller, op="blocked", waker_pid=process.pid)
                if call["start_ns"] <= row["start_ns"]
                and row["start_ns"] + row["duration_ns"] <= call["start_ns"] + call["duration_ns"]
            ]
            assert waits
            assert caller not in {row["waker_tid"] for row in waits}


def test_a_thread_that_ends_leaves_nothing_open(doubles: Path, tmp_path: Path) -> None:
    """Threads and processes that ended have no open interval; those that live have one, without an end."""
    cudart = doubles / "libcudart.so.13"
    with recording() as r:
        r.capture.prepare([str(cudart)])
        ended = start(doubles / "calls", "--cudart", cudart, "--out", tmp_path / "truth", "--threads", "8")
        r.run(ended)
        alive = start(
            doubles / "calls", "--cudart", cudart, "--out", tmp_path / "alive", "--tail-ms", "600000", "--rounds", "1"
        )
        try:
            while not r.of("cuda_calls", pid=alive.pid, op="cudaFree"):
                r.step()
            r.finish()
        finally:
            alive.kill()
            alive.communicate()
        still_open = [row for row in r.of("off_cpu") if row["duration_ns"] is None]
        assert r.of("off_cpu", pid=ended.pid) != []
        assert ended.pid not in {row["pid"] for row in still_open}
        mine = [row for row in still_open if row["pid"] == alive.pid]
        assert alive.pid in {row["tid"] for row in mine}
        assert {row["op"] for row in mine} == {"blocked"}


def test_a_switch_that_the_kernel_does_not_tell_of_is_a_gap_and_no_long_sleep(doubles: Path) -> None:
    """A while without the program at the switch: the sleep that it began in ends with the wake-up, as is known."""
    cudart = doubles / "libcudart.so.13"
    with recording() as r:
        r.capture.prepare([str(cudart)])
        process = start(doubles / "sleeper", "--cudart", cudart, "--naps", "100", "--realtime", "1")
        ((part, program),) = [at for at in r.capture._links if at[1].startswith("on_switch")]
        deaf: list[tuple[int, int]] = []
        while process.poll() is None:
            r.step()
            if len(deaf) < 5 and r.of("off_cpu", comm="sleeper"):
                time.sleep(0.03)
                before = boottime_ns()
                r.capture._links[part, program].close()
                time.sleep(0.05)  # it wakes from its nap, and takes some more
                r.capture._links[part, program] = part.attach_tracepoint(program)
                deaf.append((before, boottime_ns()))
                time.sleep(0.03)
        sleeper = json.loads(process.communicate()[0].splitlines()[-1])["sleeper_tid"]
        r.finish()
    rows = [(row["start_ns"], row["start_ns"] + row["duration_ns"], row) for row in r.of("off_cpu", tid=sleeper)]
    cut = [(begin, end, row) for begin, end, row in rows if row["wake_ns"] and row["runqueue_ns"] is None]
    assert deaf
    assert cut
    assert all(end == row["wake_ns"] for _, end, row in cut)
    assert [row for begin, end, row in rows for a, b in deaf if begin < a and b < end] == []
    assert all(first[1] <= then[0] for first, then in pairwise(rows))
    (reason,) = {row["reason"] for row in r.rows["gaps"] if "the kernel did not tell when" in row["reason"]}
    assert int(reason.split()[0]) >= len(cut)


def test_sleepers_that_cannot_be_found_cost_no_capture(doubles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses the iterator over threads: a gap says so, and what leaves a CPU from then on is recorded."""

    def refuse(_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(libbpf.Link, "iterate", refuse)
    cudart = doubles / "libcudart.so.13"
    with recording() as r:
        r.capture.prepare([str(cudart)])
        process = start(doubles / "sleeper", "--cudart", cudart, "--naps", "60")
        r.run(process)
        r.finish()
        gaps = [row for row in r.rows["gaps"] if "slept already" in row["reason"]]
        assert gaps
        assert {(row["source"], row["duration_ns"]) for row in gaps} == {("off_cpu", None)}
        assert os.strerror(errno.EMFILE) in gaps[0]["reason"]
        assert r.of("off_cpu", pid=process.pid)


@pytest.mark.alone
def test_everybody_who_had_the_core_is_told(doubles: Path) -> None:
    """Three ordinary spinners beside the victim take turns: the turns fill its waits to the nanosecond, each once."""
    cpu = sorted(os.sched_getaffinity(0))[-1]
    cudart = doubles / "libcudart.so.13"
    with recording() as r:
        r.capture.prepare([str(cudart)])
        crowd = [
            start(doubles / "spin", "--cpu", str(cpu), "--ms", "600000", "--name", f"spinner {n}") for n in range(3)
        ]
        victim = start(doubles / "spin", "--cpu", str(cpu), "--ms", "1000", "--cudart", cudart, "--name", "the victim")
        try:
            r.run(victim)
        finally:
            for process in crowd:
                process.kill()
                process.communicate()
        r.finish()
        turns = sorted(
            ((t["start_ns"], t["start_ns"] + t["duration_ns"], t) for t in r.of("cpu_occupants", cpu=cpu)),
            key=lambda t: t[:2],
        )
        assert all(end <= start for (_, end, _), (start, _, _) in pairwise(turns))
        waits = [
            w for w in r.of("off_cpu", tid=victim.pid, op="preempted", cpu_out=cpu)
            if w["duration_ns"] and w["duration_ns"] >= OCCUPANTS_FROM_NS
        ]  # fmt: skip
        several, unseen = 0, 0
        for wait in waits:
            end = wait["start_ns"] + wait["duration_ns"]
            mine = [t for t in turns if t[0] < end and t[1] > wait["start_ns"]]
            if [t[0] for t in mine] + [end] != [wait["start_ns"]] + [t[1] for t in mine]:
                unseen += 1  # a switch that the kernel did not tell of leaves a hole
                continue
            assert (mine[0][2]["tid"], mine[0][2]["comm"]) == (wait["next_tid"], wait["next_comm"])
            several += len({t[2]["tid"] for t in mine}) > 1
        assert several > len(waits) // 2, (several, unseen, len(waits))
        assert {p.pid for p in crowd} <= {t["pid"] for _, _, t in turns}
