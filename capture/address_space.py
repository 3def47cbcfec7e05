"""What a process has mapped where: the executable regions of its address space, from /proc/PID/maps."""

from __future__ import annotations

import bisect
import os
import re
from dataclasses import dataclass
from pathlib import Path

from gpuaudit.capture.processes import MAX_MAPS_BYTES, PROC, Mapping, with_memory

MAX_REGIONS = 65_536
"""Executable regions of one process; vm.max_map_count is 65,530 unless somebody changed it."""

_REGION = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) ..x. ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) ([0-9]+) *([^\n]*)$", re.MULTILINE
)


@dataclass(frozen=True)
class Region:
    """One executable mapping. ``inode`` 0: of no file; ``path`` may still be a kernel's name such as [vdso]."""

    start: int
    end: int
    offset: int
    device: int
    inode: int
    path: str

    def mapping(self) -> Mapping:
        """The same as :func:`gpuaudit.capture.processes.open_mapping` wants it."""
        return Mapping(f"{self.start:08x}-{self.end:08x}", self.device, self.inode, self.path)


class AddressSpace:
    """Executable regions by address, as they were when :func:`read_address_space` looked."""

    def __init__(self, regions: list[Region]) -> None:
        self.regions = sorted(regions, key=lambda r: r.start)
        self._starts = [r.start for r in self.regions]

    def at(self, address: int) -> Region | None:
        """The region that ``address`` lies in."""
        i = bisect.bisect_right(self._starts, address) - 1
        return self.regions[i] if i >= 0 and address < self.regions[i].end else None


def read_address_space(pid: int) -> AddressSpace | None:
    """None when the process is gone, or is a zombie."""
    try:
        with Path(f"{PROC}/{with_memory(pid)}/maps").open("rb") as f:
            raw = f.read(MAX_MAPS_BYTES)
    except OSError:
        return None
    regions: list[Region] = []
    for found in _REGION.finditer(raw):
        if len(regions) == MAX_REGIONS:
            break
        start, end, offset, major, minor = (int(x, 16) for x in found.groups()[:5])
        # The kernel writes a newline in a path as \012, and nothing else in another way.
        path = os.fsdecode(found.group(7).replace(rb"\012", b"\n"))
        regions.append(Region(start, end, offset, os.makedev(major, minor), int(found.group(6)), path))
    return AddressSpace(regions) if regions else None
