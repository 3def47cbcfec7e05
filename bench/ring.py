"""A ring of our own kind with a producer behind it, and two ways to drain it that both end with the records owned."""

from __future__ import annotations

import ctypes as C
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpuaudit.bundle.errors import HostUnfit
from gpuaudit.bundle.tables import RING_TABLES, TABLES
from gpuaudit.capture import libbpf
from gpuaudit.capture.parts import RING_SIZES_BYTES
from gpuaudit.capture.ring import HEADER_BYTES, LossCounters, RingReader
from gpuaudit.capture.ring_source import DRAIN_LIMIT_RECORDS

TABLE = TABLES["cuda_calls"]
SIZE_BYTES = RING_SIZES_BYTES[TABLE.name]
CAPACITY = SIZE_BYTES // (HEADER_BYTES + TABLE.record_dtype().itemsize)
"""Records that the ring holds."""

Drain = Callable[[], np.ndarray]
"""Takes what is in the ring; the records, in memory of the caller's own."""


class GeneratedRing:
    """The compiled producer program, loaded, with its ring and loss counters."""

    def __init__(self, compiled: Path) -> None:
        if os.geteuid() != 0:
            raise HostUnfit("loading BPF programs needs root", hint="run the bench as root")
        self._object = libbpf.BpfObject(compiled.read_bytes(), "bench")
        try:
            self._object.max_entries(f"ring_{TABLE.name}", SIZE_BYTES)
            self._object.max_entries("counters", libbpf.possible_cpus() * len(RING_TABLES))
            self._object.load()
        except OSError as e:
            self._object.close()
            raise HostUnfit(f"the kernel refused the producer: {e.strerror or e} {libbpf.last_message()}") from None
        self.program_fd = self._object.program_fd("generate")
        self.ring_fd = self._object.map_fd(f"ring_{TABLE.name}")
        self.counters_fd = self._object.map_fd("counters")
        self._counters = LossCounters(self.counters_fd)

    def counts(self) -> tuple[int, int]:
        """(records that the producer tried to write, records lost) since the load, over all CPUs."""
        now = self._counters.read()
        own = [c for (table, _), c in now.items() if table == TABLE.name]
        return sum(c.seen for c in own), sum(c.lost for c in own)

    def close(self) -> None:
        """Unload."""
        self._object.close()


def numpy_drain(ring: GeneratedRing) -> Drain:
    """The capture's own reader, with the limit that the recorder sets to one drain."""
    reader = RingReader(ring.ring_fd, SIZE_BYTES, TABLE.name)
    return lambda: reader.drain(DRAIN_LIMIT_RECORDS)


class CallbackDrain:
    """libbpf's ``ring_buffer__consume`` with a Python function for each record, which copies it: the least that a
    callback can do and still have the record afterwards."""

    _CALLBACK = C.CFUNCTYPE(C.c_int, C.c_void_p, C.c_void_p, C.c_size_t)

    def __init__(self, ring: GeneratedRing) -> None:
        lib: Any = C.CDLL("libbpf.so.1", use_errno=True)
        lib.ring_buffer__new.restype = C.c_void_p
        lib.ring_buffer__new.argtypes = (C.c_int, self._CALLBACK, C.c_void_p, C.c_void_p)
        lib.ring_buffer__consume.argtypes = lib.ring_buffer__free.argtypes = (C.c_void_p,)
        lib.ring_buffer__free.restype = None
        self._lib = lib
        self._taken = bytearray()
        extend, string_at = self._taken.extend, C.string_at

        def take(_context: int, data: int, size: int) -> int:
            extend(string_at(data, size))
            return 0

        self._callback = self._CALLBACK(take)  # libbpf calls it for as long as the manager lives
        self._manager = lib.ring_buffer__new(ring.ring_fd, self._callback, None, None)
        if not self._manager:
            raise HostUnfit(f"ring_buffer__new: {os.strerror(C.get_errno())}")

    def __call__(self) -> np.ndarray:
        code = self._lib.ring_buffer__consume(self._manager)
        if code < 0:
            raise HostUnfit(f"ring_buffer__consume: {os.strerror(-code)}")
        records = np.frombuffer(bytes(self._taken), TABLE.record_dtype())
        self._taken.clear()
        return records

    def close(self) -> None:
        """Free libbpf's ring manager."""
        self._lib.ring_buffer__free(self._manager)
