"""Threads that made CUDA calls: when they were observed, and their calls of some kind as columns.

The observed time of a thread is the time from the start of its first recorded call to the end of its last one, less the
time in which the source was blind or the host suspended. A call that never returned lasts until the process's exit, or
the end of the capture. Units: ns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals
from gpuaudit.analyze.call_meanings import FIRST, LIBRARIES, Meaning
from gpuaudit.analyze.call_totals import OUTER
from gpuaudit.analyze.context import Context, Found, NotEvaluated, Outcome
from gpuaudit.analyze.finding import Finding
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.lives import exit_ns
from gpuaudit.analyze.store import NOT_OWN

MAX_THREADS = 10_000
"""Threads that are looked at, those with the most calls first; a host has fewer that use GPUs."""

SLICE_ROWS = 4_000_000
"""Calls of all threads that a slice of time has where calls are read in slices."""

Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Calls:
    """Calls of one thread in order of time; ``duration`` is that of the call, or until its thread's end."""

    columns: dict[str, Array]

    def __len__(self) -> int:
        return len(self.columns["start_ns"])

    @cached_property
    def time(self) -> Intervals:
        """Time inside at least one of the calls."""
        return self.of(np.ones(len(self), dtype=bool))

    @property
    def duration(self) -> Array:
        """ns of each call."""
        out: Array = self.columns["end_ns"] - self.columns["start_ns"]
        return out

    def since(self, begin: int) -> Calls:
        """Those that started then or later."""
        chosen = self.columns["start_ns"] >= begin
        return Calls({name: values[chosen] for name, values in self.columns.items()})

    def of(self, chosen: npt.NDArray[np.bool_]) -> Intervals:
        """Time inside at least one of the chosen calls."""
        return intervals.from_bounds(self.columns["start_ns"][chosen], self.columns["end_ns"][chosen])


@dataclass(frozen=True)
class Thread:
    """One thread and its observed time."""

    pid: int
    tid: int
    observed: Intervals
    end_ns: int

    @property
    def length_ns(self) -> int:
        """Observed time."""
        return intervals.measure(self.observed)

    @property
    def where(self) -> str:
        """SQL condition for its calls."""
        return f"pid = {self.pid} AND tid = {self.tid}"

    def where_op(self, meaning: Meaning) -> str:
        """SQL condition for its calls that mean this, each once."""
        return f"{self.where} AND {meaning.first}"

    def calls(self, context: Context, meaning: Meaning, columns: Sequence[str] = ()) -> Calls:
        """Its calls that mean this with their times and ``columns`` (SQL that gives BIGINT, with a name)."""
        return self._read(context, meaning, columns, "true")

    def calls_by_time(self, context: Context, meaning: Meaning, columns: Sequence[str] = ()) -> Iterator[Calls]:
        """The same in slices of time, one after the other, for what need not be in memory at once: each as long as
        :data:`SLICE_ROWS` rows of the table would be if they came evenly. A slice may be empty."""
        begin, end = (int(self.observed[0, 0]), int(self.observed[-1, 1])) if len(self.observed) else (0, 0)
        count = context.store.row_count("cuda_calls") // SLICE_ROWS + 1
        cuts = [begin + (end - begin) * n // count for n in range(1, count)]
        after = ["true", *(f"start_ns >= {cut}" for cut in cuts)]
        before = [*(f"start_ns < {cut}" for cut in cuts), "true"]
        for a, b in zip(after, before, strict=True):
            yield self._read(context, meaning, columns, f"{a} AND {b}")

    def _read(self, context: Context, meaning: Meaning, columns: Sequence[str], when: str) -> Calls:
        more = "".join(f", {c}" for c in columns)
        return Calls(
            context.store.arrays_by_start(
                f"SELECT start_ns::BIGINT AS start_ns, greatest(coalesce(end_ns, {self.end_ns}), start_ns)::BIGINT "
                f"AS end_ns{more} FROM cuda_calls "
                f"WHERE {self.where} AND {context.means(meaning)} AND {FIRST} AND {when}"
            )
        )


def threads(context: Context, meaning: Meaning) -> list[Thread]:
    """Threads of the workload that made a call that means this, by process and thread id."""
    calls = (
        "SELECT pid, tid, start_ns, end_ns, duration_ns IS NULL AS still_open, "
        f"{context.means(meaning)} AND {FIRST} AS wanted, 1 AS n "
        "FROM cuda_calls"
    )
    if context.store.row_count("call_totals"):
        calls += (
            f" UNION ALL SELECT pid, tid, start_ns, end_ns, false, {OUTER} AND {context.means(meaning)}, count "
            "FROM call_totals WHERE op NOT LIKE 'nccl%'"
        )
    rows = context.store.sql(
        f"SELECT pid, tid, min(start_ns), max(end_ns), count(*) FILTER (still_open) FROM ({calls}) "
        f"WHERE {NOT_OWN} GROUP BY pid, tid HAVING bool_or(wanted) ORDER BY sum(n) DESC, pid, tid LIMIT {MAX_THREADS}"
    )
    return [_thread(context, row) for row in sorted(rows)]


def outcome(context: Context, items: Sequence[Finding], looked: str) -> Outcome:
    """Clear only where CUDA calls were recorded and none was lost; ``looked`` says at what was looked."""
    if not any(map(context.store.row_count, ("cuda_calls", "call_totals"))):
        reason = context.quality.source_reason("cuda") or "no process that maps a probed library made one"
        return NotEvaluated(f"no CUDA call was recorded: {reason}")
    lost = context.quality.lost("cuda_calls")
    if lost and not items:
        return NotEvaluated(f"{looked}; records were lost ({lost}), so that time inside calls is only a lower bound")
    return Found(items, looked)


def blind(context: Context, pid: int) -> Intervals:
    """Time in which calls of a process could not be seen."""
    end = context.window.end_ns
    rows = context.store.arrays(
        f"SELECT start_ns::BIGINT AS a, coalesce(end_ns, {end})::BIGINT AS b FROM gaps WHERE (source = 'cuda' "
        f"OR source IN {LIBRARIES} OR table_name = 'cuda_calls') AND (pid IS NULL OR pid = {pid}) ORDER BY 1, 2"
    )
    return intervals.from_bounds(rows["a"], rows["b"])


def _thread(context: Context, row: tuple[Any, ...]) -> Thread:
    pid, tid, start, last, still_open = (0 if v is None else int(v) for v in row)
    end = context.window.end_ns
    exited = exit_ns(context, pid)
    if exited is not None:
        end = max(min(end, exited), start)
    last = max(last, end) if still_open else last
    seen = intervals.subtract(
        intervals.single(start, last), intervals.union(blind(context, pid), context.window.asleep)
    )
    return Thread(pid, tid, seen, end)
