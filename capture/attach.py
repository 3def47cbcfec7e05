"""Attaching the entry and return programs to functions of a file.

Functions are probed through uprobe_multi links (Linux 6.6 and later), otherwise through one perf event per place.
"""

from __future__ import annotations

import ctypes as C
import errno
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gpuaudit.bundle.errors import HostUnfit
from gpuaudit.capture import libbpf, perf_uprobes
from gpuaudit.capture.capabilities import CapabilitySets
from gpuaudit.capture.keeper_child import KEPT
from gpuaudit.capture.loading import LoadedPart
from gpuaudit.capture.obstacles import Step, in_words, obstacles
from gpuaudit.capture.parts import CALLS
from gpuaudit.capture.probes import NCCL_DATATYPE_BYTES, PROBE_TABLE, pack_op
from gpuaudit.capture.settings import CONFIG_BYTES, silenced
from gpuaudit.capture.uprobe_desk import UprobeDesk

BPF_TRACE_UPROBE_MULTI = 48
BPF_F_UPROBE_MULTI_RETURN = 1
"""include/uapi/linux/bpf.h, since Linux 6.6; libbpf 1.1 does not know them, so the link is made by bpf(2) itself."""

Mechanism = Literal["uprobe_multi", "perf uprobe"]
MECHANISMS: tuple[Mechanism, ...] = ("uprobe_multi", "perf uprobe")
_SUFFIX: dict[Mechanism, str] = {"uprobe_multi": "multi", "perf uprobe": "perf"}


@dataclass(frozen=True)
class Place:
    """One function to probe: its offset in the file, and what the programs are told (the cookie)."""

    offset: int
    cookie: int


@dataclass(frozen=True)
class Attachment:
    """Links of the entry and of the return probes of one file."""

    mechanism: Mechanism
    entries: list[libbpf.Link]
    returns: list[libbpf.Link]

    def detach_entries(self) -> None:
        """First of the two: a call that is running is still seen to return."""
        for link in self.entries:
            link.close()

    def detach_returns(self) -> None:
        """Last of the two."""
        for link in self.returns:
            link.close()

    def leave(self, *, at_return: bool) -> None:
        """The same at the end of a capture, once :meth:`Programs.silence` has been called."""
        for link in self.returns if at_return else self.entries:
            link.leave()


def cookie(probe_index: int, op_id: int) -> int:
    """What an attached probe tells its programs: which counter is its own, and which op it is."""
    return probe_index << 32 | op_id


class Programs(LoadedPart):
    """The object ``calls``. ``mechanism``: the one to use, None for the best one. ``stacks``: with the return programs
    that can take stacks, whose load takes several times as long."""

    def __init__(
        self, *, mechanism: Mechanism | None = None, ring_sizes_bytes: Mapping[str, int] | None = None,
        stacks: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(CALLS, ring_sizes_bytes=ring_sizes_bytes)
        self._mechanisms: tuple[Mechanism, ...] = (mechanism,) if mechanism else MECHANISMS
        self._stacks = stacks
        self._desk: UprobeDesk | None = None
        self.why_no_stacks: HostUnfit | None = None
        """Why the kernel refuses the programs that take stacks, where it does: then calls are recorded without."""

    def load(self, more: frozenset[str] = frozenset(), types: Mapping[str, tuple[int, int]] | None = None) -> None:
        """Load the object, with stacks if this kernel lets us, and describe the probe table to it."""
        if len(self._mechanisms) > 1 and not _has_uprobe_multi():
            self._mechanisms = ("perf uprobe",)
        self._mechanisms = self._mechanisms[:1]
        try:
            self._load_functions(more, types or {})
        except HostUnfit as e:
            if not self._stacks:
                raise
            self._stacks, self.why_no_stacks = False, e
            self._load_functions(more, types or {})
        self._describe()

    def _load_functions(self, more: frozenset[str], types: Mapping[str, tuple[int, int]]) -> None:
        functions = self.function_programs(self._mechanisms[0])
        multi = (libbpf.BPF_PROG_TYPE_KPROBE, BPF_TRACE_UPROBE_MULTI)
        kinds = dict.fromkeys(functions, multi) if self._mechanisms[0] == "uprobe_multi" else {}
        super().load(more | frozenset(functions), {**kinds, **types})

    def function_programs(self, mechanism: Mechanism) -> tuple[str, str]:
        """Names of the programs at entry and at return, which all probed functions share."""
        return f"enter_{_SUFFIX[mechanism]}", f"leave_{'stacks_' if self._stacks else ''}{_SUFFIX[mechanism]}"

    def _describe(self) -> None:
        for op_id, probe in enumerate(PROBE_TABLE):
            libbpf.map_update(self.map_fd("ops"), struct.pack("<I", op_id), pack_op(probe))
        for datatype, size in enumerate(NCCL_DATATYPE_BYTES):
            libbpf.map_update(self.map_fd("datatype_bytes"), struct.pack("<I", datatype), struct.pack("<I", size))

    def attach_functions(self, path: str, places: Sequence[Place], *, returns_too: bool = True) -> Attachment:
        """Probe entry and return of functions of a file, for every process.

        The return probes come first, so that no call is seen whose return is not. OSError when the kernel refuses;
        nothing stays attached then. ``returns_too`` false: the entries alone, to measure what they cost.
        """
        mechanism = self._mechanisms[0]
        returns = self._attach(mechanism, path, places, at_return=True) if returns_too else []
        try:
            entries = self._attach(mechanism, path, places, at_return=False)
        except OSError:
            for link in returns:
                link.close()
            raise
        return Attachment(mechanism, entries, returns)

    def _attach(self, mechanism: Mechanism, path: str, places: Sequence[Place], at_return: bool) -> list[libbpf.Link]:
        name = self.function_programs(mechanism)[at_return]
        if mechanism == "uprobe_multi":
            return [_uprobe_multi(self.program_fd(name), path, places, at_return)]
        links: list[libbpf.Link] = []
        try:
            for place in places:
                program = self.program_fd(name)
                event = self._open_event(path, place.offset, at_return=at_return)
                links.append(perf_uprobes.attach(program, event, place.cookie))
        except OSError:
            for link in links:
                link.close()
            raise
        return links

    @property
    def mechanism(self) -> Mechanism:
        """How functions are probed, once loaded."""
        return self._mechanisms[0]

    @property
    def step(self) -> Step:
        """What attaching is called where the kernel refuses it."""
        return "probe functions" if self._mechanisms[0] == "uprobe_multi" else "probe functions by perf events"

    def why_not_permitted(self) -> str:
        """What can have made the kernel refuse whoever attaches, in words; empty where nothing is known to."""
        return in_words(obstacles(self.step, KEPT if self._desk else None))

    def refusal(self, error: OSError) -> str:
        """Why :meth:`attach_functions` failed, in words: the kernel refused it, or nobody is left who may ask it."""
        if isinstance(error, BrokenPipeError | TimeoutError):  # neither is what the kernel says of a probe
            return f"the probes could not be attached: {error.strerror}"
        why = self.why_not_permitted() if isinstance(error, PermissionError) else ""
        return f"the kernel refused the probes: {error.strerror}{why and '; ' + why}"

    def keep_probing(self) -> int | None:
        """Before this process gives CAP_SYS_ADMIN up: where probing takes it, the process that goes on having it."""
        if self._mechanisms[0] == "perf uprobe" and "CAP_SYS_ADMIN" in CapabilitySets.of().effective:
            self._desk = UprobeDesk()
            return self._desk.pid
        return None

    def _open_event(self, path: str, offset: int, *, at_return: bool) -> int:
        return (self._desk or perf_uprobes).open_event(path, offset, at_return=at_return)

    def silence(self, *, at_return: bool) -> None:
        """Have the entry programs do nothing any more, or the return programs: as good as detached, and at once."""
        key = struct.pack("<I", 0)
        told = libbpf.map_lookup(self.map_fd("settings"), key, CONFIG_BYTES) or bytes(CONFIG_BYTES)
        libbpf.map_update(self.map_fd("settings"), key, silenced(told, at_return=at_return))

    def close(self) -> None:
        """Unload; links must be closed or left before."""
        super().close()
        perf_uprobes.close_left()
        if self._desk:
            self._desk.close()
            self._desk = None


def _uprobe_multi(program_fd: int, path: str, places: Sequence[Place], at_return: bool) -> libbpf.Link:
    """BPF_LINK_CREATE with ``link_create.uprobe_multi``."""
    name = C.create_string_buffer(os.fsencode(path))
    offsets = (C.c_uint64 * len(places))(*(p.offset for p in places))
    cookies = (C.c_uint64 * len(places))(*(p.cookie for p in places))
    flags = BPF_F_UPROBE_MULTI_RETURN if at_return else 0
    # program, target, attach type, flags; then path, offsets, reference counters, cookies, count, flags, pid
    attributes = struct.pack("<IIII", program_fd, 0, BPF_TRACE_UPROBE_MULTI, 0) + struct.pack(
        "<QQQQIII", C.addressof(name), C.addressof(offsets), 0, C.addressof(cookies), len(places), flags, 0
    )
    fd, _ = libbpf.bpf(libbpf.BPF_LINK_CREATE, attributes)
    return libbpf.Link(fd=fd)


def _has_uprobe_multi() -> bool:
    """Whether the kernel knows the link: asked with a program that does nothing and a file that is none."""
    # mov r0, 0; exit
    code, licence = C.create_string_buffer(bytes.fromhex("b700000000000000 9500000000000000"), 16), C.c_char_p(b"GPL")
    # type, instructions, licence; log, kernel version, flags; name, interface, attach type
    attributes = struct.pack(
        "<IIQQIIQII16sII", libbpf.BPF_PROG_TYPE_KPROBE, 2, C.addressof(code), C.cast(licence, C.c_void_p).value or 0,
        0, 0, 0, 0, 0, b"gpuaudit_try", 0, BPF_TRACE_UPROBE_MULTI,
    )  # fmt: skip
    try:
        fd, _ = libbpf.bpf(libbpf.BPF_PROG_LOAD, attributes)
    except OSError:
        return False
    try:
        _uprobe_multi(fd, "/", [Place(0, 0)], at_return=False).close()
    except OSError as e:
        return e.errno == errno.EBADF  # it looked at the file; a kernel that does not know the link says EINVAL
    finally:
        os.close(fd)
    return True
