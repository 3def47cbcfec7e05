"""Bands: a ratio over time, one strip per row, its height the value and its colour the band that it falls into."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

from gpuaudit.bundle.rounding import duration, half_even
from gpuaudit.report.charts.axis import TimeAxis
from gpuaudit.report.charts.canvas import LABEL_SIZE, WIDTH, Figure
from gpuaudit.report.fonts import fitted, text_width
from gpuaudit.report.text import inert, words

ROWS_PER_FIGURE = 22
"""Rows that fit a page with caption and axis: 22 × 36 px in the 900 px of an A4 page."""

WHOLE = 10_000
"""Values are in ten-thousandths: 10,000 is 1."""

MOST_BINS, MOST_ROWS, MOST_BOUNDS = 300, 32, 4

_STRIP, _STEP = 26, 36
_LABEL_ROOM = 150


class _Bounds(NamedTuple):
    """Highest and lowest bound with what lies beyond them."""

    high: int
    above: str
    low: int
    below: str

    def role(self, value: int) -> str:
        return "busy" if value > self.high else "late" if value < self.low else "throttled"


def bands(data: dict[str, Any], title: str, window_start_ns: int) -> list[Figure]:
    """Figures of one chart of kind ``bands``; none without a row that has a value."""
    times = [int(t) for t in data["times_ns"]]
    rows = [(inert(r["label"]), [None if v is None else int(v) for v in r["values"]]) for r in data["rows"]]
    if len(times) > MOST_BINS or len(rows) > MOST_ROWS or not 1 <= len(data["bounds"]) <= MOST_BOUNDS:
        raise ValueError(f"bands of more than {MOST_BINS} bins, {MOST_ROWS} rows or {MOST_BOUNDS} bounds")
    if any(len(values) != len(times) for _, values in rows):
        raise ValueError("a row of bands has not one value for each bin")
    rows = [(label, values) for label, values in rows if any(v is not None for v in values)]
    if not times or not rows:
        return []
    ordered = sorted((int(v), inert(label)) for v, label in data["bounds"])
    bounds = _Bounds(*ordered[-1], *ordered[0])
    cuts = range(0, len(rows), ROWS_PER_FIGURE)
    axis = (times, int(data["bin_ns"]), window_start_ns)
    return [
        _figure(rows[at : at + ROWS_PER_FIGURE], bounds, axis, f"{title}{_part(n, len(cuts))}")
        for n, at in enumerate(cuts, start=1)
    ]


def _part(number: int, of: int) -> str:
    return f", part {number} of {of}" if of > 1 else ""


def _figure(
    rows: list[tuple[str, list[int | None]]], bounds: _Bounds, when: tuple[list[int], int, int], title: str
) -> Figure:
    times, bin_ns, start_ns = when
    room = min(max(text_width(label, LABEL_SIZE) for label, _ in rows), Fraction(_LABEL_ROOM)) + 10
    axis = TimeAxis(times[0], times[-1] + bin_ns, room, WIDTH - room - 30, start_ns)
    top = 22
    bottom = top + _STEP * len(rows)
    figure = Figure(title, _describe(rows, bounds), bottom + 32)
    figure.caption = words(
        f"Height and colour: the ratio in bins of {duration(bin_ns)}, from 0 to 1; dashed: "
        f"{_number(bounds.low)} and {_number(bounds.high)}. Empty: nothing to judge by."
    )
    _legend(figure, bounds)
    for row in range(len(rows)):
        figure.rect(room, top + row * _STEP + 4, Fraction(axis.width), _STRIP, "lane")
    axis.draw(figure, top, bottom, "time since the start of the capture")
    for row, (label, values) in enumerate(rows):
        y = top + row * _STEP + 4
        figure.label(room - 8, y + 16, fitted(label, LABEL_SIZE, room - 8), "end")
        _row(figure, axis, bounds, (times, bin_ns, values), y)
        for bound in (bounds.low, bounds.high):
            at = y + _STRIP - Fraction(min(bound, WHOLE) * _STRIP, WHOLE)
            figure.line(room, at, room + Fraction(axis.width), at, "bound")
        figure.label(room + Fraction(axis.width) + 5, y + 7, "1", "start", "quiet")
        figure.label(room + Fraction(axis.width) + 5, y + _STRIP, "0", "start", "quiet")
    return figure


def _row(
    figure: Figure, axis: TimeAxis, bounds: _Bounds, cells: tuple[list[int], int, list[int | None]], y: int
) -> None:
    """Runs of bins in one band, each as one outline."""
    times, bin_ns, values = cells
    base = Fraction(y + _STRIP)
    at = 0
    while at < len(values):
        value = values[at]
        if value is None:
            at += 1
            continue
        role = bounds.role(value)
        points: list[tuple[Any, Any]] = [(axis.x(times[at]), base)]
        while at < len(values) and (v := values[at]) is not None and bounds.role(v) == role:
            top = base - Fraction(min(max(v, 0), WHOLE) * _STRIP, WHOLE)
            points += [(axis.x(times[at]), top), (axis.x(times[at] + bin_ns), top)]
            at += 1
        figure.path([*points, (points[-1][0], base)], role, closed=True)


def _legend(figure: Figure, bounds: _Bounds) -> None:
    x = Fraction(0)
    for role, text in _entries(bounds):
        figure.rect(x, 3, 13, 11, role)
        figure.label(x + 17, 12, fitted(text, LABEL_SIZE, Fraction(200)))
        x += 17 + min(text_width(text, LABEL_SIZE), Fraction(200)) + 16


def _entries(bounds: _Bounds) -> list[tuple[str, str]]:
    """What the highest and the lowest bound say of what lies beyond them, as it stands."""
    if bounds.high == bounds.low:
        return [("busy", bounds.above), ("late", bounds.below)]
    return [("busy", bounds.above), ("throttled", "between"), ("late", bounds.below)]


def _number(value: int) -> str:
    return half_even(Fraction(value, WHOLE), 2 if value % 1000 else 1)


def _describe(rows: list[tuple[str, list[int | None]]], bounds: _Bounds) -> str:
    told = []
    for label, values in rows:
        known = [v for v in values if v is not None]
        parts = [f"{half_even(sum(bounds.role(v) == role for v in known))} {text}" for role, text in _entries(bounds)]
        told.append(f"{label}: {', '.join(parts)}, of {half_even(len(known))} bins")
    return "; ".join(told) + "."
