"""NVML strips: what NVML read of one GPU, as :mod:`gpuaudit.report.charts.strips` draws any series."""

from __future__ import annotations

from typing import Any

from gpuaudit.report.charts.canvas import Figure
from gpuaudit.report.charts.strips import Series, Strips, draw, numbers
from gpuaudit.report.text import inert

NAMES = {
    "gpu_utilization_percent": "GPU utilisation", "memory_utilization_percent": "memory utilisation",
    "memory_used_bytes": "memory used", "power_mw": "power", "power_limit_mw": "power limit",
    "temperature_c": "temperature", "temperature_memory_c": "memory temperature", "clock_sm_mhz": "SM clock",
    "clock_sm_cap_mhz": "SM clock cap", "clock_memory_mhz": "memory clock",
}  # fmt: skip
"""Columns of nvml_samples in words; the unit stands on the axis."""

_UNIT_ENDINGS = ("_bytes_per_s", "_percent", "_bytes", "_mhz", "_mw", "_mj", "_c")


def nvml_strips(chart: dict[str, Any], window_start_ns: int) -> list[Figure]:
    """Figures of one GPU of ``charts.nvml``; none when it has no sample or no series."""
    series = [
        Series(_name(s["name"]), s["unit"], 1, numbers(s["minimum"]), numbers(s["mean"]), numbers(s["maximum"]))
        for s in chart["series"]
    ]
    times = [int(t) for t in chart["times_ns"]]
    title = f"NVML readings of GPU {int(chart['gpu_index'])}"
    return draw(Strips(title, times, int(chart["bin_ns"]), series, []), window_start_ns)


def _name(column: str) -> str:
    """A column in words; one without an entry of its own by its name, without the unit that the axis tells."""
    if column in NAMES:
        return NAMES[column]
    ending = next((e for e in _UNIT_ENDINGS if column.endswith(e)), "")
    return inert(column.removesuffix(ending).replace("_", " "))
