"""Loading one BPF object, with the variant of its programs that this kernel accepts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gpuaudit.bundle.errors import HostUnfit
from gpuaudit.bundle.tables import RING_TABLES
from gpuaudit.capture import libbpf
from gpuaudit.capture.obstacles import in_words, obstacles
from gpuaudit.capture.parts import SHARED_MAPS, Part

OBJECTS = Path(__file__).resolve().parent / "bpf"


class LoadedPart:
    """An object in the kernel. Features are found by trying, never by kernel version.

    ``shared``: the loaded object whose shared maps this one uses; None for the one that makes them.
    ``ring_sizes_bytes``: other sizes than the part's own.
    """

    def __init__(
        self, part: Part, shared: LoadedPart | None = None, *, ring_sizes_bytes: Mapping[str, int] | None = None
    ) -> None:
        self.part = part
        self._shared = shared
        sizes = ring_sizes_bytes or {}
        self.ring_sizes_bytes = {table: sizes.get(table, size) for table, size in part.ring_bytes.items()}
        self._object: libbpf.BpfObject | None = None
        self._threads: libbpf.Link | None = None
        self.tracepoints: tuple[str, ...] = ()
        """Programs to attach with :meth:`attach_tracepoint`."""

    def load(self, more: frozenset[str] = frozenset(), types: Mapping[str, tuple[int, int]] | None = None) -> None:
        """Load the first variant that this kernel accepts, with the programs ``more``.

        ``types``: program → (program type, expected attach type), where its section's name does not say. HostUnfit when
        no variant loads; it names the reason the kernel gave for the best one.
        """
        file = OBJECTS / self.part.file_name
        if not file.is_file():
            raise HostUnfit(f"{file.name} is not installed", hint="run scripts/build-bpf, or install again")
        data = file.read_bytes()
        failures: list[HostUnfit] = []
        more = more | {*self.part.tick, *filter(None, [self.part.flush, self.part.threads])}
        for variant in self.part.variants:
            try:
                self._load(data, {*variant, *more}, types or {})
            except OSError as e:
                failures.append(unfit(e, libbpf.last_message()))
                continue
            self.tracepoints = variant
            return
        raise failures[0]

    def _load(self, data: bytes, names: set[str], types: Mapping[str, tuple[int, int]]) -> None:
        loading = libbpf.BpfObject(data, f"gpuaudit_{self.part.name}"[:15])
        try:
            loading.only(names)
            for name, (program_type, attach_type) in types.items():
                loading.attach_type(name, program_type, attach_type)
            for table, size in self.ring_sizes_bytes.items():
                loading.max_entries(f"ring_{table}", size)
            for name, entries in self.part.maps.items():
                loading.max_entries(name, entries)
            if self._shared is None:
                loading.max_entries("counters", libbpf.possible_cpus() * len(RING_TABLES))
            else:
                for name in SHARED_MAPS:
                    loading.reuse_map(name, self._shared.map_fd(name))
            loading.load()
        except OSError:
            loading.close()
            raise
        self._object = loading

    @property
    def loaded(self) -> libbpf.BpfObject:
        """The object; HostUnfit before :meth:`load` and after :meth:`close`."""
        if self._object is None:
            raise HostUnfit(f"the BPF object {self.part.name} is not loaded")
        return self._object

    def map_fd(self, name: str) -> int:
        """File descriptor of a map; it stays open until :meth:`close`."""
        return self.loaded.map_fd(name)

    def program_fd(self, name: str) -> int:
        """File descriptor of a program."""
        return self.loaded.program_fd(name)

    def attach_tracepoint(self, program: str) -> libbpf.Link:
        """Attach one of :attr:`tracepoints`; HostUnfit when the kernel refuses."""
        try:
            return self.loaded.attach(program)
        except OSError as e:
            raise unfit(e, libbpf.last_message()) from None

    def flush(self) -> bool:
        """Send what is still open through the rings; False when there was no room for all of it."""
        return not self.part.flush or libbpf.run_program(self.program_fd(self.part.flush)) == 0

    def tick(self, step: int) -> None:
        """Run one of the part's ``tick`` programs; nothing if it has no such step."""
        if step < len(self.part.tick):
            libbpf.run_program(self.program_fd(self.part.tick[step]))

    def look_at_threads(self) -> None:
        """Run the part's ``threads`` program on every thread of the host; nothing if it has none."""
        if not self.part.threads:
            return
        try:
            if self._threads is None:
                self._threads = self.loaded.attach(self.part.threads)
            self._threads.iterate()
        except OSError as e:
            raise unfit(e, libbpf.last_message()) from None

    def close(self) -> None:
        """Unload; links must be closed before."""
        if self._threads is not None:
            self._threads.close()
            self._threads = None
        if self._object is not None:
            self._object.close()
            self._object = None


def unfit(error: OSError, said: str) -> HostUnfit:
    """Why the kernel refused, in words an operator can act on: what was tried, what it said, what stands in the way."""
    message = f"the kernel refused the BPF programs: {error.strerror or error}{f' ({said})' if said else ''}"
    found = obstacles("load BPF programs")
    if found:
        return HostUnfit(f"{message}; {in_words(found)}", hint="; ".join(dict.fromkeys(o.hint for o in found)))
    if isinstance(error, PermissionError):
        return HostUnfit(message, hint="run as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE")
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return HostUnfit(message, hint="this kernel has no BTF; use one built with CONFIG_DEBUG_INFO_BTF")
    return HostUnfit(message, hint="audit check says which feature is missing")
