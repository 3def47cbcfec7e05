"""Whose calls are evidence."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from gpuaudit.capture import libbpf
from gpuaudit.capture.processes import is_alive
from gpuaudit.capture.ring import RingReader
from gpuaudit.capture.rules import Rule

DENIED = "denied by the site policy"
"""The reason in every gap, capability and library that a site's policy makes."""

TRACED, SELECTED, EXCLUDED, KNOWN, TREE, RELATED = 1, 2, 4, 8, 16, 32
"""``enum target_flags`` of capture/bpf/shared.h."""

ENDED_RING_BYTES = 1 << 20
"""Size of the ring ``raw_ended``: it holds the ends of 13,000 processes between two passes."""

_TARGET = struct.Struct("<IIQQ16s")
_KEY = struct.Struct("<I")
_RULE = struct.Struct("<IIII16s")
_ENDED = np.dtype([
    ("start_ns", "<u8"), ("began_ns", "<u8"), ("exit_ns", "<u8"), ("cgroup_id", "<u8"), ("pid", "<u4"),
    ("parent", "<u4"), ("flags", "<u4"), ("uid", "<u4"), ("exit_code", "<i4"), ("pad", "<u4"), ("comm", "S16"),
])  # fmt: skip
"""``struct target``, its key, ``struct rule`` and ``struct ended`` of capture/bpf."""


@dataclass(frozen=True)
class Selection:
    """``pids`` None and no rule that includes: every process of the host. Otherwise these, and their children.

    ``exclude``: never evidence, the recorder among them (the process that loads the programs is always excluded);
    ``exclude_with_children``: what the user left out by number. ``rules``: what is chosen or left out by property.
    """

    pids: frozenset[int] | None = None
    exclude: frozenset[int] = frozenset()
    sources: frozenset[str] = frozenset({"cuda", "nccl", "off_cpu"})
    role: str = "traced"
    """Role of the selected processes in the ``processes`` table: workload where we started them."""
    rules: tuple[Rule, ...] = ()
    exclude_with_children: frozenset[int] = frozenset()
    denied: frozenset[tuple[str, str]] = frozenset()
    """(library, op) of functions that are not probed, whoever calls them."""

    @property
    def selected_only(self) -> bool:
        """Whether a process must be chosen to be evidence."""
        return self.pids is not None or any(not r.excludes for r in self.rules)


@dataclass(frozen=True)
class Target:
    """What the programs know of a process. Times: CLOCK_BOOTTIME ns, 0 where not seen."""

    flags: int = 0
    parent_pid: int = 0
    began_ns: int = 0
    start_ns: int = 0
    comm: str = ""


@dataclass(frozen=True)
class Ended:
    """A process of interest that has ended. ``exit_status``: exit code, or −signal."""

    pid: int
    start_ns: int
    began_ns: int
    exit_ns: int
    parent_pid: int
    flags: int
    uid: int
    cgroup_id: int
    exit_status: int
    comm: str


@dataclass
class Targets:
    """The BPF map of processes that live."""

    fd: int
    full: list[int] = field(default_factory=list)
    """Processes that found no room in the map."""

    def get(self, pid: int) -> Target | None:
        """What is known of ``pid``; None if nothing."""
        raw = libbpf.map_lookup(self.fd, _KEY.pack(pid), _TARGET.size)
        if raw is None:
            return None
        flags, parent, began, start, comm = _TARGET.unpack(raw)
        return Target(flags, parent, began, start, _text(comm))

    def add(self, pid: int, flags: int) -> None:
        """Set ``flags`` of a process, keeping the ones it has."""
        old = self.get(pid) or Target()
        if old.flags & flags == flags:
            return
        t = replace(old, flags=old.flags | flags)
        value = _TARGET.pack(t.flags, t.parent_pid, t.began_ns, t.start_ns, t.comm.encode()[:15])
        try:
            libbpf.map_update(self.fd, _KEY.pack(pid), value)
        except OSError:
            self.full.append(pid)
            return
        if not is_alive(pid):  # it may have ended before the entry was made: then nobody else removes it
            libbpf.map_delete(self.fd, _KEY.pack(pid))

    def all(self) -> dict[int, Target]:
        """Every process in the map."""
        pids = [_KEY.unpack(key)[0] for key in list(libbpf.map_keys(self.fd, _KEY.size))]
        return {pid: t for pid in pids if (t := self.get(pid)) is not None}


class EndedProcesses:
    """The ring of processes that have ended; one reader."""

    def __init__(self, fd: int) -> None:
        self._ring = RingReader(fd, ENDED_RING_BYTES, "raw_ended", _ENDED)

    def take(self) -> Iterator[Ended]:
        """Those that ended since the last call, in no particular order."""
        for r in self._ring.drain():
            code = int(r["exit_code"])
            yield Ended(
                int(r["pid"]), int(r["start_ns"]), int(r["began_ns"]), int(r["exit_ns"]), int(r["parent"]),
                int(r["flags"]), int(r["uid"]), int(r["cgroup_id"]), -(code & 0x7F) or code >> 8 & 0xFF,
                _text(bytes(r["comm"])),
            )  # fmt: skip


def write_rules(rules: tuple[Rule, ...], rules_fd: int, cgroups_fd: int, numbers: Mapping[str, int]) -> None:
    """Tell the programs of ``rules``. ``numbers``: kind of rule → ``enum rule_kind``. OSError as the kernel says."""
    for index, rule in enumerate(rules):
        number, comm = rule.number, b""
        if rule.kind == "comm":
            comm = os.fsencode(rule.text)
        elif rule.kind == "cgroup":
            number = index
            fd = os.open(rule.text, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                libbpf.map_update(cgroups_fd, _KEY.pack(index), _KEY.pack(fd))
            finally:
                os.close(fd)
        libbpf.map_update(rules_fd, _KEY.pack(index), _RULE.pack(numbers[rule.kind], rule.excludes, number, 0, comm))


def _text(comm: bytes) -> str:
    return comm.split(b"\0")[0].decode("utf-8", "backslashreplace")
