"""Events that NVML reports (XIDs, ECC errors and others), waited for in a thread of its own and handed over at once."""

from __future__ import annotations

import ctypes
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pynvml  # type: ignore[import-untyped]

from gpuaudit.capture.nvml_devices import Gpu
from gpuaudit.capture.nvml_read import NOT_SUPPORTED, Row, code_of, known
from gpuaudit.capture.nvml_worker import Notes, Unreadable
from gpuaudit.capture.source import boottime_ns

WAIT_MS = 200
"""A wait that brings nothing ends after this, so that the thread can be ended."""

MOST_AT_ONCE = 256
"""Events that one round takes; the rest are taken by the next, a moment later."""

RETRY_NS = 1_000_000_000
"""After an error the event set is made anew at once: without the GPU that was lost, the others are still heard. A
second error within this time is waited out."""

NAMES: dict[int, str] = {
    0x1: "ecc_single_bit", 0x2: "ecc_double_bit", 0x4: "performance_state", 0x8: "xid", 0x10: "clock",
    0x80: "power_source", 0x100: "mig", 0x200: "ecc_single_bit_storm", 0x400: "dram_retirement",
    0x800: "dram_retirement_failure", 0x1000: "poison_non_fatal", 0x2000: "poison_fatal", 0x4000: "gpu_unavailable",
    0x8000: "recovery_action",
}  # fmt: skip
"""nvmlEventType* of nvml.h; each event has one of these bits."""

WANTED = sum(NAMES)

UNREGISTERED = -2
"""Stands for a code of NVML where it tells of a GPU that nobody asked about: a storm of that is one note."""


class EventReader:
    """Waits for events of all GPUs, each time it is called."""

    def __init__(self, gpus: Sequence[Gpu], now_ns: Callable[[], int] = boottime_ns) -> None:
        self._gpus = list(gpus)
        self._now_ns = now_ns
        self._by_handle = {_address(gpu.handle): gpu for gpu in gpus}
        self._set: Any = None
        self._failed_ns: int | None = None
        self._wait_until_ns = 0
        self._told: set[tuple[int | None, int]] = set()
        self.notes: Notes = deque()

    def __call__(self) -> dict[str, list[Row]]:
        """Rows of ``nvml_events`` with their own times, after :data:`WAIT_MS` at the latest; Unreadable for no GPU."""
        if self._now_ns() < self._wait_until_ns:
            time.sleep(WAIT_MS / 1000)
            return {}
        rows: list[Row] = []
        try:
            if self._set is None:
                self._register()
            while len(rows) < MOST_AT_ONCE:
                data = pynvml.nvmlEventSetWait_v2(self._set, 0 if rows else WAIT_MS)
                if (row := self._row(data)) is not None:
                    rows.append(row)
        except Unreadable:
            raise
        except Exception as e:
            code = code_of(e)
            if code != pynvml.NVML_ERROR_TIMEOUT:
                self._start_again(code)
        return {"nvml_events": rows} if rows else {}

    def _register(self) -> None:
        """Make an event set of every GPU that can be heard."""
        self._set = pynvml.nvmlEventSetCreate()
        heard = 0
        for gpu in self._gpus:
            try:
                types = int(pynvml.nvmlDeviceGetSupportedEventTypes(gpu.handle)) & WANTED
                if types:
                    pynvml.nvmlDeviceRegisterEvents(gpu.handle, types, self._set)
                    heard += 1
            except Exception as e:
                self._cannot_hear(gpu, code_of(e))
        if not heard:
            raise Unreadable("")  # of each GPU that has events and is not heard a note tells

    def _cannot_hear(self, gpu: Gpu, code: int) -> None:
        if code != NOT_SUPPORTED:
            self._note(gpu.index, code, f"events of GPU {gpu.index} are not heard: NVML code {code}")

    def _start_again(self, code: int) -> None:
        now = self._now_ns()
        if self._failed_ns is not None and now - self._failed_ns < RETRY_NS:
            self._wait_until_ns = now + RETRY_NS
            self._note(None, code, f"waiting for events fails again and again: NVML code {code}")
        self._failed_ns = now
        if self._set is not None:
            try:
                pynvml.nvmlEventSetFree(self._set)
            except Exception as e:
                code_of(e)
        self._set = None

    def _note(self, index: int | None, code: int, reason: str) -> None:
        """Once for each GPU (None: all) and code."""
        if (index, code) not in self._told:
            self._told.add((index, code))
            self.notes.append((reason, self._now_ns(), None))

    def _row(self, data: Any) -> Row | None:
        gpu = self._by_handle.get(_address(data.device))
        kind = int(data.eventType)
        if gpu is None:
            self._note(None, UNREGISTERED, f"events of a GPU that was not registered, the first of type {kind:#x}")
            return None
        return {
            **gpu.identity(), "start_ns": self._now_ns(), "duration_ns": 0, "op": NAMES.get(kind, "other"),
            "event_type": kind,
            "event_data": int(data.eventData) if kind == pynvml.nvmlEventTypeXidCriticalError else None,
            "gpu_instance": known(data.gpuInstanceId), "compute_instance": known(data.computeInstanceId),
        }  # fmt: skip


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
