"""Calls that another tool counted and kept no row of: what is said of rows is then said of a selection.

Totals are those of ``period_totals``; a driver's call inside a runtime's is counted as both. Units: ns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuaudit.analyze.store import is_text
from gpuaudit.analyze.words import duration

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

_OF_GPU = "regexp_matches(op, '^(cuda|cu|hip|nccl)[A-Z]')"


def note(context: Context, pid: int, op: str | None = None) -> tuple[str, ...]:
    """One sentence on the calls of a process without rows, of one operation or of all; none where there is none."""
    if not context.store.row_count("period_totals"):
        return ()
    which = f"pid = {int(pid)} AND {is_text('op', op) if op is not None else _OF_GPU}"
    ((counted, counted_ns),) = context.store.sql(
        f"SELECT coalesce(sum(count), 0)::HUGEINT, coalesce(sum(sum_ns), 0)::HUGEINT FROM period_totals WHERE {which}"
    )
    ((listed, listed_ns),) = context.store.sql(
        f"SELECT count(*), coalesce(sum(duration_ns), 0)::HUGEINT FROM cuda_calls WHERE {which}"
    )
    missing, missing_ns = int(counted) - int(listed), max(0, int(counted_ns) - int(listed_ns))
    if missing <= 0:
        return ()
    what = op or "GPU"
    return (
        f"{missing} of {int(counted)} {what} calls that the recording tool counted have no row ({duration(missing_ns)} "
        "in all): when they were made is not known",
    )
