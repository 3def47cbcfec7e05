"""Lateness of ranks: who entered each collective last, and whether that is more than the ranks' usual scatter.

For a collective: arrivals of all observed ranks; *late candidate* is the last to arrive; *lateness* is its arrival
minus the median arrival of the others (mean of the two middle ones, rounded down to ns, where their number is even).
*Spread* is 1.4826 times the median absolute deviation, which estimates one standard deviation of normal scatter: the
larger of that of the others in this collective and that of all arrivals in all collectives. Of a rank that came while
the host slept, or after it, nobody can say that it was late: what stood still then was nobody's. Units: ns.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.finding import Threshold
from gpuaudit.analyze.syncs import Array

FLOOR = Threshold(
    "lateness_floor_ns", 1_000_000, "ns",
    "chosen: of the order of one scheduling slice (base_slice_ns of Linux 6.6 is 0.75 ms × (1 + log2 of the CPUs, at "
    "most 8)), so smaller differences are ordinary scheduling",
)  # fmt: skip
K = Threshold(
    "k", Fraction(7, 2), "ratio",
    "Iglewicz and Hoaglin 1993: modified z-scores above 3.5 are potential outliers (NIST/SEMATECH e-Handbook, "
    "1.3.5.17)",
)  # fmt: skip
MAD_SCALE = Threshold(
    "mad_scale",
    Fraction(7413, 5000),
    "ratio",
    "1.4826 = 1 / (normal quantile of 3/4): makes the MAD estimate a normal standard deviation",
    fixed=True,
)
_MAX_THRESHOLD_NS = 1 << 62
"""Nothing that a bundle may hold is later than that; sums of two stay within int64."""

THRESHOLDS = (FLOOR, K, MAD_SCALE)


@dataclass(frozen=True)
class Limits:
    """How far from the median an arrival is late: ``floor_ns``, or ``k`` times the spread where that is more.

    ``sleeps`` are times (from, to) in which the host was suspended: lateness that shares a moment with one is none.
    """

    floor_ns: int = int(FLOOR.value)
    k: Fraction = Fraction(K.value)
    sleeps: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Lateness:
    """Per collective, shape (collectives,): who came last, median of the others, lateness, threshold, verdict."""

    last: npt.NDArray[np.intp]
    median: Array
    lateness: Array
    threshold: Array
    late: npt.NDArray[np.bool_]
    usual_threshold_ns: int


def judge(arrival: Array, limits: Limits) -> Lateness:
    """``arrival`` has shape (ranks, collectives), at least two ranks."""
    last = arrival.argmax(axis=0)
    ordered = np.sort(arrival, axis=0)
    others = ordered[:-1]
    median = middle(others)
    lateness = ordered[-1] - median
    spread_here = middle(np.sort(np.abs(others - median), axis=0))
    deviations = np.sort(np.abs(ordered - middle(ordered)), axis=None)
    spread_usual = int(middle(deviations[:, None])[0]) if deviations.size else 0
    spread = np.maximum(spread_here, spread_usual)
    threshold = np.maximum(limits.floor_ns, _scaled(spread, limits.k))
    usual = max(limits.floor_ns, int(_scaled(np.array([spread_usual]), limits.k)[0]))
    late = lateness > threshold
    for begin, end in limits.sleeps:
        late &= (ordered[-1] <= begin) | (median >= end)
    return Lateness(last, median, lateness, threshold, late, usual)


def of_every_rank(arrival: Array) -> Array:
    """Lateness of every rank against the median of the others, shape (ranks, collectives); negative when early."""
    out = [arrival[r] - middle(np.sort(np.delete(arrival, r, axis=0), axis=0)) for r in range(len(arrival))]
    return np.stack(out) if out else arrival


def middle(ordered: Array) -> Array:
    """Median along the first axis of an array sorted along it."""
    n = len(ordered)
    low, high = ordered[(n - 1) // 2], ordered[n // 2]
    out: Array = low + (high - low) // 2
    return out


def _scaled(spread: Array, k: Fraction) -> Array:
    """k · mad_scale · spread, rounded down, at most :data:`_MAX_THRESHOLD_NS`; exact, whatever k a policy sets."""
    factor = k * Fraction(MAD_SCALE.value)
    n, d = factor.numerator, factor.denominator
    return np.array([min(x * n // d, _MAX_THRESHOLD_NS) for x in spread.tolist()], dtype=np.int64)
