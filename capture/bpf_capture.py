"""The BPF side of a capture: programs, probes, discovery. Runs in the attacher, which keeps the privileges.

Rows of calls and of off-CPU time go through the rings (:attr:`BpfCapture.rings`), which another process can drain.
Everything else (processes, libraries, probes, gaps) goes to ``sink(table, row)``.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Mapping

from gpuaudit.bundle.errors import HostUnfit
from gpuaudit.bundle.tables import RING_TABLES
from gpuaudit.capture import libbpf
from gpuaudit.capture.attach import Mechanism, Programs
from gpuaudit.capture.follow import Follower
from gpuaudit.capture.found_libraries import FoundLibraries, Sink, gap_row
from gpuaudit.capture.host_samples import HostSamples
from gpuaudit.capture.loading import LoadedPart
from gpuaudit.capture.mounts import Mounts
from gpuaudit.capture.parts import ATTACHED_LAST, PARTS, SYSCALLS, TCP, Part
from gpuaudit.capture.probed_files import ProbedFile, ProbedFiles
from gpuaudit.capture.ring import RingDescription
from gpuaudit.capture.selection import Selection
from gpuaudit.capture.settings import Settings
from gpuaudit.capture.socket_holders import SocketHolders
from gpuaudit.capture.source import READ_FROM_FILES, TABLES_OF_SOURCE, boottime_ns
from gpuaudit.capture.stack_source import StackDesk
from gpuaudit.capture.system_calls import IOCTL, Device, SystemCalls

FLUSH_TRIES, FLUSH_PAUSE_S = 500, 0.01
"""How long :meth:`BpfCapture.finish` waits for room in the rings: 5 s."""

_FULL = (
    ("cuda", "calls were not recorded: more than 8 of one thread, or of 8,192 threads, were open at once"),
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
    (
        "off_cpu",
        "off-CPU intervals end with the wake-up or are missing: the kernel did not tell when threads left or came back",
    ),
)
"""``enum full`` of capture/bpf/shared.h: source concerned, and what the count means."""

FUNCTIONS = ("cuda", "nccl")
"""Sources of the object ``calls``."""


class BpfCapture:
    """``mechanism``: force one; ``costs_ns``: measured cost of a probe pair by kind of first instruction."""

    def __init__(
        self, sink: Sink, selection: Selection, *, mechanism: Mechanism | None = None,
        costs_ns: Mapping[str, int] | None = None, ring_sizes_bytes: Mapping[str, int] | None = None,
        settings: Settings | None = None,
        ioctl_devices: tuple[Device, ...] = (),
    ) -> None:  # fmt: skip
        self._stacks: StackDesk | None = None
        sink = self._seen_by_stacks(sink)
        self._sink = sink
        self._selection = selection
        self._ring_sizes_bytes = ring_sizes_bytes
        self._settings = settings or Settings()
        self._programs = Programs(mechanism=mechanism, ring_sizes_bytes=ring_sizes_bytes, stacks=self._settings.stacks)
        self._parts: list[LoadedPart] = []
        """Every loaded object, ``calls`` first."""
        self.refused: dict[str, HostUnfit] = {}
        """Source → why the kernel does not let us record it."""
        self._nothing_to_record: dict[str, str] = {}
        """Source → why there is nothing of it on this host: no row is missing, and the evidence says why."""
        self._files = ProbedFiles(self._programs, selection.sources, costs_ns or {}, selection.denied)
        self._system_calls = SystemCalls(selection.sources, ioctl_devices)
        self._links: dict[tuple[LoadedPart, str], libbpf.Link] = {}
        self._libraries = FoundLibraries(sink, self._files, selection.sources)
        self._follower: Follower | None = None
        self._followed: set[tuple[int, int]] = set()
        """Processes whose threads were looked at: pid and beginning."""
        self._barrier: libbpf.Barrier | None = None
        self._samples: HostSamples | None = None
        self._mounts: Mounts | None = None
        self._holders: SocketHolders | None = None
        self._written: list[tuple[ProbedFile, int]] = []
        """Files whose probes were taken off since the last pass, and when."""
        self._loaded_ns = 0
        self._finished = self._closed = False

    def load(self) -> None:
        """Load the programs, attach the kernel tracepoints. HostUnfit names what this host lacks.

        What only one source needs and the kernel refuses is kept in :attr:`refused`.
        """
        try:
            self._programs.load()
            self._barrier = libbpf.Barrier()
            self._configure()
            if self._programs.why_no_stacks:
                self.refused["stacks"] = self._programs.why_no_stacks
            elif self._settings.stacks:
                self._stacks = StackDesk(self._programs.map_fd, self._sink)
            self._follower = Follower(self._sink, self._selection, self._libraries, self._programs.map_fd)
            self._loaded_ns = boottime_ns()
            self._attach_part(self._programs, tuple(p for p in self._programs.tracepoints if p not in ATTACHED_LAST))
        except (OSError, HostUnfit) as e:
            self.close()
            if isinstance(e, HostUnfit):
                raise
            raise HostUnfit(f"the BPF programs cannot be set up: {e.strerror or e}", hint="run audit check") from None
        wanted = set(self._selection.sources)
        if self._system_calls.refused:
            self._nothing_to_record[IOCTL] = self._system_calls.refused.message
            wanted.remove(IOCTL)
        for part in PARTS:
            if wanted.intersection(part.sources):
                loaded = LoadedPart(part, self._programs, ring_sizes_bytes=self._ring_sizes_bytes)
                try:
                    loaded.load()
                    if part is SYSCALLS:
                        self._system_calls.configure(loaded)
                    holders = None
                    if part is TCP:
                        holders = SocketHolders(loaded.map_fd("holders"), loaded.map_fd("unknown_holders"))
                        holders.look()  # before the first packet is seen
                    self._attach_part(loaded, loaded.tracepoints)
                    self._holders = holders or self._holders
                except HostUnfit as e:
                    self._tell_refused(part, wanted, e)
                    loaded.close()
        try:
            self._attach_part(self._programs, tuple(p for p in self._programs.tracepoints if p in ATTACHED_LAST))
            self.following.begin()
        except HostUnfit:
            self.close()
            raise
        self._sink("probes", self._map_events_row())
        self._begin_reading()

    @property
    def following(self) -> Follower:
        """What follows processes; HostUnfit before :meth:`load`."""
        if self._follower is None:
            raise HostUnfit("the BPF programs are not loaded")
        return self._follower

    def _attach_part(self, loaded: LoadedPart, programs: tuple[str, ...]) -> None:
        links: dict[tuple[LoadedPart, str], libbpf.Link] = {}
        try:
            for program in programs:
                links[loaded, program] = loaded.attach_tracepoint(program)
        except HostUnfit:
            for link in links.values():
                link.close()
            raise
        self._links |= links
        if loaded not in self._parts:
            self._parts.append(loaded)
        for _, program in links:
            self._sink("probes", self._program_row(loaded, program))

    def _tell_refused(self, part: Part, wanted: set[str], why: HostUnfit) -> None:
        """The whole source, where all its tables come from this part; otherwise only those that do."""
        for source in sorted(wanted.intersection(part.sources)):
            lacking = [table for table in TABLES_OF_SOURCE[source] if table in part.ring_bytes]
            if source != READ_FROM_FILES and len(lacking) == sum(t in RING_TABLES for t in TABLES_OF_SOURCE[source]):
                self.refused[source] = why
                continue
            for table in lacking:
                self._sink("gaps", gap_row(source, why.message, self._loaded_ns, None, table=table))

    def _begin_reading(self) -> None:
        """What the kernel has in files: the first pass over it."""
        if "memory" in self._selection.sources:
            self._samples = HostSamples(self._sink)
        if "block_io" in self._selection.sources and "block_io" not in self.refused:
            self._mounts = Mounts(self._sink)
        self._read()

    def _read(self) -> None:
        if self._samples:
            self._samples.poll(pid for pid, _ in self.following.traced_runs())
        if self._mounts:
            self._mounts.poll()
        if self._holders:
            self._holders.look_again_when_wanted()

    @property
    def notes(self) -> dict[str, str]:
        """Source → what it lacks on this host although it is recorded."""
        readers = {"memory": self._samples, "tcp": self._holders}
        lacking = {source: reader.note for source, reader in readers.items() if reader and reader.note}
        return {**self._nothing_to_record, **lacking}

    def _configure(self) -> None:
        value = self._settings.pack(selected_only=self._selection.selected_only)
        libbpf.map_update(self._programs.map_fd("settings"), struct.pack("<I", 0), value)

    def _seen_by_stacks(self, sink: Sink) -> Sink:
        """What is told of processes is what stacks need to know of them."""

        def tell(table: str, row: dict[str, object]) -> None:
            sink(table, row)
            if self._stacks:
                self._stacks.told(table, row)

        return tell

    def exclude(self, pid: int) -> None:
        """Never take this process as evidence: the recorder, or another of our own."""
        self.following.exclude(pid)

    def keep_probing(self) -> int | None:
        """Before this process gives up what probing takes: the process that later libraries are probed by, if any."""
        return self._programs.keep_probing() if self._selection.sources.intersection(FUNCTIONS) else None

    def include(self, pid: int) -> None:
        """Follow this process and the children it will have."""
        self.following.include(pid)

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
        return self._libraries.prepare(paths)

    @property
    def wake_descriptors(self) -> list[int]:
        """Readable when a library may have been mapped, or a stack was not seen before: for :meth:`look_at_once`."""
        stacks = self._stacks.wake_descriptors if self._stacks else ()
        return [*self.following.wake_descriptors, *self._files.changes.descriptors, *stacks]

    @property
    def libraries_parsed(self) -> int:
        """Files whose symbols had to be parsed: copies of one that was parsed are not counted."""
        return self._files.symbols.parsed

    @property
    def is_told_of_mappings(self) -> bool:
        """Whether the kernel tells of mappings as they happen; else only :meth:`scan` finds them."""
        return self.following.lost_events is not None

    def selected(self) -> set[int] | None:
        """The processes that are recorded now; None for all of the host."""
        return self.following.chosen() if self._selection.selected_only else None

    def look_at_once(self) -> int:
        """Probe what the kernel says was just mapped, name new stacks. Returns libraries found."""
        self._take_written()
        found = self.following.look_at_once()
        if self._stacks:
            self._stacks.drain()
        if found:
            self._look_at_threads(found=True)
        return found

    def scan(self) -> int:
        """One pass of discovery: probe what is new, tell of processes that came and went. Returns libraries found."""
        self._take_written()
        found = self.following.scan()
        self._tell_written()
        if self._stacks:
            self._stacks.drain()
        self._look_at_threads(found=bool(found))
        return found

    def _take_written(self) -> None:
        now = boottime_ns()
        for key, file in self._files.written():
            self._written.append((file, now))
            self.following.forget_file(*key)
            if all(f is not file for f in self._files):
                for row in self._files.rows(file, now):
                    self._sink("probes", row)

    def _tell_written(self) -> None:
        """Once a pass has found what was written in the processes that still map it."""
        now = boottime_ns()
        for file, since in self._written:
            reason = f"{file.path} was written to while it was probed: its probes were taken off, and it is probed anew"
            for table in file.library.tables:
                self._sink("gaps", gap_row(file.library.source, reason, since, now, table=table))
        self._written.clear()

    def _look_at_threads(self, *, found: bool) -> None:
        """Threads of newly traced processes, which may sleep until the end and so never be seen to leave a CPU."""
        followed = self.following.traced_runs()
        if found or not followed <= self._followed:
            for part in self._parts:
                try:
                    part.look_at_threads()
                except HostUnfit as e:  # costs those threads' first interval, not the capture
                    reason = f"threads that slept already when their process was first followed: {e.message}"
                    self._gap(part.part.source, reason, boottime_ns(), None)
        self._followed = followed

    def _gap(self, source: str, reason: str, start_ns: int, end_ns: int | None) -> None:
        self._sink("gaps", gap_row(source, reason, start_ns, end_ns))

    def _program_row(self, part: LoadedPart, program: str, detached_ns: int | None = None) -> dict[str, object]:
        misses = libbpf.recursion_misses(part.program_fd(program)) if detached_ns else None
        tracepoint = part.part.tracepoints.get(program, program)
        return {
            "start_ns": self._loaded_ns, "duration_ns": detached_ns and detached_ns - self._loaded_ns,
            "op": tracepoint.removeprefix("raw_tp/"), "library": "kernel", "path": "", "offset": None,
            "mechanism": "raw_tp" if tracepoint.startswith("raw_tp/") else "tp_btf", "instruction": None,
            "expected_cost_ns": None, "hits": None, "unmatched": None, "misses": misses, "probe": None,
        }  # fmt: skip

    def _map_events_row(self, detached_ns: int | None = None) -> dict[str, object]:
        """How libraries are discovered: told by the kernel, or only by reading /proc."""
        lost = self.following.lost_events
        return {
            "start_ns": self._loaded_ns, "duration_ns": detached_ns and detached_ns - self._loaded_ns,
            "op": "executable mappings", "library": "kernel", "path": "", "offset": None,
            "mechanism": "passes over /proc" if lost is None else "perf event", "instruction": None,
            "expected_cost_ns": None, "hits": None, "unmatched": None, "misses": detached_ns and lost, "probe": None,
        }  # fmt: skip

    def tick(self) -> None:
        """Once a second: what is added up in the kernel goes through the rings, window by window."""
        self._system_calls.look_for_devices()
        for step in range(max((len(part.part.tick) for part in self._parts), default=0)):
            if step and self._barrier:
                self._barrier.wait()
            for part in self._parts:
                part.tick(step)
        for file in self._files.merge_twins():
            for row in self._files.rows(file, boottime_ns()):
                self._sink("probes", row)
        self._read()

    def finish(self, drain: Callable[[], None] | None = None) -> None:
        """Detach everything, put what is still open into the rings, tell the totals.

        ``drain`` is called while waiting for room in the rings, where the caller is the one who drains; otherwise
        the process that drains must still be at it. What is in the rings afterwards is the last of the evidence.
        """
        if self._finished:
            return
        self._finished = True
        self.scan()
        self._read()
        self._files.detach()
        for link in self._links.values():
            link.close()
        if self._barrier:
            self._barrier.wait()  # a program that was running when it was detached
        now = boottime_ns()
        self.following.finish(self._loaded_ns, now)
        self._flush_open(drain, now)
        if self._stacks:
            self._stacks.finish()
        for file in self._files:
            for row in self._files.rows(file, now):
                self._sink("probes", row)
        for part, program in self._links:
            self._tell_program(self._program_row(part, program, now), part.part.sources or FUNCTIONS, now)
        self._sink("probes", self._map_events_row(now))
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
            for program in self._programs.function_programs(mechanism):
                row = {**self._program_row(self._programs, program, now), "mechanism": mechanism}
                self._tell_program(row, FUNCTIONS, now)

    def _tell_program(self, row: dict[str, object], sources: tuple[str, ...], now: int) -> None:
        """What a program did not see, for it ran already on that CPU: no ring counts that."""
        self._sink("probes", row)
        for source in sorted(self._selection.sources.intersection(sources)) if row["misses"] else ():
            reason = f"{row['misses']} times the program of {row['op']} ran already on that CPU, and was not run again"
            self._gap(source, reason, self._loaded_ns, now)

    def _tell_full(self, now: int) -> None:
        for index, (source, meaning) in enumerate(_FULL):
            raw = libbpf.map_lookup(self._programs.map_fd("full"), struct.pack("<I", index), 8)
            count = struct.unpack("<Q", raw or bytes(8))[0]
            if count:
                self._gap(source, f"{count} {meaning}", self._loaded_ns, now)

    def close(self) -> None:
        """Detach what is still attached and unload. Twice does no harm."""
        if self._closed:
            return
        self._closed = True
        if self._stacks:
            self._stacks.close()
            self._stacks = None
        if self._mounts:
            self._mounts.close()
        if self._follower:
            self._follower.close()
        self._files.detach()
        self._files.changes.close()
        for link in self._links.values():
            link.close()
        if self._barrier:
            self._barrier.close()
        for part in reversed(self._parts):
            part.close()
        self._programs.close()
