"""How busy a GPU, or a process on it, was told to be: a share of time for each stretch of time that a source covers.

Sources, best first: GPM's SM activity (Hopper and later; mean over SMs of the time with at least one warp), NVML's
utilisation of a process, NVML's utilisation of the GPU (time in which a kernel ran, averaged by the driver over up to
1 s). SM activity is a share of SMs and time: a kernel on a tenth of the SMs all the time has a tenth of it. So beside
it stands the share of time in which a kernel may have run (``reach``): GPM's graphics activity where it was told, else
all time in which any SM was active. Shares are in 1/10,000; a GPM percentage is rounded to a hundredth of a per cent,
half to even. What each row stands for: from its start to its end, never past the next row; time without a row is not
observed.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.gpu_time import UNKNOWN, GpuTime, bounded
from gpuaudit.analyze.intervals import Intervals

SCALE = 10_000
"""A share of 1."""

PER_CENT = 100
"""1 % in units of 1/10,000."""

Array = npt.NDArray[np.int64]

GPM = "GPM SM activity"
PROCESS = "NVML process utilisation"
UTILISATION = "NVML utilisation"


@dataclass(frozen=True)
class Busy:
    """Disjoint stretches in order of time, ``spans`` of shape (n, 2) in ns, with the share of each.

    ``reach`` is the share of time in which a kernel may have run, the share itself where None. ``source`` is one of
    :data:`GPM`, :data:`PROCESS`, :data:`UTILISATION`; ``table`` and ``where`` name its rows. Where there are none,
    ``reason`` says why.
    """

    spans: Intervals
    share: Array
    source: str = ""
    table: str = ""
    where: str = ""
    reason: str = ""
    reach: Array | None = None

    @property
    def most(self) -> Array:
        """The share of time in which a kernel may have run, of each stretch."""
        return self.share if self.reach is None else self.reach

    def within(self, seen: Intervals) -> Busy:
        """The same, of the time in ``seen`` only."""
        edges = np.unique(np.concatenate([self.spans.ravel(), seen.ravel()]))
        low = edges[:-1]
        mine, theirs = _member(self.spans, low), _member(seen, low)
        keep = (mine >= 0) & (theirs >= 0)
        spans = np.stack([low[keep], edges[1:][keep]], axis=1) if len(edges) else intervals.EMPTY
        share = self.share[mine[keep]] if len(edges) else self.share[:0]
        reach = None if self.reach is None else self.reach[mine[keep]] if len(edges) else self.reach[:0]
        return Busy(spans, share, self.source, self.table, self.where, self.reason, reach)

    @property
    def mean(self) -> Fraction:
        """Mean share over the time it tells of, 0–1; 0 where it tells of none."""
        length = (self.spans[:, 1] - self.spans[:, 0]).tolist()
        total = sum(length)
        weighted = sum(n * s for n, s in zip(length, self.share.tolist(), strict=True))
        return Fraction(weighted, SCALE * total) if total else Fraction(0)

    @property
    def covered(self) -> Intervals:
        """All time that is told of."""
        return intervals.from_bounds(self.spans[:, 0], self.spans[:, 1])


def _member(spans: Intervals, at: Array) -> Array:
    """Which of the sorted disjoint ``spans`` each time lies in, -1 for none."""
    i = np.searchsorted(spans[:, 0], at, side="right") - 1
    inside = (i >= 0) & (spans[np.maximum(i, 0), 1] > at) if len(spans) else np.zeros(len(at), dtype=bool)
    return np.where(inside, i, -1)


def alone(gpu: GpuTime, pid: int) -> Intervals:
    """Time in which NVML listed one process, and no other, on the GPU."""
    return gpu.time(np.array([h == {pid} for h in gpu.holders], dtype=bool) & gpu.listed)


def gpm(context: Context, gpu: GpuTime, column: str) -> Busy:
    """A percentage of ``gpm_samples``."""
    return _rows(context, "gpm_samples", column, gpu.where, GPM)


def of_gpu(context: Context, gpu: GpuTime) -> Busy:
    """GPM where it covers at least half of what NVML covers, else NVML's utilisation."""
    sm = gpm(context, gpu, "sm_activity_percent")
    if 2 * intervals.measure(sm.covered) >= max(1, intervals.measure(gpu.covered)):
        return sm
    known = (gpu.utilization != UNKNOWN) & (gpu.spans[:, 0] < gpu.spans[:, 1])
    if not known.any():
        return Busy(intervals.EMPTY, _none(), reason="NVML told no utilisation for any interval between two samples")
    told = Busy(gpu.spans[known], gpu.utilization[known] * PER_CENT, UTILISATION, "nvml_samples", gpu.where)
    return told.within(intervals.subtract(told.covered, gpu.asleep))


def of_process(context: Context, gpu: GpuTime, pid: int) -> Busy:
    """The GPU's GPM while the process had it alone, else NVML's utilisation of it, else the GPU's while alone."""
    own_time = alone(gpu, pid)
    whole = of_gpu(context, gpu)
    if whole.source == GPM and len(own_time):
        return whole.within(own_time)
    condition = f"{gpu.where} AND pid = {int(pid)}"
    own = _rows(context, "nvml_processes", "sm_utilization_percent", condition, PROCESS)
    if len(own.spans):
        return own
    if not len(own_time):
        why = "NVML told no utilisation of the process, and it never had the GPU to itself"
        return Busy(intervals.EMPTY, _none(), reason=why)
    return whole.within(own_time)


def _rows(context: Context, table: str, column: str, where: str, source: str) -> Busy:
    value, any_kernel = bounded(column) + f" * {PER_CENT}", str(UNKNOWN)
    if source == GPM:
        value, any_kernel = _hundredths(column), _hundredths("graphics_percent")
    a = context.store.arrays(
        f"SELECT start_ns::BIGINT AS a, max(coalesce(end_ns, start_ns))::BIGINT AS b, max({value})::BIGINT AS share, "
        f"max({any_kernel})::BIGINT AS any_kernel FROM {table} WHERE {where} AND {column} IS NOT NULL "
        "GROUP BY 1 ORDER BY 1"
    )
    starts = a["a"]
    if not len(starts):
        return Busy(intervals.EMPTY, _none(), reason=f"no row of {table} tells {column}")
    ends = np.minimum(a["b"], np.concatenate([starts[1:], a["b"][-1:]]))
    keep = (ends > starts) & (a["share"] >= 0)
    share = np.minimum(a["share"][keep], SCALE)
    reach = None
    if source == GPM:
        kernel = np.minimum(a["any_kernel"][keep], SCALE)
        reach = np.where(kernel == UNKNOWN, np.where(share > 0, SCALE, 0), np.maximum(kernel, share))
    spans = np.stack([starts, ends], axis=1)[keep]
    told = Busy(spans, share, source, table, f"{where} AND {column} IS NOT NULL", reach=reach)
    return told.within(intervals.subtract(told.covered, context.window.asleep))


def _hundredths(column: str) -> str:
    """SQL: a percentage in hundredths, UNKNOWN where it is none."""
    exact = f"round_even(least(greatest({column}, 0), 100) * {PER_CENT}, 0)::BIGINT"
    return f"CASE WHEN isfinite({column}) THEN {exact} ELSE {UNKNOWN} END"


def _none() -> Array:
    return np.zeros(0, dtype=np.int64)
