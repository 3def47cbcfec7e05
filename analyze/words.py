"""Numbers and sentences of a document as plain text for a terminal.

Rounded to four significant digits, half to even; exact values are in the document. A report has its own printer.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction

from gpuaudit.analyze.finding import Chain, Declaration, Finding, Quantity

_DIGITS = Context(prec=4, rounding=ROUND_HALF_EVEN)
_TIMES = (("h", 3_600_000_000_000), ("min", 60_000_000_000), ("s", 10**9), ("ms", 10**6), ("µs", 10**3))
_SIZES = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def amount(q: Quantity) -> str:
    """A quantity with its unit; what is not there is told with its reason."""
    if q.value is None:
        return f"not recorded ({q.reason})" if q.reason else "not recorded"
    if q.unit == "ns":
        return duration(q.value)
    if q.unit == "gpu_ns":
        return f"{duration(q.value)} of GPU time"
    if q.unit in ("count", "ratio") and q.value == int(q.value):
        return f"{int(q.value):,}"
    return _in_unit(Fraction(q.value), q.unit)


def _in_unit(value: Fraction, unit: str) -> str:
    if unit == "bytes":
        return _scaled(value, _SIZES, "bytes")
    if unit == "share":
        return f"{_decimal(value * 100)} %"
    return _decimal(value) if unit in ("count", "ratio") else f"{_decimal(value)} {unit}"


def duration(ns: int | Fraction) -> str:
    """A time in the largest unit in which it is at least one; minutes only from ten on."""
    units = [(u, size) for u, size in _TIMES if u != "min" or abs(Fraction(ns)) >= 10 * size]
    return _scaled(ns, tuple(units), "ns")


def sentence(item: Finding | Chain, declaration: Declaration) -> str:
    """The declared sentence with its values."""
    values = {k: v if isinstance(v, str) else amount(v) for k, v in item.values.items()}
    return declaration.texts[item.text].format_map(values)


def _scaled(number: int | Fraction, units: tuple[tuple[str, int], ...], base: str) -> str:
    value = Fraction(number)
    for unit, size in units:
        if abs(value) >= size:
            return f"{_decimal(value / size)} {unit}"
    return f"{_decimal(value)} {base}"


def _decimal(value: int | Fraction) -> str:
    exact = Fraction(value)
    rounded = _DIGITS.divide(Decimal(exact.numerator), Decimal(exact.denominator))
    text = f"{rounded:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
