"""The attacher's side of stacks: what the kernel sends of a stack it had not seen becomes rows of ``stack_frames``.

It must happen at once, while the process is there: its mappings tell which file an address is of, and its memory holds
the code objects of its Python frames. A process that is gone leaves a row that says so. Every stack that a call names
has rows here: its frames, or a reason.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np

from gpuaudit.capture import libbpf, processes
from gpuaudit.capture.address_space import AddressSpace, read_address_space
from gpuaudit.capture.cpython import Finder, Interpreter
from gpuaudit.capture.cpython_code import CodeReader, NotReadable
from gpuaudit.capture.cpython_offsets import Unsupported
from gpuaudit.capture.process_memory import ProcessMemory
from gpuaudit.capture.processes import NS_PER_TICK
from gpuaudit.capture.ring import RingReader
from gpuaudit.capture.selection import Targets
from gpuaudit.capture.source import boottime_ns
from gpuaudit.capture.stack_records import (
    ENDS,
    KINDS,
    KNOWN_STACK,
    MAX_STACKS,
    NATIVE,
    RAW_RING_BYTES,
    RAW_STACK,
    STACK_LOST,
    RawStack,
    decode,
)
from gpuaudit.capture.symbolise import NativeFrame, Symboliser

MAX_PROCESSES = 4096
"""Processes whose mappings are remembered. ours"""

ENDED = "the process ended before its stack could be read"
BEGAN_ANOTHER = "the process began another program before its stack could be read"
NO_ROOM = "the ring of stacks had no room for its frames"
NOT_AN_ADDRESS = "no code lies there: the caller keeps no frame pointer, and the stack cannot be followed"
ENDS_HERE = "the stack ends here: it is followed by frame pointers, and callers without them are not seen"

OUTERMOST = (
    "_start",
    "__libc_start_main",
    "__libc_start_call_main",
    "start_thread",
    "clone",
    "clone3",
    "__clone",
    "thread_start",
)
"""Functions that no other one calls, or only the C library's own first one does: a stack that ends there is whole."""

Row = dict[str, object]


class _Process:
    """One run of one program."""

    def __init__(self, pid: int, born_ns: int) -> None:
        self.pid, self.born_ns = pid, born_ns
        self.space: AddressSpace | None = None
        self.codes: CodeReader | None = None
        self.looked = False
        """Whether an interpreter was looked for when its first stack came."""

    def is_there(self) -> bool:
        """Whether the process still is the one whose stack it was: same number, same start."""
        start = processes.start_ns(self.pid)
        return start is not None and start == self.born_ns // NS_PER_TICK * NS_PER_TICK and processes.is_alive(self.pid)


class StackDesk:
    """``map_fd``: descriptors of the maps of the object ``calls``; rows and gaps go to ``sink(table, row)``."""

    def __init__(self, map_fd: Callable[[str], int], sink: Callable[[str, Row], None]) -> None:
        self._map_fd, self._sink = map_fd, sink
        self._targets = Targets(map_fd("targets"))
        self._ring = RingReader(map_fd("raw_stacks"), RAW_RING_BYTES, "raw_stacks", RAW_STACK)
        self._finder = Finder()
        self._symboliser = Symboliser()
        self._processes: OrderedDict[tuple[int, int, int], _Process] = OrderedDict()
        self._interpreters: dict[int, Interpreter] = {}
        self._refused: set[tuple[int, int, str]] = set()
        """Processes by number and start whose interpreter cannot be read, and why: told once."""
        self._seen = 0
        self._sweep_at = MAX_STACKS // 2

    @property
    def wake_descriptors(self) -> list[int]:
        """Readable when a stack was seen that was not known: :meth:`drain`, before its process is gone."""
        return [self._map_fd("raw_stacks")]

    def told(self, table: str, row: Row) -> None:
        """Take from the rows of other tables which processes there are."""
        pid = row.get("pid")
        if table == "libraries" and isinstance(pid, int):
            self.process_found(pid)
        elif table == "processes" and row.get("op") == "exited" and isinstance(pid, int):
            self.process_ended(pid)

    def process_found(self, pid: int) -> None:
        """Look for an interpreter, and tell the programs how to read its frames."""
        start = processes.start_ns(pid)
        space = read_address_space(pid) if start is not None else None
        if start is None or space is None:
            return
        try:
            interpreter = self._finder.interpreter_of(pid, space)
        except Unsupported as e:
            if (pid, start, str(e)) not in self._refused:
                self._refused.add((pid, start, str(e)))
                now = boottime_ns()
                self._sink("gaps", {
                    "start_ns": now, "duration_ns": None, "source": "stacks", "table_name": "stack_frames", "pid": pid,
                    "reason": f"no Python frames of this process: {e}",
                })  # fmt: skip
            interpreter = None
        if interpreter is None:
            self._interpreters.pop(pid, None)
            return
        self._interpreters[pid] = interpreter
        libbpf.map_update(self._map_fd("python_processes"), struct.pack("<I", pid), interpreter.parameters())

    def process_ended(self, pid: int) -> None:
        """Forget what was kept of the process."""
        self._interpreters.pop(pid, None)
        self._refused = {r for r in self._refused if r[0] != pid}
        libbpf.map_delete(self._map_fd("python_processes"), struct.pack("<I", pid))
        for run in [run for run in self._processes if run[0] == pid]:
            del self._processes[run]

    def drain(self) -> int:
        """Turn what has come into rows; the number of stacks."""
        records = self._ring.drain()
        for record in records:
            self._tell(decode(record))
        self._seen += len(records)
        if self._seen >= self._sweep_at:
            self._forget_ended()
        return len(records)

    def _known(self) -> Iterator[tuple[bytes, np.void]]:
        """What the programs know: identity → whose, as ``KNOWN_STACK``."""
        fd = self._map_fd("known_stacks")
        for key in list(libbpf.map_keys(fd, 8)):
            raw = libbpf.map_lookup(fd, key, KNOWN_STACK.itemsize)
            if raw is not None:
                yield key, np.frombuffer(raw, KNOWN_STACK)[0]

    def _forget_ended(self) -> None:
        """Make room in the map: nobody will name the stacks of a process that is gone again."""
        fd, left = self._map_fd("known_stacks"), 0
        for key, known in self._known():
            start = processes.start_ns(int(known["pid"]))
            if start is not None and start <= int(known["start_ns"]):
                left += 1
                continue
            if known["state"] == STACK_LOST:
                self._tell_lost(key, known)
            libbpf.map_delete(fd, key)
        self._seen = left
        self._sweep_at = left + (MAX_STACKS - left) // 2

    def finish(self) -> None:
        """The last stacks, and those whose frames found no room. Called once nothing is probed any more."""
        while self.drain():
            pass
        for key, known in self._known():
            if known["state"] == STACK_LOST:
                self._tell_lost(key, known)

    def _tell_lost(self, key: bytes, known: np.void) -> None:
        lost = RawStack(
            int(known["start_ns"]), struct.unpack("<Q", key)[0], int(known["pid"]), int(known["tid"]),
            int(known["kind"]), (0, 0, 0), (), 0,
        )  # fmt: skip
        self._row(lost, 0, NativeFrame(reason=NO_ROOM))

    def close(self) -> None:
        """Close what is open."""
        self._symboliser.close()

    def _tell(self, stack: RawStack) -> None:
        process = self._process(stack)
        if not process.looked and process.is_there():
            process.looked = True
            self.process_found(stack.pid)
        if stack.kind == NATIVE:
            self._tell_native(stack, process)
        else:
            self._tell_python(stack, process)

    def _process(self, stack: RawStack) -> _Process:
        process = self._processes.get(stack.run)
        if process is None:
            process = self._processes[stack.run] = _Process(stack.pid, stack.born_ns)
            if len(self._processes) > MAX_PROCESSES:
                self._processes.popitem(last=False)
        return process

    def _why_gone(self, stack: RawStack, process: _Process) -> str | None:
        if not process.is_there():
            return ENDED
        target = self._targets.get(stack.pid)
        return BEGAN_ANOTHER if target is not None and target.began_ns > stack.start_ns else None

    def _tell_native(self, stack: RawStack, process: _Process) -> None:
        frames = self._native_frames(stack, process)
        if not frames:
            frames = [NativeFrame(reason=self._why_gone(stack, process) or NOT_AN_ADDRESS)]
        for depth, frame in enumerate(frames):
            self._row(stack, depth, frame)

    def _native_frames(self, stack: RawStack, process: _Process) -> list[NativeFrame]:
        """Frames until an address is no code. New mappings are looked at once for a stack."""
        fresh = False
        frames: list[NativeFrame] = []
        for address in stack.words:
            known = process.space is not None and process.space.at(address) is not None
            if not known and not fresh and self._why_gone(stack, process) is None:
                process.space, fresh = read_address_space(stack.pid) or process.space, True
            frame = self._symboliser.frame(stack.pid, process.space, address) if process.space else None
            if frame is None:
                if frames:
                    frames.append(NativeFrame(reason=NOT_AN_ADDRESS))
                return frames
            frames.append(frame)
        cut = ENDS[NATIVE].get(stack.end)
        if cut is None and frames and frames[-1].symbol not in OUTERMOST and frames[-1].reason is None:
            cut = ENDS_HERE
        return [*frames, NativeFrame(reason=cut)] if cut else frames

    def _tell_python(self, stack: RawStack, process: _Process) -> None:
        gone = self._why_gone(stack, process)
        interpreter = self._interpreters.get(stack.pid)
        if process.codes is None and interpreter is not None and gone is None:
            process.codes = CodeReader(ProcessMemory(stack.pid), interpreter.layout)
        if process.codes is None:
            self._row(stack, 0, NativeFrame(reason=gone or "the interpreter is not known"))
            return
        for depth, frame in enumerate(stack.frames):
            self._python_row(stack, depth, frame, process.codes, gone)
        reason = ENDS[stack.kind].get(stack.end)
        if reason:
            self._row(stack, len(stack.frames), NativeFrame(reason=reason))

    def _python_row(
        self, stack: RawStack, depth: int, frame: tuple[int, int, int], codes: CodeReader, gone: str | None
    ) -> None:
        try:
            code, line = codes.frame(*frame)
        except NotReadable as e:
            self._row(stack, depth, NativeFrame(reason=gone or str(e)))
            return
        reason = None if line is not None and line >= 0 else "the instruction has no line"
        shown = NativeFrame(path=code.path, symbol=code.name, reason=reason)
        self._row(stack, depth, shown, line if reason is None else None)

    def _row(self, stack: RawStack, depth: int, frame: NativeFrame, line: int | None = None) -> None:
        self._sink("stack_frames", {
            "start_ns": stack.start_ns, "pid": stack.pid, "tid": stack.tid, "stack": stack.stack,
            "kind": KINDS[stack.kind], "depth": depth, "path": frame.path, "build_id": frame.build_id,
            "offset": frame.offset, "symbol": frame.symbol, "symbol_offset": frame.symbol_offset, "line": line,
            "reason": frame.reason,
        })  # fmt: skip
