"""Which processes map a library that can be probed: told by the kernel as it happens, and found by reading /proc.

A mapping that the kernel tells of (:mod:`gpuaudit.capture.map_events`) has its process looked at in the same pass, and
its exact time. What is not told of is found by passes over /proc: the maps of a process are read when it is new, when
its size changed (a library that was just loaded changes it), and every :data:`FULL_PASS` passes in any case.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from gpuaudit.capture import processes
from gpuaudit.capture.map_events import MapEvent
from gpuaudit.capture.probes import LIBRARIES, Library, library_for
from gpuaudit.capture.processes import Mapping
from gpuaudit.capture.source import boottime_ns

FULL_PASS = 20
"""Passes after which every map is read again: 5 s at the session's 250 ms."""

DRIVER_FILE = r"libcuda\.so(\.[0-9]+)*"
"""The driver's library: a process that maps it, but no cudart, uses the GPU in a way that is not observed."""

LIBRARY_FILES = "|".join(f"(?:{library.files})" for library in LIBRARIES)
"""Regular expression for the base name of a file that can be probed."""


@dataclass(frozen=True)
class Found:
    """A library newly found in a process. ``not_before_ns``: it was mapped no earlier than this.

    ``start_ns``: of the process, 0 where that has ended and cannot be asked any more.
    """

    pid: int
    start_ns: int
    library: Library
    mapping: Mapping
    found_ns: int
    not_before_ns: int


@dataclass
class _Known:
    start_ns: int
    hint: bytes
    read_ns: int = 0
    files: set[tuple[int, int]] = field(default_factory=set)
    driver: Mapping | None = None
    driver_ns: int = 0
    has_runtime: bool = False

    @property
    def used(self) -> bool:
        """Whether it mapped anything of interest."""
        return bool(self.files) or self.driver is not None


class Scanner:
    """Remembers what it has seen of each process, and reports what is new.

    ``began_ns``: when the program that a process runs now began, 0 if that is not known: what it mapped before is gone.
    """

    def __init__(self, exclude: Iterable[int] = (), began_ns: Callable[[int], int] = lambda _: 0) -> None:
        self.exclude: set[int] = set(exclude)
        self._began_ns = began_ns
        self._known: dict[int, _Known] = {}
        self._mapped_ns: dict[tuple[int, str], int] = {}
        """(process, name of the file) → when the kernel mapped it first."""
        self._passes = 0

    def scan(self, only: set[int] | None = None) -> list[Found]:
        """One pass over all processes, or over ``only`` these."""
        self._passes += 1
        found: list[Found] = []
        alive = set(processes.pids())
        for pid in sorted((alive if only is None else alive & only) - self.exclude):
            found += self._look(pid)
        for pid in self._known.keys() - alive:
            del self._known[pid]
        for pid, name in [key for key in self._mapped_ns if key[0] not in alive]:
            del self._mapped_ns[pid, name]
        return found

    def look_at(self, events: Iterable[MapEvent], only: set[int] | None = None) -> list[Found]:
        """The processes that the kernel told of, at once. ``only``: of these."""
        first: dict[tuple[int, int, int], MapEvent] = {}
        for event in events:
            self._mapped_ns.setdefault((event.pid, event.file_name), event.time_ns)
            first.setdefault((event.pid, event.device, event.inode), event)
        pids = {pid for pid, _, _ in first}
        chosen = (pids if only is None else pids & only) - self.exclude
        found = [f for pid in sorted(chosen) for f in self._look(pid, now=True)]
        seen = {(f.pid, f.mapping.device, f.mapping.inode) for f in found}
        return found + [
            f for key, event in first.items() if key[0] in chosen and key not in seen for f in self._ended(event)
        ]

    def _ended(self, event: MapEvent) -> Iterator[Found]:
        """What a process mapped that ended before it was looked at: the mapping is all there is of it."""
        known, library = self._known.get(event.pid), library_for(event.file_name)
        told = known is not None and (event.device, event.inode) in known.files
        if library is not None and not told and processes.size_hint(event.pid) is None:
            mapping = Mapping("0-0", event.device, event.inode, event.path)
            yield Found(event.pid, 0, library, mapping, boottime_ns(), event.time_ns)

    def _look(self, pid: int, *, now: bool = False) -> list[Found]:
        anyway = now or (self._passes + pid) % FULL_PASS == 0
        hint = processes.size_hint(pid, any_thread=anyway)
        if hint is None:
            return []
        known = self._known.get(pid)
        due = anyway or known is None or hint != known.hint
        if not due:
            return []
        start = processes.start_ns(pid)
        if start is None:
            return []
        if known is None or known.start_ns != start or (known.used and self._began_ns(pid) > known.read_ns):
            known = self._known[pid] = _Known(start, hint)
        known.hint = hint
        return self._read(pid, known)

    def _read(self, pid: int, known: _Known) -> list[Found]:
        now, before = boottime_ns(), max(known.start_ns, known.read_ns)
        found = []
        mapped: set[tuple[int, int]] = set()
        for mapping in processes.mappings(pid):
            file = (mapping.device, mapping.inode)
            library = library_for(mapping.file_name)
            if library is not None:
                mapped.add(file)
                known.has_runtime |= library.name == "cudart"
                if file not in known.files:
                    told = self._mapped_ns.pop((pid, mapping.file_name), 0)
                    found.append(Found(pid, known.start_ns, library, mapping, now, max(before, told)))
            if known.driver is None and re.fullmatch(DRIVER_FILE, mapping.file_name):
                known.driver, known.driver_ns = mapping, now
        known.files = mapped
        known.read_ns = now
        return found

    def forget_file(self, device: int, inode: int) -> None:
        """Its probes are gone: the next pass finds it anew in the processes that map it."""
        for known in self._known.values():
            if (device, inode) in known.files:
                known.files.discard((device, inode))
                known.hint = b""

    def mapping_processes(self) -> list[tuple[int, int]]:
        """(process, its start) of those that mapped a library when last looked at."""
        return [(pid, known.start_ns) for pid, known in self._known.items() if known.files]

    def unobservable(self) -> list[tuple[int, int, Mapping, int]]:
        """(process, its start, mapping of the driver's library, when found) of those without a CUDA runtime library."""
        return [
            (pid, known.start_ns, known.driver, known.driver_ns)
            for pid, known in sorted(self._known.items())
            if known.driver is not None and not known.has_runtime
        ]
