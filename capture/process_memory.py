"""Reading the memory of another process, which may hold anything, or be gone."""

from __future__ import annotations

import ctypes as C
import errno
import os
import struct
from functools import cache
from typing import Any, Protocol

from gpuaudit.capture.obstacles import in_words, obstacles
from gpuaudit.capture.processes import with_memory

MAX_READ_BYTES = 1 << 20
"""Nothing that is read at once is longer: the longest are line tables, of some hundred kilobytes at most. ours"""

ADDRESS_BITS = 56
"""User addresses of x86-64 with five-level paging are below 2^56."""


class Unreadable(Exception):
    """There is no such memory, or no such process; the message says which."""


class Memory(Protocol):
    """Something that memory can be read from."""

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes; Unreadable when they cannot all be had."""


class _Vector(C.Structure):
    _fields_ = (("base", C.c_void_p), ("length", C.c_size_t))


@cache
def _read_system_call() -> Any:
    function = C.CDLL(None, use_errno=True).process_vm_readv
    function.restype = C.c_ssize_t
    function.argtypes = (C.c_int, C.POINTER(_Vector), C.c_ulong, C.POINTER(_Vector), C.c_ulong, C.c_ulong)
    return function


def _read(pid: int, here: _Vector, there: _Vector) -> tuple[int, int]:
    """(bytes that were read, 0) or (−1, number of the error)."""
    got = _read_system_call()(pid, C.byref(here), 1, C.byref(there), 1, 0)
    return got, C.get_errno() if got < 0 else 0


class ProcessMemory:
    """Memory of a running process (process_vm_readv(2)); needs CAP_SYS_PTRACE for other users' processes."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes; Unreadable when they cannot all be had."""
        if not 0 <= size <= MAX_READ_BYTES or not 0 <= address < 1 << ADDRESS_BITS:
            raise Unreadable(f"{size} bytes at {address:#x} are no memory of a program")
        buffer = C.create_string_buffer(size)
        here, there = _Vector(C.addressof(buffer), size), _Vector(address, size)
        got, number = _read(self._pid, here, there)
        if number == errno.ESRCH and (live := with_memory(self._pid)) != self._pid:
            got, number = _read(live, here, there)
        if got != size:
            if number == errno.EPERM:
                why = in_words(obstacles("read memory of processes"))
                raise Unreadable(f"{os.strerror(number)}{why and '; ' + why}")
            raise Unreadable(os.strerror(number) if number else f"only {got} of {size} bytes at {address:#x} are there")
        return buffer.raw


def read_word(memory: Memory, address: int) -> int:
    """8 bytes, little-endian."""
    return int(struct.unpack("<Q", memory.read(address, 8))[0])
