"""Which process holds a socket: told to the programs that see packets sent again, but not by whom.

A socket's number in /proc/PID/fd is its inode. The programs learn by themselves who connects, listens, sends and
receives (capture/bpf/tcp.bpf.c); this is for sockets that were there before and have been silent since.
"""

from __future__ import annotations

import os
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from gpuaudit.capture import libbpf, processes

MAX_DESCRIPTORS = 100_000
"""Looked at in one pass, which takes a second then: 11 µs each (measured in a virtual machine). ours"""

PASS_INTERVAL_S = 10.0
"""A pass follows a socket that nobody was known to hold, no sooner than this after the last pass. ours"""

_SOCKET = re.compile(r"socket:\[([0-9]{1,19})\]\Z")
_KEY, _OWNER = struct.Struct("<Q"), struct.Struct("<I16s")


def held_sockets(pid: int, proc: Path | str = "/proc") -> Iterator[int | None]:
    """Inode of the socket behind each descriptor of a process, None for another file; nothing when it is gone."""
    folder = f"{proc}/{pid}/fd"
    try:
        names = os.listdir(folder)  # noqa: PTH208 - names, not paths: there may be 100,000
    except OSError:
        return
    for name in names:
        try:
            found = _SOCKET.match(os.readlink(f"{folder}/{name}"))  # noqa: PTH115 - hot
        except OSError:
            continue
        yield int(found[1]) if found else None


class SocketHolders:
    """Fills the map ``holders``; ``wanted_fd`` is the map of sockets for which nobody was found there."""

    def __init__(self, holders_fd: int, wanted_fd: int) -> None:
        self._holders_fd = holders_fd
        self._wanted_fd = wanted_fd
        self._next_pass_s = 0.0
        self.note = ""
        """What the last pass left out, and why; empty if nothing."""

    def look(self) -> int:
        """One pass over all processes, the oldest first: of several holders it is the owner. How many sockets."""
        self._next_pass_s = time.monotonic() + PASS_INTERVAL_S
        self.note = ""
        seen = 0
        owners: dict[int, int] = {}
        born = {pid: start for pid in processes.pids() if (start := processes.start_ns(pid)) is not None}
        for pid in sorted(born, key=lambda p: (born[p], p)):
            for inode in held_sockets(pid):
                seen += 1
                if inode is not None:
                    owners.setdefault(inode, pid)
            if seen > MAX_DESCRIPTORS:
                self.note = f"owners were not looked for among more than {MAX_DESCRIPTORS} open files"
                break
        comms = {pid: _comm(pid) for pid in set(owners.values())}
        for inode, pid in owners.items():
            libbpf.map_update(self._holders_fd, _KEY.pack(inode), _OWNER.pack(pid, comms[pid]))
        return len(owners)

    def look_again_when_wanted(self) -> int:
        """A pass when a packet was sent again through a socket that nobody was known to hold; how many were told."""
        if time.monotonic() < self._next_pass_s:
            return 0
        wanted = list(libbpf.map_keys(self._wanted_fd, _KEY.size))
        for key in wanted:
            libbpf.map_delete(self._wanted_fd, key)
        return self.look() if wanted else 0


def _comm(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/comm").read_bytes().removesuffix(b"\n")[:15]
    except OSError:
        return b""
