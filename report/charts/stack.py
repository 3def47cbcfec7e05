"""Stacked bars: what a whole is made of, one bar per whole, every part numbered in the bar and told below it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

from gpuaudit.bundle.rounding import digits, share
from gpuaudit.report.charts.canvas import LABEL_SIZE, WIDTH, Figure
from gpuaudit.report.fonts import fitted, text_width
from gpuaudit.report.text import inert, words

BARS_PER_FIGURE = 12
"""Bars that fit a page with caption: each takes 26 px and two or three lines of 13 px for its parts."""

MOST_BARS, MOST_PARTS = 64, 16

_BAR, _LINE = 20, 13

ROLES = ("collective", "throttled", "busy", "sync", "finding", "spare", "late", "idle")
"""Colours of parts in their order; the number in the bar and below it carries the meaning."""

_DARK = {"collective", "finding", "late"}
_OUTLINED = ("unattributed", "unknown", "not_classified", "free", "unused")
"""Parts that are nobody's are drawn as an outline."""


class _Part(NamedTuple):
    key: str
    label: str
    amount: int


class _Bar(NamedTuple):
    label: str
    total: int
    parts: list[_Part]


def stack(data: dict[str, Any], title: str) -> list[Figure]:
    """Figures of one chart of kind ``stack``; ValueError when parts do not add up to their total."""
    if len(data["bars"]) > MOST_BARS or any(len(b["parts"]) > MOST_PARTS for b in data["bars"]):
        raise ValueError(f"a stack of more than {MOST_BARS} bars or {MOST_PARTS} parts")
    bars = [_bar(b) for b in data["bars"]]
    keys = list(dict.fromkeys(p.key for b in bars for p in b.parts))
    cuts = range(0, len(bars), BARS_PER_FIGURE)
    return [
        _figure(bars[at : at + BARS_PER_FIGURE], keys, (title, n, len(cuts)), data["unit"])
        for n, at in enumerate(cuts, start=1)
    ]


def _bar(b: dict[str, Any]) -> _Bar:
    parts = [_Part(str(k), inert(label), int(amount)) for k, label, amount in b["parts"]]
    total = int(b["total"])
    if any(p.amount < 0 for p in parts) or sum(p.amount for p in parts) != total:
        raise ValueError(f"the parts of {b['label']!r:.40} do not add up to its total")
    return _Bar(inert(b["label"]), total, parts)


def _figure(bars: list[_Bar], keys: list[str], named: tuple[str, int, int], unit: str) -> Figure:
    title, number, of = named
    room = min(max(text_width(b.label, LABEL_SIZE) for b in bars), Fraction(150)) + 10
    totals = max(text_width(digits(b.total, unit), LABEL_SIZE) for b in bars) + 10
    full = WIDTH - room - totals
    largest = max(*(b.total for b in bars), 1)
    lines = [_lines(b, keys, unit, full + totals) for b in bars]
    part = f", part {number} of {of}" if of > 1 else ""
    figure = Figure(f"{title}{part}", _describe(bars, unit), sum(_BAR + 8 + _LINE * len(n) + 6 for n in lines))
    figure.caption = words("Numbers in a bar are those of the parts below it; bars share one scale.")
    y = Fraction(2)
    for bar, told in zip(bars, lines, strict=True):
        figure.label(room - 8, y + 14, fitted(bar.label, LABEL_SIZE, room - 10), "end", bold=True)
        length = full * bar.total / largest
        _segments(figure, bar, keys, (room, y, length))
        figure.label(room + length + 6, y + 14, digits(bar.total, unit))
        y += _BAR + 8
        for line in told:
            y += _LINE
            for x, text, role in line:
                figure.label(room + x, y - 4, text, "start", role)
        y += 6
    return figure


def _segments(figure: Figure, bar: _Bar, keys: list[str], place: tuple[Fraction, Fraction, Fraction]) -> None:
    left, y, length = place
    figure.rect(left, y, length, _BAR, "lane")
    x = left
    for p in bar.parts:
        width = length * p.amount / bar.total if bar.total else Fraction(0)
        if not p.amount:
            continue
        role = _role(p.key, keys)
        inner = max(width - Fraction(1, 2), Fraction(1, 2))
        figure.rect(x, y, inner, _BAR, role)
        name = str(keys.index(p.key) + 1)
        if text_width(name, LABEL_SIZE) + 4 <= inner:
            figure.label(x + inner / 2, y + 14, name, "middle", "on-dark" if role in _DARK else "on-light")
        x += width


def _role(key: str, keys: list[str]) -> str:
    if key in _OUTLINED:
        return "gap"
    coloured = [k for k in keys if k not in _OUTLINED]
    return ROLES[coloured.index(key) % len(ROLES)]


def _lines(bar: _Bar, keys: list[str], unit: str, room: Fraction) -> list[list[tuple[Fraction, str, str]]]:
    """The parts of a bar with their amounts and shares, broken into lines of ``room``."""
    lines: list[list[tuple[Fraction, str, str]]] = []
    x = room + 1
    for p in bar.parts:
        of = f" ({share(Fraction(p.amount, bar.total))})" if bar.total else ""
        amount = f" {digits(p.amount, unit)}{of}"
        number = f"{keys.index(p.key) + 1} "
        name = fitted(p.label, LABEL_SIZE, room - text_width(number + amount, LABEL_SIZE) - 12)
        text = f"{number}{name}{amount}"
        width = text_width(text, LABEL_SIZE) + 16
        if x + width - 16 > room:
            lines.append([])
            x = Fraction(0)
        lines[-1].append((x, text, "label"))
        x += width
    return lines


def _describe(bars: list[_Bar], unit: str) -> str:
    told = (
        f"{b.label}, {digits(b.total, unit)}: " + ", ".join(f"{p.label} {digits(p.amount, unit)}" for p in b.parts)
        for b in bars
    )
    return "; ".join(told) + "."
