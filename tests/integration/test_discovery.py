"""Libraries that come late, twice, or under another process's number: found, probed, and the time before is a gap."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpuaudit.bundle.errors import HostUnfit
from gpuaudit.capture.map_events import MapEvents
from gpuaudit.capture.processes import NS_PER_TICK
from gpuaudit.capture.selection import Selection
from tests.doubles.build import build
from tests.integration.recording import DEADLINE_S, Recording, Row, recording, start, truth, wait_for_line
from tests.integration.sessions import capture, environment, rows

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]


@pytest.fixture(scope="module")
def visitor(doubles: Path) -> Path:
    for name in ("crowd", "reborn", "visitor"):
        build(name, doubles)
    return doubles / "visitor"


def until(r: Recording, done: Callable[[], object]) -> None:
    """Look at once at whatever the kernel tells of, until ``done``."""
    end = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < end, "what was waited for does not come"
        r.capture.look_at_once()
        r.drain()


def of_visit(r: Recording, told: list[Row]) -> tuple[int, list[Row], list[Row]]:
    """(process, its calls that were made, those that were recorded)."""
    made = [t for t in told if t["event"] == "call"]
    pid = next(t["pid"] for t in told if t["event"] == "load")
    return pid, made, r.of("cuda_calls", pid=pid, op="cudaMalloc")


def test_a_library_mapped_mid_run_by_dlopen(visitor: Path, tmp_path: Path) -> None:
    """Told by the kernel: the gap begins when it was mapped and ends when it was probed, and every call is outside it.

    Two versions in one process, the second of which is probed through nobody else; calls begin right after dlopen.
    """
    first, second = tmp_path / "libcudart.so.12", tmp_path / "libcudart.so.13"
    shutil.copy(visitor.parent / "libcudart.so.13", first)
    shutil.copy(visitor.parent / "libcudart.so.13", second)
    files = {"--start-file": tmp_path / "start", "--go-file": tmp_path / "go", "--out": tmp_path / "t"}
    options = [x for pair in files.items() for x in pair]
    with recording() as r:
        process = start(visitor, "--first", first, "--second", second, "--calls", "200", *options)
        wait_for_line(process, "at start")
        r.step()
        assert r.of("libraries", pid=process.pid) == []
        files["--start-file"].touch()
        until(r, lambda: len(r.of("libraries", pid=process.pid)) == 2)
        wait_for_line(process, "at loaded")
        files["--go-file"].touch()
        r.run(process)
        r.finish()
    told = truth(files["--out"])
    pid, made, recorded = of_visit(r, told)
    assert pid == process.pid
    loads = {t["path"]: t for t in told if t["event"] == "load"}
    libraries = {row["path"]: row for row in r.of("libraries", pid=pid)}
    assert set(libraries) == set(loads)
    gaps = {path: g for g in r.of("gaps", pid=pid, table_name="cuda_calls") for path in loads if path in g["reason"]}
    for path, load in loads.items():
        gap, library = gaps[path], libraries[path]
        assert library["op"] == "attached"
        assert load["before_ns"] <= gap["start_ns"] <= load["after_ns"]
        assert gap["start_ns"] + gap["duration_ns"] == library["start_ns"] + library["duration_ns"]
    sizes = {row["size_bytes"] for row in recorded}
    assert len(sizes) == len(recorded)
    blind = [(g["start_ns"], g["start_ns"] + g["duration_ns"]) for g in gaps.values()]
    missed = [c for c in made if c["size"] not in sizes]
    assert all(any(a <= c["after_ns"] and c["before_ns"] <= b for a, b in blind) for c in missed)
    assert {c["size"] for c in made[-400:]} <= sizes, "both were probed by then"


def test_the_attacher_wakes_for_a_library_and_seals_the_gap(visitor: Path, tmp_path: Path) -> None:
    """Through both processes: the gap before the probes has its exact beginning, and no call is missing outside it."""
    library = Path(shutil.copy(visitor.parent / "libcudart.so.13", tmp_path))
    out, told = tmp_path / "a.db", tmp_path / "t"
    command: list[str | Path] = [visitor, "--first", library, "--out", told, "--calls", "150", "--nap-us", "10000"]
    done = capture(["--out", out, "--source", "cuda", "--", *command], environment(tmp_path / "keys"))
    assert done.returncode == 0, done.stderr
    load, *made = truth(told)
    (gap,) = [g for g in rows(out, "gaps") if g["pid"] == load["pid"] and g["table_name"] == "cuda_calls"]
    assert load["before_ns"] <= gap["start_ns"] <= load["after_ns"]
    end = gap["start_ns"] + gap["duration_ns"]
    sizes = sorted(row["size_bytes"] for row in rows(out, "cuda_calls") if row["pid"] == load["pid"])
    assert sizes == sorted(set(sizes))
    assert {c["size"] for c in made if c["before_ns"] > end} <= set(sizes)
    assert {c["size"] for c in made if c["after_ns"] < gap["start_ns"]} == set()


@pytest.mark.parametrize("chosen", [True, False], ids=["chosen", "whole host"])
def test_a_process_that_ends_before_it_is_looked_at(visitor: Path, tmp_path: Path, chosen: bool) -> None:
    """Nothing of it is recorded, and the evidence says so: of which process, from the mapping on, to its end."""
    library = Path(shutil.copy(visitor.parent / "libcudart.so.13", tmp_path))
    with recording(Selection(pids=frozenset()) if chosen else Selection()) as r:
        process = start(visitor, "--first", library, "--calls", "20", "--out", tmp_path / "t", "--start-file",
                        tmp_path / "start")  # fmt: skip
        wait_for_line(process, "at start")
        if chosen:
            r.capture.include(process.pid)
        r.step()
        (tmp_path / "start").touch()
        process.communicate()
        r.step()
        r.finish()
    pid, made, recorded = of_visit(r, truth(tmp_path / "t"))
    assert recorded == []
    (row,) = r.of("libraries", pid=pid)
    assert (row["op"], row["path"]) == ("not observable", str(library))
    assert row["reason"] == "the process ended before it could be looked at"
    (gap,) = r.of("gaps", pid=pid, table_name="cuda_calls")
    assert gap["start_ns"] <= made[0]["before_ns"] <= made[-1]["after_ns"] <= gap["start_ns"] + gap["duration_ns"]


def test_without_the_kernel_telling_the_passes_find_it(
    visitor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where perf_event_open(2) is refused, the library is found by reading /proc, and the evidence says how."""
    monkeypatch.setattr(MapEvents, "open", refuse)
    process = start(visitor, "--first", visitor.parent / "libcudart.so.13", "--out", tmp_path / "t", "--start-file",
                    tmp_path / "start", "--go-file", tmp_path / "go")  # fmt: skip
    wait_for_line(process, "at start")
    with recording(Selection(pids=frozenset({process.pid}))) as r:
        assert not r.capture.is_told_of_mappings
        r.step()
        (tmp_path / "start").touch()
        wait_for_line(process, "at loaded")
        assert r.capture.look_at_once() == 0
        r.step()
        (tmp_path / "go").touch()
        r.run(process)
        r.finish()
    pid, made, recorded = of_visit(r, truth(tmp_path / "t"))
    assert [row["size_bytes"] for row in recorded] == [c["size"] for c in made[5:]]
    (gap,) = r.of("gaps", pid=pid, table_name="cuda_calls")
    assert gap["start_ns"] <= made[0]["before_ns"] <= made[4]["after_ns"] <= gap["start_ns"] + gap["duration_ns"]
    assert {p["mechanism"] for p in r.of("probes", op="executable mappings")} == {"passes over /proc"}


def refuse(_: MapEvents) -> None:
    raise HostUnfit("the kernel tells of no mappings: Permission denied")


def test_two_processes_with_different_versions_and_one_parse_for_all_copies(visitor: Path, tmp_path: Path) -> None:
    """Each version has probes of its own, unlinked while it is mapped; a copy of a file is not parsed again."""
    other = build("nested", tmp_path)
    copies = [other]
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        copies.append(Path(shutil.copy(visitor.parent / "libcudart.so.13", tmp_path / name)))
    processes = []
    for i, library in enumerate(copies):
        processes.append(start(visitor, "--first", library, "--out", tmp_path / f"t{i}", "--go-file", tmp_path / "go"))
        wait_for_line(processes[-1], "at loaded")
        library.unlink()
    with recording(Selection(pids=frozenset(p.pid for p in processes))) as r:
        r.step()
        parsed = r.capture.libraries_parsed
        (tmp_path / "go").touch()
        for process in processes:
            r.run(process)
        r.finish()
    assert parsed == 2, "one file of each version"
    for i, (process, library) in enumerate(zip(processes, copies, strict=True)):
        (row,) = r.of("libraries", pid=process.pid)
        assert (row["op"], row["path"]) == ("attached", f"{library} (deleted)")
        assert row["not_observed_count"] == len([n for n in row["not_observed"].split(",") if n])
        _, made, recorded = of_visit(r, truth(tmp_path / f"t{i}"))
        after = [c["size"] for c in made[5:]]
        outermost = [row["size_bytes"] for row in recorded if row["parent_ns"] is None]
        assert outermost == after


def test_a_process_that_runs_another_program(visitor: Path, tmp_path: Path) -> None:
    """It is the same process with another name and environment: told of again, and its calls of both are recorded."""
    library = visitor.parent / "libcudart.so.13"
    code = (
        "import ctypes, os, sys\n"
        "cuda = ctypes.CDLL(sys.argv[1])\n"
        "print('at start', flush=True); sys.stdin.readline()\n"
        "cuda.cudaMalloc(ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(4711))\n"
        "os.execve(sys.argv[2], sys.argv[2:], {'RANK': '3'})\n"
    )
    command: list[str | Path] = [visitor, "--first", library, "--out", tmp_path / "t", "--go-file", tmp_path / "go"]
    process = start(sys.executable, "-c", code, library, *command, stdin=subprocess.PIPE)
    wait_for_line(process, "at start")
    with recording() as r:
        r.step()
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        wait_for_line(process, "at loaded")
        r.step()
        (tmp_path / "go").touch()
        r.run(process)
        r.finish()
    found, (exited,) = r.of("processes", pid=process.pid, op="found"), r.of("processes", pid=process.pid, op="exited")
    assert [(row["comm"], row["rank"]) for row in found] == [(Path(sys.executable).name[:15], None), ("visitor", 3)]
    assert len({row["start_ns"] for row in (*found, exited)}) == 1
    assert (exited["comm"], exited["rank"], exited["exit_status"]) == ("visitor", 3, 0)
    assert [c["size_bytes"] for c in r.of("cuda_calls", pid=process.pid)] == [4711, *range(1, 11)]
    assert r.of("gaps", pid=process.pid, table_name="cuda_calls")[1:] == []


@pytest.fixture
def same_number(visitor: Path, tmp_path: Path) -> Iterator[tuple[Recording, int, list[list[Row]]]]:
    """Two processes, one after the other, under one number, both within a single pass of discovery."""
    library = visitor.parent / "libcudart.so.13"
    with recording() as r:
        r.capture.prepare([str(library)])
        first = start(visitor, "--first", library, "--out", tmp_path / "t0", "--calls", "3")
        first.communicate()
        reborn = tmp_path / "t1"
        end = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 2 * NS_PER_TICK
        while time.clock_gettime_ns(time.CLOCK_BOOTTIME) < end:
            pass  # a start is known to the tick
        command: list[str | Path] = [
            visitor.parent / "reborn",
            str(first.pid),
            visitor,
            "--first",
            library,
            "--out",
            reborn,
        ]
        again = start(*command, "--calls", "4")
        out, err = again.communicate()
        if again.returncode and "File exists" in err:
            pytest.skip("somebody else was given the number")
        assert again.returncode == 0, err + out
        r.step()
        r.finish()
        yield r, first.pid, [truth(tmp_path / "t0"), truth(reborn)]


def test_a_number_that_is_given_again_is_another_process(
    same_number: tuple[Recording, int, list[list[Row]]],
) -> None:
    r, pid, told = same_number
    found, exited = r.of("processes", pid=pid, op="found"), r.of("processes", pid=pid, op="exited")
    assert len(found) == len(exited) == 2
    assert [row["start_ns"] for row in found] == [row["start_ns"] for row in exited]
    for visit, row in zip(told, exited, strict=True):
        (load,) = [t for t in visit if t["event"] == "load"]
        assert load["pid"] == pid
        assert row["start_ns"] <= load["before_ns"] <= row["start_ns"] + row["duration_ns"]
        assert (row["comm"], row["exit_status"]) == ("visitor", 0)
    made = [c["size"] for visit in told for c in visit if c["event"] == "call"]
    assert [row["size_bytes"] for row in r.of("cuda_calls", pid=pid)] == made == [1, 2, 3, 1, 2, 3, 4]


def test_who_else_watches(visitor: Path) -> None:
    """A real bpftrace, a ptrace tracer and a holder of perf events are observers; how we know is in the evidence."""
    bpftrace = shutil.which("bpftrace")
    if bpftrace is None:
        pytest.skip("bpftrace is not installed")
    tracer = (
        "import ctypes, os, signal, subprocess, sys\n"
        "traced = subprocess.Popen(['sleep', '1000'])\n"
        "assert ctypes.CDLL(None, use_errno=True).ptrace(0x4206, traced.pid, 0, 0) == 0\n"  # PTRACE_SEIZE
        "print('at ready', flush=True); sys.stdin.readline(); traced.kill()\n"
    )
    counter = (
        "from gpuaudit.capture.map_events import MapEvents\n"
        "m = MapEvents('x'); m.open(); print('at ready', flush=True); input()\n"
    )
    watching = {
        "bpftrace": start(bpftrace, "-e", "interval:s:1000 { exit(); }"),
        "ptrace": start(sys.executable, "-c", tracer, stdin=-1),
        "perf": start(sys.executable, "-c", counter, stdin=-1),
    }
    bystander = start("sleep", "1000")
    try:
        wait_for_line(watching["ptrace"], "at ready")
        wait_for_line(watching["perf"], "at ready")
        with recording() as r:
            end = time.monotonic() + DEADLINE_S
            while not all(r.of("processes", pid=p.pid, role="observer") for p in watching.values()):
                assert time.monotonic() < end, r.of("processes", role="observer")
                r.step()
            reasons = {name: r.of("processes", pid=p.pid)[0]["reason"] for name, p in watching.items()}
            watching["bpftrace"].send_signal(signal.SIGKILL)
            watching["bpftrace"].wait()
            r.finish()
            ended = r.of("processes", pid=watching["bpftrace"].pid, op="exited")
    finally:
        bystander.kill()
        for name, p in watching.items():
            p.communicate("\n" if name != "bpftrace" else None)
        bystander.communicate()
    assert "BPF program (perf event)" in reasons["bpftrace"]
    assert "ptrace tracer of process" in reasons["ptrace"]
    assert "perf event" in reasons["perf"]
    assert [row["exit_status"] for row in ended] == [-signal.SIGKILL]
    assert r.of("processes", pid=bystander.pid) == []
    assert r.of("processes", pid=os.getpid()) == []
