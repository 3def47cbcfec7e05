"""The ring in which the kernel tells of mappings: what is read of it, wrapped or not, and what is not."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

import pytest

from gpuaudit.bundle.errors import HostUnfit
from gpuaudit.capture import map_events
from gpuaudit.capture.map_events import RING_PAGES, MapEvent, MapEvents

SIZE = RING_PAGES[0] * mmap.PAGESIZE
LIBRARIES = r"libcudart\.so(\.[0-9]+)*"


def mapping(pid: int, path: bytes, time_ns: int) -> bytes:
    """PERF_RECORD_MMAP2 with the identity that ``sample_id_all`` puts behind it."""
    name = path + b"\0" * (8 - len(path) % 8)
    body = struct.pack("<IIQQQIIQQII", pid, pid, 0x7000, 0x1000, 0, 8, 1, 4711, 0, 5, 2) + name
    return record(10, body + struct.pack("<IIQ", pid, pid, time_ns))


def record(kind: int, body: bytes) -> bytes:
    return struct.pack("<IHH", kind, 0, 8 + len(body)) + body


def taken(*records: bytes, at: int = 0, lost: int = 0) -> list[MapEvent]:
    """What is read when the kernel has written ``records`` from offset ``at`` of its endless stream on."""
    events = MapEvents(LIBRARIES)
    ring = mmap.mmap(-1, SIZE + mmap.PAGESIZE)
    data = b"".join(records)
    for i, byte in enumerate(data):
        ring[mmap.PAGESIZE + (at + i) % SIZE] = byte
    struct.pack_into("<QQ", ring, 1024, at + len(data), at)
    events._rings.append((os.open("/dev/null", os.O_RDONLY), ring))
    found = events.take()
    assert struct.unpack_from("<QQ", ring, 1024) == (at + len(data),) * 2, "the space is given back"
    assert events.take() == []
    assert events.lost == lost
    events.close()
    return found


@pytest.mark.parametrize("at", [0, SIZE - 40, SIZE - 8, 5 * SIZE - 96])
def test_libraries_among_everything_else(at: int) -> None:
    found = taken(
        mapping(7, b"/usr/lib/libc.so.6", 100),
        record(3, bytes(32)),
        mapping(7, b"/opt/libcudart.so.13", 300),
        mapping(8, b"/tmp/libcudart.so.12 (deleted)", 200),
        mapping(8, b"/tmp/libcudart.so.12/other", 250),
        mapping(9, b"/tmp/xlibcudart.so", 260),
        mapping(9, b"/memfd:libcudart.so.12 (deleted)", 270),
        at=at,
    )
    assert [(e.pid, e.time_ns, e.file_name) for e in found] == [
        (8, 200, "libcudart.so.12"),
        (9, 270, "libcudart.so.12"),
        (7, 300, "libcudart.so.13"),
    ]


def test_what_the_kernel_lost_is_counted() -> None:
    lost = record(2, struct.pack("<QQIIQ", 1, 17, 0, 0, 0))
    assert taken(lost, mapping(7, b"/opt/libcudart.so", 5), lost, lost=34) == [
        MapEvent(7, 5, "/opt/libcudart.so", os.makedev(8, 1), 4711)
    ]


@pytest.mark.parametrize("size", [0, 4, 9999])
def test_a_record_of_no_length_ends_the_reading(size: int) -> None:
    assert taken(struct.pack("<IHH", 10, 0, size), mapping(7, b"/opt/libcudart.so", 5)) == []


def test_a_kernel_that_refuses_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def refuse_the_second(cpu: int) -> int:
        if cpu:
            raise PermissionError(13, "Permission denied")
        opened.append(os.open("/dev/zero", os.O_RDWR))
        return opened[-1]

    monkeypatch.setattr(map_events, "_perf_event_open", refuse_the_second)
    monkeypatch.setattr(map_events, "_online_cpus", lambda: iter((0, 1)))
    events = MapEvents(LIBRARIES)
    with pytest.raises(HostUnfit, match="the kernel tells of no mappings"):
        events.open()
    assert events.descriptors == []
    assert len(opened) == len(RING_PAGES), "a smaller ring is tried"
    assert not any(Path(f"/proc/self/fd/{fd}").exists() for fd in opened)
    assert events.take() == []
