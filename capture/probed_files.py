"""Libraries that are probed, one entry per file: a file is read and attached once, whoever maps it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from gpuaudit.capture import libbpf
from gpuaudit.capture.attach import Attachment, Place, Programs, cookie
from gpuaudit.capture.file_changes import FileChanges
from gpuaudit.capture.probes import Library, Probe, op_id
from gpuaudit.capture.processes import file_name
from gpuaudit.capture.selection import DENIED
from gpuaudit.capture.source import boottime_ns
from gpuaudit.capture.symbol_cache import SymbolCache
from gpuaudit.capture.symbols import Function, NotElf, Symbols

MAX_PROBES = 262_144
"""Entries of the BPF map ``probe_counts``, as in capture/bpf/ops.h: 4 MiB, enough for 800 containers that come and go,
each with its own copy of the runtime (251 functions) and NCCL (49), or its own view of one copy."""

MAX_MERGED = 32
"""Files merged into others whose probes the map ``twins`` (16,384 entries) keeps in mind."""

MAX_NOT_OBSERVED = 2000
"""Names listed of what a library exports and nobody probes. A name has at most 255 characters, and a message 1 MiB."""

_COUNT = struct.Struct("<QQ")
_INDEX = struct.Struct("<I")


@dataclass(frozen=True)
class Attached:
    """One probed function. ``index`` is its place in the map of counters."""

    index: int
    probe: Probe
    function: Function


@dataclass
class ProbedFile:
    """One file: what was attached, when, and why not where not."""

    library: Library
    path: str
    stamp: tuple[int, int, int] = (0, 0, 0)
    """Size and times of change: a file that is not probed can go, and another one get its inode."""
    build_id: str | None = None
    attached: list[Attached] = field(default_factory=list)
    attachment: Attachment | None = None
    attached_ns: int = 0
    not_observed: tuple[str, ...] = ()
    not_observed_count: int | None = None
    reason: str | None = None
    """Why it is not probed."""
    note: str | None = None
    """What is to be known of its calls although it is."""


class ProbedFiles:
    """Every file met so far, by device and inode. ``costs_ns``: instruction kind → measured cost of a probe pair.

    ``denied``: (library, op) of functions that the site's policy does not let be probed.
    """

    def __init__(
        self, programs: Programs, sources: frozenset[str], costs_ns: Mapping[str, int],
        denied: frozenset[tuple[str, str]] = frozenset(),
    ) -> None:  # fmt: skip
        self._programs = programs
        self._sources = sources
        self._denied = denied
        self._costs_ns = costs_ns
        self._files: dict[tuple[int, int], ProbedFile] = {}
        self.changes = FileChanges()
        self.symbols = SymbolCache()
        self._next = 1  # counter 0 is the self test's
        self._gone: list[tuple[tuple[int, int], ProbedFile]] = []
        self._twins_noted = 0
        self._merged: list[ProbedFile] = []
        """Files that others stand for, whose probes are still in the map ``twins``."""

    def add(self, fd: int, library: Library, path: str) -> tuple[ProbedFile, bool]:
        """The file behind ``fd``, attached if it was not yet; and whether this call is what attached it."""
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino)
        known = self._files.get(key)
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if known is not None and known.attached and known.stamp[:2] != stamp[:2]:
            self._let_go(key)
        elif known is not None and (known.attached or known.stamp == stamp):  # a probe holds its inode
            return known, False
        self.changes.watch(fd, key)
        file = self._files[key] = ProbedFile(library, path, stamp)
        if library.source not in self._sources:
            file.reason = f"source {library.source} was not asked for"
            return file, False
        try:
            names = frozenset(n for p in library.probes for n in p.names)
            symbols = self.symbols.read(fd, names, library.exports)
        except NotElf as e:
            file.reason = str(e)
            return file, False
        self._attach(fd, file, symbols)
        return file, bool(file.attached)

    def written(self) -> list[tuple[tuple[int, int], ProbedFile]]:
        """Files (device and inode) that were written to since the last call: their probes are gone."""
        for key in self.changes.take():
            if key in self._files:
                self._let_go(key)
        gone, self._gone = self._gone, []
        return gone

    def _let_go(self, key: tuple[int, int]) -> None:
        """Forget a file; detach it unless it is probed under another number too (then what was written is a copy)."""
        file = self._files.pop(key)
        if file.attachment and all(f is not file for f in self._files.values()):
            file.attachment.detach_entries()
            file.attachment.detach_returns()
        if file.attachment:
            self._gone.append((key, file))

    def attached_file(self, device: int, inode: int) -> ProbedFile | None:
        """The file that a mapping names, if it is probed. A probe holds its inode: the numbers mean no other file."""
        file = self._files.get((device, inode))
        return file if file is not None and file.attached else None

    def _attach(self, fd: int, file: ProbedFile, symbols: Symbols) -> None:
        file.build_id = symbols.build_id
        found = list(_chosen(file, symbols))
        file.note = _one_for_several(file, symbols, found)
        wanted = [(probe, f) for probe, f in found if (file.library.name, probe.op) not in self._denied]
        observed = {name for probe, _ in wanted for name in probe.names}
        others = [n for n in symbols.exports if n not in observed]
        file.not_observed, file.not_observed_count = _some(others), len(others)
        if not wanted:
            file.reason = DENIED if found else "none of the functions in the probe table is exported"
        elif self._next + len(wanted) > MAX_PROBES:
            file.reason = f"all {MAX_PROBES} probes are in use"
        if file.reason:
            return
        attached = [Attached(self._next + i, probe, function) for i, (probe, function) in enumerate(wanted)]
        places = [Place(a.function.offset, cookie(a.index, op_id(a.probe))) for a in attached]
        try:
            # Through the open descriptor: the file that was read is the file that is probed.
            file.attachment = self._programs.attach_functions(f"/proc/self/fd/{fd}", places)
        except OSError as e:
            file.reason = self._programs.refusal(e)
            return
        self._next += len(wanted)
        file.attached, file.attached_ns = attached, boottime_ns()

    def __iter__(self) -> Iterator[ProbedFile]:
        return iter({id(file): file for file in self._files.values()}.values())

    def merge_twins(self) -> list[ProbedFile]:
        """Detach files that the kernel found to be others which are probed, and let those stand for them.

        A file that lies under several overlays (containers of one image) has another number in each. All of them are
        probed; a call is recorded once all the same, and every further container would make it cost more. Where
        detaching is slow (one perf event per place) they stay, and cost that.
        """
        merged: list[ProbedFile] = []
        for twin, other in self._new_twins():
            twin_file, file = self._file_of(twin), self._file_of(other)
            attachment = twin_file and twin_file.attachment
            if not (twin_file and file and attachment and attachment.mechanism == "uprobe_multi"):
                continue
            if twin_file is file or not _same_functions(twin_file, file):
                continue
            for a, b in zip(twin_file.attached, file.attached, strict=True):  # for calls that are open now
                libbpf.map_update(self._programs.map_fd("twins"), _INDEX.pack(a.index), _INDEX.pack(b.index))
            attachment.detach_entries()
            attachment.detach_returns()
            self._files = {key: file if f is twin_file else f for key, f in self._files.items()}
            merged.append(twin_file)
        self._merged += merged
        while len(self._merged) > MAX_MERGED:  # whatever was open then is over
            for a in self._merged.pop(0).attached:
                libbpf.map_delete(self._programs.map_fd("twins"), _INDEX.pack(a.index))
        return merged

    def _new_twins(self) -> list[tuple[int, int]]:
        """(probe that counts nothing, the one that counts for it), if the entry programs found any since."""
        raw = libbpf.map_lookup(self._programs.map_fd("twins_noted"), _INDEX.pack(0), 8) or bytes(8)
        noted, self._twins_noted = self._twins_noted, int.from_bytes(raw, "little")
        if noted == self._twins_noted:
            return []
        fd = self._programs.map_fd("twins")
        found = [(key, libbpf.map_lookup(fd, key, _INDEX.size)) for key in list(libbpf.map_keys(fd, _INDEX.size))]
        return [(_INDEX.unpack(key)[0], _INDEX.unpack(value)[0]) for key, value in found if value is not None]

    def _file_of(self, index: int) -> ProbedFile | None:
        return next((f for f in self if f.attached and f.attached[0].index <= index <= f.attached[-1].index), None)

    def detach(self) -> None:
        """All entry probes first, then the return probes. Twice does no harm."""
        attachments = [file.attachment for file in self if file.attachment]
        for at_return in (False, True) if attachments else ():
            self._programs.silence(at_return=at_return)
            for attachment in attachments:
                attachment.leave(at_return=at_return)

    def rows(self, file: ProbedFile, detached_ns: int | None = None) -> list[dict[str, object]]:
        """Rows of the ``probes`` table: at attach, and with what was counted once ``detached_ns`` is given."""
        out: list[dict[str, object]] = []
        for a in file.attached:
            hits, unmatched = self._count(a.index) if detached_ns else (None, None)
            out.append({
                "start_ns": file.attached_ns, "duration_ns": detached_ns and detached_ns - file.attached_ns,
                "op": a.probe.op, "library": file.library.name, "path": file.path, "offset": a.function.offset,
                "mechanism": file.attachment and file.attachment.mechanism, "instruction": a.function.instruction,
                "expected_cost_ns": self._costs_ns.get(a.function.instruction), "hits": hits, "unmatched": unmatched,
                "misses": None, "probe": a.index,
            })  # fmt: skip
        return out

    def _count(self, index: int) -> tuple[int, int]:
        raw = libbpf.map_lookup(self._programs.map_fd("probe_counts"), struct.pack("<I", index), _COUNT.size)
        hits, unmatched = _COUNT.unpack(raw or bytes(_COUNT.size))
        return hits, unmatched


def _same_functions(one: ProbedFile, other: ProbedFile) -> bool:
    """Whether they are one file as far as one can tell: then the probes of either serve both."""
    if (one.library, one.build_id) != (other.library, other.build_id):
        return False
    return [(a.probe.op, a.function) for a in one.attached] == [(a.probe.op, a.function) for a in other.attached]


def _some(names: Iterable[str]) -> tuple[str, ...]:
    """The file belongs to the audited workload: it may export as many names as it likes."""
    first = tuple(names)
    more = len(first) - MAX_NOT_OBSERVED
    return first if more <= 0 else (*first[:MAX_NOT_OBSERVED], f"and {more} more")


def _chosen(file: ProbedFile, symbols: Symbols) -> Iterator[tuple[Probe, Function]]:
    """One function per probe, and one probe per place: names that share an address are one function."""
    taken: set[int] = set()
    base_name = file_name(file.path)
    for probe in file.library.probes:
        if not probe.is_of(base_name):
            continue
        for name in probe.names:
            function = symbols.functions.get(name)
            if function is not None and function.offset not in taken:
                taken.add(function.offset)
                yield probe, function
                break


def _one_for_several(file: ProbedFile, symbols: Symbols, found: list[tuple[Probe, Function]]) -> str | None:
    """Other operations whose names lead to a probed function: a linker makes one of those that have the same code."""
    chosen, op_at = {id(probe) for probe, _ in found}, {function.offset: probe.op for probe, function in found}
    base_name = file_name(file.path)
    others = [
        f"{probe.op} as {op_at[symbols.functions[name].offset]}"
        for probe in file.library.probes
        if id(probe) not in chosen and probe.is_of(base_name)
        for name in probe.names
        if name in symbols.functions and symbols.functions[name].offset in op_at
    ]
    return f"functions that are one in this file are recorded under one name: {', '.join(others)}" if others else None
