"""What is asked of each GPU four times a second: ``nvml_samples`` and ``nvml_processes``."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pynvml  # type: ignore[import-untyped]

from gpuaudit.capture.nvml_devices import Device, Gpu, MigDevice, MigList
from gpuaudit.capture.nvml_read import (
    GPU_IS_LOST,
    NOT_AVAILABLE,
    NOT_SUPPORTED,
    NoValue,
    Reading,
    Row,
    code_of,
    field_value,
    known,
    one,
    read_into,
)
from gpuaudit.capture.nvml_worker import Notes
from gpuaudit.capture.source import boottime_ns

POLL_INTERVAL_NS = 250_000_000
"""NVML refreshes utilisation every 1/6 s to 1 s, depending on the product (nvml.h, nvmlUtilization_t): polling at
250 ms misses little."""

MAX_PROCESSES = 10_000
"""Processes on one GPU that a poll records; a host has some hundreds. More are left out, and a gap says so."""

_FIRST_USE_US = 1_000_000
"""The first list of process utilisation reaches this far back: the longest period NVML averages over."""


def _clock(kind: int) -> Callable[[Any], int]:
    return lambda h: pynvml.nvmlDeviceGetClockInfo(h, kind)


def _performance_state(handle: Any) -> int:
    state = int(pynvml.nvmlDeviceGetPerformanceState(handle))
    if state == pynvml.NVML_PSTATE_UNKNOWN:
        raise NoValue(NOT_AVAILABLE)
    return state


def _ecc(kind: int) -> Callable[[Any], int]:
    return lambda h: pynvml.nvmlDeviceGetTotalEccErrors(h, kind, pynvml.NVML_VOLATILE_ECC)


def _utilization(handle: Any) -> tuple[int, int]:
    rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
    return rates.gpu, rates.memory


READINGS: tuple[Reading, ...] = (
    Reading(("gpu_utilization_percent", "memory_utilization_percent"), _utilization),
    one("power_mw", pynvml.nvmlDeviceGetPowerUsage),
    one("power_limit_mw", pynvml.nvmlDeviceGetEnforcedPowerLimit),
    one("energy_mj", pynvml.nvmlDeviceGetTotalEnergyConsumption, 64),
    one("temperature_c", lambda h: pynvml.nvmlDeviceGetTemperature(h, pynvml.NVML_TEMPERATURE_GPU)),
    one("temperature_memory_c", lambda h: field_value(h, pynvml.NVML_FI_DEV_MEMORY_TEMP)),
    one("clock_sm_mhz", _clock(pynvml.NVML_CLOCK_SM)),
    one("clock_memory_mhz", _clock(pynvml.NVML_CLOCK_MEM)),
    one("clock_sm_max_mhz", lambda h: pynvml.nvmlDeviceGetMaxClockInfo(h, pynvml.NVML_CLOCK_SM)),
    one("clock_sm_cap_mhz", lambda h: pynvml.nvmlDeviceGetApplicationsClock(h, pynvml.NVML_CLOCK_SM)),
    one("clock_memory_cap_mhz", lambda h: pynvml.nvmlDeviceGetApplicationsClock(h, pynvml.NVML_CLOCK_MEM)),
    one("performance_state", _performance_state),
    one("event_reasons", pynvml.nvmlDeviceGetCurrentClocksEventReasons, 64),
    one("pcie_tx_kib_per_s", lambda h: pynvml.nvmlDeviceGetPcieThroughput(h, pynvml.NVML_PCIE_UTIL_TX_BYTES)),
    one("pcie_rx_kib_per_s", lambda h: pynvml.nvmlDeviceGetPcieThroughput(h, pynvml.NVML_PCIE_UTIL_RX_BYTES)),
    one("pcie_generation", pynvml.nvmlDeviceGetCurrPcieLinkGeneration),
    one("pcie_width", pynvml.nvmlDeviceGetCurrPcieLinkWidth),
    one("pcie_replays", pynvml.nvmlDeviceGetPcieReplayCounter),
    one("encoder_utilization_percent", lambda h: pynvml.nvmlDeviceGetEncoderUtilization(h)[0]),
    one("decoder_utilization_percent", lambda h: pynvml.nvmlDeviceGetDecoderUtilization(h)[0]),
    one("ecc_corrected", _ecc(pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED), 64),
    one("ecc_uncorrected", _ecc(pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED), 64),
)
"""Everything but memory, which has two versions."""


def _memory_2(handle: Any) -> tuple[int, int, int]:
    info = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    return info.total, info.used, info.reserved


def _memory_1(handle: Any) -> tuple[int, int]:
    info = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return info.total, info.used


_MEMORY = Reading(("memory_total_bytes", "memory_used_bytes", "memory_reserved_bytes"), _memory_2, 64)
_MEMORY_OLD = Reading(("memory_total_bytes", "memory_used_bytes"), _memory_1, 64)


def _memory(row: Row, handle: Any) -> list[str]:
    """Version 2 tells what the driver reserves; older drivers know version 1 only, which counts it as used."""
    refused = read_into(row, (_MEMORY,), handle)
    reserved = [r for r in refused if r.startswith("memory_reserved_bytes=")]
    if len(refused) < len(_MEMORY.columns):
        return refused
    return [*reserved, *read_into(row, (_MEMORY_OLD,), handle)]


def read_sample(device: Device) -> Row:
    """One row of ``nvml_samples`` without its times; never raises for what NVML refuses."""
    row = device.identity()
    refused = [*_memory(row, device.handle), *read_into(row, READINGS, device.handle)]
    row["unavailable"] = ",".join(refused)
    return row


_PROCESS_KINDS: tuple[tuple[str, Callable[[Any], list[Any]]], ...] = (
    ("compute", pynvml.nvmlDeviceGetComputeRunningProcesses_v3),
    ("graphics", pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3),
)


def read_processes(gpu: Gpu, mig: list[MigDevice]) -> tuple[list[Row], list[str]]:
    """Rows of ``nvml_processes`` without times and utilisation, and what was refused as ``compute_processes=code``.

    Without privileges NVML refuses the list of a GPU in MIG mode and gives that of each MIG device.
    """
    rows: list[Row] = []
    refused: list[str] = []
    for kind, call in _PROCESS_KINDS:
        try:
            listed = call(gpu.handle)
        except Exception as e:
            code = code_of(e)
            try:
                if not mig:
                    raise NoValue(code) from None
                listed = [process for device in mig for process in call(device.handle)]
            except Exception as e2:
                refused.append(f"{kind}_processes={code_of(e2)}")
                continue
        rows += [_process(gpu, kind, process) for process in listed]
    return rows, refused


def _process(gpu: Gpu, kind: str, process: Any) -> Row:
    used = process.usedGpuMemory  # the binding turns the sentinel into None
    return {
        **gpu.identity(), "pid": int(process.pid), "op": kind, "memory_used_bytes": None if used is None else int(used),
        "gpu_instance": known(process.gpuInstanceId), "compute_instance": known(process.computeInstanceId),
    }  # fmt: skip


class SampleReader:
    """One GPU, its MIG devices and its processes, each time it is called."""

    def __init__(self, gpu: Gpu, now_ns: Callable[[], int] = boottime_ns) -> None:
        self._gpu = gpu
        self._now_ns = now_ns
        self._mig = MigList(gpu)
        self._used_since_us: int | None = None
        self._lost = False
        self._crowded = False
        self.notes: Notes = deque()

    def __call__(self) -> dict[str, list[Row]]:
        """Rows by table, without their times."""
        mig = self._mig.fresh()
        sample = read_sample(self._gpu)
        self._note_lost(str(sample["unavailable"]))
        processes, refused = read_processes(self._gpu, mig)
        if len(processes) > MAX_PROCESSES:
            self._note_crowd(len(processes))
            processes = processes[:MAX_PROCESSES]
        refused += self._add_use(processes)
        if self._mig.code:
            refused.append(f"mig_devices={self._mig.code}")
        sample["unavailable"] = ",".join(filter(None, [str(sample["unavailable"]), *refused]))
        return {"nvml_samples": [sample, *(read_sample(device) for device in mig)], "nvml_processes": processes}

    def _note_lost(self, unavailable: str) -> None:
        """A GPU that no field can be had of, because it is lost, is a gap from the first such poll on."""
        codes = {told.partition("=")[2] for told in unavailable.split(",")}
        lost = str(GPU_IS_LOST) in codes and codes <= {str(GPU_IS_LOST), str(NOT_SUPPORTED)}
        if lost and not self._lost:
            reason = f"GPU {self._gpu.index} is lost (NVML code {GPU_IS_LOST}): it fell off the bus"
            self.notes.append((reason, self._now_ns(), None))
        self._lost = lost

    def _note_crowd(self, count: int) -> None:
        if not self._crowded:
            reason = f"NVML listed {count} processes on GPU {self._gpu.index}: {MAX_PROCESSES} of a poll are recorded"
            self.notes.append((reason, self._now_ns(), None))
        self._crowded = True

    def _add_use(self, processes: list[Row]) -> list[str]:
        """Add the newest utilisation sample of each listed process; NVML has none for a process without any use."""
        now_us = time.clock_gettime_ns(time.CLOCK_REALTIME) // 1000
        if self._used_since_us is None:
            self._used_since_us = now_us - _FIRST_USE_US
        try:
            samples = pynvml.nvmlDeviceGetProcessUtilization(self._gpu.handle, self._used_since_us)
        except Exception as e:
            code = code_of(e)
            if code in (pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_NOT_FOUND):
                return []
            return [f"process_utilization={code}"] if processes or code != NOT_SUPPORTED else []
        newest = {int(s.pid): s for s in sorted(samples, key=lambda s: int(s.timeStamp))}
        # never past now: after a step of the wall clock back, or a garbled time, there would be no sample any more
        self._used_since_us = min(now_us, max([self._used_since_us, *(int(s.timeStamp) for s in samples)]))
        for row in processes:
            use = newest.get(int(str(row["pid"])))
            if use is not None:
                row["sm_utilization_percent"] = known(use.smUtil)
                row["memory_utilization_percent"] = known(use.memUtil)
        return []
