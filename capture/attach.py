"""Loading the BPF programs, and attaching them to functions of a file and to kernel tracepoints.

Features are found by trying, never by kernel version: the first variant of a program that the kernel accepts is used.
Functions are probed through uprobe_multi links (Linux 6.6 and later), otherwise through one perf event per place.
"""

from __future__ import annotations

import ctypes as C
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpuaudit.bundle.errors import HostUnfit
from gpuaudit.capture import libbpf
from gpuaudit.capture.probes import NCCL_DATATYPE_BYTES, PROBE_TABLE, RING_TABLES, pack_op

OBJECT = Path(__file__).resolve().parent / "bpf" / "audit.bpf.o"

BPF_TRACE_UPROBE_MULTI = 48
BPF_F_UPROBE_MULTI_RETURN = 1
"""include/uapi/linux/bpf.h, since Linux 6.6; libbpf 1.1 does not know them, so the link is made by bpf(2) itself."""

Mechanism = Literal["uprobe_multi", "perf uprobe"]
MECHANISMS: tuple[Mechanism, ...] = ("uprobe_multi", "perf uprobe")
_SUFFIX: dict[Mechanism, str] = {"uprobe_multi": "multi", "perf uprobe": "perf"}

RING_SIZES_BYTES: dict[str, int] = {
    "cuda_calls": 16 << 20, "nccl_calls": 4 << 20, "nccl_comms": 1 << 18, "off_cpu": 16 << 20,
}  # fmt: skip
"""Powers of two. At 136 bytes a call, 16 MiB hold 123,000 calls: 1.2 s of 100,000 calls/s until the first is lost."""

INTERRUPT_WATCH = (
    "on_softirq_entry", "on_softirq_exit", "on_irq_handler_entry", "on_irq_handler_exit", "on_hrtimer_expire_entry",
    "on_hrtimer_expire_exit",
)  # fmt: skip
WAKING_VARIANTS: tuple[tuple[str, ...], ...] = (
    ("on_waking",), ("on_waking_hot",), ("on_waking_watched", *INTERRUPT_WATCH), (),
)  # fmt: skip
"""Ways to tell a waking thread from an interrupt, best first; the last one leaves wakers out of the evidence."""
SWITCH_VARIANTS = ("on_switch_state", "on_switch")
PROCESS_PROGRAMS = ("on_fork", "on_exec", "on_exit")

TRACEPOINTS: dict[str, str] = {
    "on_fork": "sched_process_fork", "on_exec": "sched_process_exec", "on_exit": "sched_process_exit",
    "on_switch_state": "sched_switch", "on_switch": "sched_switch", "on_waking": "sched_waking",
    "on_waking_hot": "sched_waking", "on_waking_watched": "sched_waking", "on_wakeup": "sched_wakeup",
    **{name: name.removeprefix("on_") for name in INTERRUPT_WATCH},
}  # fmt: skip
"""Tracepoint of each program that is attached by its section's name."""


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


class Programs:
    """The loaded object. ``mechanism``: the one to use, None to try the best one first."""

    def __init__(
        self, *, off_cpu: bool = True, mechanism: Mechanism | None = None,
        ring_sizes_bytes: Mapping[str, int] = RING_SIZES_BYTES,
    ) -> None:  # fmt: skip
        self._ring_sizes = {**RING_SIZES_BYTES, **ring_sizes_bytes}
        self._off_cpu = off_cpu
        self._mechanisms: tuple[Mechanism, ...] = (mechanism,) if mechanism else MECHANISMS
        self._object: libbpf.BpfObject | None = None
        self.tracepoints: list[str] = []
        """Programs to attach with :meth:`attach_tracepoint`."""

    def load(self) -> None:
        """Load the first combination of variants that this kernel accepts, and describe the probe table to it.

        HostUnfit when none is: it names the last reason the kernel gave.
        """
        if not OBJECT.is_file():
            raise HostUnfit(f"{OBJECT.name} is not installed", hint="run scripts/build-bpf, or install again")
        data = OBJECT.read_bytes()
        failures: list[HostUnfit] = []
        for switch, waking in self._variants():
            wanted = [*PROCESS_PROGRAMS, *((switch, *waking, "on_wakeup") if self._off_cpu else ())]
            functions = [f"{way}_{_SUFFIX[m]}" for m in self._mechanisms for way in ("enter", "leave")]
            try:
                self._load(data, {*wanted, *functions, "flush_open"})
            except OSError as e:
                failures.append(_unfit(e, libbpf.last_message()))
                continue
            self.tracepoints = wanted
            self._describe()
            return
        raise failures[0]

    def _variants(self) -> list[tuple[str, tuple[str, ...]]]:
        if not self._off_cpu:
            return [("", ())]
        return [(s, w) for s in SWITCH_VARIANTS for w in WAKING_VARIANTS]

    def _load(self, data: bytes, names: set[str]) -> None:
        loading = libbpf.BpfObject(data, "gpuaudit")
        try:
            loading.only(names)
            for name in ("enter_multi", "leave_multi"):
                loading.attach_type(name, libbpf.BPF_PROG_TYPE_KPROBE, BPF_TRACE_UPROBE_MULTI)
            for table, size in self._ring_sizes.items():
                loading.max_entries(f"ring_{table}", size)
            loading.max_entries("counters", libbpf.possible_cpus() * len(RING_TABLES))
            loading.load()
        except OSError:
            loading.close()
            raise
        self._object = loading

    def _describe(self) -> None:
        for op_id, probe in enumerate(PROBE_TABLE):
            libbpf.map_update(self.map_fd("ops"), struct.pack("<I", op_id), pack_op(probe))
        for datatype, size in enumerate(NCCL_DATATYPE_BYTES):
            libbpf.map_update(self.map_fd("datatype_bytes"), struct.pack("<I", datatype), struct.pack("<I", size))

    @property
    def _loaded(self) -> libbpf.BpfObject:
        if self._object is None:
            raise HostUnfit("the BPF programs are not loaded")
        return self._object

    def map_fd(self, name: str) -> int:
        """File descriptor of a map; it stays open until :meth:`close`."""
        return self._loaded.map_fd(name)

    def ring_size_bytes(self, table: str) -> int:
        """Size of the table's ring."""
        return self._ring_sizes[table]

    def program_fd(self, name: str) -> int:
        """File descriptor of a program."""
        return self._loaded.program_fd(name)

    def attach_tracepoint(self, program: str) -> libbpf.Link:
        """Attach one of :attr:`tracepoints`; HostUnfit when the kernel refuses."""
        try:
            return self._loaded.attach(program)
        except OSError as e:
            raise _unfit(e, libbpf.last_message()) from None

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
                    self._loaded.attach_uprobe(name, path, place.offset, at_return=at_return, cookie=place.cookie)
                )
        except OSError:
            for link in links:
                link.close()
            raise
        return links

    def close(self) -> None:
        """Unload; links must be closed before."""
        if self._object is not None:
            self._object.close()
            self._object = None


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


def _unfit(error: OSError, said: str) -> HostUnfit:
    """Why the kernel refused, in words an operator can act on."""
    message = f"the kernel refused the BPF programs: {error.strerror or error}{f' ({said})' if said else ''}"
    if isinstance(error, PermissionError):
        return HostUnfit(message, hint="run as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE")
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return HostUnfit(message, hint="this kernel has no BTF; use one built with CONFIG_DEBUG_INFO_BTF")
    return HostUnfit(message, hint="audit check says which feature is missing")
