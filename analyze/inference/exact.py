"""From the f64 values that an engine exported to exact numbers, and back to nothing where there was no number."""

from __future__ import annotations

import math
from decimal import Context, Decimal, Inexact
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

_EXACT = Context(prec=800, traps=[Inexact])
"""An f64 has 17 digits between 10^-324 and 10^309: sums of any number of them have fewer digits than this."""

EXACT_INTEGERS = 1 << 53
"""IEEE 754: below it every integer has an f64 of its own."""

F64 = npt.NDArray[np.float64]


@lru_cache(maxsize=1 << 16)
def decimal(value: float) -> Fraction:
    """The decimal number that was exported: the shortest one that reads back as this f64. ValueError if not finite."""
    return Fraction(repr(value))


def _is_plain_integer(value: float) -> bool:
    """Whole, and small enough that every integer near it is an f64: then it is the number that was printed."""
    return abs(value) < EXACT_INTEGERS and value.is_integer()


def _as_int(value: Fraction) -> int | Fraction:
    return int(value) if value.denominator == 1 else value


def number(value: float) -> int | Fraction | None:
    """:func:`decimal`, as int where it is whole; None for NaN and infinity."""
    if not math.isfinite(value):
        return None
    return int(value) if _is_plain_integer(value) else _as_int(decimal(value))


def total(values: F64) -> Fraction | None:
    """The exact sum of the numbers among ``values``; None where there is none."""
    known, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    if not len(known):
        return None
    out = Decimal(0)
    for value, count in zip(known.tolist(), counts.tolist(), strict=True):
        out = _EXACT.add(out, _EXACT.multiply(Decimal(repr(value)), Decimal(count)))
    return Fraction(out)


def difference(before: float, after: float) -> Fraction | None:
    """``after`` − ``before``, exactly; None where either is no number."""
    if not (math.isfinite(before) and math.isfinite(after)):
        return None
    if _is_plain_integer(before) and _is_plain_integer(after):
        return Fraction(int(after) - int(before))
    return Fraction(_EXACT.subtract(Decimal(repr(after)), Decimal(repr(before))))


def mean(values: F64) -> Fraction | None:
    """The exact mean of the numbers among ``values``; None where there is none."""
    found = total(values)
    return None if found is None else found / int(np.isfinite(values).sum())


def peak(values: F64) -> int | Fraction | None:
    """The highest number among ``values``; None where there is none."""
    known = values[np.isfinite(values)]
    return number(float(known.max())) if len(known) else None
