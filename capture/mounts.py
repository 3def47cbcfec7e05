"""Which file systems lie on which parts of which disks, and where they are mounted: at the start and on every change.

Read from /proc/1/mountinfo, the mounts of the host: the recorder may run in a sandbox with bind mounts of its own. Only
file systems on a block device are told, so that no address of a server is, and no options, which may hold secrets.
"""

from __future__ import annotations

import os
import re
import select
from collections.abc import Iterator, Mapping
from pathlib import Path

from gpuaudit.capture.cgroup_files import plain, read_number, read_text
from gpuaudit.capture.host_samples import Sink
from gpuaudit.capture.source import boottime_ns

MAX_MOUNTS = 1024
"""Told at a time: hosts of containers have hundreds. ours"""

MAX_FILE_BYTES = 1 << 22
MAX_PATH_CHARS = 4096
"""PATH_MAX of Linux."""

_DEVICE = re.compile(r"([0-9]{1,9}):([0-9]{1,9})\Z", re.ASCII)
_IDS = re.compile(r"[0-9]{1,9}\Z", re.ASCII)


class Mounts:
    """Tells what was mounted since the last look, and what is gone. ``proc`` and ``sys``: where these lie."""

    def __init__(self, sink: Sink, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        self._sink = sink
        self._sys = sys
        self._file = next((f for who in ("1", "self") if os.access(f := proc / who / "mountinfo", os.R_OK)), None)
        self._known: dict[str, Mapping[str, object]] = {}
        self._changes: select.poll | None = None
        self._fd = -1
        self._told = False

    def poll(self) -> None:
        """Look, where anything may have changed: the kernel says so on the open file (proc_pid_mountinfo(5))."""
        if self._file is None:
            self._gap("/proc/1/mountinfo and /proc/self/mountinfo cannot be read")
        elif self._changes is None:
            self._fd = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)  # it could be read when this began
            self._changes = select.poll()
            self._changes.register(self._fd, select.POLLPRI)
            self._look(self._file)
        elif self._changes.poll(0):
            self._look(self._file)

    def close(self) -> None:
        """Let go of the file. Twice does no harm."""
        if self._changes is not None:
            os.close(self._fd)
            self._changes = None
            self._file = None
            self._told = True

    def _look(self, file: Path) -> None:
        now = boottime_ns()
        text = read_text(file, MAX_FILE_BYTES)
        if text is None or len(os.fsencode(text)) >= MAX_FILE_BYTES:  # not all: the rest may be mounted
            self._gap(f"{file} could not be read whole")
            return
        found = dict(self._mounted(text.splitlines()))
        if len(found) > MAX_MOUNTS:
            self._gap(f"more than {MAX_MOUNTS} file systems on disks are mounted: the others were not told")
            told_first = sorted(found.items(), key=lambda item: item[0] not in self._known)  # they are still mounted
            found = dict(told_first[:MAX_MOUNTS])
        gone = [("unmounted", row) for same, row in self._known.items() if same not in found]
        new = [("mounted", row) for same, row in found.items() if same not in self._known]
        for op, row in (*gone, *new):
            self._sink("mounts", {"start_ns": now, "op": op, **row})
        self._known = found

    def _mounted(self, lines: list[str]) -> Iterator[tuple[str, Mapping[str, object]]]:
        for line in lines:
            place, _, kind = line.partition(" - ")
            fields, details = place.split(" "), kind.split(" ")
            if len(fields) < 5 or len(details) < 2 or not _IDS.match(fields[0]):
                continue
            device = _DEVICE.match(fields[2])
            if device is None or device[1] == "0":  # of no block device: /proc, tmpfs, a server's file system
                continue
            root, path = (plain(f)[:MAX_PATH_CHARS] for f in fields[3:5])
            same = " ".join((fields[0], *fields[2:5], details[0]))  # not its options, which may change
            yield same, self._known.get(same) or {
                "mount_id": int(fields[0]), "major": int(device[1]), "minor": int(device[2]), "root": root,
                "path": path, "type": plain(details[0]), **self._place(device[0]),
            }  # fmt: skip

    def _place(self, device: str) -> dict[str, int | None]:
        """The disk that requests to a device are made of, and the sectors there; null where it is made of others."""
        unknown: dict[str, int | None] = dict.fromkeys(("disk_major", "disk_minor", "first_sector", "sectors"))
        folder = self._sys / "dev/block" / device
        sectors = read_number(folder / "size")
        made_of = list(folder.glob("slaves/*"))
        is_part = (folder / "partition").exists()
        first = read_number(folder / "start") if is_part else 0
        disk = _DEVICE.match((read_text(folder.resolve().parent / "dev") or "").strip() if is_part else device)
        if made_of or disk is None or first is None or sectors is None:
            return unknown
        return {
            "disk_major": int(disk[1]), "disk_minor": int(disk[2]), "first_sector": first, "sectors": sectors,
        }  # fmt: skip

    def _gap(self, reason: str) -> None:
        """Once."""
        if not self._told:
            self._told = True
            self._sink("gaps", {"start_ns": boottime_ns(), "duration_ns": None, "source": "block_io",
                                "table_name": "mounts", "pid": None, "reason": reason})  # fmt: skip
