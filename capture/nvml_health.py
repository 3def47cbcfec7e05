"""What changes slowly or costs more to read, asked every 5 s: health of a GPU, its NVLinks, and its accounting.

It is asked in a thread of its own: reading the InfoROM or many links may take long, and must not delay the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pynvml  # type: ignore[import-untyped]

from gpuaudit.capture.nvml_accounting import AccountingReader
from gpuaudit.capture.nvml_devices import Gpu
from gpuaudit.capture.nvml_facts import read_facts
from gpuaudit.capture.nvml_links import read_links
from gpuaudit.capture.nvml_read import Reading, Row, one, read_into

HEALTH_INTERVAL_NS = 5_000_000_000
"""Errors, limits and modes change by events that a person acts on within hours; links and accounting only add up."""


def _ecc(kind: int, counter: int) -> Callable[[Any], int]:
    return lambda h: pynvml.nvmlDeviceGetTotalEccErrors(h, kind, counter)


def _retired(cause: int) -> Callable[[Any], int]:
    return lambda h: len(pynvml.nvmlDeviceGetRetiredPages(h, cause))


def _bar1(handle: Any) -> tuple[int, int]:
    info = pynvml.nvmlDeviceGetBAR1MemoryInfo(handle)
    return info.bar1Total, info.bar1Used


_CORRECTED, _UNCORRECTED = pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED

READINGS: tuple[Reading, ...] = (
    one("ecc_enabled", lambda h: pynvml.nvmlDeviceGetEccMode(h)[0]),
    one("ecc_corrected_volatile", _ecc(_CORRECTED, pynvml.NVML_VOLATILE_ECC), 64),
    one("ecc_uncorrected_volatile", _ecc(_UNCORRECTED, pynvml.NVML_VOLATILE_ECC), 64),
    one("ecc_corrected_aggregate", _ecc(_CORRECTED, pynvml.NVML_AGGREGATE_ECC), 64),
    one("ecc_uncorrected_aggregate", _ecc(_UNCORRECTED, pynvml.NVML_AGGREGATE_ECC), 64),
    one("retired_pages_single_bit", _retired(pynvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS)),
    one("retired_pages_double_bit", _retired(pynvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR)),
    one("retired_pages_pending", pynvml.nvmlDeviceGetRetiredPagesPendingStatus),
    Reading(
        ("remapped_rows_corrected", "remapped_rows_uncorrected", "remapped_rows_pending", "remapped_rows_failed"),
        pynvml.nvmlDeviceGetRemappedRows,
    ),
    one("pcie_generation_max", pynvml.nvmlDeviceGetMaxPcieLinkGeneration),
    one("pcie_width_max", pynvml.nvmlDeviceGetMaxPcieLinkWidth),
    one("power_limit_default_mw", pynvml.nvmlDeviceGetPowerManagementDefaultLimit),
    one("power_limit_set_mw", pynvml.nvmlDeviceGetPowerManagementLimit),
    one("power_limit_max_mw", lambda h: pynvml.nvmlDeviceGetPowerManagementLimitConstraints(h)[1]),
    one(
        "temperature_slowdown_c",
        lambda h: pynvml.nvmlDeviceGetTemperatureThreshold(h, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
    ),
    one("persistence_mode", pynvml.nvmlDeviceGetPersistenceMode),
    one("compute_mode", pynvml.nvmlDeviceGetComputeMode),
    one("mig_mode", lambda h: pynvml.nvmlDeviceGetMigMode(h)[0]),
    one("accounting_mode", pynvml.nvmlDeviceGetAccountingMode),
    Reading(("bar1_total_bytes", "bar1_used_bytes"), _bar1, 64),
)


def read_health(gpu: Gpu) -> tuple[Row, list[str]]:
    """One row of ``nvml_health`` without its times, and what was refused; never raises for what NVML refuses."""
    row = gpu.identity()
    return row, read_into(row, READINGS, gpu.handle)


class HealthReader:
    """Health, links and accounting of one GPU, each time it is called; its facts, once."""

    def __init__(self, gpu: Gpu, gpus: Sequence[Gpu]) -> None:
        self._gpu = gpu
        self._gpus = gpus
        self._accounting = AccountingReader(gpu)
        self.facts: dict[str, Any] | None = None

    def __call__(self) -> dict[str, list[Row]]:
        """Rows by table, without their times."""
        health, refused = read_health(self._gpu)
        accounting, without = self._accounting.read()
        health["unavailable"] = ",".join([*refused, *without])
        rows = {"nvml_health": [health], "nvml_links": read_links(self._gpu), "nvml_accounting": accounting}
        if self.facts is None:
            self.facts = read_facts(self._gpu, self._gpus)
        return rows
