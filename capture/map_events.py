"""Every executable mapping on the host, as the kernel makes it: which process, which file, when.

The kernel tells of them to a perf event that counts nothing (PERF_COUNT_SW_DUMMY with ``mmap2``), one per CPU, each
with a ring of its own. It costs nothing where no executable mapping is made, and needs CAP_PERFMON. Where it is
refused, discovery is left with reading /proc. Names are chosen by the workload: they are compared, never opened.
"""

from __future__ import annotations

import ctypes as C
import mmap
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpuaudit.bundle.errors import HostUnfit
from gpuaudit.capture.processes import file_name

NR_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
"""System call number of perf_event_open(2)."""

_PERF_TYPE_SOFTWARE, _PERF_COUNT_SW_DUMMY, _PERF_FLAG_FD_CLOEXEC = 1, 9, 8
_SAMPLE_TID, _SAMPLE_TIME = 1 << 1, 1 << 2
_EXCLUDE_KERNEL, _EXCLUDE_HV, _MMAP, _WATERMARK, _SAMPLE_ID_ALL, _MMAP2, _USE_CLOCKID = (
    1 << bit for bit in (5, 6, 8, 14, 18, 23, 25)
)
_ATTRIBUTES = struct.Struct("<IIQQQQQIIQQQQIiQIHH")
"""struct perf_event_attr up to PERF_ATTR_SIZE_VER5."""
_RECORD_LOST, _RECORD_MMAP2 = 2, 10
_HEADER, _MMAP2_BODY, _SAMPLE_ID = struct.Struct("<IHH"), struct.Struct("<IIQQQIIQQII"), struct.Struct("<IIQ")
_HEAD_OFFSET = 1024
"""include/uapi/linux/perf_event.h: numbers of bits and records, place of ``data_head`` in the first page."""

CLOCK_BOOTTIME = 7
RING_PAGES = (32, 4)
"""Data pages per CPU, powers of two: about a thousand mappings. All perf events of one user share what he may lock
(perf_event_mlock_kb, 516 kB per CPU): where another tool has most of it, the smaller number is tried."""


@dataclass(frozen=True)
class MapEvent:
    """One mapping. ``time_ns``: CLOCK_BOOTTIME. ``device``, ``inode``: of the file."""

    pid: int
    time_ns: int
    path: str
    device: int = 0
    inode: int = 0

    @property
    def file_name(self) -> str:
        """Base name of the file."""
        return file_name(self.path)


class MapEvents:
    """The rings of all CPUs. Only files whose base name is one of ``names`` (a regular expression) are handed out."""

    def __init__(self, names: str) -> None:
        self._wanted = re.compile(b"/(?:memfd:)?(?:" + os.fsencode(names) + rb")(?: \(deleted\))?\0")
        self._rings: list[tuple[int, mmap.mmap]] = []
        self.lost = 0
        """Mappings the kernel could not tell of, because a ring was full."""

    def open(self) -> None:
        """Begin; HostUnfit when the kernel refuses, and nothing stays open then."""
        why: Exception | None = None
        for pages in RING_PAGES:
            try:
                for cpu in _online_cpus():
                    self._open(cpu, pages)
            except (OSError, ValueError) as e:
                self.close()
                why = e
            else:
                return
        raise HostUnfit(f"the kernel tells of no mappings: {why}")

    def _open(self, cpu: int, pages: int) -> None:
        fd = _perf_event_open(cpu)
        try:
            self._rings.append((fd, mmap.mmap(fd, (pages + 1) * mmap.PAGESIZE)))
        except (OSError, ValueError):
            os.close(fd)
            raise

    @property
    def descriptors(self) -> list[int]:
        """Readable when there is something to :meth:`take`."""
        return [fd for fd, _ in self._rings]

    def take(self) -> list[MapEvent]:
        """What has come since the last call, of every CPU, by time."""
        found = [event for _, ring in self._rings for event in self._drain(ring)]
        return sorted(found, key=lambda e: e.time_ns)

    def close(self) -> None:
        """End. Twice does no harm."""
        for fd, ring in self._rings:
            ring.close()
            os.close(fd)
        self._rings.clear()

    def _drain(self, ring: mmap.mmap) -> Iterator[MapEvent]:
        """The kernel writes ``data_head`` after the data, and x86-64 keeps that order for the reader."""
        head, tail = struct.unpack_from("<QQ", ring, _HEAD_OFFSET)
        data = self._copy(ring, tail, head)
        struct.pack_into("<Q", ring, _HEAD_OFFSET + 8, head)
        at = 0
        while at + _HEADER.size <= len(data):
            kind, _, size = _HEADER.unpack_from(data, at)
            if size < _HEADER.size or at + size > len(data):
                return
            record = data[at + _HEADER.size : at + size]
            at += size
            if kind == _RECORD_LOST:
                self.lost += struct.unpack_from("<Q", record, 8)[0]
            elif kind == _RECORD_MMAP2 and self._wanted.search(record, _MMAP2_BODY.size):
                yield _event(record)

    @staticmethod
    def _copy(ring: mmap.mmap, tail: int, head: int) -> bytes:
        size = len(ring) - mmap.PAGESIZE
        first, last, start = tail % size, head % size, mmap.PAGESIZE
        if head == tail:
            return b""
        if first < last:
            return ring[start + first : start + last]
        return ring[start + first : start + size] + ring[start : start + last]


def _event(record: bytes) -> MapEvent:
    pid, _, _, _, _, major, minor, inode, *_ = _MMAP2_BODY.unpack_from(record)
    name = record[_MMAP2_BODY.size : -_SAMPLE_ID.size].split(b"\0", 1)[0]
    _, _, time_ns = _SAMPLE_ID.unpack_from(record, len(record) - _SAMPLE_ID.size)
    return MapEvent(pid, time_ns, os.fsdecode(name), os.makedev(major, minor), inode)


def _perf_event_open(cpu: int) -> int:
    bits = _EXCLUDE_KERNEL | _EXCLUDE_HV | _MMAP | _WATERMARK | _SAMPLE_ID_ALL | _MMAP2 | _USE_CLOCKID
    attributes = _ATTRIBUTES.pack(
        _PERF_TYPE_SOFTWARE, _ATTRIBUTES.size, _PERF_COUNT_SW_DUMMY, 0, _SAMPLE_TID | _SAMPLE_TIME, 0, bits,
        1, 0, 0, 0, 0, 0, 0, CLOCK_BOOTTIME, 0, 0, 0, 0,
    )  # fmt: skip
    libc = C.CDLL(None, use_errno=True)
    buffer = C.create_string_buffer(attributes, len(attributes))
    fd = libc.syscall(NR_PERF_EVENT_OPEN[os.uname().machine], buffer, -1, cpu, -1, _PERF_FLAG_FD_CLOEXEC)
    if fd < 0:
        number = C.get_errno()
        raise OSError(number, os.strerror(number))
    return int(fd)


def _online_cpus() -> Iterator[int]:
    """From ``0-3,8``. A CPU that comes later is not watched: what is mapped there is found by reading /proc."""
    for part in Path("/sys/devices/system/cpu/online").read_text("ascii").strip().split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
