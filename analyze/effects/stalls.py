"""Stalls: time off a CPU of threads of the workload, where the recording does not tell whether they slept or waited.

Our own probes record the state of a thread, and who sleeps because it wants to has lost nothing. Some imports do not
(``prev_state`` is null): there all time off a CPU of the processes that use a GPU, and of those they started, is looked
at, and what no cause covers is no loss, for it may be sleep. Units: ns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze import intervals
from gpuaudit.analyze.causal.model import Effect

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

KIND = "stall"

MAX_EFFECTS = 100
"""Threads that are looked at, those with most time off a CPU first."""

OF_WORKLOAD = "pid IN (SELECT pid FROM processes WHERE role IN ('workload', 'traced'))"
"""SQL condition: bystanders, observers and the recorder lose nothing that concerns a GPU."""

_ROWS = f"prev_state IS NULL AND duration_ns IS NOT NULL AND {OF_WORKLOAD}"


def effects(context: Context) -> Sequence[Effect]:
    """One per thread, those with most time first."""
    if not context.store.row_count("off_cpu"):
        return []
    threads = context.store.sql(
        f"SELECT pid, tid FROM off_cpu WHERE {_ROWS} GROUP BY pid, tid HAVING sum(duration_ns) > 0 "
        f"ORDER BY sum(duration_ns) DESC, pid, tid LIMIT {MAX_EFFECTS}"
    )
    return [_of_thread(context, int(pid), int(tid)) for pid, tid in threads]


def _of_thread(context: Context, pid: int, tid: int) -> Effect:
    where = f"prev_state IS NULL AND duration_ns IS NOT NULL AND pid = {pid} AND tid = {tid}"
    a = context.store.arrays(
        f"SELECT start_ns::BIGINT AS a, end_ns::BIGINT AS b FROM off_cpu WHERE {where} ORDER BY a, leaf, row"
    )
    parts = np.stack([a["a"], a["b"]], axis=1).astype(np.int64)
    return Effect(
        kind=KIND, key=f"{KIND}:{pid}:{tid}",
        name=f"the time off a CPU of thread {tid} of {context.process_name(pid)} ({pid})",
        pid=pid, tid=tid, op="off_cpu", time=intervals.from_bounds(a["a"], a["b"]), parts=parts,
        of_ns=int(parts[:, 1].max() - parts[:, 0].min()), evidence=_evidence(context, where),
        subject={"pid": str(pid), "tid": str(tid)},
        notes=("whether the thread slept because it wanted to was not recorded: only what a cause covers was a wait",),
    )  # fmt: skip


def _evidence(context: Context, where: str) -> Callable[[], tuple[str, ...]]:
    return lambda: (context.book.where("off_cpu", where),)
