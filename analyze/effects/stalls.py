"""Stalls: time off a CPU of threads of the workload, where the recording does not tell whether they slept or waited.

Our own probes record the state of a thread, and who sleeps because it wants to has lost nothing. Some imports do not
(``prev_state`` is null): there all time off a CPU of the processes that use a GPU, and of those they started, is looked
at, less that inside their recorded calls, which is part of those; what no cause covers is no loss, for it may be
sleep. Units: ns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gpuaudit.analyze import intervals
from gpuaudit.analyze.causal.model import Effect
from gpuaudit.analyze.intervals import Intervals

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

KIND = "stall"

CALLS = ("cuda_calls", "nccl_calls", "nccl_comms")

MAX_EFFECTS = 100
"""Threads that are looked at, those with most time off a CPU first."""

OF_WORKLOAD = "pid IN (SELECT pid FROM processes WHERE role IN ('workload', 'traced'))"
"""SQL condition: bystanders, observers and the recorder lose nothing that concerns a GPU."""

_ROWS = f"prev_state IS NULL AND duration_ns IS NOT NULL AND {OF_WORKLOAD}"


def effects(context: Context) -> Sequence[Effect]:
    """One per thread, those with most time first."""
    if not context.store.row_count("off_cpu"):
        return []
    tables = [t for t in CALLS if context.store.row_count(t)]
    threads = context.store.sql(
        f"SELECT pid, tid FROM off_cpu WHERE {_ROWS} GROUP BY pid, tid HAVING sum(duration_ns) > 0 "
        f"ORDER BY sum(duration_ns) DESC, pid, tid LIMIT {MAX_EFFECTS}"
    )
    found = (_of_thread(context, int(pid), int(tid), tables) for pid, tid in threads)
    return [e for e in found if len(e.time)]


def _of_thread(context: Context, pid: int, tid: int, tables: Sequence[str]) -> Effect:
    where = f"prev_state IS NULL AND duration_ns IS NOT NULL AND pid = {pid} AND tid = {tid}"
    off = _time(context, "off_cpu", where)
    inside = [_time(context, t, f"duration_ns IS NOT NULL AND pid = {pid} AND tid = {tid}") for t in tables]
    time = intervals.subtract(off, intervals.union(*inside))
    return Effect(
        kind=KIND, key=f"{KIND}:{pid}:{tid}",
        name=f"the time off a CPU and in no recorded call of thread {tid} of {context.process_name(pid)} ({pid})",
        pid=pid, tid=tid, op="off_cpu", time=time, parts=time, of_ns=int(off[-1, 1] - off[0, 0]),
        evidence=_evidence(context, where),
        subject={"pid": str(pid), "tid": str(tid)},
        notes=("whether the thread slept because it wanted to was not recorded: only what a cause covers was a wait",),
    )  # fmt: skip


def _time(context: Context, table: str, where: str) -> Intervals:
    a = context.store.arrays(f"SELECT start_ns::BIGINT AS a, end_ns::BIGINT AS b FROM {table} WHERE {where} ORDER BY 1")
    return intervals.from_bounds(a["a"], a["b"])


def _evidence(context: Context, where: str) -> Callable[[], tuple[str, ...]]:
    return lambda: (context.book.where("off_cpu", where),)
