"""The attacher's side of stacks: the ring of those that were not seen before, and the maps that go with it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import numpy as np

from gpuaudit.capture import libbpf, processes
from gpuaudit.capture.ring import RingReader
from gpuaudit.capture.selection import Targets
from gpuaudit.capture.stack_names import Row, StackNames
from gpuaudit.capture.stack_records import (
    KNOWN_STACK,
    MAX_STACKS,
    RAW_RING_BYTES,
    RAW_STACK,
    STACK_LOST,
    RawStack,
    decode,
)
from gpuaudit.capture.symbolise import NativeFrame

NO_ROOM = "the ring of stacks had no room for its frames"

MAX_AT_ONCE = 1000
"""Stacks named in one go, some hundred milliseconds at most: what maps and ends meanwhile waits. ours"""

_PID = struct.Struct("<I")
_PYTHON_PROCESS_BYTES = 72
"""``struct python_process`` of capture/bpf/python.h."""


class StackDesk:
    """``map_fd``: descriptors of the maps of the object ``calls``; rows and gaps go to ``sink(table, row)``."""

    def __init__(self, map_fd: Callable[[str], int], sink: Callable[[str, Row], None]) -> None:
        self._map_fd = map_fd
        self._targets = Targets(map_fd("targets"))
        self._ring = RingReader(map_fd("raw_stacks"), RAW_RING_BYTES, "raw_stacks", RAW_STACK)
        self._names = StackNames(sink, self._began_ns, self._publish)
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
        self._names.process_found(pid)

    def process_ended(self, pid: int) -> None:
        """Forget what was kept of the process, once its last stacks are told."""
        self.drain()
        self._names.process_ended(pid)

    def drain(self) -> int:
        """Turn what has come into rows, :data:`MAX_AT_ONCE` at most; the number of stacks."""
        records = self._ring.drain(MAX_AT_ONCE)
        for record in records:
            self._names.tell(decode(record))
        self._seen += len(records)
        if self._seen >= self._sweep_at:
            self._forget_ended()
        return len(records)

    def finish(self) -> None:
        """The last stacks, and those whose frames found no room. Called once nothing is probed any more."""
        while self.drain():
            pass
        for key, known in self._known():
            if known["state"] == STACK_LOST:
                self._tell_lost(key, known)

    def close(self) -> None:
        """Close what is open."""
        self._names.close()

    def _began_ns(self, pid: int) -> int:
        target = self._targets.get(pid)
        return target.began_ns if target is not None else 0

    def _publish(self, pid: int, parameters: bytes) -> bool:
        """Tell the programs; whether they knew of an interpreter in this process (a child of fork has its parent's)."""
        fd, key = self._map_fd("python_processes"), _PID.pack(pid)
        known = libbpf.map_lookup(fd, key, _PYTHON_PROCESS_BYTES) is not None
        libbpf.map_update(fd, key, parameters)
        return known

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

    def _tell_lost(self, key: bytes, known: np.void) -> None:
        lost = RawStack(
            int(known["start_ns"]), struct.unpack("<Q", key)[0], int(known["pid"]), int(known["tid"]),
            int(known["kind"]), (0, 0, 0), (), 0,
        )  # fmt: skip
        self._names.row(lost, 0, NativeFrame(reason=NO_ROOM))
