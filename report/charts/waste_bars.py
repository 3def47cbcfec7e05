"""Waste bars: GPU time by what became of it, each bar labelled with its time and its share of the whole."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from gpuaudit.bundle.rounding import Exact
from gpuaudit.report.charts.canvas import LABEL_SIZE, WIDTH, Figure
from gpuaudit.report.fonts import text_width

_BAR, _STEP = 16, 25

KEY_ROLES = {
    "useful": "busy", "idle_allocated": "throttled", "idle_unallocated": "idle", "waiting_for_peers": "late",
    "host_blocked": "sync", "starved": "collective", "over_allocated": "finding", "throttled": "throttled",
    "memory_bound": "spare", "not_classified": "gap",
}  # fmt: skip
"""Colour of each key; the name beside the bar carries the meaning."""


class Bar(NamedTuple):
    """One part: key, name, GPU time with its bounds, and the label behind the bar."""

    key: str
    name: str
    value: Exact
    low: Exact
    high: Exact
    label: str


def waste_bars(bars: list[Bar], observed: Exact, observed_text: str) -> Figure:
    """One bar per part; lengths are shares of ``observed``, which the frame shows in full.

    A line from the least to the most that the part can be crosses the bar where the two differ.
    """
    room = max((text_width(b.name, LABEL_SIZE) for b in bars), default=Fraction(0)) + 10
    labels = max((text_width(b.label, LABEL_SIZE) for b in bars), default=Fraction(0)) + 10
    full = WIDTH - room - labels
    bottom = _STEP * len(bars) + 2
    told = "; ".join(f"{b.name} {b.label}" for b in bars)
    figure = Figure("GPU time by what became of it", f"Of {observed_text}: {told}.", bottom + 20)

    def length(value: Exact) -> Fraction:
        share = Fraction(value) / Fraction(observed) if observed else Fraction(0)
        return min(max(share, Fraction(0)), Fraction(1)) * full

    for row, b in enumerate(bars):
        y = row * _STEP + 4
        figure.label(room - 8, y + 12, b.name, "end")
        figure.rect(room, y, full, _BAR, "lane")
        if length(b.value):
            figure.rect(room, y, max(length(b.value), Fraction(1)), _BAR, KEY_ROLES.get(b.key, "bar"))
        if b.low != b.high:
            _range(figure, room + length(b.low), room + length(b.high), Fraction(y) + Fraction(_BAR, 2))
        figure.label(room + full + 8, y + 12, b.label)
    figure.label(room, bottom + 14, "0", "start", "quiet")
    figure.label(room + full, bottom + 14, f"{observed_text} observed", "end", "quiet")
    return figure


def _range(figure: Figure, left: Fraction, right: Fraction, y: Fraction) -> None:
    figure.line(left, y, right, y, "roof")
    for x in (left, right):
        figure.line(x, y - 4, x, y + 4, "roof")
