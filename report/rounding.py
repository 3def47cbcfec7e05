"""The one place where an exact number becomes digits for a reader.

Rounding is half to even on exact fractions, never on floats: the same findings give the same digits anywhere.
Three significant digits (a reader compares, the evidence table has the exact number), whole counts in full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction

from gpuaudit.analyze.finding import Quantity

SIGNIFICANT_DIGITS = 3
"""Digits of a measured value in running text; NIST SP 811 (7.9): as many as the comparison needs, and no more."""

_TIME_STEPS = ((1, "ns"), (10**3, "µs"), (10**6, "ms"), (10**9, "s"))
_BYTE_STEPS = ((1, "B"), (1 << 10, "KiB"), (1 << 20, "MiB"), (1 << 30, "GiB"), (1 << 40, "TiB"))
_POWER_STEPS = ((1, "mW"), (10**3, "W"), (10**6, "kW"))

Exact = int | Fraction


@dataclass(frozen=True)
class Shown:
    """Digits with their unit, and the exact value that they stand for."""

    text: str
    exact: str


def half_even(value: Exact, decimals: int = 0) -> str:
    """``value`` with ``decimals`` digits after the point, half to even, thousands grouped by commas."""
    scaled = round(Fraction(value) * 10**decimals)
    sign, digits = ("−" if scaled < 0 else ""), str(abs(scaled)).rjust(decimals + 1, "0")
    whole = f"{int(digits[: len(digits) - decimals]):,}"
    return f"{sign}{whole}.{digits[len(digits) - decimals :]}" if decimals else f"{sign}{whole}"


def significant(value: Exact, digits: int = SIGNIFICANT_DIGITS) -> str:
    """``value`` to ``digits`` significant digits; digits before the point are never dropped."""
    exact = abs(Fraction(value))
    decimals = 0
    while decimals < 12 and exact and round(exact * 10**decimals) < 10 ** (digits - 1):
        decimals += 1
    return half_even(value, decimals)


def stepped(value: Exact, steps: tuple[tuple[int, str], ...]) -> str:
    """``value`` in the largest step in which it is at least one, after rounding (999,999 ns is 1.00 ms)."""
    exact = Fraction(value)
    if exact == 0:
        return f"0 {steps[0][1]}"
    for (size, unit), upper in zip(steps, [*steps[1:], None], strict=True):
        text = significant(exact / size) if size > 1 or exact.denominator > 1 else half_even(exact)
        if upper is None or (abs(exact) < upper[0] and round(abs(exact) / size) * size < upper[0]):
            return f"{text} {unit}"
    raise AssertionError("the last step takes every value")


def duration(ns: Exact) -> str:
    """Nanoseconds as ns, µs, ms or s."""
    return stepped(ns, _TIME_STEPS)


def in_unit(ns: Exact, unit: str, decimals: int) -> str:
    """Nanoseconds in a given unit, digits only: for the ticks of an axis that names the unit once."""
    return half_even(Fraction(ns) / {u: s for s, u in _TIME_STEPS}[unit], decimals)


def share(value: Exact) -> str:
    """A share (0–1) in percent; what is not exactly none or all is never rounded to none or all."""
    percent = Fraction(value) * 100
    if percent in (0, 100):
        return f"{int(percent)} %"
    if 0 < percent < Fraction(1, 10):
        return "< 0.1 %"
    if Fraction(999, 10) < percent < 100:
        return "> 99.9 %"
    return f"{half_even(percent, 1)} %"


def shown(q: Quantity) -> Shown:
    """A quantity for a reader. A null value is "not recorded": the reason is the view's to tell."""
    if q.value is None:
        return Shown("not recorded", q.reason)
    return Shown(_digits(q.value, q.unit), f"{_exact(q.value)} {q.unit}".strip())


def _digits(value: Exact, unit: str) -> str:
    if unit in _BY_UNIT:
        return _BY_UNIT[unit](value)
    if len(unit) == 3 and unit.isascii() and unit.isupper():  # a currency code: cents, finer below one unit of money
        return f"{half_even(value, 2 if abs(Fraction(value)) >= 1 else 4)} {unit}"
    return f"{significant(value)} {unit}".strip()


def _gpu_time(value: Exact) -> str:
    return duration(value).replace(" ", " GPU-", 1)


def _count(value: Exact) -> str:
    return half_even(value) if Fraction(value).denominator == 1 else significant(value)


_BY_UNIT: dict[str, Callable[[Exact], str]] = {
    "ns": duration,
    "gpu_ns": _gpu_time,
    "bytes": lambda value: stepped(value, _BYTE_STEPS),
    "share": share,
    "mW": lambda value: stepped(value, _POWER_STEPS),
    "count": _count,
    "ratio": lambda value: f"{significant(value)} ×",
    "MHz": lambda value: f"{half_even(value)} MHz",
    "°C": lambda value: f"{half_even(value)} °C",
    "%": lambda value: f"{half_even(value)} %",
}
"""How each unit of :class:`gpuaudit.analyze.finding.Quantity` is written."""


def _exact(value: Exact) -> str:
    if isinstance(value, Fraction) and value.denominator != 1:
        return f"{value.numerator}/{value.denominator}"
    return str(int(value))


def utc(ns: int) -> str:
    """Nanoseconds since the epoch as wall-clock time to the millisecond; ValueError outside years 1–9999."""
    milliseconds = round(Fraction(ns, 10**6))
    seconds, rest = divmod(milliseconds, 1000)
    try:
        at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    except OverflowError as error:
        raise ValueError(f"{ns} ns since 1970 is no date") from error
    return f"{at:%Y-%m-%d %H:%M:%S}.{rest:03d} UTC"
