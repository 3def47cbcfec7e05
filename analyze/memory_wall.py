"""Time in which a GPU's memory held its kernels up, as GPM tells it: DRAM near its bandwidth, no pipe as busy.

Only GPM (Hopper and later) tells both; without it nothing is claimed. Shares are in 1/10,000, cut off.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.cumulative import Cumulative
from gpuaudit.analyze.finding import Threshold
from gpuaudit.analyze.gpu_time import GpuTime
from gpuaudit.analyze.intervals import Intervals

DRAM_WALL = Threshold(
    "dram_wall", Fraction(3, 5), "share",
    "Nsight Compute's guided analysis calls a kernel bound by a unit from 60 % of that unit's peak on",
)  # fmt: skip

SCALE = 10_000
PIPES = (
    "tensor_percent", "tensor_double_percent", "tensor_half_percent", "tensor_integer_percent", "fp64_percent",
    "fp32_percent", "fp16_percent",
)  # fmt: skip
"""Arithmetic pipes that GPM tells; the busiest counts."""


class Wall(Cumulative):
    """Memory-bound time weighted with what the busiest pipe left unused, in 1/10,000; ``measure`` is that time."""

    scale = SCALE

    def __init__(self, spans: Intervals, weights: npt.NDArray[np.int64]) -> None:
        super().__init__(spans, weights)
        self.measure = Cumulative(spans)


class MemoryWall:
    """The memory-bound time of one GPU."""

    def __init__(self, context: Context, gpu: GpuTime) -> None:
        dram = int(DRAM_WALL.value * SCALE)
        pipe = f"greatest({', '.join(f'coalesce({p}, -1)' for p in PIPES)})"
        a = context.store.arrays(
            "SELECT start_ns::BIGINT AS a, max(coalesce(end_ns, start_ns))::BIGINT AS b, "
            f"max((least(greatest({pipe}, 0), 100) * 100)::BIGINT) AS pipe, "
            "min((least(greatest(dram_bandwidth_percent, 0), 100) * 100)::BIGINT) AS dram "
            f"FROM gpm_samples WHERE {gpu.where} AND isfinite(dram_bandwidth_percent) AND {pipe} >= 0 "
            f"AND isfinite({pipe}) GROUP BY 1 ORDER BY 1"
        )
        starts = a["a"]
        ends = np.minimum(a["b"], np.concatenate([starts[1:], a["b"][-1:]]))
        bound = (a["dram"] >= dram) & (a["pipe"] < a["dram"]) & (starts < ends)
        self._spans = np.stack([starts[bound], ends[bound]], axis=1)
        self._weights = (SCALE - a["pipe"])[bound]

    @property
    def evidence(self) -> bool:
        """Whether there is any such time."""
        return bool(len(self._spans))

    def within(self, seen: Intervals) -> Wall:
        """The part of it in ``seen``."""
        if not len(self._spans) or not len(seen):
            return Wall(intervals.EMPTY, self._weights[:0])
        edges = np.unique(np.concatenate([self._spans.ravel(), seen.ravel()]))
        low, high = edges[:-1], edges[1:]
        mine = np.searchsorted(self._spans[:, 0], low, side="right") - 1
        theirs = np.searchsorted(seen[:, 0], low, side="right") - 1
        keep = (mine >= 0) & (theirs >= 0)
        keep &= (self._spans[np.maximum(mine, 0), 1] > low) & (seen[np.maximum(theirs, 0), 1] > low)
        return Wall(np.stack([low[keep], high[keep]], axis=1), self._weights[mine[keep]])
