"""Waste bars: GPU time by what became of it, each bar labelled with its time and its share of the whole."""

from __future__ import annotations

from fractions import Fraction

from gpuaudit.bundle.rounding import Exact
from gpuaudit.report.charts.canvas import LABEL_SIZE, WIDTH, Figure
from gpuaudit.report.fonts import text_width

_BAR, _STEP = 16, 25

KEY_ROLES = {
    "idle_allocated": "throttled", "idle_unallocated": "idle", "waiting_for_peers": "late", "host_blocked": "sync",
    "not_classified": "heat2",
}  # fmt: skip
"""Colour of each key; the name beside the bar carries the meaning."""


def waste_bars(bars: list[tuple[str, str, Exact, str]], observed: Exact, observed_text: str) -> Figure:
    """One bar per (key, name, GPU time, label); lengths are shares of ``observed``, which the frame shows in full."""
    room = max((text_width(name, LABEL_SIZE) for _, name, _, _ in bars), default=Fraction(0)) + 10
    labels = max((text_width(label, LABEL_SIZE) for *_, label in bars), default=Fraction(0)) + 10
    full = WIDTH - room - labels
    bottom = _STEP * len(bars) + 2
    told = "; ".join(f"{name} {label}" for _, name, _, label in bars)
    figure = Figure("GPU time by what became of it", f"Of {observed_text}: {told}.", bottom + 20)
    for row, (key, name, value, label) in enumerate(bars):
        y = row * _STEP + 4
        figure.label(room - 8, y + 12, name, "end")
        figure.rect(room, y, full, _BAR, "lane")
        length = Fraction(value) / Fraction(observed) * full if observed else Fraction(0)
        if length:
            figure.rect(room, y, max(length, Fraction(1)), _BAR, KEY_ROLES.get(key, "bar"))
        figure.label(room + full + 8, y + 12, label)
    figure.label(room, bottom + 14, "0", "start", "quiet")
    figure.label(room + full, bottom + 14, f"{observed_text} observed", "end", "quiet")
    return figure
