"""Engines of this host: which processes are servers, where they listen, and in which network namespace.

A process is asked only if its command line is that of a known engine, and only on the port or Unix socket that its
command line names, or its kind's own: a byte that a program did not expect on a socket of its own could harm it.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpuaudit.capture import processes
from gpuaudit.capture.engine_command import EngineCommand, read_command
from gpuaudit.capture.engine_endpoint import Address, is_loopback
from gpuaudit.capture.processes import PROC

MAX_TABLE_BYTES = 4 << 20
"""Of /proc/PID/net/tcp: 150 bytes a socket."""

MAX_DESCRIPTORS = 65_536
_LISTEN = "0A"
"""TCP_LISTEN of include/net/tcp_states.h, as /proc/net/tcp writes it."""

_UNIX_LISTENING = 0x10000
"""__SO_ACCEPTCON of include/uapi/linux/net.h, in the flags of /proc/net/unix."""

_SOCKET = re.compile(r"socket:\[([0-9]+)\]\Z")


@dataclass(frozen=True)
class Listener:
    """A socket that a process listens on. ``inode`` names it."""

    address: Address
    inode: int


@dataclass(frozen=True)
class Server:
    """A process that was started as an engine, and listens. ``address`` None: nowhere that may be connected to."""

    pid: int
    start_ns: int
    command: EngineCommand
    address: Address | None
    reason: str = ""


def find_servers(only: set[int] | None, known: set[tuple[int, int]]) -> Iterator[Server]:
    """Servers among all processes, or among ``only`` these; not those in ``known`` (process id, start)."""
    for pid in sorted(set(processes.pids()) if only is None else only):
        start = processes.start_ns(pid)
        if start is None or (pid, start) in known:
            continue
        command = read_command(pid)
        if command is None:
            continue
        found = _where(listeners(pid), command)
        if found is not None:
            yield Server(pid, start, command, *found)


def _where(listening: list[Listener], command: EngineCommand) -> tuple[Address | None, str] | None:
    """Where to ask, or why not to; None while the process does not listen there (yet)."""
    path = command.flags.get("uds")
    if path:
        return next(((o.address, "") for o in listening if o.address.host == path and not o.address.port), None)
    hosts = [o.address.host for o in listening if o.address.port and o.address.port == command.port()]
    if not hosts:
        return None
    port = command.port() or 0
    for host in sorted(hosts, key=lambda h: ":" in h):
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what others listen on
        if is_loopback(reachable):
            return Address(reachable, port), ""
    return None, f"it listens on {', '.join(sorted(hosts))} port {port}, not loopback; --allow-remote can name it"


def listeners(pid: int) -> list[Listener]:
    """Sockets that ``pid`` listens on; none where it may not be looked at."""
    inodes = set(_socket_inodes(pid))
    return [o for o in _listening(pid) if o.inode in inodes] if inodes else []


def listening_process(address: Address) -> int | None:
    """The process of our own network namespace that listens on ``address``; None where none is found."""
    wanted = [address.host]
    if address.port:  # bound to the very address, to all of its family, or to all of both
        wanted += ["::"] if ":" in address.host else ["0.0.0.0", "::"]  # noqa: S104
    here = [o for o in _listening("self") if o.address.port == address.port]
    inodes = next((found for host in wanted if (found := {o.inode for o in here if o.address.host == host})), None)
    if inodes is None:
        return None
    for pid in processes.pids():
        if any(i in inodes for i in _socket_inodes(pid)):
            return pid
    return None


def namespace_fd(pid: int) -> int | None:
    """A descriptor of the network namespace of ``pid``; None where it is our own. OSError where it may not be had."""
    fd = os.open(f"{PROC}/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    theirs, ours = os.fstat(fd), Path(f"{PROC}/self/ns/net").stat()
    if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
        return fd
    os.close(fd)
    return None


def _socket_inodes(pid: int) -> Iterator[int]:
    folder = f"{PROC}/{pid}/fd"
    try:
        with os.scandir(folder) as entries:
            for count, entry in enumerate(entries):
                if count >= MAX_DESCRIPTORS:
                    return
                with contextlib.suppress(OSError):
                    found = _SOCKET.match(str(Path(folder, entry.name).readlink()))
                    if found:
                        yield int(found[1])
    except OSError:
        return


def _listening(pid: int | str) -> Iterator[Listener]:
    """Everything that listens in the network namespace of ``pid``."""
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for fields in _rows(f"{PROC}/{pid}/net/{table}"):
            if len(fields) > 9 and fields[3] == _LISTEN:
                host, _, port = fields[1].partition(":")
                with contextlib.suppress(ValueError):
                    yield Listener(Address(_ip(host, family), int(port, 16)), int(fields[9]))
    for fields in _rows(f"{PROC}/{pid}/net/unix"):
        if len(fields) == 8 and fields[7].startswith("/"):
            with contextlib.suppress(ValueError):
                if int(fields[3], 16) & _UNIX_LISTENING:
                    yield Listener(Address(fields[7]), int(fields[6]))


def _rows(path: str) -> Iterator[list[str]]:
    try:
        with Path(path).open(encoding="utf-8", errors="backslashreplace") as f:
            lines = f.read(MAX_TABLE_BYTES).split("\n")[1:]
    except OSError:
        return
    for line in lines:
        yield line.split()


def _ip(text: str, family: socket.AddressFamily) -> str:
    """An address of /proc/net/tcp: 32-bit words in the host's byte order, as hex."""
    raw = bytes.fromhex(text)
    words = [raw[i : i + 4][::-1] for i in range(0, len(raw), 4)]
    return socket.inet_ntop(family, b"".join(words))
