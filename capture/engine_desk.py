"""The attacher's half of the engines: finds them, says how they are reached, and what their processes were told.

It hands each one to the recorder as an ``engine`` message and keeps the address to itself (:mod:`engine_dial`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpuaudit.capture import processes
from gpuaudit.capture.engine_command import EngineCommand, read_command
from gpuaudit.capture.engine_dial import DialDesk, Line
from gpuaudit.capture.engine_discovery import Server, find_servers, listening_process, namespace_fd
from gpuaudit.capture.engine_endpoint import Endpoint, parse_endpoint, tcp_endpoint, unix_endpoint
from gpuaudit.capture.engine_files import ModelFolder
from gpuaudit.capture.processes import PROC
from gpuaudit.capture.redact import redact_text
from gpuaudit.capture.source import boottime_ns

SCAN_INTERVAL_S = 2.0
"""A server needs tens of seconds to load its model; looking through all command lines costs some ms."""

MAX_PAUSE_S = 60.0
"""A process that cannot be seen from here (an ordinary user's capture) is looked for ever more rarely: it means going
through the descriptors of every process."""

MAX_ENGINES = 64
FOUND, NAMED, ALLOWED = "listening socket of a traced process", "--engine", "--allow-remote"


@dataclass
class _Named:
    """An endpoint the user named; its process is looked for until it is found."""

    engine: int
    endpoint: Endpoint
    found_by: str
    pid: int | None = None
    pause_s: float = SCAN_INTERVAL_S
    next_s: float = 0.0


class EngineDesk:
    """``only`` gives the processes that are traced, None for the whole host."""

    def __init__(self, named: tuple[str, ...], remote: tuple[str, ...], only: Callable[[], set[int] | None]) -> None:
        self.dial, self.files = DialDesk(), DialDesk()
        """Two, so that a file system that hangs keeps nobody from connecting."""
        self._only = only
        self._known: set[tuple[int, int]] = set()
        self._places: set[tuple[object, ...]] = set()
        self._messages: list[dict[str, Any]] = []
        self._rows: list[tuple[str, dict[str, Any]]] = []
        self._engines = 0
        self._next_scan_s = 0.0
        self._named = [self._name(e, found_by) for e, found_by in endpoints(named, remote)]

    def scan_when_due(self) -> None:
        """Look for servers, every :data:`SCAN_INTERVAL_S`."""
        if time.monotonic() < self._next_scan_s:
            return
        for named in self._named:
            if named.pid is None and not named.endpoint.remote and time.monotonic() >= named.next_s:
                self._look_for_process(named)
                named.next_s = time.monotonic() + named.pause_s
                named.pause_s = min(MAX_PAUSE_S, named.pause_s * 1.5)
        for server in find_servers(self._only(), self._known):
            self._known.add((server.pid, server.start_ns))
            self._found(server)
        self._next_scan_s = time.monotonic() + SCAN_INTERVAL_S

    def take_messages(self) -> list[dict[str, Any]]:
        """Bodies of ``engine`` messages since the last call."""
        out, self._messages = self._messages, []
        return out

    def take_rows(self) -> list[tuple[str, dict[str, Any]]]:
        """Rows of ``engines`` and ``engine_config`` since the last call."""
        out, self._rows = self._rows, []
        return out

    def close(self) -> None:
        """Connect nothing any more."""
        self.dial.close()
        self.files.close()

    @property
    def descriptors(self) -> tuple[int, int]:
        """The recorder's ends, to be inherited: for connections and for files; −1 once they are given away."""
        return self.dial.theirs.fileno(), self.files.theirs.fileno()

    def give_away(self) -> None:
        """The recorder has its ends; ours are closed, so that its end is noticed."""
        self.dial.theirs.close()
        self.files.theirs.close()

    def _name(self, endpoint: Endpoint, found_by: str) -> _Named:
        engine = self._new_engine()
        self._places.add(_place(endpoint, None))
        self.dial.add(engine, Line(endpoint))
        self._tell(engine, endpoint, None, found_by)
        return _Named(engine, endpoint, found_by)

    def _look_for_process(self, named: _Named) -> None:
        pids = [pid for a in named.endpoint.addresses if (pid := listening_process(a)) is not None]
        if not pids:
            return
        named.pid = pids[0]
        start = processes.start_ns(pids[0])
        command = read_command(pids[0])
        if start is not None:
            self._known.add((pids[0], start))
        if command is not None:
            self.files.add(named.engine, Line(named.endpoint, open_file=ModelFolder(pids[0], command).open))
            self._settings(named.engine, command)
        self._tell(named.engine, named.endpoint, pids[0], named.found_by, files=command is not None)

    def _found(self, server: Server) -> None:
        """A server that nobody named."""
        if self._engines >= MAX_ENGINES:
            return
        if server.address is None:
            self._refuse(server, server.reason)
            return
        address = server.address
        endpoint = tcp_endpoint(address.host, address.port) if address.port else unix_endpoint(address.host)
        try:
            netns_fd = namespace_fd(server.pid)
            root_fd = None if address.port else os.open(f"{PROC}/{server.pid}/root", os.O_PATH | os.O_CLOEXEC)
        except OSError as e:
            self._refuse(server, f"its network namespace cannot be entered: {e.strerror}")
            return
        place = _place(endpoint, netns_fd)
        if place in self._places:
            for fd in (netns_fd, root_fd):
                if fd is not None:
                    os.close(fd)
            return
        self._places.add(place)
        engine = self._new_engine()
        self.dial.add(engine, Line(endpoint, netns_fd, root_fd))
        self.files.add(engine, Line(endpoint, open_file=ModelFolder(server.pid, server.command).open))
        self._settings(engine, server.command)
        self._tell(engine, endpoint, server.pid, FOUND, files=True)

    def _refuse(self, server: Server, reason: str) -> None:
        port = server.command.port()
        self._rows.append(("engines", {
            "start_ns": boottime_ns(), "engine": self._new_engine(), "op": server.command.kind.name,
            "url": f"http://*:{port}" if port else "unknown", "pid": server.pid, "found_by": FOUND, "remote": 0,
            "state": "refused", "reason": reason,
        }))  # fmt: skip

    def _settings(self, engine: int, command: EngineCommand) -> None:
        now = boottime_ns()
        for key, value, source, detail in command.settings():
            row = {"start_ns": now, "engine": engine, "op": key, "value": redact_text(value), "source": source,
                   "detail": detail}  # fmt: skip
            self._rows.append(("engine_config", row))

    def _tell(self, engine: int, endpoint: Endpoint, pid: int | None, found_by: str, *, files: bool = False) -> None:
        self._messages.append({
            "engine": engine, "url": redact_text(endpoint.url), "host": endpoint.host, "path": endpoint.path,
            "addresses": len(endpoint.addresses), "pid": pid, "found_by": found_by, "remote": endpoint.remote,
            "files": files, "found_ns": boottime_ns(),
        })  # fmt: skip

    def _new_engine(self) -> int:
        self._engines += 1
        return self._engines - 1


def endpoints(named: tuple[str, ...], remote: tuple[str, ...]) -> list[tuple[Endpoint, str]]:
    """Every endpoint the user named, once, and by which option. UsageError for one that is not allowed."""
    found: dict[str, tuple[Endpoint, str]] = {}
    for url in remote:
        endpoint = parse_endpoint(url, allow_remote=True)
        found[endpoint.url] = (endpoint, ALLOWED if endpoint.remote else NAMED)
    for url in named:
        if not (url in remote or any(url.rstrip("/") == r.rstrip("/") for r in remote)):
            endpoint = parse_endpoint(url)
            found.setdefault(endpoint.url, (endpoint, NAMED))
    return list(found.values())


def _place(endpoint: Endpoint, netns_fd: int | None) -> tuple[object, ...]:
    """Equal for two ways to say the same place."""
    namespace = None if netns_fd is None else os.fstat(netns_fd).st_ino
    first = endpoint.addresses[0]
    return (namespace, "127.0.0.1" if first.port and not endpoint.remote else first.host, first.port)
