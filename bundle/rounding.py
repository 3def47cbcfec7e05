"""The one place where an exact number becomes digits for a reader: of a terminal, a page or a chart.

Rounding is half to even on exact fractions, never on floats: the same findings give the same digits anywhere.
Three significant digits (a reader compares, the evidence table has the exact number), whole counts in full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Protocol

SIGNIFICANT_DIGITS = 3
"""Digits of a measured value in running text; NIST SP 811 (7.9): as many as the comparison needs, and no more."""

Steps = tuple[tuple[int, str], ...]
"""Sizes of a unit with their names, ascending."""

_HOUR = 3_600 * 10**9
_FROM_HOURS = 2 * _HOUR
"""Times are told in hours from here on: up to then a reader counts in the seconds that the axes are in."""

_TIME_STEPS: Steps = ((1, "ns"), (10**3, "µs"), (10**6, "ms"), (10**9, "s"))
_BYTE_STEPS: Steps = ((1, "B"), (1 << 10, "KiB"), (1 << 20, "MiB"), (1 << 30, "GiB"), (1 << 40, "TiB"))
_RATE_STEPS: Steps = ((1, "B/s"), (10**3, "kB/s"), (10**6, "MB/s"), (10**9, "GB/s"), (10**12, "TB/s"))
"""Bandwidth is decimal, as vendors give it: GB/s = 10⁹ bytes per second."""

_FLOP_STEPS: Steps = (
    (1, "FLOP/s"), (10**3, "kFLOP/s"), (10**6, "MFLOP/s"), (10**9, "GFLOP/s"), (10**12, "TFLOP/s"),
    (10**15, "PFLOP/s"),
)  # fmt: skip
_POWER_STEPS: Steps = ((1, "mW"), (10**3, "W"), (10**6, "kW"))
_ENERGY_STEPS: Steps = ((1, "mJ"), (10**3, "J"), (10**6, "kJ"), (10**9, "MJ"))
_PER_TOKEN_STEPS: Steps = ((1, "mJ/token"), (10**3, "J/token"), (10**6, "kJ/token"))

WHOLE_MONEY = 10_000
"""Amounts of money from here on are told without cents, which would be below a hundredth of a per mille."""

Exact = int | Fraction


class Number(Protocol):
    """What a quantity of a findings document is made of (:class:`gpuaudit.analyze.finding.Quantity`)."""

    @property
    def value(self) -> Exact | None: ...
    @property
    def unit(self) -> str: ...
    @property
    def provenance(self) -> str: ...
    @property
    def reason(self) -> str: ...


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


def stepped(value: Exact, steps: Steps) -> str:
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
    """Nanoseconds as ns, µs, ms, s, or from two hours on as h."""
    if abs(Fraction(ns)) >= _FROM_HOURS:
        return f"{significant(Fraction(ns) / _HOUR)} h"
    return stepped(ns, _TIME_STEPS)


def scaled(value: Exact, size: int, decimals: int) -> str:
    """``value`` in units of ``size``, digits only: for the ticks of an axis that names the unit once."""
    return half_even(Fraction(value) / size, decimals)


def share(value: Exact) -> str:
    """A share (0–1) in percent; what is not exactly none or all is never rounded to none or all."""
    percent = Fraction(value) * 100
    if percent in (0, 100):
        return f"{int(percent)} %"
    if 0 < abs(percent) < Fraction(1, 10):
        return "< 0.1 %" if percent > 0 else "> −0.1 %"
    if Fraction(999, 10) < percent < 100:
        return "> 99.9 %"
    return f"{half_even(percent, 1)} %"


def absent(provenance: str) -> str:
    """What stands for a number that is not there: a reading was "not recorded", a result is "not known"."""
    return "not recorded" if provenance == "measured" else "not known"


def shown(q: Number) -> Shown:
    """A quantity for a reader. What stands for a null value is :func:`absent`; the reason is the caller's to tell."""
    if q.value is None:
        return Shown(absent(q.provenance), q.reason)
    return Shown(digits(q.value, q.unit), f"{_exact(q.value)} {q.unit}".strip())


def told(q: Number) -> str:
    """A quantity on one line of a terminal; a null one with its reason in brackets."""
    text = shown(q).text
    return f"{text} ({q.reason})" if q.value is None and q.reason else text


def digits(value: Exact, unit: str) -> str:
    """``value`` with its unit, in the step of the unit that suits it."""
    if unit in _BY_UNIT:
        return _BY_UNIT[unit](value)
    currency, _, per = unit.partition("/")
    if len(currency) == 3 and currency.isascii() and currency.isupper() and per in ("", *_PER):
        return f"{_money(value)} {currency}{_PER.get(per, '')}"
    return f"{significant(value)} {unit}".strip()


_PER = {"h": "/h", "year": "/year", "Mtoken": "/1M tokens"}


def _money(value: Exact) -> str:
    """Cents; four decimals below one unit of money, none from :data:`WHOLE_MONEY` on."""
    size = abs(Fraction(value))
    return half_even(value, 4 if size < 1 else 2 if size < WHOLE_MONEY else 0) if size else "0"


def _gpu_time(value: Exact) -> str:
    return duration(value).replace(" ", " GPU-", 1)


def _count(value: Exact) -> str:
    return half_even(value) if Fraction(value).denominator == 1 else significant(value)


def _counted(one: str, many: str) -> Callable[[Exact], str]:
    """Whole numbers in full, others with three digits, and the noun in singular or plural."""
    return lambda value: f"{_count(value)} {one if value == 1 else many}"


def _rated(unit: str) -> Callable[[Exact], str]:
    return lambda value: f"{significant(value) if value else '0'} {unit}"


def _stepped(steps: Steps) -> Callable[[Exact], str]:
    return lambda value: stepped(value, steps)


_BY_UNIT: dict[str, Callable[[Exact], str]] = {
    "ns": duration,
    "gpu_ns": _gpu_time,
    "bytes": _stepped(_BYTE_STEPS),
    "bytes/s": _stepped(_RATE_STEPS),
    "flop/s": _stepped(_FLOP_STEPS),
    "flop/byte": _rated("FLOP/byte"),
    "share": share,
    "points": lambda value: f"{half_even(value, 1)} points",
    "mW": _stepped(_POWER_STEPS),
    "mJ": _stepped(_ENERGY_STEPS),
    "mJ/token": _stepped(_PER_TOKEN_STEPS),
    "token/J": _rated("tokens/J"),
    "token": _counted("token", "tokens"),
    "token/s": _rated("tokens/s"),
    "request/s": _rated("requests/s"),
    "prompt/s": _rated("prompts/s"),
    "1/s": _rated("per s"),
    "bits": _counted("bit", "bits"),
    "GPU": _counted("GPU", "GPUs"),
    "count": _count,
    "ratio": lambda value: f"{significant(value)} ×",
    "MHz": lambda value: f"{half_even(value)} MHz",
    "°C": lambda value: f"{half_even(value)} °C",
    "%": lambda value: f"{half_even(value)} %",
}
"""How each unit of :data:`gpuaudit.analyze.finding.UNITS` is written, and the per cent of a chart's axis."""


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
