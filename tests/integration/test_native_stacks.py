"""Native stacks of a program whose functions and return addresses are known: from nm, and from the program itself."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.capture import loading, stack_source
from gpuaudit.capture.attach import MECHANISMS, Mechanism
from gpuaudit.capture.parts import CALLS
from gpuaudit.capture.selection import Selection
from gpuaudit.capture.settings import SLOW_NS, Settings
from gpuaudit.capture.stack_source import NO_ROOM
from gpuaudit.capture.symbolise import NO_SYMBOL, STRIPPED
from tests.doubles.build import build
from tests.integration.recording import Recording, Row, frames_by_stack, recording, start, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

BUILD_ID = "feedface01234567"
PATHS = 6
KERNEL_US = 5000
EVERY_CALL = Settings(sample_every=1, stacks=True)


class Run:
    """One process of the program ``stacks``: driven step by step, its own truth kept. ``r``: who records it."""

    r: Recording

    def __init__(self, program: Path, cudart: Path, paths: int) -> None:
        self.program = program
        environment = {"DOUBLE_CUDA_KERNEL_US": str(KERNEL_US)}
        self.process = start(program, cudart, str(paths), stdin=subprocess.PIPE, env=environment)
        wait_for_line(self.process, "ready")
        self.truth: dict[str, int] = {}
        self._frames: dict[int, list[Row]] = {}

    def go(self) -> None:
        self._say()
        assert self.process.stdout is not None
        self.truth = json.loads(self.process.stdout.readline())
        wait_for_line(self.process, "made")

    def end(self) -> None:
        self._say()
        self.r.run(self.process)

    def _say(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def calls(self, **wanted: object) -> list[Row]:
        return self.r.of("cuda_calls", pid=self.process.pid, **wanted)

    def frames(self, call: Row) -> list[Row]:
        if not self._frames:  # asked for when the capture has ended
            self._frames = frames_by_stack(self.r)
        return self._frames[call["native_stack"]]


@pytest.fixture(scope="module")
def folder(doubles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program: position-independent, at a fixed address, stripped, and one that will be deleted while it runs."""
    folder = tmp_path_factory.mktemp("programs")
    pie = build("stacks", folder, flags=[f"-Wl,--build-id=0x{BUILD_ID}"])
    (folder / "fixed").mkdir()
    build("stacks", folder / "fixed", flags=["-no-pie", "-fno-pie"]).rename(folder / "stacks-fixed")
    subprocess.run(["strip", "-o", folder / "stacks-stripped", pie], check=True)
    (folder / "stacks-deleted").write_bytes(pie.read_bytes())
    (folder / "stacks-deleted").chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def runs(doubles: Path, folder: Path, bpf: None) -> Iterator[dict[str, Run]]:
    cudart = doubles / "libcudart.so.13"
    names = ("stacks", "stacks-fixed", "stacks-stripped", "stacks-deleted")
    made = {name: Run(folder / name, cudart, PATHS) for name in names}
    with recording(Selection(pids=frozenset(run.process.pid for run in made.values())), settings=EVERY_CALL) as r:
        for run in made.values():
            run.r = r
        (folder / "stacks-deleted").unlink()
        r.step()
        for run in made.values():
            run.go()
        r.step()
        for run in made.values():
            run.end()
        r.finish()
        yield made


def nm(path: Path) -> dict[str, int]:
    out = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1]: int(line.split()[0], 16) for line in out.splitlines() if line[0] != " "}


def code_offset(path: Path) -> int:
    """What is to be added to an address of the code to have its place in the file."""
    out = subprocess.run(["readelf", "-lW", path], capture_output=True, text=True, check=True).stdout
    segments = [line.split() for line in out.splitlines() if " R E " in line and "LOAD" in line]
    (segment,) = segments
    return int(segment[1], 16) - int(segment[2], 16)


@pytest.mark.parametrize("name", ["stacks", "stacks-fixed"])
def test_functions_and_return_addresses(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    symbols, moved = nm(run.program), code_offset(run.program)
    base = 0 if name == "stacks" else 0x400000
    frames = run.frames(run.calls(size_bytes=1)[0])
    assert [f["symbol"] for f in frames[:4]] == ["inner", "middle", "outer", "main"]
    assert {f["path"] for f in frames[:4]} == {str(run.program)}
    for frame, function in zip(frames[1:3], ("middle", "outer"), strict=True):
        returned_to = run.truth[function] + base
        assert frame["offset"] == returned_to + moved
        assert frame["symbol_offset"] == returned_to - symbols[function]
    (other,) = run.calls(size_bytes=2)
    frames = run.frames(other)
    assert [f["symbol"] for f in frames[:3]] == ["inner", "hidden_other", "main"]
    assert frames[2]["offset"] == run.truth["main"] + base + moved
    assert frames[2]["symbol_offset"] == run.truth["main"] + base - symbols["main"]
    assert {f["reason"] for f in frames[:3]} == {None}
    assert frames[-1]["reason"]  # the C library's own functions keep no frame pointer, and the stack says where it ends


def test_build_id(runs: dict[str, Run]) -> None:
    for name in ("stacks", "stacks-stripped", "stacks-deleted"):
        assert {f["build_id"] for f in runs[name].frames(runs[name].calls(size_bytes=1)[0])[:4]} == {BUILD_ID}


def test_a_thousand_calls_from_one_place_are_one_stack(runs: dict[str, Run]) -> None:
    for run in runs.values():
        calls = run.calls(size_bytes=1)
        assert len(calls) == 1000
        assert len({c["native_stack"] for c in calls}) == 1
        assert run.calls(size_bytes=2)[0]["native_stack"] not in {c["native_stack"] for c in calls}


def test_each_way_through_the_program_is_a_stack(runs: dict[str, Run]) -> None:
    run = runs["stacks"]
    calls = run.calls(size_bytes=3)
    assert len(calls) == len({c["native_stack"] for c in calls}) == 1 << PATHS
    ways = Counter(tuple(f["symbol"] for f in run.frames(c))[1 : PATHS + 2] for c in calls)
    assert len(ways) == 1 << PATHS
    assert {name for way in ways for name in way} == {"left", "right"}
    assert {way[-1] for way in ways} == {"left"}


def test_a_stripped_program_has_offsets_and_a_reason(runs: dict[str, Run]) -> None:
    run, whole = runs["stacks-stripped"], runs["stacks"]
    frames, named = run.frames(run.calls(size_bytes=1)[0]), whole.frames(whole.calls(size_bytes=1)[0])
    assert [f["offset"] for f in frames[:4]] == [f["offset"] for f in named[:4]]
    assert {f["symbol"] for f in frames[:4]} == {None}
    assert {f["reason"] for f in frames[:4]} <= {STRIPPED, NO_SYMBOL}


def test_a_deleted_program_is_named(runs: dict[str, Run]) -> None:
    run = runs["stacks-deleted"]
    frames = run.frames(run.calls(size_bytes=1)[0])
    assert [f["symbol"] for f in frames[:4]] == ["inner", "middle", "outer", "main"]
    assert {f["path"] for f in frames[:4]} == {f"{run.program} (deleted)"}


def check_every_stack_is_told(r: Recording, pid: int) -> list[Row]:
    """Every stack that a call names has rows, whose depths count from 0 without a hole."""
    depths: dict[int, list[int]] = {}
    for frame in r.rows["stack_frames"]:
        depths.setdefault(frame["stack"], []).append(frame["depth"])
    assert all(d == list(range(len(d))) for d in depths.values())
    calls = [c for c in r.of("cuda_calls", pid=pid) if c["native_stack"] is not None]
    assert {c["native_stack"] for c in calls} <= depths.keys()
    return calls


def test_every_stack_that_a_call_names_is_told_once(runs: dict[str, Run]) -> None:
    for run in runs.values():
        assert len(check_every_stack_is_told(run.r, run.process.pid)) == 1000 + 1 + 2 + (1 << PATHS)
        assert not run.r.of("gaps", source="stacks", pid=run.process.pid)


@contextmanager
def recorded_alone(folder: Path, doubles: Path, paths: int, **options: Any) -> Iterator[Run]:
    """One process from its first call to its end, and no other of the host, which would take its turn in samples."""
    run = Run(folder / "stacks", doubles / "libcudart.so.13", paths)
    with recording(Selection(pids=frozenset({run.process.pid})), **options) as run.r:
        run.r.step()
        run.go()
        run.r.step()
        run.end()
        run.r.finish()
        yield run


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_only_slow_calls_have_stacks(doubles: Path, folder: Path, mechanism: Mechanism) -> None:
    """Without a sample, a call has its stacks when it took the threshold, and only then."""
    with recorded_alone(folder, doubles, 0, settings=Settings(stacks=True), mechanism=mechanism) as run:
        for call in run.calls():
            assert (call["native_stack"] is not None) == (call["duration_ns"] >= SLOW_NS)
        (waited,) = run.calls(op="cudaDeviceSynchronize")
        assert [f["symbol"] for f in run.frames(waited)[:2]] == ["wait_for_device", "main"]


def test_a_kernel_that_refuses_stacks_leaves_the_calls(
    doubles: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = loading.LoadedPart._load

    def refuse(part: loading.LoadedPart, data: bytes, names: set[str], types: Any) -> None:
        if any(name.startswith("leave_stacks") for name in names):
            raise OSError(errno.E2BIG, "the program is too large")
        load(part, data, names, types)

    monkeypatch.setattr(loading.LoadedPart, "_load", refuse)
    with recorded_alone(folder, doubles, 0, settings=EVERY_CALL) as run:
        assert "too large" in run.r.capture.refused["stacks"].message
        assert len(run.calls(size_bytes=1)) == 1000
        assert {c["native_stack"] for c in run.calls()} == {None}


def test_one_in_so_many_of_the_fast_calls(doubles: Path, folder: Path) -> None:
    with recorded_alone(folder, doubles, 0, settings=Settings(sample_every=10, stacks=True)) as run:
        fast = [c for c in run.calls() if c["duration_ns"] < SLOW_NS]
        slow = [c for c in run.calls() if c["duration_ns"] >= SLOW_NS]
        assert all(c["native_stack"] is not None for c in slow)
        taken = sum(c["native_stack"] is not None for c in fast)
        counted = len(run.calls()) // 10  # each CPU counts its own, slow calls included or not
        cpus = os.cpu_count() or 1
        assert counted - cpus - len(slow) <= taken <= counted + cpus
        check_every_stack_is_told(run.r, run.process.pid)


def test_what_finds_no_room_has_its_reason(doubles: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More stacks at once than the ring holds, and more than can be known.

    Each that a call names is told, with its frames or with the reason; a gap counts those that have no name.
    """
    size, known = 64 << 10, 600
    small: dict[str, Any] = {"maps": {"raw_stacks": size, "known_stacks": known}}
    monkeypatch.setattr("gpuaudit.capture.attach.CALLS", replace(CALLS, **small))
    monkeypatch.setattr(stack_source, "RAW_RING_BYTES", size)
    with recorded_alone(folder, doubles, 10, settings=EVERY_CALL) as run:
        calls = check_every_stack_is_told(run.r, run.process.pid)
        stacks = {c["native_stack"] for c in calls}
        assert len(stacks) == known
        without = sum(c["native_stack"] is None for c in run.calls())
        (gap,) = run.r.of("gaps", source="stacks")
        assert gap["reason"].startswith(f"{without} stacks have no identity")
        lost = {f["stack"] for f in run.r.of("stack_frames", reason=NO_ROOM)}
        assert 0 < len(lost & stacks) < len(stacks)
        assert all(len(run.frames(c)) == 1 for c in calls if c["native_stack"] in lost)
