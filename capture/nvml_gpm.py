"""GPM: what the SMs, their pipes, memory and links did between two samples of a GPU (Hopper and later)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml  # type: ignore[import-untyped]

from gpuaudit.capture.nvml_devices import Gpu, MigDevice, MigList
from gpuaudit.capture.nvml_read import NOT_AVAILABLE, NOT_SUPPORTED, Row, code_of
from gpuaudit.capture.nvml_worker import Unreadable
from gpuaudit.capture.source import boottime_ns

GPM_INTERVAL_NS = 250_000_000
"""As the samples, so that both tell of the same time."""

METRICS: tuple[tuple[str, int], ...] = (
    ("graphics_percent", pynvml.NVML_GPM_METRIC_GRAPHICS_UTIL),
    ("sm_activity_percent", pynvml.NVML_GPM_METRIC_SM_UTIL),
    ("sm_occupancy_percent", pynvml.NVML_GPM_METRIC_SM_OCCUPANCY),
    ("integer_percent", pynvml.NVML_GPM_METRIC_INTEGER_UTIL),
    ("tensor_percent", pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL),
    ("tensor_double_percent", pynvml.NVML_GPM_METRIC_DFMA_TENSOR_UTIL),
    ("tensor_half_percent", pynvml.NVML_GPM_METRIC_HMMA_TENSOR_UTIL),
    ("tensor_integer_percent", pynvml.NVML_GPM_METRIC_IMMA_TENSOR_UTIL),
    ("dram_bandwidth_percent", pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL),
    ("fp64_percent", pynvml.NVML_GPM_METRIC_FP64_UTIL),
    ("fp32_percent", pynvml.NVML_GPM_METRIC_FP32_UTIL),
    ("fp16_percent", pynvml.NVML_GPM_METRIC_FP16_UTIL),
    ("pcie_tx_mib_per_s", pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC),
    ("pcie_rx_mib_per_s", pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC),
    ("nvlink_tx_mib_per_s", pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC),
    ("nvlink_rx_mib_per_s", pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC),
)  # fmt: skip
"""Columns of ``gpm_samples`` and NVML's number of the metric."""


def supported(gpu: Gpu) -> bool:
    """Whether the GPU has GPM; NVMLError when NVML does not say."""
    return bool(pynvml.nvmlGpmQueryDeviceSupport(gpu.handle).isSupportedDevice)


@dataclass
class _Pair:
    """Two buffers of one device or GPU instance; ``taken_ns`` is when ``last`` was filled, None before the first."""

    last: Any
    spare: Any
    taken_ns: int | None = None


class GpmReader:
    """One GPU, or its GPU instances while MIG is on, each time it is called: a row tells of the time since the last."""

    def __init__(self, gpu: Gpu, now_ns: Callable[[], int] = boottime_ns) -> None:
        self._gpu = gpu
        self._now_ns = now_ns
        self._mig = MigList(gpu)
        self._pairs: dict[int | None, _Pair] = {}
        self._checked = False

    def __call__(self) -> dict[str, list[Row]]:
        """Rows with their own times; Unreadable where the GPU has no GPM."""
        if not self._checked:
            self._check()
        instances: dict[int, MigDevice] = {}
        for device in self._mig.fresh():
            instances.setdefault(device.gpu_instance, device)
        if instances:
            rows = [self._row(i, device.identity()) for i, device in sorted(instances.items())]
        else:
            rows = [self._row(None, self._gpu.identity())]
        return {"gpm_samples": [row for row in rows if row is not None]}

    def _check(self) -> None:
        try:
            has = supported(self._gpu)
        except Exception as e:
            code = code_of(e)
            raise Unreadable(
                "" if code == NOT_SUPPORTED else f"GPM of GPU {self._gpu.index}: NVML refused with code {code}"
            ) from None
        if not has:
            raise Unreadable("")
        self._checked = True

    def _row(self, instance: int | None, identity: Row) -> Row | None:
        """What happened since the last sample; None at the first."""
        identity.pop("compute_instance", None)
        start = self._now_ns()
        pair = self._pairs.get(instance)
        try:
            if pair is None:
                pair = self._pairs[instance] = _Pair(pynvml.nvmlGpmSampleAlloc(), pynvml.nvmlGpmSampleAlloc())
            if instance is None:
                pynvml.nvmlGpmSampleGet(self._gpu.handle, pair.spare)
            else:
                pynvml.nvmlGpmMigSampleGet(self._gpu.handle, instance, pair.spare)
        except Exception as e:
            code = code_of(e)
            if pair is not None:
                pair.taken_ns = None  # the next sample is a first one again
            every = ",".join(f"{column}={code}" for column, _ in METRICS)
            return {**identity, "start_ns": start, "duration_ns": 0, "unavailable": every}
        began, pair.taken_ns = pair.taken_ns, self._now_ns()
        before, pair.last, pair.spare = pair.last, pair.spare, pair.last
        if began is None:
            return None
        row: Row = {**identity, "start_ns": began, "duration_ns": pair.taken_ns - began}
        row["unavailable"] = ",".join(_metrics(row, before, pair.last))
        return row


def _metrics(row: Row, first: Any, second: Any) -> list[str]:
    get = pynvml.c_nvmlGpmMetricsGet_t()
    get.version = pynvml.NVML_GPM_METRICS_GET_VERSION
    get.numMetrics = len(METRICS)
    get.sample1, get.sample2 = first, second
    for i, (_, metric) in enumerate(METRICS):
        get.metrics[i].metricId = metric
    try:
        pynvml.nvmlGpmMetricsGet(get)
    except Exception as e:
        return [f"{column}={code_of(e)}" for column, _ in METRICS]
    refused = []
    for i, (column, _) in enumerate(METRICS):
        told = get.metrics[i]
        if told.nvmlReturn != pynvml.NVML_SUCCESS:
            refused.append(f"{column}={told.nvmlReturn}")
        elif not math.isfinite(told.value) or told.value < 0:
            refused.append(f"{column}={NOT_AVAILABLE}")
        else:
            row[column] = float(told.value)
    return refused
