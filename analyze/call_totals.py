"""Calls that were too many and too fast for rows of their own: counted in the kernel, exact in number and sum.

A row of ``call_totals`` holds the calls of one thread, operation and bucket of durations over a window of time. Sums
and counts of an operation are those of its rows and of these together. What needs each call (a percentile, a pause
between two calls) is bounded by the buckets, or not told for such a window. Units: ns on CLOCK_BOOTTIME.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpuaudit.analyze import intervals
from gpuaudit.analyze.call_meanings import Meaning
from gpuaudit.analyze.evidence import EvidenceBook
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.store import NOT_OWN, Store

OF_TABLE = {
    "nccl_calls": "(op LIKE 'nccl%' OR op LIKE 'pnccl%')",
    "cuda_calls": "(op NOT LIKE 'nccl%' AND op NOT LIKE 'pnccl%')",
}
"""SQL condition: which rows of ``call_totals`` would have been rows of a table."""

OUTER = "nested = 0"
"""SQL condition, in ``call_totals``: no other recorded call made them."""


@dataclass(frozen=True)
class Aggregated:
    """Calls without rows of their own. ``where`` is the SQL condition of their rows in ``call_totals``."""

    calls: int
    sum_ns: int
    size_bytes: int
    windows: Intervals
    where: str

    def evidence(self, book: EvidenceBook) -> tuple[str, ...]:
        """Its rows, where there are any."""
        return (book.where("call_totals", self.where),) if self.calls else ()

    @property
    def plus_sum(self) -> str:
        """What a formula adds to a sum of time; empty where no call was aggregated."""
        return ", plus the sums of those aggregated in the kernel" if self.calls else ""

    @property
    def plus_count(self) -> str:
        """The same for a count."""
        return ", plus those aggregated in the kernel" if self.calls else ""

    @property
    def of_rows(self) -> str:
        """What a formula says that can only look at calls with rows."""
        return f", of those with rows of their own ({self.calls} have none)" if self.calls else ""


def of_thread(store: Store, pid: int, tid: int, meaning: Meaning, below_ns: int | None = None) -> Aggregated:
    """Outermost calls of a thread that mean this; with ``below_ns`` only buckets that end at or below it."""
    bound = "" if below_ns is None else f" AND max_ns <= {int(below_ns)}"
    return _read(store, f"pid = {int(pid)} AND tid = {int(tid)} AND {OUTER} AND {meaning.condition}{bound}")


def windows(store: Store, pid: int) -> Intervals:
    """Time in which calls of a process were aggregated: that a call was made there is known, when is not."""
    if not store.row_count("call_totals"):
        return intervals.EMPTY
    a = store.arrays(
        "SELECT start_ns::BIGINT AS a, end_ns::BIGINT AS b FROM call_totals "
        f"WHERE pid = {int(pid)} AND count > 0 ORDER BY 1, 2"
    )
    return intervals.from_bounds(a["a"], a["b"])


def of_process(store: Store, pid: int, meaning: Meaning) -> int:
    """Calls of a process that mean this and were aggregated, nested ones too: what needs each is not told."""
    if not store.row_count("call_totals"):
        return 0
    where = f"pid = {int(pid)} AND {meaning.condition}"
    return int(store.sql(f"SELECT coalesce(sum(count), 0)::HUGEINT FROM call_totals WHERE {where}")[0][0])


def by_process(store: Store) -> list[tuple[int, str, int, Intervals]]:
    """(process, table that would have held the rows, calls, windows) wherever calls of the workload were aggregated."""
    table = f"CASE WHEN {OF_TABLE['nccl_calls']} THEN 'nccl_calls' ELSE 'cuda_calls' END"
    rows = store.sql(
        f"SELECT pid, {table} AS t, sum(count)::HUGEINT FROM call_totals WHERE {NOT_OWN} GROUP BY 1, 2 ORDER BY 1, 2"
    )
    out = []
    for pid, name, calls in rows:
        a = store.arrays(
            f"SELECT start_ns::BIGINT AS a, end_ns::BIGINT AS b FROM call_totals WHERE pid = {int(pid)} "
            f"AND {OF_TABLE[str(name)]} ORDER BY 1, 2"
        )
        out.append((int(pid), str(name), int(calls), intervals.from_bounds(a["a"], a["b"])))
    return out


def _read(store: Store, where: str) -> Aggregated:
    if not store.row_count("call_totals"):
        return Aggregated(0, 0, 0, intervals.EMPTY, where)
    ((calls, total, size),) = store.sql(
        "SELECT coalesce(sum(count), 0)::HUGEINT, coalesce(sum(sum_ns), 0)::HUGEINT, "
        f"coalesce(sum(size_bytes), 0)::HUGEINT FROM call_totals WHERE {where}"
    )
    a = store.arrays(f"SELECT start_ns::BIGINT AS a, end_ns::BIGINT AS b FROM call_totals WHERE {where} ORDER BY 1, 2")
    return Aggregated(int(calls), int(total), int(size), intervals.from_bounds(a["a"], a["b"]), where)
