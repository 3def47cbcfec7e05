"""Turning the stacks that the kernel sends into rows of ``stack_frames``, at once, while their process is there.

Its mappings tell which file an address is of, and its memory holds the code objects of its Python frames. A process
that is gone leaves a row that says so: every stack has rows, its frames or a reason.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from gpuaudit.capture import processes
from gpuaudit.capture.address_space import AddressSpace, read_address_space
from gpuaudit.capture.cpython import Finder, Interpreter, libraries_in
from gpuaudit.capture.cpython_code import CodeReader, NotReadable
from gpuaudit.capture.cpython_offsets import Unsupported
from gpuaudit.capture.process_memory import ProcessMemory
from gpuaudit.capture.processes import NS_PER_TICK
from gpuaudit.capture.source import boottime_ns
from gpuaudit.capture.stack_records import ENDS, KINDS, NATIVE, RawStack
from gpuaudit.capture.symbolise import NativeFrame, Symboliser

MAX_PROCESSES = 4096
"""Processes whose mappings are remembered. ours"""

MAX_RUNS = 16
"""Programs that one process ran one after the other whose mappings are remembered. ours"""
MAX_READING_S = 0.2
"""Time spent in one second on reading the mappings of one process: some have ten thousands, and change them. ours"""

CHANGES_TOO_FAST = "the mappings of the process change faster than they can be read"
ENDED = "the process ended before its stack could be read"
BEGAN_ANOTHER = "the process began another program before its stack could be read"
NOT_KNOWN = "the interpreter is not known"
NOT_AN_ADDRESS = "nobody returns there: a caller keeps no frame pointer, and the stack cannot be followed further"
ENDS_HERE = "the stack ends here: it is followed by frame pointers, and callers without them are not seen"
NO_LINE = "the instruction has no line"

OUTERMOST = (
    "_start", "__libc_start_main", "__libc_start_call_main", "start_thread", "clone", "clone3", "__clone",
    "thread_start",
)  # fmt: skip
"""Functions that no other one calls, or only the C library's own first one does: a stack that ends there is whole."""

Row = dict[str, object]


class _Process:
    """One run of one program."""

    def __init__(self, pid: int, born_ns: int) -> None:
        self.pid, self.born_ns = pid, born_ns
        self.codes: CodeReader | None = None
        self.looked = False
        """Whether an interpreter was looked for when its first stack came."""
        self.last_space: AddressSpace | None = None
        self.searched: AddressSpace | None = None
        self.libraries: set[tuple[int, int]] = set()
        """The mappings in which CPython libraries were looked for last, and all that were found."""
        self._hint: bytes | None = None
        self._second_began_s = self._reading_s = 0.0

    def is_there(self) -> bool:
        """Whether the process still is the one whose stack it was: same number, same start."""
        start = processes.start_ns(self.pid)
        return start is not None and start == self.born_ns // NS_PER_TICK * NS_PER_TICK and processes.is_alive(self.pid)

    def space(self, *, again: bool = False) -> AddressSpace | None:
        """Its mappings, read again when they changed; None when they change faster than they can be read."""
        hint = processes.size_hint(self.pid)
        if hint is None or not (again or hint != self._hint):
            return self.last_space
        before_s = time.monotonic()
        if before_s - self._second_began_s >= 1:
            self._second_began_s, self._reading_s = before_s, 0.0
        if self._reading_s > MAX_READING_S:
            return None
        self.last_space, self._hint = read_address_space(self.pid) or self.last_space, hint
        self._reading_s += time.monotonic() - before_s
        return self.last_space


class StackNames:
    """Rows and gaps go to ``sink(table, row)``.

    ``began_ns``: when the program that a process runs now began, 0 if that is not known. ``publish``: hand the programs
    what they need to read Python frames of a process; whether they had it already.
    """

    def __init__(
        self, sink: Callable[[str, Row], None], began_ns: Callable[[int], int], publish: Callable[[int, bytes], bool]
    ) -> None:
        self._sink, self._began_ns, self._publish = sink, began_ns, publish
        self._finder = Finder()
        self._symboliser = Symboliser()
        self._processes: OrderedDict[int, dict[tuple[int, int, int], _Process]] = OrderedDict()
        """Process id → the runs of programs that were seen under it."""
        self._interpreters: dict[int, Interpreter] = {}
        self._refused: set[tuple[int, int, str]] = set()
        """Processes by number and start whose interpreter cannot be read, and why: told once."""

    def process_found(self, pid: int) -> bool:
        """Look for an interpreter; whether there is one whose frames the programs could not read until now."""
        start = processes.start_ns(pid)
        space = read_address_space(pid) if start is not None else None
        if start is None or space is None:
            return False
        try:
            interpreter = self._finder.interpreter_of(pid, space)
        except Unsupported as e:
            interpreter = None
            if (pid, start, str(e)) not in self._refused:
                self._refused.add((pid, start, str(e)))
                self._gap(pid, boottime_ns(), None, f"no Python frames of this process: {e}")
        if interpreter is None:
            self._interpreters.pop(pid, None)
            return False
        self._interpreters[pid] = interpreter
        return not self._publish(pid, interpreter.parameters())

    def process_ended(self, pid: int) -> None:
        """Forget what was kept of the process."""
        self._interpreters.pop(pid, None)
        self._processes.pop(pid, None)
        if self._refused:
            self._refused = {r for r in self._refused if r[0] != pid}

    def tell(self, stack: RawStack) -> None:
        """The rows of one stack."""
        runs = self._processes.setdefault(stack.pid, {})
        process = runs.setdefault(stack.run, _Process(stack.pid, stack.born_ns))
        if len(runs) > MAX_RUNS:
            del runs[next(iter(runs))]
        if len(self._processes) > MAX_PROCESSES:
            self._processes.popitem(last=False)
        gone = self._why_gone(stack, process)
        if gone is None and not process.looked:
            process.looked = True
            self._look(stack)
        if stack.kind == NATIVE:
            self._tell_native(stack, process, gone)
        else:
            self._tell_python(stack, process, gone)

    def row(self, stack: RawStack, depth: int, frame: NativeFrame, line: int | None = None) -> None:
        """One row of ``stack_frames``."""
        self._sink("stack_frames", {
            "start_ns": stack.start_ns, "pid": stack.pid, "tid": stack.tid, "stack": stack.stack,
            "kind": KINDS[stack.kind], "depth": depth, "path": frame.path, "build_id": frame.build_id,
            "offset": frame.offset, "symbol": frame.symbol, "symbol_offset": frame.symbol_offset, "line": line,
            "reason": frame.reason,
        })  # fmt: skip

    def close(self) -> None:
        """Close what is open."""
        self._symboliser.close()

    def _gap(self, pid: int, start_ns: int, end_ns: int | None, reason: str) -> None:
        duration = None if end_ns is None else max(0, end_ns - start_ns)
        self._sink("gaps", {
            "start_ns": start_ns, "duration_ns": duration, "source": "stacks", "table_name": "stack_frames",
            "pid": pid, "reason": reason,
        })  # fmt: skip

    def _look(self, stack: RawStack) -> None:
        """A stack of a process that was not told of: its Python frames were not read until now."""
        if self.process_found(stack.pid):
            reason = "Python frames of this process were not read before its interpreter was found"
            self._gap(stack.pid, stack.start_ns, boottime_ns(), reason)

    def _why_gone(self, stack: RawStack, process: _Process) -> str | None:
        if not process.is_there():
            return ENDED
        return BEGAN_ANOTHER if self._began_ns(stack.pid) > stack.start_ns else None

    def _tell_native(self, stack: RawStack, process: _Process, gone: str | None) -> None:
        space = process.last_space if gone else process.space()
        if space is not None and gone is None and space is not process.searched:
            process.searched = space
            new = libraries_in(space) - process.libraries
            process.libraries |= new
            if new and stack.pid not in self._interpreters:  # a program may load one long after it began
                self._look(stack)
        frames = self._native_frames(stack, process, space, gone)
        why = gone or (NOT_AN_ADDRESS if space else CHANGES_TOO_FAST)
        for depth, frame in enumerate(frames or [NativeFrame(reason=why)]):
            self.row(stack, depth, frame)

    def _native_frames(
        self, stack: RawStack, process: _Process, space: AddressSpace | None, gone: str | None
    ) -> list[NativeFrame]:
        """Frames until an address is no code."""
        if space is not None and gone is None and any(space.at(a) is None for a in stack.words):
            space = process.space(again=True) or space  # memory can become code without a change of size
            if stack.pid not in self._interpreters:
                self._look(stack)
        frames: list[NativeFrame] = []
        for address in stack.words if space is not None else ():
            frame = self._symboliser.frame(stack.pid, space, address, certain=not frames) if space else None
            if frame is None:
                return [*frames, NativeFrame(reason=NOT_AN_ADDRESS)] if frames else []
            frames.append(frame)
        cut = ENDS[NATIVE].get(stack.end)
        if cut is None and frames and frames[-1].symbol not in OUTERMOST:
            cut = ENDS_HERE
        return [*frames, NativeFrame(reason=cut)] if frames and cut else frames

    def _tell_python(self, stack: RawStack, process: _Process, gone: str | None) -> None:
        interpreter = self._interpreters.get(stack.pid)
        if process.codes is None and interpreter is not None and gone is None:
            process.codes = CodeReader(ProcessMemory(stack.pid), interpreter.layout)
        if process.codes is None:
            self.row(stack, 0, NativeFrame(reason=gone or NOT_KNOWN))
            return
        for depth, frame in enumerate(stack.frames):
            self._python_row(stack, depth, frame, process.codes, gone)
        reason = ENDS[stack.kind].get(stack.end)
        if reason:
            self.row(stack, len(stack.frames), NativeFrame(reason=reason))

    def _python_row(
        self, stack: RawStack, depth: int, frame: tuple[int, int, int], codes: CodeReader, gone: str | None
    ) -> None:
        try:
            code, line = codes.frame(*frame)
        except NotReadable as e:
            self.row(stack, depth, NativeFrame(reason=gone or str(e)))
            return
        reason = None if line is not None and line >= 0 else NO_LINE
        self.row(stack, depth, NativeFrame(path=code.path, symbol=code.name, reason=reason), None if reason else line)
