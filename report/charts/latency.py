"""Latency distributions: one strip per operation over one logarithmic axis of time, so that operations compare."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from gpuaudit.bundle.rounding import half_even
from gpuaudit.report.charts.canvas import LABEL_SIZE, WIDTH, Figure
from gpuaudit.report.fonts import fitted, text_width
from gpuaudit.report.text import inert, words

STRIPS_PER_FIGURE = 20
"""Strips that fit a page with caption and axis: 20 × 40 px in the 900 px of an A4 page."""

_STRIP, _STEP = 28, 40
_DECADES = tuple(10**p for p in range(13))


def latency(charts: list[dict[str, Any]], marks: dict[tuple[str, str], dict[str, int]]) -> list[Figure]:
    """Figures of ``charts.latency``; ``marks`` gives p50, p99 and max (ns) by table and operation."""
    drawn = [c for c in charts if c["bins"]]
    cuts = range(0, len(drawn), STRIPS_PER_FIGURE)
    return [_figure(drawn[at : at + STRIPS_PER_FIGURE], marks, n, len(cuts)) for n, at in enumerate(cuts, start=1)]


class _LogAxis:
    """Time on a base-2 logarithmic axis whose ends are powers of two."""

    def __init__(self, charts: list[dict[str, Any]], left: Fraction) -> None:
        lows = [max(int(b[0]), 1) for c in charts for b in c["bins"]]
        highs = [max(int(b[1]), 2) for c in charts for b in c["bins"]]
        self.first = min(lows).bit_length() - 1
        self.last = max(max(highs).bit_length(), self.first + 2)
        self.left, self.width = left, WIDTH - left - 6

    def x(self, ns: int) -> Fraction:
        """Place of a duration; between powers of two linear, which bends a bin by less than 9 % of its width."""
        value = min(max(ns, 1 << self.first), 1 << self.last)
        power = value.bit_length() - 1
        within = Fraction(value - (1 << power), 1 << power)
        return self.left + (power + within - self.first) * self.width / (self.last - self.first)

    def ticks(self) -> list[tuple[Fraction, str]]:
        """Powers of ten inside the axis, every one or every third so that labels stay apart."""
        inside = [ns for ns in _DECADES if 1 << self.first <= ns <= 1 << self.last]
        every = 3 if len(inside) * 60 > self.width else 1
        return [(self.x(ns), _decade(ns)) for ns in inside if len(str(ns)) % every == 1 % every]


def _decade(ns: int) -> str:
    size, unit = next((s, u) for s, u in ((10**9, "s"), (10**6, "ms"), (10**3, "µs"), (1, "ns")) if ns >= s)
    return f"{half_even(ns // size)} {unit}"


def _figure(
    charts: list[dict[str, Any]], marks: dict[tuple[str, str], dict[str, int]], number: int, parts: int
) -> Figure:
    names = [inert(c["op"]) for c in charts]
    room = min(max(text_width(n, LABEL_SIZE) for n in names) + 10, Fraction(190))
    axis = _LogAxis(charts, room)
    top = 20
    bottom = top + _STEP * len(charts)
    part = f", part {number} of {parts}" if parts > 1 else ""
    figure = Figure(f"How long calls took{part}", _describe(charts, names), bottom + 32)
    figure.caption = words(
        "Bars count calls per doubling of duration; each strip is scaled to its own tallest bar, whose count stands "
        "under the name. The axis is logarithmic and common to all strips."
    )
    _legend(figure)
    for x, text in axis.ticks():
        figure.line(x, top, x, bottom, "grid")
        figure.label(x, bottom + 13, text, "middle", "quiet")
    for row, (chart, name) in enumerate(zip(charts, names, strict=True)):
        y = top + row * _STEP + 6
        _strip(figure, axis, chart, y)
        tallest = max(int(b[2]) for b in chart["bins"])
        figure.label(room - 8, y + 12, fitted(name, LABEL_SIZE, room - 8), "end")
        figure.label(room - 8, y + 24, f"tallest {half_even(tallest)}", "end", "quiet")
        _marks(figure, axis, marks.get((chart["table"], chart["op"]), {}), y)
    figure.label(room, bottom + 27, "duration of a call (logarithmic)", "start", "quiet")
    return figure


def _strip(figure: Figure, axis: _LogAxis, chart: dict[str, Any], y: int) -> None:
    tallest = max(int(b[2]) for b in chart["bins"])
    for low, high, count in chart["bins"]:
        if int(count):
            x1, x2 = axis.x(int(low)), axis.x(int(high))
            height = max(Fraction(int(count) * _STRIP, tallest), Fraction(3, 4))
            figure.rect(x1, y + _STRIP - height, max(x2 - x1 - Fraction(1, 2), Fraction(1, 2)), height, "bar")
    figure.line(axis.left, y + _STRIP, axis.left + axis.width, y + _STRIP, "axis")


_SHAPES = {"p50": "median", "p99": "p99", "max": "longest"}


def _marks(figure: Figure, axis: _LogAxis, values: dict[str, int], y: int) -> None:
    for name, ns in values.items():
        _mark(figure, name, axis.x(ns), Fraction(y + _STRIP))


def _mark(figure: Figure, name: str, x: Fraction, y: Fraction) -> None:
    """Median: ring-like square on its corner; p99: triangle; longest: upright bar."""
    r = Fraction(7, 2)
    if name == "p50":
        figure.path([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], "ring", closed=True)
    elif name == "p99":
        figure.path([(x - r, y + r), (x + r, y + r), (x, y - r)], "throttled", closed=True)
    else:
        figure.rect(x - 1, y - 5, 2, 10, "late")


def _legend(figure: Figure) -> None:
    x = Fraction(4)
    for name, text in _SHAPES.items():
        _mark(figure, name, x, Fraction(7))
        figure.label(x + 8, 10, text)
        x += 8 + text_width(text, LABEL_SIZE) + 18


def _describe(charts: list[dict[str, Any]], names: list[str]) -> str:
    counts = [
        f"{name}: {half_even(sum(int(b[2]) for b in c['bins']))} calls" for c, name in zip(charts, names, strict=True)
    ]
    return "Histogram of durations for " + "; ".join(counts) + "."
