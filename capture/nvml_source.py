"""GPU samples through NVML: a thread per GPU, so that a call that hangs delays neither other GPUs nor the recorder.

Each field is asked for by itself. A field that NVML refuses is null, and ``unavailable`` names it with NVML's return
code. A sample stands for the time from its poll to the next one (``duration_ns``).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pynvml  # type: ignore[import-untyped]

from gpuaudit.capture.source import Capability, RingSink, boottime_ns

POLL_INTERVAL_NS = 250_000_000
"""NVML refreshes utilisation every 1/6 s to 1 s, depending on the product (nvml.h, nvmlUtilization_t): polling at
250 ms misses little, and its cost stays under 0.1 % of a core per GPU."""

CALL_DEADLINE_NS = 2_000_000_000
"""A poll that takes longer is a gap: eight polls missed. A GPU that fell off the bus can hang a call for minutes."""

INIT_DEADLINE_S = 15.0
"""nvmlInit wakes GPUs without persistence mode one after the other, about a second each."""

QUEUE_LIMIT_ROWS = 4096
"""Rows one GPU may have waiting: about a quarter of an hour. Past it the oldest are dropped, and a gap says so."""

Call = Callable[[Any], int]


@dataclass(frozen=True)
class Reading:
    """One column of ``nvml_samples`` and the NVML call that fills it."""

    column: str
    call: Call


READINGS: tuple[Reading, ...] = (
    Reading("power_mw", pynvml.nvmlDeviceGetPowerUsage),
    Reading("power_limit_mw", pynvml.nvmlDeviceGetEnforcedPowerLimit),
    Reading("temperature_c", lambda h: pynvml.nvmlDeviceGetTemperature(h, pynvml.NVML_TEMPERATURE_GPU)),
    Reading("clock_sm_mhz", lambda h: pynvml.nvmlDeviceGetClockInfo(h, pynvml.NVML_CLOCK_SM)),
    Reading("clock_memory_mhz", lambda h: pynvml.nvmlDeviceGetClockInfo(h, pynvml.NVML_CLOCK_MEM)),
    Reading("clock_sm_max_mhz", lambda h: pynvml.nvmlDeviceGetMaxClockInfo(h, pynvml.NVML_CLOCK_SM)),
    Reading("event_reasons", pynvml.nvmlDeviceGetCurrentClocksEventReasons),
    Reading("pcie_tx_kib_per_s", lambda h: pynvml.nvmlDeviceGetPcieThroughput(h, pynvml.NVML_PCIE_UTIL_TX_BYTES)),
    Reading("pcie_rx_kib_per_s", lambda h: pynvml.nvmlDeviceGetPcieThroughput(h, pynvml.NVML_PCIE_UTIL_RX_BYTES)),
    Reading("pcie_generation", pynvml.nvmlDeviceGetCurrPcieLinkGeneration),
    Reading("pcie_width", pynvml.nvmlDeviceGetCurrPcieLinkWidth),
    Reading("ecc_corrected", lambda h: _ecc(h, pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED)),
    Reading("ecc_uncorrected", lambda h: _ecc(h, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)),
)
"""Columns that are one number of one call. Utilisation and memory come as structures and are read beside these."""

_PROCESS_KINDS: tuple[tuple[str, Callable[[Any], list[Any]]], ...] = (
    ("compute", pynvml.nvmlDeviceGetComputeRunningProcesses_v3),
    ("graphics", pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3),
)


def _ecc(handle: Any, kind: int) -> int:
    return int(pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, pynvml.NVML_VOLATILE_ECC))


@dataclass(frozen=True)
class Gpu:
    """One GPU as leaf 0 tells of it; ``handle`` is NVML's."""

    index: int
    uuid: str
    name: str
    driver: str
    handle: Any = field(repr=False, compare=False)

    def to_json(self) -> dict[str, object]:
        """The row of the ``open`` leaf's ``gpus``."""
        return {"index": self.index, "uuid": self.uuid, "name": self.name, "driver": self.driver}


def read_sample(gpu: Gpu) -> dict[str, object]:
    """One row of ``nvml_samples`` without its times; never raises for what NVML refuses."""
    row: dict[str, object] = {"gpu_index": gpu.index, "gpu_uuid": gpu.uuid}
    refused: list[str] = []
    _utilization(gpu.handle, row, refused)
    _memory(gpu.handle, row, refused)
    for reading in READINGS:
        try:
            row[reading.column] = int(reading.call(gpu.handle))
        except pynvml.NVMLError as e:
            refused.append(f"{reading.column}={e.value}")
    row["unavailable"] = ",".join(refused)
    return row


def _utilization(handle: Any, row: dict[str, object], refused: list[str]) -> None:
    try:
        rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
    except pynvml.NVMLError as e:
        refused += [f"gpu_utilization_percent={e.value}", f"memory_utilization_percent={e.value}"]
        return
    row["gpu_utilization_percent"] = int(rates.gpu)
    row["memory_utilization_percent"] = int(rates.memory)


def _memory(handle: Any, row: dict[str, object], refused: list[str]) -> None:
    """Version 2 tells what the driver reserves; older drivers know version 1 only, which counts it as used."""
    try:
        info = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        row["memory_reserved_bytes"] = int(info.reserved)
    except pynvml.NVMLError as e:
        refused.append(f"memory_reserved_bytes={e.value}")
        try:
            info = pynvml.nvmlDeviceGetMemoryInfo(handle)
        except pynvml.NVMLError as e1:
            refused += [f"memory_total_bytes={e1.value}", f"memory_used_bytes={e1.value}"]
            return
    row["memory_total_bytes"] = int(info.total)
    row["memory_used_bytes"] = int(info.used)


def read_processes(gpu: Gpu) -> tuple[list[dict[str, object]], list[str]]:
    """Rows of ``nvml_processes`` without their times, and what was refused as ``field=code``."""
    rows: list[dict[str, object]] = []
    refused: list[str] = []
    for kind, call in _PROCESS_KINDS:
        try:
            listed = call(gpu.handle)
        except pynvml.NVMLError as e:
            refused.append(f"{kind}_processes={e.value}")
            continue
        for process in listed:
            used = None if process.usedGpuMemory is None else int(process.usedGpuMemory)
            row = {"gpu_index": gpu.index, "gpu_uuid": gpu.uuid, "pid": int(process.pid), "op": kind}
            rows.append({**row, "memory_used_bytes": used})
    return rows, refused


@dataclass
class _Poll:
    """What one poll brought; it becomes rows when the next one begins, which ends the time it stands for."""

    start_ns: int
    sample: dict[str, object]
    processes: list[dict[str, object]]


class _Poller(threading.Thread):
    """Polls one GPU. ``busy_since_ns`` tells a watcher when the poll under way began."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__(name=f"nvml-{gpu.index}", daemon=True)
        self.gpu = gpu
        self.ended = threading.Event()
        self.done: deque[_Poll] = deque(maxlen=QUEUE_LIMIT_ROWS)
        self.polls = 0
        self.busy_since_ns: int | None = None
        self.failure = ""

    def run(self) -> None:
        while not self.ended.is_set():
            start = boottime_ns()
            self.busy_since_ns = start
            try:
                sample = read_sample(self.gpu)
                processes, refused = read_processes(self.gpu)
            except Exception as e:  # a defect in a vendor binding must not end the capture
                self.failure = f"{type(e).__name__}: {e}"
                return
            if refused:
                sample["unavailable"] = ",".join(filter(None, [str(sample["unavailable"]), *refused]))
            self.done.append(_Poll(start, sample, processes))
            self.polls += 1
            self.busy_since_ns = None
            self.ended.wait(max(0, start + POLL_INTERVAL_NS - boottime_ns()) / 1e9)


class NvmlSource:
    """All GPUs that NVML lists."""

    name = "nvml"

    def __init__(self) -> None:
        self.gpus: list[Gpu] = []
        self._pollers: list[_Poller] = []
        self._held: dict[int, _Poll] = {}
        self._taken: dict[int, int] = {}
        self._failed: set[int] = set()

    def probe(self) -> Capability:
        """Initialise NVML and list the GPUs, in a thread that may hang without harm."""
        result: list[Capability] = []
        thread = threading.Thread(target=lambda: result.append(self._open()), name="nvml-init", daemon=True)
        thread.start()
        thread.join(INIT_DEADLINE_S)
        if not result:
            return Capability("nvml", False, f"nvmlInit did not return within {INIT_DEADLINE_S:.0f} s")
        return result[0]

    def _open(self) -> Capability:
        try:
            pynvml.nvmlInit()
            driver = _text(pynvml.nvmlSystemGetDriverVersion())
            gpus = []
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid, name = _text(pynvml.nvmlDeviceGetUUID(handle)), _text(pynvml.nvmlDeviceGetName(handle))
                gpus.append(Gpu(index, uuid, name, driver, handle))
        except pynvml.NVMLError as e:
            if e.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
                reason = "libnvidia-ml.so.1 was not found: no NVIDIA driver on this host"
            else:
                reason = f"NVML refused with code {e.value}: {e}"
            return Capability("nvml", False, reason)
        except Exception as e:  # the binding of another version may lack a function
            return Capability("nvml", False, f"NVML could not be used: {type(e).__name__}: {e}")
        if not gpus:
            return Capability("nvml", False, "NVML lists no GPU")
        self.gpus = gpus
        return Capability("nvml", True)

    def start(self, sink: RingSink) -> None:  # noqa: ARG002 - the protocol's
        """Start one thread per GPU; call after :meth:`probe` said available."""
        self._pollers = [_Poller(gpu) for gpu in self.gpus]
        for poller in self._pollers:
            poller.start()

    def poll(self, sink: RingSink) -> int:
        """Hand over finished samples, and gaps for GPUs that answered late."""
        return sum(self._collect(poller, sink) for poller in self._pollers)

    def stop(self, sink: RingSink) -> None:
        """End the threads that can be ended; one that hangs is left behind, with a gap."""
        for poller in self._pollers:
            poller.ended.set()
        for poller in self._pollers:
            poller.join(CALL_DEADLINE_NS / 1e9)
            self._collect(poller, sink)
            now = boottime_ns()
            held = self._held.pop(poller.gpu.index, None)
            if held is not None:
                self._emit(held, min(now, held.start_ns + 2 * POLL_INTERVAL_NS), sink)
            since = poller.busy_since_ns
            if since is not None and not poller.failure:
                self._gap(sink, f"NVML did not answer for GPU {poller.gpu.index} until the end", since, now)

    def _collect(self, poller: _Poller, sink: RingSink) -> int:
        index, count = poller.gpu.index, 0
        while poller.done:
            new = poller.done.popleft()
            held = self._held.get(index)
            if held is not None:
                late = new.start_ns - held.start_ns > CALL_DEADLINE_NS
                if late:
                    self._gap(sink, f"NVML answered late for GPU {index}", held.start_ns, new.start_ns)
                self._emit(held, held.start_ns + POLL_INTERVAL_NS if late else new.start_ns, sink)
            self._held[index] = new
            count += 1
        taken = self._taken[index] = self._taken.get(index, 0) + count
        if poller.polls - taken > QUEUE_LIMIT_ROWS:
            self._gap(sink, f"{poller.polls - taken} samples of GPU {index} were dropped", boottime_ns(), None)
            self._taken[index] = poller.polls
        if poller.failure and index not in self._failed:
            self._failed.add(index)
            self._gap(sink, f"polling GPU {index} failed: {poller.failure}", boottime_ns(), None)
        return count

    def _emit(self, poll: _Poll, end_ns: int, sink: RingSink) -> None:
        times = {"start_ns": poll.start_ns, "duration_ns": max(0, end_ns - poll.start_ns)}
        sink.add_records("nvml_samples", [{**times, **poll.sample}])
        sink.add_records("nvml_processes", [{**times, **p} for p in poll.processes])

    def _gap(self, sink: RingSink, reason: str, start_ns: int, end_ns: int | None) -> None:
        sink.gap("nvml", reason, start_ns, end_ns, table="nvml_samples")


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
