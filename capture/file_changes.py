"""Writes to files that are probed.

A probe is a place in a file. Where other content is written into the same file (``cp`` over a library, not a package
manager, which puts a new file in its place), a probe that stays would put its breakpoint into the midst of another
instruction, and end each process that maps the file afterwards. inotify(7) tells of the first write as it happens.
"""

from __future__ import annotations

import ctypes as C
import os
import struct

_IN_MODIFY, _IN_ONESHOT = 0x2, 0x8000_0000
_EVENT = struct.Struct("iIII")
"""include/uapi/linux/inotify.h; all of an event without a name, and a watched file's has none."""

_READ_BYTES = 1 << 16


class FileChanges:
    """Tells once of each watched file that is written to or cut. What the kernel does not watch is never told of."""

    def __init__(self) -> None:
        self._libc = C.CDLL(None, use_errno=True)
        self._keys: dict[int, tuple[int, int]] = {}
        fd = int(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._fd = fd if fd >= 0 else None

    @property
    def descriptors(self) -> list[int]:
        """Readable when there is something to :meth:`take`."""
        return [] if self._fd is None else [self._fd]

    def watch(self, fd: int, key: tuple[int, int]) -> None:
        """Watch the very file behind ``fd``; it is told of as ``key``."""
        if self._fd is None:
            return
        path = f"/proc/self/fd/{fd}".encode()
        watch = int(self._libc.inotify_add_watch(self._fd, path, C.c_uint32(_IN_MODIFY | _IN_ONESHOT)))
        if watch >= 0:
            self._keys[watch] = key

    def take(self) -> list[tuple[int, int]]:
        """Keys of the files that were written to since the last call."""
        try:
            raw = os.read(self._fd, _READ_BYTES) if self._fd is not None else b""
        except BlockingIOError:
            return []
        told = [_EVENT.unpack_from(raw, at) for at in range(0, len(raw) - _EVENT.size + 1, _EVENT.size)]
        found = [self._keys.pop(watch, None) for watch, mask, _, _ in told if mask & _IN_MODIFY]
        return [key for key in found if key is not None]

    def close(self) -> None:
        """End. Twice does no harm."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
