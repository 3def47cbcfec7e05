"""Axes: round steps in integer nanoseconds, labels that never collide, the unit named once."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.bundle.rounding import Exact, scaled
from gpuaudit.report.charts.canvas import LABEL_SIZE, Figure
from gpuaudit.report.fonts import text_width

_UNITS = {"h": 3_600 * 10**9, "s": 10**9, "ms": 10**6, "µs": 10**3, "ns": 1}


@dataclass(frozen=True)
class TimeAxis:
    """A stretch of time laid over ``left`` … ``left + width``; ``origin_ns`` is where the labels count from."""

    start_ns: int
    end_ns: int
    left: Exact
    width: Exact
    origin_ns: int

    @property
    def span_ns(self) -> int:
        return max(self.end_ns - self.start_ns, 1)

    @property
    def unit(self) -> str:
        """Unit of the labels: the largest in which the stretch is at least two."""
        return next((name for name, size in _UNITS.items() if self.span_ns >= 2 * size), "ns")

    def x(self, at_ns: Exact) -> Fraction:
        """Place of a time, kept inside the axis."""
        inside = min(max(Fraction(at_ns), Fraction(self.start_ns)), Fraction(self.end_ns))
        return Fraction(self.left) + (inside - self.start_ns) * Fraction(self.width) / self.span_ns

    def ticks(self) -> list[tuple[int, str]]:
        """(time, label) at round steps of 1, 2 or 5 × 10ⁿ of the unit, as many as fit without touching."""
        size = _UNITS[self.unit]
        for step in _round_steps(self.span_ns, size):
            first: int = -((self.origin_ns - self.start_ns) // step)
            times = range(self.origin_ns + first * step, self.end_ns + 1, step)
            decimals = _decimals(step, size)
            labels = [(t, scaled(t - self.origin_ns, size, decimals)) for t in times if t >= self.start_ns]
            widest = max((text_width(text, LABEL_SIZE) for _, text in labels), default=Fraction(0))
            if len(labels) < 2 or (widest + 12) * self.span_ns <= step * Fraction(self.width):
                return labels
        return []

    def draw(self, figure: Figure, top: Exact, bottom: Exact, title: str) -> None:
        """Grid lines from ``top`` to ``bottom``, labels and title below; takes 30 px under ``bottom``."""
        left, right = Fraction(self.left), Fraction(self.left) + Fraction(self.width)
        figure.line(left, bottom, right, bottom, "axis")
        for at, text in self.ticks():
            x = self.x(at)
            figure.line(x, top, x, bottom, "grid")
            figure.line(x, bottom, x, Fraction(bottom) + 3, "axis")
            half = text_width(text, LABEL_SIZE) / 2
            figure.label(min(x, right - half), Fraction(bottom) + 13, text, "middle", "quiet")
        figure.label(left, Fraction(bottom) + 27, f"{title} ({self.unit})", "start", "quiet")


def _round_steps(span: int, size: int) -> list[int]:
    """1, 2, 5 × 10ⁿ of a unit of ``size`` ns from about a twelfth of the span upwards; whole nanoseconds only."""
    steps: list[int] = []
    power = Fraction(size, 10 ** len(str(size)))
    while power <= span:
        steps += [int(s * power) for s in (1, 2, 5) if s * power * 12 >= span and (s * power).denominator == 1]
        power *= 10
    return steps or [1]


def _decimals(step: int, size: int) -> int:
    decimals = 0
    while decimals < 9 and step * 10**decimals % size:
        decimals += 1
    return decimals
