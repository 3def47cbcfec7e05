"""NVML strips: one small band per reading and GPU, minimum to maximum shaded, mean as a line, unit on the axis."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

from gpuaudit.analyze.finding import Quantity
from gpuaudit.bundle.rounding import duration, half_even, shown
from gpuaudit.report.charts.axis import TimeAxis
from gpuaudit.report.charts.canvas import LABEL_SIZE, WIDTH, Figure
from gpuaudit.report.fonts import fitted, text_width
from gpuaudit.report.text import inert, words

NAMES = {
    "gpu_utilization_percent": "GPU utilisation", "memory_utilization_percent": "memory utilisation",
    "memory_used_bytes": "memory used", "power_mw": "power", "power_limit_mw": "power limit",
    "temperature_c": "temperature", "clock_sm_mhz": "SM clock", "clock_memory_mhz": "memory clock",
}  # fmt: skip
"""Columns of nvml_samples in words; the unit stands on the axis."""

_STRIP, _STEP = 30, 44
_WIDEST_NAME = 128


def nvml_strips(chart: dict[str, Any], window_start_ns: int) -> Figure | None:
    """The figure of one GPU of ``charts.nvml``; None when it has no sample or no series."""
    times = [int(t) for t in chart["times_ns"]]
    series = [s for s in chart["series"] if any(v is not None for v in s["mean"])]
    if not times or not series:
        return None
    bin_ns = int(chart["bin_ns"])
    scale_room = max(text_width(t, LABEL_SIZE) for s in series for t in _ends(s)) + 8
    names = [_name(s) for s in series]
    name_room = min(max(text_width(n, LABEL_SIZE) for n in names), Fraction(_WIDEST_NAME)) + 14
    left = name_room + scale_room
    axis = TimeAxis(times[0], times[-1] + bin_ns, left, WIDTH - left - 4, window_start_ns)
    top = 4
    bottom = top + _STEP * len(series)
    name = f"GPU {int(chart['gpu_index'])}"
    told = "; ".join(f"{_name(s)} from {_ends(s)[0]} to {_ends(s)[1]}" for s in series)
    figure = Figure(f"NVML readings of {name}", f"{told}.", bottom + 32)
    figure.caption = words(
        f"Line: mean of each bin of {duration(bin_ns)} ({half_even(len(times))} bins); shade: smallest to "
        "largest reading. A break is time without a reading, for more than twice the usual distance of two readings."
    )
    axis.draw(figure, top, bottom, "time since the start of the capture")
    for row, one in enumerate(series):
        _strip(figure, axis, one, [t + bin_ns // 2 for t in times], top + row * _STEP + 6)
    return figure


def _strip(figure: Figure, axis: TimeAxis, series: dict[str, Any], times: list[int], y: int) -> None:
    low, high = _limits(series)
    smallest, largest = _ends(series)
    figure.label(0, y + 18, fitted(_name(series), LABEL_SIZE, Fraction(_WIDEST_NAME)))
    edge = Fraction(axis.left) - 5
    figure.label(edge, y + 9, largest, "end", "quiet")
    if smallest != largest:
        figure.label(edge, y + _STRIP, smallest, "end", "quiet")
    figure.line(axis.left, y + _STRIP, Fraction(axis.left) + Fraction(axis.width), y + _STRIP, "grid")

    def height(value: int) -> Fraction:
        middle = Fraction(_STRIP, 2)
        return y + (middle if high == low else _STRIP - Fraction((value - low) * _STRIP, high - low))

    for run in _runs(series):
        upper = [(axis.x(times[i]), height(int(series["maximum"][i]))) for i in run]
        lower = [(axis.x(times[i]), height(int(series["minimum"][i]))) for i in reversed(run)]
        mean = [(axis.x(times[i]), height(int(series["mean"][i]))) for i in run]
        if len(run) == 1:
            figure.rect(mean[0][0] - 1, mean[0][1] - 1, 2, 2, "bar")
            continue
        figure.path([*upper, *lower], "band", closed=True)
        figure.path([*mean], "line")


def _name(series: dict[str, Any]) -> str:
    return NAMES.get(series["name"], inert(series["name"]))


def _runs(series: dict[str, Any]) -> list[list[int]]:
    """Indices of bins with readings, cut where the next is more than twice the usual (median) distance away."""
    triples = enumerate(zip(series["minimum"], series["mean"], series["maximum"], strict=True))
    known = [at for at, triple in triples if None not in triple]
    distances = sorted(b - a for a, b in pairwise(known))
    longest = 2 * distances[len(distances) // 2] if distances else 0
    runs = [known[:1]]
    for a, b in pairwise(known):
        if b - a > longest:
            runs.append([])
        runs[-1].append(b)
    return runs


def _limits(series: dict[str, Any]) -> tuple[int, int]:
    low = min(int(v) for v in series["minimum"] if v is not None)
    high = max(int(v) for v in series["maximum"] if v is not None)
    return low, high


def _ends(series: dict[str, Any]) -> tuple[str, str]:
    low, high = _limits(series)
    unit = inert(series["unit"])
    return shown(Quantity(low, unit, "measured")).text, shown(Quantity(high, unit, "measured")).text
