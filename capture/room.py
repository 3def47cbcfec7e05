"""Room on the disk: enough is kept back that a capture on a full disk can still be sealed."""

from __future__ import annotations

import os
from pathlib import Path

from gpuaudit.bundle.errors import HostUnfit

RESERVE_BYTES = 8 << 20
"""Kept back for the end: SQLite's write-ahead log is copied into the file at about 4 MB (PRAGMA wal_autocheckpoint,
1,000 pages), and the seal, the last gaps and the manifest must fit beside it."""

MARGIN_BYTES = 4 << 20
"""A capture ends when less than this and twice its unsealed rows is free: rows go to the log, then the file."""


class Room:
    """The reserve file of one capture. ``path`` lies on the file system of the bundle."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def reserve(self) -> None:
        """Take the reserve; HostUnfit when the disk has not even that."""
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, RESERVE_BYTES)
            finally:
                os.close(fd)
        except OSError as e:
            self.release()
            raise HostUnfit(
                f"no room for a capture: {RESERVE_BYTES >> 20} MiB could not be kept back for the seal ({e.strerror})",
                hint="choose --out on a disk with more room",
            ) from None
        if self.is_short(0):
            free = self._free_bytes()
            self.release()
            raise HostUnfit(
                f"no room for a capture: {free >> 20} MiB would be left, expected {MARGIN_BYTES >> 20} MiB at least",
                hint="choose --out on a disk with more room",
            )

    def is_short(self, held_bytes: int) -> bool:
        """Whether it is time to end: ``held_bytes`` raw bytes of rows are not yet sealed."""
        return self._free_bytes() < MARGIN_BYTES + 2 * held_bytes

    def release(self) -> None:
        """Give the reserve back to the disk."""
        self._path.unlink(missing_ok=True)

    def _free_bytes(self) -> int:
        disk = os.statvfs(self._path.parent)
        return disk.f_bavail * disk.f_frsize
