"""Silence of a process at the API: time after its first recorded call in which it was inside none.

Time in which the source could not see, in which records were lost or the host was suspended, is cut out first. A
launcher that only asked for an identity to hand to its ranks (ncclGetUniqueId) used no GPU, and is not looked at.
Units: ns of the process's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpuaudit.analyze import intervals
from gpuaudit.analyze.call_meanings import OUTERMOST
from gpuaudit.analyze.call_totals import OUTER
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.gpu_time import UNKNOWN
from gpuaudit.analyze.host_time import unseen
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.lives import lives
from gpuaudit.analyze.store import NOT_OWN, Store

TABLES = ("cuda_calls", "nccl_calls", "nccl_comms")


@dataclass(frozen=True)
class Seen:
    """A process after its first call: its calls, when the last began, stretches inside none, time it could be seen."""

    pid: int
    calls: int
    last_start_ns: int
    silent: Intervals
    observed_ns: int


def read_silences(context: Context, least_ns: int) -> list[Seen]:
    """Every process that used a GPU, by process id, with its stretches of at least ``least_ns`` inside no call."""
    lost, _ = lossy(context.store)
    return [_observe(context, pid, n, lost, least_ns) for pid, n in callers(context)]


def callers(context: Context) -> list[tuple[int, int]]:
    """(process, calls made inside no other) of the workload's processes that used a GPU, by process id."""
    calls = " UNION ALL ".join(
        f"SELECT pid, 1 AS n, {'comm_handle IS NOT NULL' if t == 'nccl_comms' else 'true'} AS used FROM {t} "
        f"WHERE {OUTERMOST} AND {NOT_OWN}"
        for t in TABLES
    )
    calls += f" UNION ALL SELECT pid, count, true FROM call_totals WHERE {OUTER} AND {NOT_OWN}"
    rows = context.store.sql(
        f"SELECT pid, sum(n)::HUGEINT FROM ({calls}) GROUP BY pid HAVING bool_or(used) ORDER BY pid"
    )
    return [(int(pid), int(n)) for pid, n in rows]


def unplaced_losses(context: Context) -> int:
    """Records that were lost at times that are not known: with any, silence cannot be told from loss."""
    return sum(context.quality.lost(t) for t in TABLES) - lossy(context.store)[1]


def _observe(context: Context, pid: int, count: int, lost: Intervals, least_ns: int) -> Seen:
    """What was seen of a process; ``lost`` is time in which records were lost."""
    lived_at = lives(context, pid)
    inside, firsts, last_start = _inside(context, pid, lived_at or [(0, intervals.FAR)], least_ns)
    ends = [end for _, end in lived_at] or [int(inside[-1, 1])]  # nothing is known of it but its calls
    lived = intervals.union(
        inside, *(intervals.single(first, end) for first, end in zip(firsts, ends, strict=True) if first is not None)
    )
    blind = intervals.union(unseen(context, pid), lost, context.window.asleep)
    observed = intervals.subtract(lived, blind)
    silent = intervals.subtract(observed, inside)
    silent = silent[silent[:, 1] - silent[:, 0] >= least_ns]
    return Seen(pid, count, last_start, silent, intervals.measure(observed))


def _inside(
    context: Context, pid: int, lived_at: Sequence[tuple[int, int]], least_ns: int
) -> tuple[Intervals, list[int | None], int]:
    """Time inside calls, with what lies between two of one life and is shorter than ``least_ns``, which is no silence;
    the first call of each life, and when the last call began."""
    end = max((b for _, b in lived_at if b != intervals.FAR), default=0)
    parts: list[Intervals] = []
    firsts: list[int | None] = [None] * len(lived_at)
    last_start = 0
    for table in filter(context.store.row_count, (*TABLES, "call_totals")):
        for a in context.store.batches(
            f"SELECT start_ns::BIGINT AS a, greatest(coalesce(end_ns, {end}), start_ns + 1)::BIGINT AS b FROM {table} "
            f"WHERE pid = {pid}"
        ):
            times = intervals.from_bounds(a["a"], a["b"])
            for i, (begin, until) in enumerate(lived_at):
                mine = a["a"][(a["a"] >= begin) & (a["a"] < until)]
                if len(mine):
                    earliest, known = int(mine.min()), firsts[i]
                    firsts[i] = earliest if known is None else min(known, earliest)
                times = _closed(times, begin, until, least_ns)
            parts.append(times)
            last_start = max(last_start, int(a["a"].max()))
    return intervals.union(*parts), firsts, last_start


def _closed(times: Intervals, begin: int, end: int, least_ns: int) -> Intervals:
    """The same without what is shorter than ``least_ns`` between two members that lie in ``[begin, end)``."""
    if len(times) < 2:
        return times
    low, high = np.searchsorted(times[:, 0], begin), np.searchsorted(times[:, 1], end, side="right")
    apart = np.ones(len(times) - 1, dtype=bool)
    if high - low > 1:
        apart[low : high - 1] = times[low + 1 : high, 0] - times[low : high - 1, 1] >= least_ns
    cut = np.flatnonzero(apart)
    return np.stack([times[np.append(0, cut + 1), 0], times[np.append(cut, len(times) - 1), 1]], axis=1)


def gpu_told(context: Context, pid: int) -> tuple[Intervals, Intervals, list[str]]:
    """Time in which a GPU that NVML listed the process on told its utilisation, of it that above 0, and GPU
    conditions (SQL) of those rows."""
    told, busy, where = intervals.EMPTY, intervals.EMPTY, []
    for gpu in context.gpus:
        mine = np.array([pid in who for who in gpu.holders], dtype=bool) & (gpu.utilization != UNKNOWN)
        if mine.any():
            told = intervals.union(told, gpu.time(mine))
            busy = intervals.union(busy, gpu.time(mine & (gpu.utilization > 0)))
            where.append(gpu.where)
    return told, busy, where


def lossy(store: Store) -> tuple[Intervals, int]:
    """Time between two readings of the loss counters that differ, and how many losses that places."""
    tables = ", ".join(f"'{t}'" for t in TABLES)
    rows = store.arrays(
        "SELECT a, b, n FROM (SELECT coalesce(lag(start_ns) OVER w, 0)::BIGINT AS a, start_ns::BIGINT AS b, "
        "greatest(least(lost::HUGEINT - coalesce(lag(lost) OVER w, 0), 1::HUGEINT << 40), 0)::BIGINT AS n "
        f"FROM losses WHERE table_name IN ({tables}) WINDOW w AS (PARTITION BY table_name, cpu ORDER BY "
        f"start_ns, leaf, row)) "
        "WHERE n > 0 ORDER BY a, b"
    )
    return intervals.from_bounds(rows["a"], rows["b"]), int(rows["n"].sum())
