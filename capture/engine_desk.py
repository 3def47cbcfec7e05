"""The attacher's half of the engines: finds them, says how they are reached, and what their processes were told.

It hands each one to the recorder as an ``engine`` message and keeps the address to itself (:mod:`engine_dial`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuaudit.capture import processes
from gpuaudit.capture.engine_command import EngineCommand, read_command
from gpuaudit.capture.engine_dial import DialDesk, Line
from gpuaudit.capture.engine_discovery import Server, find_servers, listening_process, namespace_fd
from gpuaudit.capture.engine_endpoint import Endpoint, parse_endpoint, tcp_endpoint, unix_endpoint
from gpuaudit.capture.engine_files import ModelFolder
from gpuaudit.capture.engine_rights import Rights
from gpuaudit.capture.namespace_desk import NamespaceDesk
from gpuaudit.capture.processes import PROC
from gpuaudit.capture.redact import redact_text
from gpuaudit.capture.source import boottime_ns

SCAN_INTERVAL_S = 2.0
"""A server needs tens of seconds to load its model; looking through all command lines costs some ms."""

REST = 9
"""After a look that took long (processes with a great many descriptors) there is none for so many times as long."""

MAX_PAUSE_S = 60.0
"""A process that cannot be seen from here (an ordinary user's capture) is looked for ever more rarely: it means going
through the descriptors of every process."""

MAX_ENGINES = 64
"""Of those that nobody named: somebody's processes that only look like engines must not fill the capture."""

FOUND, NAMED, ALLOWED = "listening socket of a traced process", "--engine", "--allow-remote"


@dataclass
class _Held:
    """One engine, and the process that it is; that of a named one is looked for until it is found."""

    engine: int
    endpoint: Endpoint
    found_by: str
    pid: int | None = None
    start_ns: int | None = None
    pause_s: float = SCAN_INTERVAL_S
    next_s: float = 0.0


class EngineDesk:
    """``named``: see :func:`endpoints`. ``only`` gives the processes that are traced, None for the whole host."""

    def __init__(
        self, named: Sequence[tuple[Endpoint, str]], only: Callable[[], set[int] | None],
        namespaces: NamespaceDesk | None = None,
    ) -> None:  # fmt: skip
        self.dial, self.files = DialDesk(namespaces, waits=True), DialDesk(waits=True)
        self._namespaces = namespaces
        self._only = only
        self._known: set[tuple[int, int]] = set()
        self._places: dict[tuple[object, ...], _Held] = {}
        self._messages: list[dict[str, Any]] = []
        self._rows: list[tuple[str, dict[str, Any]]] = []
        self._engines = 0
        self._most = len(named) + MAX_ENGINES
        self._is_full = False
        self._next_scan_s = 0.0
        self._named = [self._name(e, found_by) for e, found_by in named]

    def scan_when_due(self) -> None:
        """Look for servers, every :data:`SCAN_INTERVAL_S`."""
        self.dial.serve()
        self.files.serve()
        begin_s = time.monotonic()
        if begin_s < self._next_scan_s:
            return
        for named in self._named:
            if time.monotonic() >= named.next_s:
                self._look_for_process(named)
        for server in find_servers(self._only(), self._known):
            self._known.add((server.pid, server.start_ns))
            self._found(server)
        now_s = time.monotonic()
        self._next_scan_s = now_s + max(SCAN_INTERVAL_S, REST * (now_s - begin_s))

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
        if self._namespaces:
            self._namespaces.close()

    @property
    def helpers(self) -> tuple[int, ...]:
        """Process ids of what we have started for it."""
        return (self._namespaces.pid,) if self._namespaces else ()

    @property
    def descriptors(self) -> tuple[int, int]:
        """The recorder's ends, to be inherited: for connections and for files; −1 once they are given away."""
        return self.dial.theirs.fileno(), self.files.theirs.fileno()

    def give_away(self) -> None:
        """The recorder has its ends; ours are closed, so that its end is noticed."""
        self.dial.theirs.close()
        self.files.theirs.close()

    def _name(self, endpoint: Endpoint, found_by: str) -> _Held:
        held = _Held(self._new_engine(), endpoint, found_by)
        for place in _places(endpoint, None, None):
            self._places.setdefault(place, held)
        self.dial.add(held.engine, Line(endpoint))
        self._tell(held)
        return held

    def _look_for_process(self, named: _Held) -> None:
        if named.pid is not None or named.endpoint.remote:
            return
        named.next_s = time.monotonic() + named.pause_s
        named.pause_s = min(MAX_PAUSE_S, named.pause_s * 1.5)
        pids = [pid for a in named.endpoint.addresses if (pid := listening_process(a)) is not None]
        if not pids:
            return
        start = processes.start_ns(pids[0])
        if start is not None:
            self._known.add((pids[0], start))
        self._is_process(named, pids[0], start, read_command(pids[0]))

    def _is_process(self, held: _Held, pid: int, start_ns: int | None, command: EngineCommand | None) -> None:
        """The engine is this process, from now on: what it was told, and the files of its model."""
        held.pid, held.start_ns = pid, start_ns
        if command is not None:
            self.files.add(held.engine, Line(held.endpoint, open_file=ModelFolder(pid, command).open))
            self._settings(held.engine, command)
        self._tell(held, files=command is not None)

    def _found(self, server: Server) -> None:
        """A server that nobody named, or the process of one that somebody did."""
        for named in self._named:
            self._look_for_process(named)
            if named.pid == server.pid:
                return
        if server.address is None:
            self._refuse(server, server.reason)
            return
        address = server.address
        endpoint = tcp_endpoint(address.host, address.port) if address.port else unix_endpoint(address.host)
        with ExitStack() as opened:
            try:
                line = _line(endpoint, server.pid, opened)
            except OSError as e:
                self._refuse(server, f"it cannot be reached where it runs: {e.strerror}")
                return
            if processes.start_ns(server.pid) != server.start_ns:  # what was opened may be another process's
                return
            (place,) = _places(endpoint, line.netns_fd, line.root_fd)
            held = self._places.get(place)
            if held is not None:
                if held.pid is None or processes.start_ns(held.pid) != held.start_ns:  # started again, at its old place
                    self._is_process(held, server.pid, server.start_ns, server.command)
                return
            if self._has_room(server):
                opened.pop_all()  # the desk's, from now on
                held = self._places[place] = _Held(self._new_engine(), endpoint, FOUND)
                self.dial.add(held.engine, line)
                self._is_process(held, server.pid, server.start_ns, server.command)

    def _has_room(self, server: Server) -> bool:
        if self._engines < self._most:
            return True
        if not self._is_full:
            self._is_full = True
            reason = (
                f"more than {MAX_ENGINES} engines: process {server.pid} ({server.command.kind.name}) and what is found "
                "later is not asked; --engine can name it"
            )
            gap = {"start_ns": boottime_ns(), "duration_ns": None, "source": "engines", "pid": None, "reason": reason}
            self._rows.append(("gaps", gap))
        return False

    def _refuse(self, server: Server, reason: str) -> None:
        if not self._has_room(server):
            return
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

    def _tell(self, held: _Held, *, files: bool = False) -> None:
        endpoint = held.endpoint
        self._messages.append({
            "engine": held.engine, "url": redact_text(endpoint.url), "host": endpoint.host, "path": endpoint.path,
            "addresses": len(endpoint.addresses), "pid": held.pid, "found_by": held.found_by,
            "remote": endpoint.remote, "files": files, "found_ns": boottime_ns(),
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


def _line(endpoint: Endpoint, pid: int, opened: ExitStack) -> Line:
    """How the engine of ``pid`` is reached; ``opened`` closes what it holds. OSError where it may not be entered."""
    netns_fd = namespace_fd(pid)
    if netns_fd is not None:
        opened.callback(os.close, netns_fd)
    if endpoint.addresses[0].port:
        return Line(endpoint, netns_fd)
    root_fd = os.open(f"{PROC}/{pid}/root", os.O_PATH | os.O_CLOEXEC)
    opened.callback(os.close, root_fd)
    return Line(endpoint, netns_fd, root_fd, rights=Rights.of(pid))


def _places(endpoint: Endpoint, netns_fd: int | None, root_fd: int | None) -> Iterator[tuple[object, ...]]:
    """What tells a place from every other: namespace, address and port; for a Unix socket, root and path."""
    for address in endpoint.addresses:
        if address.port:
            yield (None if netns_fd is None else os.fstat(netns_fd).st_ino), address.host, address.port
        else:
            root = Path("/").stat() if root_fd is None else os.fstat(root_fd)
            yield root.st_dev, root.st_ino, address.host
