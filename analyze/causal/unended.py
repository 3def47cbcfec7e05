"""What nobody knows of a thread: from a wake-up whose switch back the kernel did not tell to the next row of its.

Such a row of ``off_cpu`` ends with the wake-up, or, where the capture ended first, has no end. Until its thread next
left a CPU it waited for one and then ran, and how much of either is not recorded: the time is neither. Units: ns.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from gpuaudit.analyze import intervals
from gpuaudit.analyze.intervals import Intervals

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

UNENDED = "op = 'blocked' AND wake_ns IS NOT NULL AND runqueue_ns IS NULL"
"""SQL condition: it slept until somebody woke it, and when it was on a CPU again was not seen."""

END = f"CASE WHEN duration_ns IS NULL AND {UNENDED} THEN greatest(wake_ns, start_ns) ELSE end_ns END"
"""SQL: a row's end as far as it is known; null where the thread was neither woken nor back when the capture ended."""

_AFTER = f"""
SELECT pid::BIGINT AS pid, tid::BIGINT AS tid, a, b FROM (
  SELECT pid, tid, ({END})::BIGINT AS a, {UNENDED} AS unended,
    coalesce(lead(start_ns) OVER (PARTITION BY pid, tid ORDER BY start_ns, leaf, row), {{end}})::BIGINT AS b
  FROM off_cpu WHERE pid IN ({{pids}})
) WHERE unended AND a < b ORDER BY pid, tid, a
"""


def after_wakes(context: Context, pids: Collection[int]) -> dict[tuple[int, int], Intervals]:
    """By process and thread of ``pids``; a thread whose every switch back was told is left out."""
    named = ", ".join(str(int(p)) for p in sorted(set(pids)))
    if not named or not context.store.sql(f"SELECT 1 FROM off_cpu WHERE pid IN ({named}) AND {UNENDED} LIMIT 1"):
        return {}
    a = context.store.arrays(_AFTER.format(pids=named, end=context.window.end_ns))
    found = sorted(set(zip(a["pid"].tolist(), a["tid"].tolist(), strict=True)))
    chosen = {(pid, tid): (a["pid"] == pid) & (a["tid"] == tid) for pid, tid in found}
    return {thread: intervals.from_bounds(a["a"][mine], a["b"][mine]) for thread, mine in chosen.items()}
