"""Logarithmic axes: exact logarithms, rounded once, and ticks at powers of ten whose labels stay apart."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction

from gpuaudit.bundle.rounding import Exact

_DIGITS = Context(prec=30, rounding=ROUND_HALF_EVEN)
"""Decimal's logarithm is correctly rounded, so that equal numbers give equal coordinates on any machine."""

MOST_DECADES = 30
"""An axis of more is not of this world: the fastest machines do 10¹⁸ FLOP/s, the slowest counters read 1."""


def log10(value: Exact) -> Fraction:
    """Decimal logarithm to 30 digits; ValueError unless ``value`` is above 0."""
    exact = Fraction(value)
    if exact <= 0:
        raise ValueError("a logarithm needs a number above 0")
    return Fraction(
        _DIGITS.subtract(
            _DIGITS.log10(Decimal(exact.numerator)),
            _DIGITS.log10(Decimal(exact.denominator)),
        )
    )


class LogAxis:
    """Whole decades around some values, laid from pixel ``start`` to pixel ``end`` (which may be smaller)."""

    def __init__(self, values: list[Fraction], start: Exact, end: Exact) -> None:
        logs = [log10(v) for v in values]
        self.first = min(logs).__floor__()
        self.last = max(max(logs).__ceil__(), self.first + 1)
        if self.last - self.first > MOST_DECADES:
            raise ValueError(f"an axis of {self.last - self.first} decades")
        self.start, self.end = Fraction(start), Fraction(end)

    def at(self, value: Exact) -> Fraction:
        """Place of a value, kept inside the axis."""
        inside = min(max(log10(value), Fraction(self.first)), Fraction(self.last))
        return self.start + (inside - self.first) * (self.end - self.start) / (self.last - self.first)

    @property
    def low(self) -> Fraction:
        return Fraction(10) ** self.first

    @property
    def high(self) -> Fraction:
        return Fraction(10) ** self.last

    def decades(self, room: Exact) -> list[Fraction]:
        """Powers of ten on the axis, so many that they lie at least ``room`` pixels apart."""
        decade = abs(self.end - self.start) / (self.last - self.first)
        every = max(1, (Fraction(room) / decade).__ceil__())
        return [Fraction(10) ** p for p in range(self.first, self.last + 1, every)]
