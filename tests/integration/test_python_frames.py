"""Every call names the Python lines it was made from, as the interpreter itself sees them.

One capture holds a process of every interpreter that is installed here: pyenv's 3.10 to 3.13, which are shared
libraries, and the distribution's, which is one static executable. No registry offers a 3.14: there a program stands for
it whose memory is constructed from its header (tests/doubles/python/interpreter_3_14.c).
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpuaudit.capture.cpython_code import NOT_CODE
from gpuaudit.capture.selection import Selection
from gpuaudit.capture.settings import Settings
from gpuaudit.capture.stack_records import MAX_FRAMES, PYTHON
from tests.doubles.build import HERE, build
from tests.integration.recording import Recording, Row, frames_by_stack, recording, start, truth, wait_for_line
from tests.interpreters import Python, interpreters

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

LABELS = {
    "main thread", "second thread", "generator", "generator, in finally", "nested comprehension",
    "comprehension in a dictionary", "awaited coroutine", "asynchronous generator", "property and lambda", "GIL held",
    "deeper than is kept", "called back by C", "made by exec", "with", "__enter__", "__exit__", "forked child",
}  # fmt: skip


NAMESPACES = ("unshare", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child")


class Scene:
    """The capture, and what each interpreter's process wrote down.

    ``isolated``: what one interpreter wrote in a PID and mount namespace of its own, where its numbers are others.
    """

    def __init__(self, recorded: Recording, truths: dict[Python, list[Row]], isolated: list[Row]) -> None:
        self.recorded, self.truths, self.isolated = recorded, truths, isolated
        self._frames = frames_by_stack(recorded)
        self._calls = {(c["pid"], c["size_bytes"]): c for c in recorded.of("cuda_calls", op="cudaMalloc")}

    def python_stack(self, noted: Row) -> list[Row]:
        """Frames of the call that was noted, innermost first."""
        call = self._calls[noted["pid"], noted["number"]]
        assert noted["tid"] in (None, call["tid"])
        return self._frames[call["python_stack"]]


@pytest.fixture(scope="module")
def scene(doubles: Path, tmp_path_factory: pytest.TempPathFactory, bpf: None) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("frames")
    cudart = doubles / "libcudart.so.13"
    processes: dict[Python, subprocess.Popen[str]] = {}
    for python in interpreters():
        command = [python.path, HERE / "workload" / "frames.py", cudart, folder / f"{python.label}.jsonl"]
        processes[python] = start(*command, stdin=subprocess.PIPE)
    command = [interpreters()[-1].path, HERE / "workload" / "frames.py", cudart, folder / "isolated.jsonl"]
    isolated = start(*NAMESPACES, *command, stdin=subprocess.PIPE)
    with recorded([*processes.values(), isolated]) as r:
        inside = int(Path(f"/proc/{isolated.pid}/task/{isolated.pid}/children").read_text("ascii"))
        drive(r, [*processes.values(), isolated])
        truths = {python: truth(folder / f"{python.label}.jsonl") for python in processes}
        written = [row for row in truth(folder / "isolated.jsonl") if row["pid"] == 1]
        yield Scene(r, truths, [{**row, "pid": inside, "tid": None} for row in written])


@contextmanager
def recorded(processes: list[subprocess.Popen[str]]) -> Iterator[Recording]:
    """A capture of these processes and their children, and of no other: every call of theirs, with its stacks."""
    for process in processes:
        wait_for_line(process, "ready")
    selection = Selection(pids=frozenset(process.pid for process in processes))
    with recording(selection, settings=Settings(sample_every=1, stacks=True)) as r:
        r.step()
        yield r


def drive(r: Recording, processes: list[subprocess.Popen[str]]) -> None:
    """Let them make their calls, look at the stacks while they are there, and let them end."""
    for process in processes:
        say(process)
    for process in processes:
        wait_for_line(process, "made")
    r.step()
    for process in processes:
        say(process)
        r.run(process)
    r.finish()


def say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("python", interpreters(), ids=lambda p: p.label)
def test_file_function_and_line_of_every_frame(scene: Scene, python: Python) -> None:
    noted = scene.truths[python]
    assert {row["label"] for row in noted} == LABELS
    check(scene, noted)


def test_in_other_namespaces(scene: Scene) -> None:
    """A thread's number means something else there; its frames are found all the same."""
    assert {row["label"] for row in scene.isolated} == LABELS - {"forked child"}
    check(scene, scene.isolated)


def check(scene: Scene, noted: list[Row]) -> None:
    for row in noted:
        frames = scene.python_stack(row)
        limit = MAX_FRAMES[PYTHON]
        got = [[f["path"], f["symbol"], f["line"]] for f in frames[:limit]]
        assert got == row["frames"][:limit], row["label"]
        assert [f["depth"] for f in frames] == list(range(len(frames)))
        assert {f["reason"] for f in frames[:limit]} == {None}
        if len(row["frames"]) > limit:
            assert [f["reason"] for f in frames[limit:]] == ["the stack is deeper than 32 frames"]
        else:
            assert len(frames) == len(row["frames"])


def test_every_stack_that_a_call_names_has_rows_once(scene: Scene) -> None:
    frames = scene.recorded.rows["stack_frames"]
    keys = [(f["stack"], f["depth"]) for f in frames]
    assert len(keys) == len(set(keys))
    told = {f["stack"] for f in frames}
    pids = {row["pid"] for noted in scene.truths.values() for row in noted}
    calls = [c for pid in pids for c in scene.recorded.of("cuda_calls", pid=pid)]
    assert calls
    for call in calls:
        assert call["native_stack"] in told
        assert call["python_stack"] in told
    assert not [g for g in scene.recorded.of("gaps", source="stacks") if g["pid"] in pids]


def test_constructed_3_14(doubles: Path, tmp_path: Path) -> None:
    """Constructed memory, in position-independent executables: the runtime is a symbol of one, a section of the other.

    Memory that leads nowhere or in circles ends in a reason.
    """
    cudart = doubles / "libcudart.so.13"
    (tmp_path / "hidden").mkdir()
    programs = [
        build("python3.14", tmp_path),
        build("python3.14", tmp_path / "hidden", flags=["-s", "-fvisibility=hidden"]),
    ]
    processes = [start(program, cudart, stdin=subprocess.PIPE) for program in programs]
    with recorded(processes) as r:
        drive(r, processes)
        for process in processes:
            check_constructed(r, process.pid)


def check_constructed(r: Recording, pid: int) -> None:
    stacks, told = {}, frames_by_stack(r)
    for call in r.of("cuda_calls", pid=pid, op="cudaMalloc"):
        frames = told[call["python_stack"]]
        stacks[call["size_bytes"]] = [(f["path"], f["symbol"], f["line"], f["reason"]) for f in frames]
    unreadable = (None, None, None, "the interpreter's memory could not be read from here on")
    assert stacks == {
        1: [("train.py", "forward", 142, None), ("train.py", "<module>", 203, None)],
        2: [("loader.py", "Loader.fetch", 15, None)],
        3: [*[("train.py", "forward", 142, None)] * 32, (None, None, None, "the stack is deeper than 32 frames")],
        4: [unreadable],
        5: [(None, None, None, NOT_CODE)],
        6: [(None, None, None, "the interpreter has too many threads: this one was not found among the first")],
        7: [unreadable],
    }
