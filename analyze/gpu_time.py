"""What NVML samples say of each GPU's time: which time they cover, who held memory, and when nothing ran.

A sample stands for the time that its row covers, ``start_ns`` to ``end_ns`` (from its poll to the next one), never
past the next sample of the same GPU. Time that no sample stands for is not observed, and counts nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.store import NOT_OWN, Store, quoted

REFUSED_LIST = "compute_processes"
"""How ``nvml_samples.unavailable`` names a refused list of processes (``compute_processes=3``)."""

UNKNOWN = -1
"""Stands for null in the integer arrays of this module; every NVML value is at least 0."""


@dataclass(frozen=True)
class GpuTime:
    """One GPU. Arrays have one entry per sample, in time order; ``spans`` is (samples, 2), what each stands for.

    ``listed`` is false where NVML refused the list of processes: then ``holders`` says nothing. Time in which the host
    may have been suspended (``asleep``) is not observed.
    """

    uuid: str
    index: int
    starts: npt.NDArray[np.int64]
    spans: npt.NDArray[np.int64]
    utilization: npt.NDArray[np.int64]
    event_reasons: npt.NDArray[np.int64]
    clock_sm_mhz: npt.NDArray[np.int64]
    clock_sm_max_mhz: npt.NDArray[np.int64]
    holders: tuple[frozenset[int], ...]
    listed: npt.NDArray[np.bool_]
    asleep: Intervals

    def time(self, chosen: npt.NDArray[np.bool_]) -> Intervals:
        """The time that the chosen samples stand for."""
        return intervals.subtract(intervals.from_bounds(self.spans[chosen, 0], self.spans[chosen, 1]), self.asleep)

    @cached_property
    def covered(self) -> Intervals:
        """All time that the samples stand for: the observed time of this GPU."""
        return self.time(np.ones(len(self.starts), dtype=bool))

    @cached_property
    def held(self) -> npt.NDArray[np.bool_]:
        """Samples at which NVML listed at least one process of the workload on the GPU."""
        return np.array([bool(h) for h in self.holders], dtype=bool)

    @property
    def where(self) -> str:
        """SQL condition for this GPU's rows."""
        return f"gpu_uuid = {quoted(self.uuid)}"

    def held_by(self) -> list[tuple[tuple[int, ...], Intervals]]:
        """(sorted process ids, time) for every set of processes that held the GPU together; () is nobody.

        Time in which NVML refused the list belongs to none of them.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, who in enumerate(self.holders):
            groups.setdefault(tuple(sorted(who)), []).append(i)
        out = []
        for who_sorted in sorted(groups):
            chosen = np.zeros(len(self.starts), dtype=bool)
            chosen[groups[who_sorted]] = True
            chosen &= self.listed
            out.append((who_sorted, self.time(chosen)))
        return out


def bounded(column: str) -> str:
    """SQL for a column as BIGINT, null as :data:`UNKNOWN` (DuckDB's least() passes over nulls)."""
    return f"CASE WHEN {column} IS NULL THEN {UNKNOWN} ELSE least({column}, {1 << 62})::BIGINT END"


def read_gpus(store: Store, asleep: Intervals = intervals.EMPTY) -> list[GpuTime]:
    """Every physical GPU with samples, by NVML index and UUID; the time of a MIG device is within its parent's."""
    names = store.sql(
        "SELECT gpu_uuid, min(gpu_index) FROM nvml_samples WHERE parent_uuid IS NULL GROUP BY gpu_uuid ORDER BY 2, 1"
    )
    return [_read_gpu(store, str(uuid), int(index), asleep) for uuid, index in names]


def _read_gpu(store: Store, uuid: str, index: int, asleep: Intervals) -> GpuTime:
    columns = ("gpu_utilization_percent", "event_reasons", "clock_sm_mhz", "clock_sm_max_mhz")
    chosen = ", ".join(f"{bounded(c)} AS {c}" for c in columns)
    a = store.arrays(
        f"SELECT start_ns::BIGINT AS start_ns, coalesce(end_ns, start_ns)::BIGINT AS end_ns, {chosen}, "
        f"NOT contains(',' || unavailable, ',{REFUSED_LIST}=') AS listed "
        f"FROM nvml_samples WHERE gpu_uuid = {quoted(uuid)} ORDER BY start_ns, leaf, row"
    )
    starts = a["start_ns"]
    spans = _spans(starts, a["end_ns"])
    return GpuTime(
        uuid, index, starts, spans, a["gpu_utilization_percent"], a["event_reasons"],
        a["clock_sm_mhz"],
        a["clock_sm_max_mhz"], _holders(store, uuid, starts, spans[:, 1]), a["listed"].astype(bool), asleep,
    )  # fmt: skip


def _spans(starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    following = np.concatenate([starts[1:], ends[-1:]])
    return np.stack([starts, np.maximum(np.minimum(ends, following), starts)], axis=1)


def _holders(
    store: Store, uuid: str, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> tuple[frozenset[int], ...]:
    """The processes listed in the time that each sample stands for; a list made at another time tells nothing of it."""
    rows: dict[str, npt.NDArray[Any]] = store.arrays(
        "SELECT DISTINCT start_ns::BIGINT AS start_ns, pid::BIGINT AS pid FROM nvml_processes "
        f"WHERE gpu_uuid = {quoted(uuid)} AND {NOT_OWN} ORDER BY 1, 2"
    )
    out: list[set[int]] = [set() for _ in starts]
    at = np.searchsorted(starts, rows["start_ns"], side="right") - 1
    for t, pid, i in zip(rows["start_ns"].tolist(), rows["pid"].tolist(), at.tolist(), strict=True):
        if i >= 0 and (t < ends[i] or t == starts[i]):
            out[i].add(pid)
    return tuple(frozenset(s) for s in out)
