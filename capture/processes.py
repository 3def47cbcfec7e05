"""What /proc says of a process: who it is, what it maps, and the very files it maps.

Times are CLOCK_BOOTTIME in ns. A process can be gone at any moment: then None, never an error.
"""

from __future__ import annotations

import ctypes as C
import os
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gpuaudit.capture.cgroups import Properties, cgroup_id
from gpuaudit.capture.identity import (
    MAX_CGROUP_BYTES,
    MAX_ENVIRONMENT_BYTES,
    Placement,
    Ranks,
    pid_in_namespace,
    placement,
    ranks,
)
from gpuaudit.capture.redact import redact_arguments

PROC = "/proc"
NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
"""Unit of the start time in /proc/PID/stat: 10 ms on every common kernel."""

_LINKS_OF_ONE_THREAD = 3
"""Links of the folder /proc/PID/task: two, and one for each thread."""

MAX_COMMAND_LINE_BYTES = 4096
MAX_MAPS_BYTES = 64 << 20

SYS_OPENAT2 = 437
RESOLVE_NO_MAGICLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT = 0x02, 0x08, 0x10
"""openat2(2), include/uapi/linux/openat2.h."""

_MAPPING = re.compile(
    rb"^([0-9a-f]+-[0-9a-f]+) (..x.) [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) ([0-9]+) +([^\n]*)$", re.MULTILINE
)


@dataclass(frozen=True)
class ProcessInfo:
    """Who a process is. Text is as the kernel gives it: bytes that are not UTF-8 are lone surrogates.

    Secrets that are recognised in the command line are not in it (:mod:`gpuaudit.capture.redact`).
    """

    pid: int
    start_ns: int
    parent_pid: int
    uid: int | None
    comm: str
    exe: str | None
    command_line: str | None
    placement: Placement = field(default_factory=Placement)
    ranks: Ranks = field(default_factory=Ranks)
    pid_in_namespace: int | None = None

    @property
    def cgroup(self) -> str | None:
        """Path of its cgroup, in the hierarchy that says most."""
        return self.placement.cgroup

    def row(self, op: str, role: str, seen_ns: int, *, duration_ns: int | None = None) -> dict[str, object]:
        """The row of the ``processes`` table."""
        where, ranks = self.placement, self.ranks
        return {
            "start_ns": self.start_ns, "duration_ns": duration_ns, "pid": self.pid, "op": op, "role": role,
            "parent_pid": self.parent_pid, "uid": self.uid, "comm": self.comm, "exe": self.exe,
            "command_line": self.command_line, "cgroup": where.cgroup, "seen_ns": seen_ns, "exit_status": None,
            "cgroup_id": where.version_2 and cgroup_id(where.version_2), "container_id": where.container_id,
            "container_runtime": where.container_runtime, "pod_uid": where.pod_uid,
            "job_id": where.job_id or ranks.job_id, "rank": ranks.rank, "local_rank": ranks.local_rank,
            "world_size": ranks.world_size, "rank_source": ranks.rank_source,
            "pid_in_namespace": self.pid_in_namespace, "reason": None,
        }  # fmt: skip


@dataclass(frozen=True)
class Mapping:
    """One executable mapping of a file."""

    address_range: str
    device: int
    inode: int
    path: str
    permissions: str = "r-xp"

    @property
    def file_name(self) -> str:
        """Base name of the file."""
        return file_name(self.path)

    @property
    def is_shared(self) -> bool:
        """Mapped so that others would see what is written there: no probe is ever placed in it."""
        return self.permissions.endswith("s")

    @property
    def is_writable(self) -> bool:
        """The kernel passes it over when it places a new probe (and keeps a probe that was there before)."""
        return self.permissions[1] == "w"

    @property
    def is_passed_over(self) -> bool:
        """No new probe is placed in it."""
        return self.is_shared or self.is_writable


def file_name(path: str) -> str:
    """Base name of a mapped file: without the kernel's marks for one that is unlinked or lies in memory only."""
    return path.removesuffix(" (deleted)").rpartition("/")[2].removeprefix("memfd:")


def pids() -> list[int]:
    """Every process id there is now."""
    with os.scandir(PROC) as entries:
        return [int(e.name) for e in entries if e.name.isdigit()]


def _text(path: str, limit: int = 1 << 16) -> bytes | None:
    try:
        with Path(path).open("rb") as f:
            return f.read(limit)
    except OSError:
        return None


def _fields(pid: int) -> tuple[str, list[str]] | None:
    """The comm, and the fields of /proc/PID/stat after it; the comm may hold spaces and brackets."""
    raw = _text(f"{PROC}/{pid}/stat")
    if not raw or b")" not in raw:
        return None
    head, _, rest = raw.rpartition(b")")
    return os.fsdecode(head.partition(b"(")[2]), rest.decode("ascii", "replace").split()


def start_ns(pid: int) -> int | None:
    """Start of the process (field 22 of /proc/PID/stat), to the tick."""
    fields = _fields(pid)
    return int(fields[1][19]) * NS_PER_TICK if fields else None


def is_alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie. A first thread that ended before the others looks like one."""
    fields = _fields(pid)
    return fields is not None and (fields[1][0] not in ("Z", "X") or int(fields[1][17]) > 1)


def living() -> set[tuple[int, int]]:
    """(process, its start) of all there are now: together they name a process, a number alone is given again."""
    return {(pid, start) for pid in pids() if (start := start_ns(pid)) is not None}


def why_not_followed(pid: int) -> str:
    """Why ``pid`` is no process that can be chosen for a capture; empty if it is one."""
    if not is_alive(pid):
        return "there is no such process"
    status = _text(f"{PROC}/{pid}/status") or b""
    leader = re.search(rb"^Tgid:\s+(\d+)", status, re.MULTILINE)
    if leader and int(leader.group(1)) != pid:
        return f"that is a thread of process {int(leader.group(1))}"
    if size_hint(pid) is None:
        return "that is a thread of the kernel, which uses no library"
    return ""


def read_process(pid: int) -> ProcessInfo | None:
    """Who ``pid`` is; None when it is gone."""
    fields = _fields(pid)
    if fields is None:
        return None
    comm, rest = fields
    status = _text(f"{PROC}/{pid}/status") or b""
    live = with_memory(pid)
    command = _text(f"{PROC}/{live}/cmdline", MAX_COMMAND_LINE_BYTES)
    try:
        exe: str | None = str(Path(f"{PROC}/{live}/exe").readlink())
    except OSError:
        exe = None
    return ProcessInfo(
        pid, int(rest[19]) * NS_PER_TICK, int(rest[1]), _real_uid(status), comm, exe,
        " ".join(redact_arguments(os.fsdecode(command.rstrip(b"\0")).split("\0"))) if command else None,
        placement(_text(f"{PROC}/{pid}/cgroup", MAX_CGROUP_BYTES) or b""),
        ranks(_text(f"{PROC}/{live}/environ", MAX_ENVIRONMENT_BYTES) or b""),
        pid_in_namespace(status),
    )  # fmt: skip


def _real_uid(status: bytes) -> int | None:
    found = re.search(rb"^Uid:\s+(\d+)", status, re.MULTILINE)
    return int(found[1]) if found else None


def properties(pid: int) -> Properties | None:
    """What the rules of a selection look at; None when the process is gone."""
    fields = _fields(pid)
    if fields is None:
        return None
    where = placement(_text(f"{PROC}/{pid}/cgroup", MAX_CGROUP_BYTES) or b"")
    return Properties(_real_uid(_text(f"{PROC}/{pid}/status") or b""), fields[0], where.version_2)


def with_memory(pid: int) -> int:
    """The number to ask for what a process has in memory: its own, or another thread's where the first one has ended.

    The kernel answers for any thread, and has nothing for a first thread that left by pthread_exit(3).
    """
    try:
        if os.stat(f"{PROC}/{pid}/task").st_nlink <= _LINKS_OF_ONE_THREAD:  # noqa: PTH116 - asked of each kernel thread
            return pid
        fields = _fields(pid)
        if fields is None or fields[1][0] != "Z":
            return pid
        threads = [int(entry.name) for entry in Path(f"{PROC}/{pid}/task").iterdir()]
    except OSError:
        return pid
    return next((t for t in threads if not (_text(f"{PROC}/{t}/statm") or b"0 ").startswith(b"0 ")), pid)


def size_hint(pid: int, *, any_thread: bool = True) -> bytes | None:
    """Changes whenever something is mapped, and costs far less to read than the maps; None for a kernel thread.

    ``any_thread`` false: None too where the first thread has ended, which spares asking that of each kernel thread.
    """
    raw = _text(f"{PROC}/{pid}/statm")
    if any_thread and raw is not None and raw.startswith(b"0 "):
        raw = _text(f"{PROC}/{with_memory(pid)}/statm")
    if raw is None or raw.startswith(b"0 "):
        return None
    fields = raw.split()
    return b" ".join((fields[0], fields[3], fields[5])) if len(fields) > 5 else raw


def mappings(pid: int) -> Iterator[Mapping]:
    """Executable mappings of files, one per file: the first where probes can be placed, if there is one."""
    found: dict[tuple[int, int], Mapping] = {}
    for match in _MAPPING.finditer(_text(f"{PROC}/{with_memory(pid)}/maps", MAX_MAPS_BYTES) or b""):
        addresses, permissions, major, minor, inode, path = match.groups()
        file = (os.makedev(int(major, 16), int(minor, 16)), int(inode))
        known = found.get(file)
        if file[1] and (known is None or known.is_passed_over):
            # The kernel writes a newline in a path as \012, and nothing else in another way.
            name = os.fsdecode(path.replace(rb"\012", b"\n"))
            mapping = Mapping(addresses.decode(), *file, name, permissions.decode())
            if known is None or not mapping.is_passed_over:
                found[file] = mapping
    yield from found.values()


def children(of: set[int]) -> set[int]:
    """``of`` and all their descendants that are alive."""
    parents = {pid: int(fields[1][1]) for pid in pids() if (fields := _fields(pid))}
    found = set(of)
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return found
        found |= more


class CannotOpen(Exception):
    """A mapped file cannot be opened; the message says why, in words for the ``libraries`` table."""


class Ended(CannotOpen):
    """The process is gone, or a zombie: what it had mapped cannot be looked at any more."""

    def __init__(self) -> None:
        super().__init__("the process ended before it could be looked at")


def open_mapping(pid: int, mapping: Mapping) -> int:
    """A descriptor of the very file that ``pid`` has mapped, whatever stands at its path now.

    /proc/PID/map_files leads there without a path. Where that is not permitted, the path is resolved inside the
    process's own root, absolute links included, and device and inode must be the mapping's.
    """
    pid = with_memory(pid)
    fd = _open_map_file(pid, mapping)
    if fd is not None:
        return fd
    try:
        root = os.open(f"{PROC}/{pid}/root", os.O_PATH | os.O_CLOEXEC)
        try:
            fd = _regular(open_inside(root, mapping.path))
        finally:
            os.close(root)
    except OSError as e:
        if _has_ended(pid):
            raise Ended from None
        raise CannotOpen(f"the mapped file cannot be opened: {e.strerror}") from None
    found = os.fstat(fd)
    if (found.st_dev, found.st_ino) != (mapping.device, mapping.inode):
        os.close(fd)
        raise CannotOpen(
            f"the path leads to another file now: inode {found.st_ino} on device {found.st_dev}, mapped is inode "
            f"{mapping.inode} on device {mapping.device}"
        )
    return fd


def _has_ended(pid: int) -> bool:
    """Also while the process is ending: its memory is gone before it is a zombie, and no other thread has any."""
    fields = _fields(pid)
    if fields is None or int(fields[1][17]) <= 1:
        return not is_alive(pid) or size_hint(pid) is None
    return False


def _open_map_file(pid: int, mapping: Mapping) -> int | None:
    """Through map_files; None where that is not permitted."""
    ranges = [mapping.address_range]
    for _ in range(3):  # the loader may split a mapping between our reading the maps and opening it: look again
        for addresses in ranges:
            try:
                path = f"{PROC}/{pid}/map_files/{_short(addresses)}"
                return _regular(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            except PermissionError:
                return None
            except FileNotFoundError:
                continue
            except OSError as e:
                if _has_ended(pid):
                    raise Ended from None
                raise CannotOpen(f"the mapped file cannot be opened: {e.strerror}") from None
        same = (mapping.device, mapping.inode)
        ranges = [m.address_range for m in mappings(pid) if (m.device, m.inode) == same]
    return None


def _short(address_range: str) -> str:
    """map_files names ranges without leading zeros, maps pads them."""
    first, last = address_range.split("-")
    return f"{int(first, 16):x}-{int(last, 16):x}"


def _regular(fd: int) -> int:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CannotOpen("the mapped file is not a regular file")
    return fd


def open_inside(
    root: int, path: str, *, flags: int = os.O_RDONLY | os.O_NONBLOCK, resolve: int = RESOLVE_IN_ROOT
) -> int:
    """openat2(2) under ``root``, which no link of the path leads out of; OSError as the kernel says."""
    how = struct.pack("<QQQ", flags | os.O_CLOEXEC, 0, resolve | RESOLVE_NO_MAGICLINKS)
    libc = C.CDLL(None, use_errno=True)
    fd = libc.syscall(SYS_OPENAT2, root, os.fsencode(path), C.create_string_buffer(how, len(how)), len(how))
    if fd < 0:
        number = C.get_errno()
        raise OSError(number, os.strerror(number))
    return int(fd)
