"""Whose calls are evidence."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace

from gpuaudit.capture import libbpf
from gpuaudit.capture.processes import is_alive
from gpuaudit.capture.source import boottime_ns

TRACED, SELECTED, EXCLUDED = 1, 2, 4
"""``enum target_flags`` of capture/bpf/shared.h."""

_TARGET = struct.Struct("<IIQQ16s")
_KEY = struct.Struct("<I")


@dataclass(frozen=True)
class Selection:
    """``pids`` None: every process of the host. Otherwise these, and their children now and later.

    ``exclude``: never evidence, the recorder among them (the process that loads the programs is always excluded).
    """

    pids: frozenset[int] | None = None
    exclude: frozenset[int] = frozenset()
    sources: frozenset[str] = frozenset({"cuda", "nccl", "off_cpu"})
    role: str = "traced"
    """Role of the selected processes in the ``processes`` table: workload where we started them."""


@dataclass(frozen=True)
class Target:
    """What the programs know of a process. Times: CLOCK_BOOTTIME ns, 0 where not seen."""

    flags: int = 0
    parent_pid: int = 0
    began_ns: int = 0
    exit_ns: int = 0
    comm: str = ""


@dataclass
class Targets:
    """The BPF map of processes."""

    fd: int
    full: list[int] = field(default_factory=list)
    """Processes that found no room in the map."""

    def get(self, pid: int) -> Target | None:
        """What is known of ``pid``; None if nothing."""
        raw = libbpf.map_lookup(self.fd, _KEY.pack(pid), _TARGET.size)
        if raw is None:
            return None
        flags, parent, began, left, comm = _TARGET.unpack(raw)
        return Target(flags, parent, began, left, comm.split(b"\0")[0].decode("utf-8", "backslashreplace"))

    def add(self, pid: int, flags: int) -> None:
        """Set ``flags`` of a process, keeping the ones it has."""
        old = self.get(pid) or Target()
        if old.flags & flags == flags:
            return
        try:
            self._set(pid, replace(old, flags=old.flags | flags))
            if not old.exit_ns and not is_alive(pid):  # ended meanwhile: its exit may have been overwritten
                self._set(pid, replace(old, flags=old.flags | flags, exit_ns=boottime_ns()))
        except OSError:
            self.full.append(pid)

    def _set(self, pid: int, t: Target) -> None:
        value = _TARGET.pack(t.flags, t.parent_pid, t.began_ns, t.exit_ns, t.comm.encode()[:15])
        libbpf.map_update(self.fd, _KEY.pack(pid), value)

    def remove(self, pid: int) -> None:
        """Forget a process that has ended."""
        libbpf.map_delete(self.fd, _KEY.pack(pid))

    def all(self) -> dict[int, Target]:
        """Every process in the map."""
        pids = [_KEY.unpack(key)[0] for key in list(libbpf.map_keys(self.fd, _KEY.size))]
        return {pid: t for pid in pids if (t := self.get(pid)) is not None}
