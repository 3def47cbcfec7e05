"""Weighted time up to any moment, so that what lies in many windows is read off in one step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.intervals import Intervals

Array = npt.NDArray[np.int64]


class Cumulative:
    """Exact sums over sorted disjoint ``spans`` with an integer weight per ns each (1 where none is given).

    Sums must stay below 2^63: nine days are 8e14 ns, times a weight of at most 10,000.
    """

    def __init__(self, spans: Intervals, weights: Array | None = None) -> None:
        self._spans = spans
        self._weights = np.ones(len(spans), dtype=np.int64) if weights is None else weights
        amounts = (spans[:, 1] - spans[:, 0]) * self._weights
        self._before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(amounts)])

    def between(self, starts: Array, ends: Array) -> Array:
        """Amount in each window ``[start, end)``."""
        return self._until(ends) - self._until(starts)

    def _until(self, at: Array) -> Array:
        if not len(self._spans):
            return np.zeros(len(at), dtype=np.int64)
        i = np.searchsorted(self._spans[:, 0], at, side="right")
        last = np.maximum(i - 1, 0)
        inside = np.minimum(at, self._spans[last, 1]) - self._spans[last, 0]
        amount = self._before[last] + np.maximum(inside, 0) * self._weights[last]
        return np.where(i > 0, amount, 0)
