"""Attaching the entry and return programs to functions of a file.

Functions are probed through uprobe_multi links (Linux 6.6 and later), otherwise through one perf event per place.
"""

from __future__ import annotations

import ctypes as C
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gpuaudit.capture import libbpf
from gpuaudit.capture.loading import LoadedPart
from gpuaudit.capture.parts import CALLS
from gpuaudit.capture.probes import NCCL_DATATYPE_BYTES, PROBE_TABLE, pack_op

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


def cookie(probe_index: int, op_id: int) -> int:
    """What an attached probe tells its programs: which counter is its own, and which op it is."""
    return probe_index << 32 | op_id


class Programs(LoadedPart):
    """The object ``calls``. ``mechanism``: the one to use, None to try the best one first."""

    def __init__(
        self, *, mechanism: Mechanism | None = None, ring_sizes_bytes: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(CALLS, ring_sizes_bytes=ring_sizes_bytes)
        self._mechanisms: tuple[Mechanism, ...] = (mechanism,) if mechanism else MECHANISMS

    def load(self, more: frozenset[str] = frozenset(), types: Mapping[str, tuple[int, int]] | None = None) -> None:
        """Load the object, and describe the probe table to it."""
        functions = {f"{way}_{_SUFFIX[m]}" for m in self._mechanisms for way in ("enter", "leave")}
        multi = (libbpf.BPF_PROG_TYPE_KPROBE, BPF_TRACE_UPROBE_MULTI)
        super().load(more | functions, {"enter_multi": multi, "leave_multi": multi, **(types or {})})
        self._describe()

    def _describe(self) -> None:
        for op_id, probe in enumerate(PROBE_TABLE):
            libbpf.map_update(self.map_fd("ops"), struct.pack("<I", op_id), pack_op(probe))
        for datatype, size in enumerate(NCCL_DATATYPE_BYTES):
            libbpf.map_update(self.map_fd("datatype_bytes"), struct.pack("<I", datatype), struct.pack("<I", size))

    def attach_functions(self, path: str, places: Sequence[Place]) -> Attachment:
        """Probe entry and return of functions of a file, for every process.

        The return probes come first, so that no call is seen whose return is not. OSError when no mechanism works;
        nothing stays attached then. A mechanism that failed once is not tried again.
        """
        failures: list[OSError] = []
        for mechanism in self._mechanisms:
            try:
                returns = self._attach(mechanism, path, places, at_return=True)
            except OSError as e:
                failures.append(e)
                continue
            try:
                entries = self._attach(mechanism, path, places, at_return=False)
            except OSError as e:
                failures.append(e)
                for link in returns:
                    link.close()
                continue
            self._mechanisms = (mechanism,)
            return Attachment(mechanism, entries, returns)
        raise failures[0]

    def _attach(self, mechanism: Mechanism, path: str, places: Sequence[Place], at_return: bool) -> list[libbpf.Link]:
        name = f"{'leave' if at_return else 'enter'}_{_SUFFIX[mechanism]}"
        if mechanism == "uprobe_multi":
            return [_uprobe_multi(self.program_fd(name), path, places, at_return)]
        links: list[libbpf.Link] = []
        try:
            for place in places:
                links.append(
                    self.loaded.attach_uprobe(name, path, place.offset, at_return=at_return, cookie=place.cookie)
                )
        except OSError:
            for link in links:
                link.close()
            raise
        return links


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
