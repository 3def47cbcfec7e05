"""Strips: one small band per series over one axis of time, minimum to maximum shaded, mean as a line, unit on the axis.

A ceiling (slots, capacity) is a dashed line with its value; marks are stretches of time named above the strips.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from gpuaudit.bundle.rounding import digits, duration, half_even
from gpuaudit.report.charts.axis import TimeAxis
from gpuaudit.report.charts.canvas import LABEL_SIZE, WIDTH, Figure
from gpuaudit.report.charts.labels import Labels
from gpuaudit.report.fonts import fitted, text_width
from gpuaudit.report.text import Text, inert, join, listed, prose, words

STRIPS_PER_FIGURE = 18
"""Strips that fit a page with caption and axis: 18 × 36 px in the 900 px of an A4 page, two figures of a GPU on one."""

MOST_BINS, MOST_SERIES, MOST_MARKS = 300, 96, 300

_STRIP, _STEP = 26, 36
_WIDEST_NAME = 128
_MARK_ROOM = 20


@dataclass(frozen=True)
class Series:
    """One strip: bins of minimum, mean and maximum in units of 1/``scale``; None where nothing was recorded."""

    name: str
    unit: str
    scale: int
    minimum: list[int | None]
    mean: list[int | None]
    maximum: list[int | None]
    ceiling: int | None = None

    def limits(self) -> tuple[int, int]:
        """Lowest and highest value drawn; a strip with a ceiling begins at 0, so that its fill can be read."""
        low = min(v for v in self.minimum if v is not None)
        high = max(v for v in self.maximum if v is not None)
        return (low, high) if self.ceiling is None else (min(low, 0), max(high, self.ceiling))

    def text(self, value: int) -> str:
        return inert(digits(Fraction(value, self.scale), self.unit))


@dataclass(frozen=True)
class Strips:
    """A figure's worth of series over common bins."""

    title: str
    times: list[int]
    bin_ns: int
    series: list[Series]
    marks: list[tuple[int, int, str]]


def strips(data: dict[str, Any], title: str, window_start_ns: int) -> list[Figure]:
    """Figures of one chart of kind ``strips``; none without a bin or a series that has a value."""
    series = [
        Series(inert(s["label"] or s["name"]), s["unit"], int(data["scale"]), numbers(s["minimum"]),
               numbers(s["mean"]), numbers(s["maximum"]), None if s["ceiling"] is None else int(s["ceiling"]))
        for s in data["series"]
    ]  # fmt: skip
    marks = [(int(m[0]), int(m[1]), inert(m[2])) for m in data["marks"]]
    return draw(Strips(title, [int(t) for t in data["times_ns"]], int(data["bin_ns"]), series, marks), window_start_ns)


def numbers(values: list[Any]) -> list[int | None]:
    """Decimal strings of a document as integers; null stays None."""
    return [None if v is None else int(v) for v in values]


def draw(chart: Strips, window_start_ns: int) -> list[Figure]:
    """Figures of at most :data:`STRIPS_PER_FIGURE` strips; ValueError where the series are not of one length."""
    if len(chart.times) > MOST_BINS or len(chart.series) > MOST_SERIES or len(chart.marks) > MOST_MARKS:
        raise ValueError(f"strips of more than {MOST_BINS} bins, {MOST_SERIES} series or {MOST_MARKS} marks")
    for s in chart.series:
        if {len(s.minimum), len(s.mean), len(s.maximum)} != {len(chart.times)} or s.scale < 1:
            raise ValueError("a series has not one value for each bin, or no scale")
    shown = [s for s in chart.series if any(None not in triple for triple in _triples(s))]
    if not chart.times:
        return []
    parts = [shown[at : at + STRIPS_PER_FIGURE] for at in range(0, len(shown), STRIPS_PER_FIGURE)]
    return [_figure(chart, part, n, len(parts), window_start_ns) for n, part in enumerate(parts, start=1)]


def _triples(s: Series) -> list[tuple[int | None, int | None, int | None]]:
    return list(zip(s.minimum, s.mean, s.maximum, strict=True))


def _figure(chart: Strips, series: list[Series], number: int, parts: int, window_start_ns: int) -> Figure:
    times, bin_ns = chart.times, chart.bin_ns
    scale_room = max(text_width(t, LABEL_SIZE) for s in series for t in _ends(s)) + 8
    name_room = min(max(text_width(s.name, LABEL_SIZE) for s in series), Fraction(_WIDEST_NAME)) + 14
    left = name_room + scale_room
    axis = TimeAxis(times[0], times[-1] + bin_ns, left, WIDTH - left - 4, window_start_ns)
    top = 4 + (_MARK_ROOM if chart.marks else 0)
    bottom = top + _STEP * len(series)
    part = f", part {number} of {parts}" if parts > 1 else ""
    told = "; ".join(f"{s.name} from {_ends(s)[0]} to {_ends(s)[1]}" for s in series)
    figure = Figure(f"{chart.title}{part}", f"{told}.", bottom + 32)
    figure.caption = _caption(chart, series)
    _marks(figure, axis, chart.marks, bottom)
    axis.draw(figure, top, bottom, "time since the start of the capture")
    for row, one in enumerate(series):
        _strip(figure, axis, one, [t + bin_ns // 2 for t in times], top + row * _STEP + 6)
    return figure


def _marks(figure: Figure, axis: TimeAxis, marks: list[tuple[int, int, str]], bottom: int) -> None:
    """Each mark as a bracket above the strips and a shade through them, named where its name has room."""
    labels = Labels(figure, (Fraction(axis.left) - 60, Fraction(WIDTH), Fraction(0), Fraction(_MARK_ROOM - 4)))
    for start, length, _ in marks:
        x1, x2 = axis.x(start), axis.x(start + length)
        figure.rect(x1, _MARK_ROOM, max(x2 - x1, Fraction(1)), bottom - _MARK_ROOM, "lane")
        figure.rect(x1, _MARK_ROOM - 3, max(x2 - x1, Fraction(1)), 2, "finding")
    for start, length, label in marks:
        middle = axis.x(start + length // 2)
        labels.place(label, [(middle, 12, "middle"), (middle, 12, "end"), (middle, 12, "start")], "quiet")


def _strip(figure: Figure, axis: TimeAxis, series: Series, times: list[int], y: int) -> None:
    low, high = series.limits()
    smallest, largest = _ends(series)
    for line, text in enumerate(lines := _lines(series.name)):
        figure.label(0, y + 18 + 13 * line - 6 * (len(lines) - 1), fitted(text, LABEL_SIZE, Fraction(_WIDEST_NAME)))
    edge = Fraction(axis.left) - 5
    figure.label(edge, y + 9, largest, "end", "quiet")
    if smallest != largest:
        figure.label(edge, y + _STRIP, smallest, "end", "quiet")
    figure.line(axis.left, y + _STRIP, Fraction(axis.left) + Fraction(axis.width), y + _STRIP, "grid")

    def height(value: int) -> Fraction:
        middle = Fraction(_STRIP, 2)
        return y + (middle if high == low else _STRIP - Fraction((value - low) * _STRIP, high - low))

    if series.ceiling is not None:
        at = height(series.ceiling)
        figure.line(axis.left, at, Fraction(axis.left) + Fraction(axis.width), at, "bound")
    for run in _runs(series):
        known = [(axis.x(times[i]), *(height(v or 0) for v in _triples(series)[i])) for i in run]
        if len(run) == 1:
            figure.rect(known[0][0] - 1, known[0][2] - 1, 2, 2, "bar")
            continue
        figure.path([*((x, top) for x, _, _, top in known), *((x, b) for x, b, _, _ in reversed(known))], "band",
                    closed=True)  # fmt: skip
        figure.path([(x, mean) for x, _, mean, _ in known], "line")


def _lines(name: str) -> list[str]:
    """A name on one line, or on two where it is too wide for one."""
    if text_width(name, LABEL_SIZE) <= _WIDEST_NAME:
        return [name]
    parts = name.split(" ")
    at = max(
        (n for n in range(1, len(parts)) if text_width(" ".join(parts[:n]), LABEL_SIZE) <= _WIDEST_NAME), default=0
    )
    return [" ".join(parts[:at]), " ".join(parts[at:])] if at else [name]


def _runs(series: Series) -> list[list[int]]:
    """Indices of bins with readings, cut where the next is more than twice the usual (median) distance away."""
    known = [at for at, triple in enumerate(_triples(series)) if None not in triple]
    distances = sorted(b - a for a, b in pairwise(known))
    longest = 2 * distances[len(distances) // 2] if distances else 0
    runs = [known[:1]]
    for a, b in pairwise(known):
        if b - a > longest:
            runs.append([])
        runs[-1].append(b)
    return runs


def _ends(series: Series) -> tuple[str, str]:
    low, high = series.limits()
    return series.text(low), series.text(high)


def _caption(chart: Strips, series: list[Series]) -> Text:
    text = words(
        f"Line: mean of each bin of {duration(chart.bin_ns)} ({half_even(len(chart.times))} bins); shade: smallest to "
        "largest reading. A break is time without a reading, for more than twice the usual distance of two readings."
    )
    if any(s.ceiling is not None for s in series):
        told = (f"{s.name} {s.text(s.ceiling)}" for s in series if s.ceiling is not None)
        text = join(text, words(" Dashed: the ceiling of "), listed((prose(t) for t in told), ", "), words("."))
    names: dict[str, int] = {}
    for *_, label in chart.marks:
        names[label] = names.get(label, 0) + 1
    if names:
        told_marks = (prose(f"{name} ({half_even(n)})") for name, n in names.items())
        text = join(text, words(" Marked above: "), listed(told_marks, ", "), words("."))
    return text
