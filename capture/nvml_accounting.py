"""NVML's accounting: what the driver says of each process that used a GPU, where an administrator switched it on."""

from __future__ import annotations

import ctypes
from typing import Any

import pynvml  # type: ignore[import-untyped]

from gpuaudit.capture.nvml_devices import Gpu
from gpuaudit.capture.nvml_read import NOT_AVAILABLE, NOT_SUPPORTED, Row, code_of, known

_FIELDS = (
    ("gpu_utilization_percent", "gpuUtilization", 32),
    ("memory_utilization_percent", "memoryUtilization", 32),
    ("memory_max_bytes", "maxMemoryUsage", 64),
    ("process_start_us", "startTime", 64),
)


class AccountingReader:
    """Accounting of one GPU. Processes that had ended before the capture are none of its business and are left out."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._told: set[int] | None = None

    def read(self) -> tuple[list[Row], list[str]]:
        """Rows of ``nvml_accounting`` without their times, and ``accounting=code`` where NVML refuses the list.

        None while accounting is off. A process that has ended gets one row more and then no other.
        """
        handle = self._gpu.handle
        try:
            if pynvml.nvmlDeviceGetAccountingMode(handle) != pynvml.NVML_FEATURE_ENABLED:
                return [], []
            pids = pynvml.nvmlDeviceGetAccountingPids(handle)
        except Exception as e:
            code = code_of(e)
            return [], [] if code == NOT_SUPPORTED else [f"accounting={code}"]
        first = self._told is None
        told = self._told = set() if self._told is None else self._told & set(pids)
        rows = []
        for pid in pids:
            if pid not in told and (row := self._row(handle, pid)) is not None:
                if row["running"] == 0:
                    told.add(pid)
                    if first:
                        continue
                rows.append(row)
        return rows, []

    def _row(self, handle: Any, pid: int) -> Row | None:
        try:
            stats = _stats(handle, pid)
        except Exception as e:
            return None if code_of(e) == pynvml.NVML_ERROR_NOT_FOUND else self._refused(pid, code_of(e))
        row: Row = {**self._gpu.identity(), "pid": pid, "running": int(stats.isRunning)}
        for column, field, bits in _FIELDS:
            row[column] = known(int(getattr(stats, field)), bits)
        running_without_time = stats.isRunning and stats.time == 0  # nvml.h: 0 while the process is not terminated
        row["run_time_ms"] = None if running_without_time else known(int(stats.time), 64)
        missing = [c for c in (*(c for c, _, _ in _FIELDS), "run_time_ms") if row[c] is None]
        row["unavailable"] = ",".join(f"{c}={NOT_AVAILABLE}" for c in missing)
        return row

    def _refused(self, pid: int, code: int) -> Row:
        columns = (*(c for c, _, _ in _FIELDS), "run_time_ms", "running")
        row: Row = {**self._gpu.identity(), "pid": pid}
        return {**row, "running": None, "unavailable": ",".join(f"{c}={code}" for c in columns)}


def _stats(handle: Any, pid: int) -> Any:
    """nvmlDeviceGetAccountingStats; the binding's own wrapper raises TypeError where the memory is not available."""
    stats = pynvml.c_nvmlAccountingStats_t()
    call = pynvml._nvmlGetFunctionPointer("nvmlDeviceGetAccountingStats")
    pynvml._nvmlCheckReturn(call(handle, ctypes.c_uint(pid), ctypes.byref(stats)))
    return stats
