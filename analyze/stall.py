"""Compute/stall ratio: kernel time against time in which somebody was blocked in memory copies and no kernel ran.

Over one second, of the time in it that is observed (told by the source of busy time, and calls were recorded):

    busy     = Σ share × time of the source of busy time (``busy.py``)                       [ns]
    blocked  = time in which a thread was in, waited for, or was between copies (``blocked.py``)  [ns]
    stalled  = min(blocked, observed − busy)                                                 [ns]
    ratio    = busy / (busy + stalled)

What was blocked beside kernels for certain (it does not fit into the rest otherwise) is no stall. A longer time is cut
into seconds from the capture's start, and sums busy and stalled of them. So the ratio lies in 0–1, is the same however
calls and samples are cut into rows, and no copy that is added raises it. It is a lower bound as far as copies may have
overlapped kernels; ``highest`` is the ratio if they did wherever they could, ``lowest`` the one in which
synchronisations that waited for both copies and kernels (``mixed``) count as blocked. By SM activity a copy could
overlap kernels in all time in which any SM was active (``Busy.reach``), since a kernel need not fill the GPU.

Above 0.9: compute-bound. Below 0.7, also where copies overlapped all they could: capital trapped in the memory wall.
A kernel that waits for the GPU's own memory counts as busy: that wall is the roofline's subject.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals
from gpuaudit.analyze.busy import SCALE, Busy
from gpuaudit.analyze.cumulative import Cumulative
from gpuaudit.analyze.intervals import Intervals

DEFINITION = (
    "busy / (busy + stalled), of each second of the capture; longer times sum busy and stalled of their seconds. Busy: "
    "share × time of GPM's SM activity, else of NVML's utilisation. Stalled: min(blocked, observed − busy), where "
    "blocked is time in which a thread was inside a memory copy, waited for copies alone, or was between two copies. "
    "Above 0.9: compute-bound. Below 0.7: capital trapped in the memory wall. Between: mixed."
)

SECOND_NS = 1_000_000_000
MINUTE_S = 60
STEP_NS = 250_000_000
"""Rolling windows begin this far apart: the period of NVML polls."""

COMPUTE_BOUND = Fraction(9, 10)
MEMORY_WALL = Fraction(7, 10)
"""The bounds that the exported metric is read by."""

LEAST_OBSERVED = Fraction(1, 2)
"""Of a window that was observed for less than half of its length nothing is told."""

MAX_SECONDS = 800_000
"""Nine days: a longer capture is not cut into seconds."""

UNKNOWN = -1

Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """Kernel time and stalls of a subject over some time, in units of 1/10,000 ns; ``observed_ns`` in ns."""

    busy_scaled: int
    stalled_scaled: int
    highest_scaled: int
    """Stalled, if copies overlapped kernels wherever they could."""
    lowest_scaled: int
    """Stalled, if synchronisations that waited for both count as blocked."""
    observed_ns: int

    @property
    def busy_ns(self) -> Fraction:
        """Kernel time in ns."""
        return Fraction(self.busy_scaled, SCALE)

    @property
    def stalled_ns(self) -> Fraction:
        """Time blocked in copies beside which no kernel ran, in ns."""
        return Fraction(self.stalled_scaled, SCALE)

    @property
    def ratio(self) -> Fraction | None:
        """busy / (busy + stalled); None where neither was seen."""
        return _ratio(self.busy_scaled, self.stalled_scaled)

    @property
    def highest(self) -> Fraction | None:
        """The ratio if copies overlapped kernels wherever they could."""
        return _ratio(self.busy_scaled, self.highest_scaled)

    @property
    def lowest(self) -> Fraction | None:
        """The ratio if synchronisations that waited for copies and kernels were waiting for copies."""
        return _ratio(self.busy_scaled, self.lowest_scaled)

    @property
    def verdict(self) -> str:
        """In words; empty where there is no ratio."""
        if self.ratio is None or self.highest is None:
            return ""
        if self.ratio > COMPUTE_BOUND:
            return "compute-bound"
        if self.ratio >= MEMORY_WALL:
            return "mixed"
        if self.highest >= MEMORY_WALL:
            return "capital trapped in the memory wall, unless copies overlapped kernels"
        return "capital trapped in the memory wall"


def _ratio(busy: int, stalled: int) -> Fraction | None:
    return Fraction(busy, busy + stalled) if busy + stalled else None


@dataclass(frozen=True)
class Series:
    """Ratios of windows that begin at ``starts``, in 1/10,000 cut off, :data:`UNKNOWN` where there is none."""

    starts: Array
    ratios: Array

    @property
    def known(self) -> Array:
        """The ratios that there are."""
        out: Array = self.ratios[self.ratios != UNKNOWN]
        return out


class Stall:
    """One subject. ``blocked`` and ``possible`` as in :class:`gpuaudit.analyze.blocked.Blocked`."""

    def __init__(self, busy: Busy, blocked: Intervals, possible: Intervals, start_ns: int, end_ns: int) -> None:
        """Windows are cut from ``start_ns``, the start of the capture, to ``end_ns``."""
        self.busy = busy
        self._seconds = max(0, -(-(end_ns - start_ns) // SECOND_NS))
        if self._seconds > MAX_SECONDS:
            raise ValueError(f"{self._seconds} s, at most {MAX_SECONDS}")
        self._start, self._end = start_ns, end_ns
        covered = busy.covered
        self._told = Cumulative(busy.spans)
        self._busy = Cumulative(busy.spans, busy.share)
        self._reach = Cumulative(busy.spans, busy.most)
        self._blocked = Cumulative(intervals.intersect(blocked, covered))
        self._possible = Cumulative(intervals.intersect(possible, covered))

    def _windows(self, starts: Array, ends: Array) -> tuple[Array, Array, Array, Array, Array]:
        """Observed [ns]; busy, stalled, stalled at least, stalled at most [ns/10,000] of each window."""
        observed = self._told.between(starts, ends)
        busy = self._busy.between(starts, ends)
        free = observed * SCALE - busy
        blocked = self._blocked.between(starts, ends) * SCALE
        possible = self._possible.between(starts, ends) * SCALE
        least = np.maximum(blocked - self._reach.between(starts, ends), 0)
        return observed, busy, np.minimum(blocked, free), least, np.minimum(possible, free)

    @cached_property
    def _tiles(self) -> tuple[Array, Array, Array, Array, Array]:
        starts = self._start + np.arange(self._seconds, dtype=np.int64) * SECOND_NS
        return self._windows(starts, starts + SECOND_NS)

    @property
    def whole(self) -> Measured:
        """Over the capture: sums of its seconds."""
        observed, busy, stalled, least, most = (sum(x.tolist()) for x in self._tiles)
        return Measured(busy, stalled, least, most, observed)

    @cached_property
    def seconds(self) -> Series:
        """Windows of 1 s that begin every 250 ms and lie within the capture."""
        count = max(0, (self._end - self._start - SECOND_NS) // STEP_NS + 1)
        starts = self._start + np.arange(count, dtype=np.int64) * STEP_NS
        observed, busy, stalled, _, _ = self._windows(starts, starts + SECOND_NS)
        return Series(starts, _ratios(observed, busy, stalled, SECOND_NS))

    @cached_property
    def minutes(self) -> Series:
        """Windows of 1 min that begin every second of the capture."""
        if self._seconds < MINUTE_S:
            return Series(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
        observed, busy, stalled = (_sums(values) for values in self._tiles[:3])
        starts = self._start + np.arange(len(observed), dtype=np.int64) * SECOND_NS
        return Series(starts, _ratios(observed, busy, stalled, MINUTE_S * SECOND_NS))


def _sums(values: Array) -> Array:
    """Of every 60 values in a row."""
    total = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(values)])
    out: Array = total[MINUTE_S:] - total[:-MINUTE_S]
    return out


def _ratios(observed: Array, busy: Array, stalled: Array, length_ns: int) -> Array:
    enough = observed >= int(length_ns * LEAST_OBSERVED)
    whole = busy + stalled
    # At most 60 s · 10,000 · 10,000 = 6e18, which an int64 holds.
    return np.where(enough & (whole > 0), busy * SCALE // np.maximum(whole, 1), UNKNOWN)
