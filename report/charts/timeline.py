"""Incident timeline: one lane per GPU, process, thread, rank or gap, all on one axis.

Classes differ in height and place as well as in colour: full bars work, low bars wait, high bars were pushed aside.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from gpuaudit.bundle.rounding import half_even
from gpuaudit.report.charts.axis import TimeAxis
from gpuaudit.report.charts.canvas import LABEL_SIZE, WIDTH, Figure
from gpuaudit.report.fonts import fitted, text_width
from gpuaudit.report.text import Text, inert, join, listed, prose, words

LANES_PER_FIGURE = 34
"""Lanes that fit a page with caption and axis: 34 × 20 px in the 900 px of an A4 page."""

_LANE, _STEP = 15, 20
_LABEL_ROOM = 150

CLASSES: dict[str, tuple[Fraction, Fraction, str]] = {
    "busy": (Fraction(1, 10), Fraction(9, 10), "GPU busy"),
    "collective": (Fraction(1, 4), Fraction(9, 10), "in a collective"),
    "sync": (Fraction(1, 2), Fraction(9, 10), "in a synchronisation"),
    "idle": (Fraction(3, 4), Fraction(9, 10), "idle"),
    "preempted": (Fraction(1, 10), Fraction(2, 5), "preempted"),
    "throttled": (Fraction(1, 10), Fraction(3, 10), "throttled"),
    "gap": (Fraction(1, 10), Fraction(9, 10), "not observed"),
    "finding": (Fraction(0), Fraction(1), "finding"),
}
"""Class → top and bottom within the lane (0 is its upper edge), and its name in the legend."""

_DRAW_ORDER = tuple(CLASSES)


def timeline(chart: dict[str, Any]) -> list[Figure]:
    """Figures of ``charts.timeline``, at most :data:`LANES_PER_FIGURE` lanes each; none without lanes."""
    lanes = chart["lanes"]
    parts = [lanes[at : at + LANES_PER_FIGURE] for at in range(0, len(lanes), LANES_PER_FIGURE)]
    return [_figure(chart, part, number, len(parts)) for number, part in enumerate(parts, start=1)]


def _figure(chart: dict[str, Any], lanes: list[dict[str, Any]], number: int, parts: int) -> Figure:
    names = [inert(lane["label"]) for lane in lanes]
    room = min(max(text_width(n, LABEL_SIZE) for n in names) + 8, Fraction(_LABEL_ROOM))
    start, end = int(chart["start_ns"]), int(chart["end_ns"])
    axis = TimeAxis(start, end, room, WIDTH - room - 2, start)
    used = [c for c in CLASSES if any(i[2] == c for lane in lanes for i in lane["intervals"])]
    legend_rows = _legend_rows(used)
    top = 6 + 16 * len(legend_rows)
    bottom = top + _STEP * len(lanes)
    part = f", part {number} of {parts}" if parts > 1 else ""
    figure = Figure(f"Incident timeline{part}", _describe(lanes, names), bottom + 32, caption=_caption(chart, lanes))
    _legend(figure, legend_rows)
    for row in range(len(lanes)):
        figure.rect(room, top + row * _STEP + 2, WIDTH - room - 2, _LANE, "lane")
    axis.draw(figure, top, bottom, "time since the start of the capture")
    for row, (lane, name) in enumerate(zip(lanes, names, strict=True)):
        y = top + row * _STEP + 2
        marked = Fraction(-1000)
        figure.label(room - 6, y + 11, fitted(name, LABEL_SIZE, room - 8), "end")
        for start_ns, duration_ns, kind in sorted(
            lane["intervals"], key=lambda i: (_DRAW_ORDER.index(i[2]), int(i[0]))
        ):
            marked = _bar(figure, axis, y, (int(start_ns), int(duration_ns), kind), marked)
    return figure


def _bar(figure: Figure, axis: TimeAxis, y: int, interval: tuple[int, int, str], marked: Fraction) -> Fraction:
    """Draw one interval; ``marked`` is where the lane's last triangle stands, and the answer where it stands now."""
    start_ns, duration_ns, kind = interval
    x1, x2 = axis.x(start_ns), axis.x(start_ns + duration_ns)
    upper, lower, _ = CLASSES[kind]
    if kind == "finding":
        apart = (x1 + x2) / 2 - marked >= 10
        _bracket(figure, x1, x2, Fraction(y), pointed=apart)
        return (x1 + x2) / 2 if apart else marked
    figure.rect(x1, y + upper * _LANE, max(x2 - x1, Fraction(3, 5)), (lower - upper) * _LANE, kind)
    return marked


def _bracket(figure: Figure, x1: Fraction, x2: Fraction, y: Fraction, *, pointed: bool = True) -> None:
    """A finding: a rule along the top of the lane and, where there is room, a triangle pointing at its middle."""
    middle = (x1 + x2) / 2
    figure.rect(x1, y - 1, max(x2 - x1, Fraction(1)), Fraction(3, 2), "finding")
    if pointed:
        figure.path([(middle - 4, y - 1), (middle + 4, y - 1), (middle, y + 6)], "finding", closed=True)


def _legend_rows(used: list[str]) -> list[list[tuple[str, Fraction]]]:
    """Classes of the legend with their left edge, broken into rows that fit the width."""
    rows: list[list[tuple[str, Fraction]]] = []
    x = Fraction(WIDTH + 1)
    for kind in used:
        width = 20 + text_width(CLASSES[kind][2], LABEL_SIZE) + 11
        if x + width > WIDTH:
            rows.append([])
            x = Fraction(0)
        rows[-1].append((kind, x))
        x += width
    return rows


def _legend(figure: Figure, rows: list[list[tuple[str, Fraction]]]) -> None:
    for row, entries in enumerate(rows):
        for kind, x in entries:
            y = Fraction(16 * row)
            upper, lower, name = CLASSES[kind]
            if kind == "finding":
                _bracket(figure, x, x + 16, y + 2)
            else:
                figure.rect(x, y + upper * 12, 16, (lower - upper) * 12, kind)
            figure.label(x + 20, y + 10, name)


def _describe(lanes: list[dict[str, Any]], names: list[str]) -> str:
    counts = [f"{name}: {half_even(len(lane['intervals']))} intervals" for lane, name in zip(lanes, names, strict=True)]
    return "One lane for each of " + "; ".join(counts) + "."


def _caption(chart: dict[str, Any], lanes: list[dict[str, Any]]) -> Text:
    omitted = sum(int(lane["omitted"]) for lane in lanes)
    lanes_left_out = int(chart.get("omitted_lanes", 0))
    rules = dict.fromkeys(lane["rule"] for lane in lanes if lane["rule"])
    text = words("Times count from the start of the capture.")
    if omitted:
        text = join(text, words(f" {half_even(omitted)} intervals are not drawn."))
    if lanes_left_out:
        text = join(text, words(f" {half_even(lanes_left_out)} lanes are not drawn."))
    return join(text, words(" Drawn: "), listed((prose(r) for r in rules), "; "), words(".")) if rules else text
