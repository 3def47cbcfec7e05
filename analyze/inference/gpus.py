"""Which GPUs an engine runs on, and what NVML says of them in each of its windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.gpu_time import UNKNOWN, bounded
from gpuaudit.analyze.inference.model import GpuWindow, Number
from gpuaudit.analyze.inference.series import I64, Scrapes
from gpuaudit.analyze.inference.windows import Cut
from gpuaudit.analyze.store import Store, quoted

MAX_SKEW_NS = 1_000_000_000
"""Power and tokens count as of the same time up to this skew (``docs/reference/engines.md``)."""

_COLUMNS = (
    "gpu_utilization_percent", "memory_utilization_percent", "power_mw", "memory_used_bytes", "memory_total_bytes",
    "temperature_c", "clock_sm_mhz",
)  # fmt: skip


@dataclass(frozen=True)
class Join:
    """GPUs of an engine and one sentence on how they were found.

    ``pids``: its processes, where NVML named any of them there. ``sliced``: some of the GPUs is in MIG mode, where
    nobody has a whole one.
    """

    uuids: tuple[str, ...]
    how: str
    pids: tuple[int, ...] = ()
    sliced: bool = False


def find_gpus(store: Store, pid: int | None, engines: int) -> Join:
    """The GPUs on which NVML listed the engine's process or one it started; of a lone engine, all of the host's."""
    pids = _family(store, pid) if pid is not None else []
    if pids:
        listed = ", ".join(str(p) for p in pids)
        rows = store.sql(
            f"SELECT gpu_uuid, min(gpu_index) FROM nvml_processes WHERE pid IN ({listed}) GROUP BY 1 ORDER BY 2, 1"
        )
        if rows:
            uuids = tuple(str(r[0]) for r in rows)
            how = "NVML listed the engine's process, or one it started, on these GPUs"
            return Join(uuids, how, pids=tuple(pids), sliced=_sliced(store, uuids))
    why = "the engine's process is not known" if pid is None else "NVML listed none of the engine's processes on a GPU"
    rows = store.sql(
        "SELECT gpu_uuid, min(gpu_index) FROM nvml_samples WHERE parent_uuid IS NULL GROUP BY 1 ORDER BY 2, 1"
    )
    if not rows:
        return Join((), "no GPU was sampled")
    if engines > 1:
        return Join((), f"{why}, and with more than one engine the host's GPUs cannot be assigned")
    uuids = tuple(str(r[0]) for r in rows)
    how = f"{why}; it is the only engine, so all GPUs of the host are taken as its"
    return Join(uuids, how, sliced=_sliced(store, uuids))


def _sliced(store: Store, uuids: tuple[str, ...]) -> bool:
    """Whether any of the GPUs had MIG devices, by their own samples or those of the processes on them."""
    listed = ", ".join(quoted(u) for u in uuids)
    return bool(store.sql(
        f"SELECT 1 FROM nvml_samples WHERE parent_uuid IN ({listed}) UNION ALL "
        f"SELECT 1 FROM nvml_processes WHERE gpu_uuid IN ({listed}) AND gpu_instance IS NOT NULL LIMIT 1"
    ))  # fmt: skip


def _family(store: Store, pid: int) -> list[int]:
    """A process and all that descend from it, as far as processes were recorded."""
    children: dict[int, set[int]] = {}
    for child, parent in store.sql("SELECT DISTINCT pid, parent_pid FROM processes WHERE parent_pid IS NOT NULL"):
        children.setdefault(int(parent), set()).add(int(child))
    found, todo = {pid}, [pid]
    while todo:
        more = children.get(todo.pop(), set()) - found
        found |= more
        todo += sorted(more)
    return sorted(found)


def gpu_windows(store: Store, uuids: tuple[str, ...], where: Cut, scrapes: Scrapes) -> list[GpuWindow]:
    """What NVML says in each window; empty without GPUs."""
    gpus = [_Polls(store, uuid, where) for uuid in uuids]
    return (
        [_together([g.window(i) for g in gpus], i, where, scrapes) for i in range(len(where.start_ns))] if gpus else []
    )


@dataclass(frozen=True)
class _OneGpu:
    """One GPU in one window: per column mean, last value and peak of its polls, and when the last one was."""

    means: dict[str, Fraction | None]
    last: dict[str, int | None]
    peak: dict[str, int | None]
    last_ns: int | None


class _Polls:
    """Polls of one GPU; those of window i are ``low[i]`` to ``high[i]`` − 1."""

    def __init__(self, store: Store, uuid: str, where: Cut) -> None:
        chosen = ", ".join(f"{bounded(c)} AS {c}" for c in _COLUMNS)
        a = store.arrays(
            f"SELECT start_ns::BIGINT AS start_ns, {chosen} FROM nvml_samples WHERE gpu_uuid = {quoted(uuid)} "
            "ORDER BY start_ns, leaf, row"
        )
        self.start_ns: I64 = a["start_ns"]
        self.low = np.searchsorted(self.start_ns, where.start_ns, side="right")
        self.high = np.searchsorted(self.start_ns, where.end_ns, side="right")
        pair = (a["gpu_utilization_percent"] != UNKNOWN) & (a["memory_utilization_percent"] != UNKNOWN)
        for name in ("gpu_utilization_percent", "memory_utilization_percent"):
            a[name] = np.where(pair, a[name], UNKNOWN)  # a poll counts for utilisation with both of the pair
        self.columns = {name: _Column(a[name], self.low, self.high) for name in _COLUMNS}

    def window(self, i: int) -> _OneGpu:
        """Window ``i``."""
        polled = self.high[i] > self.low[i]
        return _OneGpu(
            {name: c.mean(i) for name, c in self.columns.items()},
            {name: c.last(i) for name, c in self.columns.items()},
            {name: c.peak(i) for name, c in self.columns.items()},
            int(self.start_ns[self.high[i] - 1]) if polled else None,
        )


class _Column:
    """One column of one GPU."""

    def __init__(self, values: I64, low: npt.NDArray[np.intp], high: npt.NDArray[np.intp]) -> None:
        self.values, self.low, self.high = values, low, high

    def _part(self, i: int) -> I64:
        """The known values of a window."""
        part = self.values[int(self.low[i]) : int(self.high[i])]
        known: I64 = part[part != UNKNOWN]
        return known

    def mean(self, i: int) -> Fraction | None:
        """Mean of the polls that have a value."""
        part = self._part(i)
        return Fraction(sum(part.tolist()), len(part)) if len(part) else None

    def last(self, i: int) -> int | None:
        """The last value that is there."""
        part = self._part(i)
        return int(part[-1]) if len(part) else None

    def peak(self, i: int) -> int | None:
        """The highest value."""
        part = self._part(i)
        return int(part.max()) if len(part) else None


def _together(gpus: list[_OneGpu], i: int, where: Cut, scrapes: Scrapes) -> GpuWindow:
    """One window over all GPUs; a sum is None as soon as one GPU has no value."""
    low, high = int(where.first[i]), int(where.end[i])
    skew = None
    if high > low and all(g.last_ns is not None for g in gpus):
        done = int(scrapes.done_ns[high - 1])
        skew = max(abs(done - g.last_ns) for g in gpus if g.last_ns is not None)
    return GpuWindow(
        gpus=len(gpus),
        utilization_percent=_mean([g.means["gpu_utilization_percent"] for g in gpus]),
        memory_utilization_percent=_mean([g.means["memory_utilization_percent"] for g in gpus]),
        utilization_peak_percent=_highest([g.peak["gpu_utilization_percent"] for g in gpus]),
        power_mw=_sum([g.means["power_mw"] for g in gpus]),
        power_peak_mw=_whole(_sum([g.peak["power_mw"] for g in gpus])),
        vram_used_bytes=_whole(_sum([g.last["memory_used_bytes"] for g in gpus])),
        vram_total_bytes=_whole(_sum([g.last["memory_total_bytes"] for g in gpus])),
        vram_peak_bytes=_whole(_sum([g.peak["memory_used_bytes"] for g in gpus])),
        temperature_c=_highest([g.last["temperature_c"] for g in gpus]),
        temperature_peak_c=_highest([g.peak["temperature_c"] for g in gpus]),
        clock_sm_mhz=_mean([g.last["clock_sm_mhz"] for g in gpus]),
        skew_ns=skew,
        aligned=skew is not None and skew <= MAX_SKEW_NS,
    )


def _sum(values: Sequence[Number | None]) -> Fraction | None:
    known = [Fraction(v) for v in values if v is not None]
    return sum(known, Fraction(0)) if len(known) == len(values) else None


def _mean(values: Sequence[Number | None]) -> Fraction | None:
    known = [Fraction(v) for v in values if v is not None]
    return sum(known, Fraction(0)) / len(known) if known else None


def _highest(values: Sequence[int | None]) -> int | None:
    return max((v for v in values if v is not None), default=None)


def _whole(value: Fraction | None) -> int | None:
    return None if value is None else int(value)
