"""Threads that made CUDA calls: when they were observed, and their calls of some kind as columns.

The observed time of a thread is the time from the start of its first recorded call to the end of its last one, less the
time in which the source was blind or the host suspended. A call that never returned lasts until the process's exit, or
the end of the capture. Units: ns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals
from gpuaudit.analyze.context import Context, Found, NotEvaluated, Outcome
from gpuaudit.analyze.finding import Finding
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.lives import exit_ns
from gpuaudit.analyze.store import NOT_OWN, quoted

SYNCHRONISATIONS = (
    "cudaStreamSynchronize", "cudaStreamSynchronize_ptsz", "cudaDeviceSynchronize", "cudaEventSynchronize",
)  # fmt: skip
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernel_ptsz")
BLOCKING_COPIES = ("cudaMemcpy", "cudaMemcpy_ptds")

MAX_THREADS = 10_000
"""Threads that are looked at, those with the most calls first; a host has fewer that use GPUs."""

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

    def where_op(self, ops: Sequence[str]) -> str:
        """SQL condition for its calls of ``ops``."""
        return f"{self.where} AND op IN ({', '.join(quoted(o) for o in ops)})"

    def calls(self, context: Context, ops: Sequence[str], columns: Sequence[str] = ()) -> Calls:
        """Its calls of ``ops`` with their times and ``columns`` (SQL expressions that give BIGINT, with a name)."""
        more = "".join(f", {c}" for c in columns)
        return Calls(
            context.store.arrays(
                f"SELECT start_ns::BIGINT AS start_ns, greatest(coalesce(end_ns, {self.end_ns}), start_ns)::BIGINT "
                f"AS end_ns{more} FROM cuda_calls WHERE {self.where_op(ops)} ORDER BY start_ns, leaf, row"
            )
        )


def threads(context: Context, ops: Sequence[str]) -> list[Thread]:
    """Threads of the workload that made a call of ``ops``, by process and thread id."""
    wanted = ", ".join(quoted(o) for o in ops)
    rows = context.store.sql(
        "SELECT pid, tid, min(start_ns), max(end_ns), count(*) - count(duration_ns) FROM cuda_calls "
        f"WHERE {NOT_OWN} GROUP BY pid, tid HAVING count(*) FILTER (op IN ({wanted})) > 0 "
        f"ORDER BY count(*) DESC, pid, tid LIMIT {MAX_THREADS}"
    )
    return [_thread(context, row) for row in sorted(rows)]


def outcome(context: Context, items: Sequence[Finding], looked: str) -> Outcome:
    """Clear only where CUDA calls were recorded and none was lost; ``looked`` says at what was looked."""
    if not context.store.row_count("cuda_calls"):
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
        f"SELECT start_ns::BIGINT AS a, coalesce(end_ns, {end})::BIGINT AS b FROM gaps WHERE (source IN ('cuda', "
        f"'cudart') OR table_name = 'cuda_calls') AND (pid IS NULL OR pid = {pid}) ORDER BY 1, 2"
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
