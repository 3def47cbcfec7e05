"""From the f64 values that an engine exported to exact numbers, and back to nothing where there was no number."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


@lru_cache(maxsize=1 << 16)
def decimal(value: float) -> Fraction:
    """The decimal number that was exported: the shortest one that reads back as this f64. ValueError if not finite."""
    return Fraction(repr(value))


def number(value: float) -> int | Fraction | None:
    """:func:`decimal`, as int where it is whole; None for NaN and infinity."""
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else decimal(value)


def total(values: F64) -> Fraction | None:
    """The exact sum of the numbers among ``values``; None where there is none."""
    known, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    if not len(known):
        return None
    return sum((decimal(v) * n for v, n in zip(known.tolist(), counts.tolist(), strict=True)), Fraction(0))


def mean(values: F64) -> Fraction | None:
    """The exact mean of the numbers among ``values``; None where there is none."""
    found = total(values)
    return None if found is None else found / int(np.isfinite(values).sum())


def peak(values: F64) -> int | Fraction | None:
    """The highest number among ``values``; None where there is none."""
    known = values[np.isfinite(values)]
    return number(float(known.max())) if len(known) else None
