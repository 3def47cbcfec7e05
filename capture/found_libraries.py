"""Libraries that processes map: probed when they are found, told of, and the time before as a gap."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from gpuaudit.capture import processes
from gpuaudit.capture.discovery import Found
from gpuaudit.capture.probed_files import ProbedFile, ProbedFiles
from gpuaudit.capture.probes import Library, library_for
from gpuaudit.capture.processes import Mapping
from gpuaudit.capture.source import boottime_ns

Sink = Callable[[str, dict[str, object]], None]


def gap_row(
    source: str, reason: str, start_ns: int, end_ns: int | None, *, table: str | None = None, pid: int | None = None
) -> dict[str, object]:
    """A row of the ``gaps`` table; ``end_ns`` None: until the end of the capture."""
    duration = None if end_ns is None else max(0, end_ns - start_ns)
    row: dict[str, object] = {"start_ns": start_ns, "duration_ns": duration, "source": source, "reason": reason}
    return {**row, "table_name": table, "pid": pid}


class FoundLibraries:
    """Probes files through ``files``, and tells ``sink`` of it. ``sources``: those that are recorded."""

    def __init__(self, sink: Sink, files: ProbedFiles, sources: frozenset[str]) -> None:
        self._sink = sink
        self._files = files
        self._sources = sources
        self._told: set[tuple[int, int]] = set()

    def prepare(self, paths: list[str]) -> list[str]:
        """Probe these library files now, before anybody maps them; what could not be probed, as "path: reason"."""
        refused = []
        for path in paths:
            library = library_for(Path(path).name) or library_for(Path(path).resolve().name)
            if library is None:
                continue
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as e:
                refused.append(f"{path}: {e.strerror}")
                continue
            file = self._probe(fd, library, str(Path(path).resolve()))
            if file.reason:
                refused.append(f"{path}: {file.reason}")
        return refused

    def _probe(self, fd: int, library: Library, path: str) -> ProbedFile:
        try:
            file, fresh = self._files.add(fd, library, path)
        finally:
            os.close(fd)
        if fresh:
            for row in self._files.rows(file):
                self._sink("probes", row)
        return file

    def found(self, found: Found, began_ns: int, ended_ns: Callable[[], int | None]) -> bool:
        """Probe the file that was found, unless it is already; tell of the library and of the time before.

        ``began_ns``: when this run of the process began, 0 if that was not seen; ``ended_ns``: when it ended, asked
        only once it turns out that it has. False then.
        """
        row = _library_row(found.pid, found.library.name, found.mapping, found.found_ns)
        end: int | None = None
        file: ProbedFile | None = None
        try:
            fd = processes.open_mapping(found.pid, found.mapping)
        except processes.Ended as e:
            row["reason"] = str(e)
            exact = ended_ns()
            file = self._probed_before(found.mapping, exact or found.found_ns)
            end = exact or boottime_ns()
        except processes.CannotOpen as e:
            row["reason"] = str(e)
        else:
            file = self._probe(fd, found.library, found.mapping.path)
        if file is not None:
            row |= {"build_id": file.build_id, "probes": len(file.attached), "reason": file.reason or file.note}
            row |= {"not_observed": ",".join(file.not_observed), "not_observed_count": file.not_observed_count}
            why = _why_passed_over(found, file.attached_ns) if file.attached else None
            if why:
                row |= {"probes": 0, "reason": why}
                file = None
            elif file.attached:
                fresh = file.attached_ns > found.found_ns
                row["op"] = "attached" if fresh else "shared"
                row["duration_ns"] = file.attached_ns - found.found_ns if fresh else 0
        self._sink("libraries", row)
        self._tell_gap(found, began_ns, file, row["reason"], end)
        return end is None

    def _probed_before(self, mapping: Mapping, time_ns: int) -> ProbedFile | None:
        """The mapped file, if it was probed through another process by then; it is not opened for that."""
        file = self._files.attached_file(mapping.device, mapping.inode)
        return file if file is not None and file.attached_ns < time_ns else None

    def _tell_gap(
        self, found: Found, began_ns: int, file: ProbedFile | None, why: object, ended_ns: int | None
    ) -> None:
        """Calls that were made before the probes were there are not in the evidence, and the evidence says so."""
        library = found.library
        if library.source not in self._sources:
            return
        start = max(found.not_before_ns, began_ns)
        observed = file is not None and bool(file.attached)
        end = file.attached_ns if file is not None and observed else ended_ns
        if end is not None and end <= start:
            return
        reason = f"{found.mapping.path} was mapped before its functions were probed"
        if not observed:
            reason = f"{found.mapping.path} is not observable: {why}"
        for table in library.tables:
            self._sink("gaps", gap_row(library.source, reason, start, end, table=table, pid=found.pid))

    def forget(self, alive: set[tuple[int, int]]) -> None:
        """Keep in mind only what was told of these processes (number and start)."""
        self._told &= alive

    def unobservable(self, pid: int, start_ns: int, mapping: Mapping, found_ns: int) -> bool:
        """A process that maps the driver's library and no CUDA runtime, told of once; False when it was already."""
        if (pid, start_ns) in self._told or "cuda" not in self._sources:
            return False
        self._told.add((pid, start_ns))
        row = _library_row(pid, "cudart", mapping, found_ns)
        row["reason"] = (
            "the CUDA driver is mapped and no CUDA runtime library is: the runtime is linked statically, and only what "
            "it asks of the driver can be seen, or the driver is called directly"
        )
        self._sink("libraries", row)
        return True


def _why_passed_over(found: Found, attached_ns: int) -> str | None:
    """Why the kernel placed no probes of the file in this mapping of it, as far as one can tell."""
    if found.mapping.is_shared:
        return "its code is mapped shared, and the kernel places no probes there"
    if found.mapping.is_writable and attached_ns > found.not_before_ns:
        return "its code was writable when it was probed, and the kernel places no new probes there"
    return None


def _library_row(pid: int, library: str, mapping: Mapping, found_ns: int) -> dict[str, object]:
    return {
        "start_ns": found_ns, "duration_ns": None, "pid": pid, "op": "not observable", "library": library,
        "path": mapping.path, "build_id": None, "device": mapping.device, "inode": mapping.inode, "probes": 0,
        "not_observed": "", "not_observed_count": None, "reason": None,
    }  # fmt: skip
