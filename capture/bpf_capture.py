"""The BPF side of a capture: programs, probes, discovery. Runs in the attacher, which keeps the privileges.

Rows of calls and of off-CPU time go through the rings (:attr:`BpfCapture.rings`), which another process can drain.
Everything else (processes, libraries, probes, gaps) goes to ``sink(table, row)``.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from gpuaudit.bundle.errors import HostUnfit
from gpuaudit.capture import libbpf, processes
from gpuaudit.capture.attach import Mechanism, Programs
from gpuaudit.capture.discovery import Found, Scanner
from gpuaudit.capture.loading import LoadedPart
from gpuaudit.capture.parts import PARTS
from gpuaudit.capture.probed_files import ProbedFile, ProbedFiles
from gpuaudit.capture.probes import Library, library_for
from gpuaudit.capture.ring import RingDescription
from gpuaudit.capture.selection import EXCLUDED, SELECTED, TRACED, Selection, Target, Targets
from gpuaudit.capture.settings import Settings
from gpuaudit.capture.source import boottime_ns

Sink = Callable[[str, dict[str, object]], None]

DRIVER_PATIENCE_NS = 2_000_000_000
"""A process that has mapped the driver's library for so long and no CUDA runtime will not be observed. ours"""

FLUSH_TRIES, FLUSH_PAUSE_S = 500, 0.01
"""How long :meth:`BpfCapture.finish` waits for room in the rings: 5 s."""

_FULL = (
    ("cuda", "calls were not recorded: too many were open at once"),
    ("nccl", "communicators have no identity: too many exist at once"),
    ("off_cpu", "off-CPU intervals were not recorded: too many threads were off CPU at once"),
    ("off_cpu", "processes were not followed: too many exist at once"),
    ("stacks", "stacks have no identity: too many different ones were seen"),
    ("stacks", "calls have no stack: too many were being taken at once"),
    ("lifecycle", "processes ended and are not in the table processes: too many ended at once"),
    ("memory", "page allocations were not counted: too many processes allocated in one second"),
    ("memory", "direct reclaims were not recorded: too many threads reclaimed at once"),
    ("block_io", "requests were not recorded: too many were open at once"),
    ("ioctl", "ioctls were not recorded: too many were open at once"),
    ("sockets", "sends and receives were not counted: too many threads or sockets at once"),
)
"""``enum full`` of capture/bpf/shared.h: source concerned, and what the count means."""


class BpfCapture:
    """``mechanism``: force one; ``costs_ns``: measured cost of a probe pair by kind of first instruction."""

    def __init__(
        self, sink: Sink, selection: Selection, *, mechanism: Mechanism | None = None,
        costs_ns: Mapping[str, int] | None = None, ring_sizes_bytes: Mapping[str, int] | None = None,
        settings: Settings | None = None,
    ) -> None:  # fmt: skip
        self._sink = sink
        self._selection = selection
        self._ring_sizes_bytes = ring_sizes_bytes
        self._settings = settings or Settings()
        self._programs = Programs(mechanism=mechanism, ring_sizes_bytes=ring_sizes_bytes)
        self._parts: list[LoadedPart] = []
        """Every loaded object, ``calls`` first."""
        self.refused: dict[str, HostUnfit] = {}
        """Source → why the kernel does not let us record it."""
        self._files = ProbedFiles(self._programs, selection.sources, costs_ns or {})
        self._links: dict[tuple[LoadedPart, str], libbpf.Link] = {}
        self._scanner = Scanner({os.getpid(), *selection.exclude})
        self._rows: dict[int, dict[str, object]] = {}
        """The ``processes`` row of each process found and alive."""
        self._told: set[int] = set()
        self._followed: set[tuple[int, int]] = set()
        """Processes whose threads were looked at: pid and beginning."""
        self._barrier: libbpf.Barrier | None = None
        self._loaded_ns = 0
        self._finished = False

    def load(self) -> None:
        """Load the programs, attach the kernel tracepoints. HostUnfit names what this host lacks.

        What only one source needs and the kernel refuses is kept in :attr:`refused`.
        """
        try:
            self._programs.load()
            self._barrier = libbpf.Barrier()
            self._targets = Targets(self._programs.map_fd("targets"))
            self._configure()
            self._loaded_ns = boottime_ns()
            self._attach_part(self._programs)
        except (OSError, HostUnfit) as e:
            self.close()
            if isinstance(e, HostUnfit):
                raise
            raise HostUnfit(f"the BPF programs cannot be set up: {e.strerror or e}", hint="run audit check") from None
        for part in PARTS:
            if part.source and part.source in self._selection.sources:
                loaded = LoadedPart(part, self._programs, ring_sizes_bytes=self._ring_sizes_bytes)
                try:
                    loaded.load()
                    self._attach_part(loaded)
                except HostUnfit as e:
                    self.refused[part.source] = e
                    loaded.close()

    def _attach_part(self, loaded: LoadedPart) -> None:
        links: dict[tuple[LoadedPart, str], libbpf.Link] = {}
        try:
            for program in loaded.tracepoints:
                links[loaded, program] = loaded.attach_tracepoint(program)
        except HostUnfit:
            for link in links.values():
                link.close()
            raise
        self._links |= links
        self._parts.append(loaded)
        for _, program in links:
            self._sink("probes", self._program_row(loaded, program))

    def _configure(self) -> None:
        selected_only = self._selection.pids is not None
        value = self._settings.pack(selected_only=selected_only)
        libbpf.map_update(self._programs.map_fd("settings"), struct.pack("<I", 0), value)
        for pid in self._scanner.exclude:
            self._targets.add(pid, EXCLUDED)
        if self._selection.pids is not None:
            for pid in processes.children(set(self._selection.pids)) - self._scanner.exclude:
                self._targets.add(pid, SELECTED)

    def exclude(self, pid: int) -> None:
        """Never take this process as evidence: the recorder, or another of our own."""
        self._scanner.exclude.add(pid)
        self._targets.add(pid, EXCLUDED)

    def include(self, pid: int) -> None:
        """Follow this process and the children it will have."""
        self._targets.add(pid, SELECTED)

    @property
    def rings(self) -> list[RingDescription]:
        """Every ring; the descriptors may be inherited by the process that drains."""
        return [
            RingDescription(table, part.map_fd(f"ring_{table}"), size)
            for part in self._parts
            for table, size in part.ring_sizes_bytes.items()
        ]

    @property
    def counters_fd(self) -> int:
        """Descriptor for :class:`gpuaudit.capture.ring.LossCounters`."""
        return self._programs.map_fd("counters")

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

    def scan(self) -> int:
        """One pass of discovery: probe what is new, tell of processes that came and went. Returns libraries found."""
        targets = self._targets.all()
        only = None
        if self._selection.pids is not None:
            only = {pid for pid, t in targets.items() if t.flags & SELECTED}
        found = self._scanner.scan(only)
        for f in found:
            self._found(f, self._targets.get(f.pid) or Target())
        for pid in self._scanner.mapping_processes():
            self._targets.add(pid, TRACED)
        self._look_at_threads(targets, bool(found))
        self._ended(targets)
        self._tell_unobservable(boottime_ns() - DRIVER_PATIENCE_NS)
        return len(found)

    def _look_at_threads(self, targets: Mapping[int, Target], found: bool) -> None:
        """Threads of newly traced processes, which may sleep until the end and so never be seen to leave a CPU."""
        followed = {(pid, target.began_ns) for pid, target in targets.items() if target.flags & TRACED}
        if found or not followed <= self._followed:
            for part in self._parts:
                part.look_at_threads()
        self._followed = followed

    def _found(self, found: Found, target: Target) -> None:
        self._tell_process(found.pid, target, found.found_ns)
        library, ended_ns = found.library, None
        row: dict[str, object] = {
            "start_ns": found.found_ns, "duration_ns": None, "pid": found.pid, "op": "not observable",
            "library": library.name, "path": found.mapping.path, "build_id": None, "device": found.mapping.device,
            "inode": found.mapping.inode, "probes": 0, "not_observed": "", "reason": None,
        }  # fmt: skip
        try:
            fd = processes.open_mapping(found.pid, found.mapping)
        except processes.Ended as e:
            row["reason"] = str(e)
            ended_ns = (self._targets.get(found.pid) or target).exit_ns
            file = self._probed_before(found.mapping, ended_ns or found.found_ns)
            ended_ns = ended_ns or boottime_ns()
        except processes.CannotOpen as e:
            row["reason"] = str(e)
            file = None
        else:
            self._targets.add(found.pid, TRACED)
            file = self._probe(fd, library, found.mapping.path)
        if file is not None:
            row |= {"build_id": file.build_id, "probes": len(file.attached), "reason": file.reason}
            row["not_observed"] = ",".join(file.not_observed)
            if file.attached:
                fresh = file.attached_ns > found.found_ns
                row["op"] = "attached" if fresh else "shared"
                row["duration_ns"] = file.attached_ns - found.found_ns if fresh else 0
        self._sink("libraries", row)
        self._tell_gap(found, target, file, row["reason"], ended_ns)

    def _probed_before(self, mapping: processes.Mapping, time_ns: int) -> ProbedFile | None:
        """The mapped file, if it was probed through another process by then; it is not opened for that."""
        file = self._files.attached_file(mapping.device, mapping.inode)
        return file if file is not None and file.attached_ns < time_ns else None

    def _tell_gap(
        self, found: Found, target: Target, file: ProbedFile | None, why: object, ended_ns: int | None
    ) -> None:
        """Calls that were made before the probes were there are not in the evidence, and the evidence says so."""
        library = found.library
        if library.source not in self._selection.sources:
            return
        start = max(found.not_before_ns, target.began_ns)
        observed = file is not None and bool(file.attached)
        end = file.attached_ns if file is not None and observed else ended_ns
        if end is not None and end <= start:
            return
        reason = f"{found.mapping.path} was mapped before its functions were probed"
        if not observed:
            reason = f"{found.mapping.path} is not observable: {why}"
        for table in library.tables:
            self._gap(library.source, reason, start, end, table=table, pid=found.pid)

    def _gap(
        self, source: str, reason: str, start_ns: int, end_ns: int | None, *, table: str | None = None,
        pid: int | None = None,
    ) -> None:  # fmt: skip
        duration = None if end_ns is None else max(0, end_ns - start_ns)
        row: dict[str, object] = {"start_ns": start_ns, "duration_ns": duration, "source": source, "reason": reason}
        self._sink("gaps", {**row, "table_name": table, "pid": pid})

    def _tell_process(self, pid: int, target: Target, now: int) -> None:
        info = processes.read_process(pid)
        if info is None or (pid in self._rows and self._rows[pid]["start_ns"] == info.start_ns):
            return
        self._rows[pid] = info.row("found", self._role(target), now)
        self._sink("processes", self._rows[pid])

    def _role(self, target: Target) -> str:
        return self._selection.role if target.flags & SELECTED else "traced"

    def _ended(self, targets: Mapping[int, Target]) -> None:
        """Write down processes that have ended, also those that ended before any pass saw them."""
        for pid, target in sorted(targets.items()):
            if not target.exit_ns:
                continue
            row = self._rows.pop(pid, None)
            if row is None and target.flags & TRACED:
                row = {
                    "start_ns": target.began_ns or target.exit_ns, "pid": pid, "role": self._role(target),
                    "parent_pid": target.parent_pid or None, "comm": target.comm, "seen_ns": target.exit_ns,
                }  # fmt: skip
                self._sink("processes", {**row, "op": "found", "duration_ns": None})
            if row is not None:
                start = int(str(row["start_ns"]))
                life = {"op": "exited", "duration_ns": max(0, target.exit_ns - start), "seen_ns": boottime_ns()}
                self._sink("processes", {**row, **life})
            self._targets.remove(pid)

    def _tell_unobservable(self, before_ns: int) -> None:
        for pid, mapping, found_ns in self._scanner.unobservable():
            if pid in self._told or found_ns > before_ns or "cuda" not in self._selection.sources:
                continue
            self._told.add(pid)
            self._tell_process(pid, Target(), found_ns)
            self._sink("libraries", {
                "start_ns": found_ns, "duration_ns": None, "pid": pid, "op": "not observable", "library": "cudart",
                "path": mapping.path, "build_id": None, "device": mapping.device, "inode": mapping.inode, "probes": 0,
                "not_observed": "",
                "reason": "the CUDA driver is mapped and no CUDA runtime library is: the runtime is linked statically, "
                "or the driver is called directly",
            })  # fmt: skip

    def _program_row(self, part: LoadedPart, program: str, detached_ns: int | None = None) -> dict[str, object]:
        misses = libbpf.recursion_misses(part.program_fd(program)) if detached_ns else None
        tracepoint = part.part.tracepoints.get(program, program)
        return {
            "start_ns": self._loaded_ns, "duration_ns": detached_ns and detached_ns - self._loaded_ns,
            "op": tracepoint.removeprefix("raw_tp/"), "library": "kernel", "path": "", "offset": None,
            "mechanism": "raw_tp" if tracepoint.startswith("raw_tp/") else "tp_btf", "instruction": None,
            "expected_cost_ns": None, "hits": None, "unmatched": None, "misses": misses, "probe": None,
        }  # fmt: skip

    def tick(self) -> None:
        """Once a second: what is added up in the kernel goes through the rings, window by window."""
        for step in range(max((len(part.part.tick) for part in self._parts), default=0)):
            if step and self._barrier:
                self._barrier.wait()
            for part in self._parts:
                part.tick(step)

    def finish(self, drain: Callable[[], None] | None = None) -> None:
        """Detach everything, put what is still open into the rings, tell the totals.

        ``drain`` is called while waiting for room in the rings, where the caller is the one who drains; otherwise
        the process that drains must still be at it. What is in the rings afterwards is the last of the evidence.
        """
        if self._finished:
            return
        self._finished = True
        self.scan()
        self._files.detach()
        for link in self._links.values():
            link.close()
        if self._barrier:
            self._barrier.wait()  # a program that was running when it was detached
        now = boottime_ns()
        self._ended(self._targets.all())
        self._tell_unobservable(now)
        self._flush_open(drain, now)
        for file in self._files:
            for row in self._files.rows(file, now):
                self._sink("probes", row)
        for part, program in self._links:
            self._sink("probes", self._program_row(part, program, now))
        self._tell_function_programs(now)
        self._tell_full(now)

    def _flush_open(self, drain: Callable[[], None] | None, now: int) -> None:
        for _ in range(FLUSH_TRIES):
            left = [part for part in self._parts if not part.flush()]
            if not left:
                return
            if drain is not None:
                drain()
            else:
                time.sleep(FLUSH_PAUSE_S)
        for source in sorted(self._selection.sources):
            reason = "calls and intervals that were open at the end found no room in the rings"
            self._gap(source, reason, now, now)

    def _tell_function_programs(self, now: int) -> None:
        """What the kernel skipped of the entry and return programs, which all probed functions share."""
        for mechanism in sorted({f.attachment.mechanism for f in self._files if f.attachment}):
            for way in ("enter", "leave"):
                program = f"{way}_{'multi' if mechanism == 'uprobe_multi' else 'perf'}"
                self._sink("probes", {**self._program_row(self._programs, program, now), "mechanism": mechanism})

    def _tell_full(self, now: int) -> None:
        for index, (source, meaning) in enumerate(_FULL):
            raw = libbpf.map_lookup(self._programs.map_fd("full"), struct.pack("<I", index), 8)
            count = struct.unpack("<Q", raw or bytes(8))[0]
            if count:
                self._gap(source, f"{count} {meaning}", self._loaded_ns, now)
        for pid in sorted(set(self._targets.full)):
            self._gap("off_cpu", "the process was not followed: too many exist at once", self._loaded_ns, now, pid=pid)

    def close(self) -> None:
        """Detach what is still attached and unload. Twice does no harm."""
        self._files.detach()
        for link in self._links.values():
            link.close()
        if self._barrier:
            self._barrier.close()
        for part in reversed(self._parts):
            part.close()
        self._programs.close()
