"""Addresses and code objects of a process that is there, is not, or never had them. This process is the example."""

from __future__ import annotations

import ctypes as C
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection

from gpuaudit.capture import processes, stack_names
from gpuaudit.capture.address_space import read_address_space
from gpuaudit.capture.cpython import Finder, Interpreter
from gpuaudit.capture.cpython_offsets import Unsupported
from gpuaudit.capture.stack_names import (
    BEGAN_ANOTHER,
    CHANGES_TOO_FAST,
    ENDED,
    ENDS_HERE,
    NOT_AN_ADDRESS,
    NOT_KNOWN,
    StackNames,
)
from gpuaudit.capture.stack_records import END_CUT, END_THREADS, NATIVE, PYTHON, RawStack
from gpuaudit.capture.symbolise import NO_FILE

Row = dict[str, Any]
PID = os.getpid()
LIBC = C.CDLL(None)
KEPT: list[mmap.mmap] = []


class Desk:
    """Stack names with lists for what they tell."""

    def __init__(self, began_ns: int = 0) -> None:
        self.rows: list[Row] = []
        self.gaps: list[Row] = []
        self.published: dict[int, bytes] = {}
        self.names = StackNames(self._sink, lambda _: began_ns, self._publish)

    def _sink(self, table: str, row: Row) -> None:
        (self.gaps if table == "gaps" else self.rows).append(row)

    def _publish(self, pid: int, parameters: bytes) -> bool:
        known = pid in self.published
        self.published[pid] = parameters
        return known

    def tell(
        self, *words: int, kind: int = NATIVE, pid: int = PID, end: int = 0, born_ns: int | None = None
    ) -> list[Row]:
        self.rows.clear()
        born = processes.start_ns(pid) if born_ns is None else born_ns
        self.names.tell(RawStack(1000, 77, pid, pid, kind, (pid, born or 0, 1), words, end))
        assert [r["depth"] for r in self.rows] == list(range(len(self.rows)))
        assert {(r["stack"], r["pid"], r["start_ns"]) for r in self.rows} == {(77, pid, 1000)}
        return self.rows


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.names.close()


def address_of(function: Any) -> int:
    found: int | None = C.cast(function, C.c_void_p).value
    assert found
    return found


def executable_memory(size: int) -> int:
    """Address of new memory that may be executed; it stays until this process ends."""
    protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=protection)
    KEPT.append(memory)
    return C.addressof(C.c_char.from_buffer(memory))


def test_a_function_of_a_library(desk: Desk) -> None:
    """qsort of the C library, four bytes into it: its file, build id, offset and name."""
    address = address_of(LIBC.qsort)
    frame, end = desk.tell(address + 4)
    assert (frame["symbol"], frame["symbol_offset"], frame["kind"]) == ("qsort", 4, "native")
    space = read_address_space(PID)
    assert space is not None
    region = space.at(address)
    assert region is not None
    assert (frame["path"], frame["offset"]) == (region.path, address + 4 - region.start + region.offset)
    with Path(region.path).open("rb") as f:
        notes = ELFFile(f).get_section_by_name(".note.gnu.build-id")
        assert isinstance(notes, NoteSection)
        assert frame["build_id"] == next(notes.iter_notes())["n_desc"]
    assert end["reason"] == ENDS_HERE


def test_a_return_address_belongs_to_the_function_that_called(desk: Desk) -> None:
    """A call that never returns may be the last instruction: its return address is where the next function begins."""
    frame = desk.tell(address_of(LIBC.qsort))[0]
    assert frame["symbol"] != "qsort"


def test_code_without_a_file_and_code_of_the_kernel(desk: Desk) -> None:
    frame = desk.tell(executable_memory(mmap.PAGESIZE) + 16)[0]
    assert (frame["symbol"], frame["reason"]) == (None, NO_FILE)
    space = read_address_space(PID)
    assert space is not None
    vdso = next(r for r in space.regions if r.path == "[vdso]")
    frame = desk.tell(vdso.start + 64)[0]
    assert (frame["path"], frame["reason"]) == ("[vdso]", "code that the kernel lends to every process")


def test_mappings_that_came_later_are_found(desk: Desk) -> None:
    """The mappings are remembered, and read again when the process has others."""
    desk.tell(address_of(LIBC.qsort) + 4)
    assert desk.tell(executable_memory(64 * mmap.PAGESIZE) + 16)[0]["reason"] == NO_FILE


def test_mappings_that_change_faster_than_they_can_be_read(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading costs 90 ms here, and every look finds them changed: after 200 ms of a second no more are read."""
    clock = iter(n * 0.09 for n in range(1000))
    monkeypatch.setattr(stack_names, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    hints = iter(range(1000))
    monkeypatch.setattr(processes, "size_hint", lambda _: str(next(hints)).encode())
    address = address_of(LIBC.qsort) + 4
    told = [desk.tell(address)[0] for _ in range(20)]
    assert {r["reason"] for r in told} == {None, CHANGES_TOO_FAST}
    assert [r["symbol"] for r in told[:3]] == ["qsort"] * 3
    assert told[3]["reason"] == CHANGES_TOO_FAST
    assert "qsort" in [r["symbol"] for r in told[4:]]  # in the next second


@pytest.mark.parametrize("garbage", [0, 1, 0x1234, 1 << 47, (1 << 64) - 1])
def test_what_is_no_address(desk: Desk, garbage: int) -> None:
    assert [r["reason"] for r in desk.tell(garbage)] == [NOT_AN_ADDRESS]
    frames = desk.tell(address_of(LIBC.qsort) + 4, garbage, address_of(LIBC.qsort) + 4)
    assert [r["reason"] for r in frames] == [None, NOT_AN_ADDRESS]


def test_what_nobody_returns_to(desk: Desk) -> None:
    """A pointer to a function, found where a return address was looked for: only the first address is certain."""
    function = address_of(LIBC.qsort)
    assert [r["symbol"] for r in desk.tell(function + 4, function)] == ["qsort", None]


def test_no_words_at_all(desk: Desk) -> None:
    assert [r["reason"] for r in desk.tell()] == [NOT_AN_ADDRESS]


def test_a_stack_that_was_cut(desk: Desk) -> None:
    frames = desk.tell(*[executable_memory(mmap.PAGESIZE) + 16] * 64, end=END_CUT)
    assert len(frames) == 65
    assert frames[-1]["reason"] == "the stack is deeper than 64 frames"


def test_a_process_that_is_gone(desk: Desk) -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    for kind in (NATIVE, PYTHON):
        assert [r["reason"] for r in desk.tell(0x400000, 1, 2, kind=kind, pid=process.pid, born_ns=5)] == [ENDED]


def test_another_process_with_the_same_number(desk: Desk) -> None:
    """The number is this process's, the start is not."""
    assert [r["reason"] for r in desk.tell(address_of(LIBC.qsort) + 4, born_ns=12345)] == [ENDED]


def test_a_process_that_began_another_program() -> None:
    desk = Desk(began_ns=2000)
    for kind in (NATIVE, PYTHON):
        assert [r["reason"] for r in desk.tell(address_of(LIBC.qsort) + 4, 1, 2, kind=kind)] == [BEGAN_ANOTHER]
    desk.names.close()


def test_what_was_seen_before_the_end_is_still_named() -> None:
    """The mappings of a process outlive it here: its last stacks are named by them."""
    code = "import ctypes as C, sys; print(C.cast(C.CDLL(None).qsort, C.c_void_p).value, flush=True); sys.stdin.read()"
    desk = Desk()
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = int(process.stdout.readline())
    born = processes.start_ns(process.pid)
    assert desk.tell(address + 4, pid=process.pid)[0]["symbol"] == "qsort"
    process.communicate("")
    assert desk.tell(address + 4, pid=process.pid, born_ns=born)[0]["symbol"] == "qsort"
    desk.names.process_ended(process.pid)
    assert [r["reason"] for r in desk.tell(address + 4, pid=process.pid, born_ns=born)] == [ENDED]
    desk.names.close()


def own_frame(function: Callable[..., Any]) -> tuple[int, int, int]:
    """(code object, second instruction, line table) of a function of this process, as the kernel would send it."""
    layout = interpreter().layout
    code = id(function.__code__)
    word = C.c_uint64.from_address(code + layout.code_line_table).value
    return code, code + (layout.code_bytecode or 0) + 2 if layout.code_bytecode else 1, word


def interpreter() -> Interpreter:
    desk = Desk()
    desk.names.process_found(PID)
    return desk.names._interpreters[PID]


def test_python_frames_of_this_process(desk: Desk) -> None:
    code, instruction, table = own_frame(address_of)
    frame, garbage, end = desk.tell(code, instruction, table, 0x10, 0x20, 0x30, kind=PYTHON, end=END_THREADS)
    assert (frame["path"], frame["symbol"], frame["kind"]) == (__file__, "address_of", "python")
    first = address_of.__code__.co_firstlineno
    assert first <= frame["line"] <= first + 4
    assert "cannot be read" in garbage["reason"]
    assert "too many threads" in end["reason"]
    assert PID in desk.published
    (gap,) = desk.gaps  # the stack came before the interpreter was known
    assert (gap["source"], gap["pid"], gap["start_ns"]) == ("stacks", PID, 1000)


def test_no_gap_where_the_programs_knew_the_interpreter(desk: Desk) -> None:
    desk.names.process_found(PID)
    desk.tell(address_of(LIBC.qsort) + 4)
    assert not desk.gaps


def test_an_interpreter_that_is_loaded_later_is_looked_for(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that embeds CPython may load it any time after its first calls."""
    looks: list[int] = []
    monkeypatch.setattr(Finder, "interpreter_of", lambda _, pid, __: looks.append(pid))
    address = address_of(LIBC.qsort) + 4
    desk.tell(address)
    at_first = len(looks)
    desk.tell(address)
    assert len(looks) == at_first
    library = tmp_path / "libpython3.12.so.1.0"
    library.write_bytes(bytes(mmap.PAGESIZE))
    with library.open("rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_EXEC):
        for _ in range(3):
            desk.tell(address)
    assert len(looks) == at_first + 1


def test_an_interpreter_that_cannot_be_read_is_a_gap_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise Unsupported("the free-threaded build of CPython 3.13 is not supported")

    monkeypatch.setattr(Finder, "interpreter_of", refuse)
    desk.names.process_found(PID)
    desk.names.process_found(PID)
    (gap,) = desk.gaps
    assert (gap["source"], gap["table_name"], gap["pid"], gap["duration_ns"]) == ("stacks", "stack_frames", PID, None)
    assert gap["reason"] == "no Python frames of this process: the free-threaded build of CPython 3.13 is not supported"
    assert not desk.published


def test_a_process_without_an_interpreter(desk: Desk) -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        assert [r["reason"] for r in desk.tell(1, 2, 3, kind=PYTHON, pid=process.pid)] == [NOT_KNOWN]
        assert process.pid not in desk.published
    finally:
        process.kill()
        process.wait()
