"""Calls that another tool saw and kept no row of: what is said of rows is then said of a selection.

An import says that rows of a table are a selection, and until when all of them were kept. Totals are those of
``period_totals``; a driver's call inside a runtime's is counted as both. Units: ns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gpuaudit.analyze import intervals
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.store import MAX_TIME_NS, is_text
from gpuaudit.analyze.words import duration
from gpuaudit.bundle import canonical
from gpuaudit.bundle.errors import BundleInvalid

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

_OF_GPU = "regexp_matches(op, '^(cuda|cu|hip|nccl)[A-Z]')"

SELECTION = "selection"
"""``kind`` of a weakness of an import."""

CLOCKS = "clocks"
"""``kind`` of one whose processes did not have one clock."""

A_CALL_NS = 1_000_000_000
"""Chosen: a process that uses a GPU calls many times a second, so a period with at most one call without a row in each
second is told by its rows; with more, nothing can be said of when it called."""


MAX_PERIODS = 10_080
"""A week of minutes; later periods tell nothing."""


def complete_until(context: Context, table: str) -> int | None:
    """Until when every row of a table was kept; None where an import says of no file that its rows are a selection."""
    return min((_time(w.get("complete_until_ns")) for w in _weaknesses(context, table, SELECTION)), default=None)


def of_several_clocks(context: Context, table: str) -> bool:
    """Whether rows of different processes have times that nobody can put in order."""
    return any(True for _ in _weaknesses(context, table, CLOCKS))


def _weaknesses(context: Context, table: str, kind: str) -> Iterator[dict[str, Any]]:
    """What imports say of a table, of one kind; an artefact may hold anything."""
    artefact = context.store.artefact("imports")
    try:
        told = canonical.loads(artefact.body) if artefact else []
    except BundleInvalid:
        told = []
    for file in told if isinstance(told, list) else []:
        weaknesses = file.get("weaknesses") if isinstance(file, dict) else None
        for w in weaknesses if isinstance(weaknesses, list) else []:
            tables = w.get("tables") if isinstance(w, dict) and w.get("kind") == kind else None
            if isinstance(tables, list) and table in tables:
                yield w


def _time(told: object) -> int:
    """A time of an artefact, which may hold anything; 0 where it tells none."""
    known = isinstance(told, str) and told.isdecimal() and len(told) <= len(str(MAX_TIME_NS))
    return min(int(str(told)), MAX_TIME_NS) if known else 0


def blind(context: Context, pid: int) -> Intervals:
    """Time in which the rows of a selection do not tell when a process called."""
    until = complete_until(context, "cuda_calls")
    if until is None:
        return intervals.EMPTY
    a = context.store.arrays(
        f"SELECT start_ns::BIGINT AS a, max(end_ns)::BIGINT AS b, least(sum(count), {1 << 60})::BIGINT AS n "
        f"FROM period_totals WHERE pid = {int(pid)} AND {_OF_GPU} GROUP BY start_ns ORDER BY a"
    )
    periods = context.store.sql(
        "SELECT DISTINCT start_ns::BIGINT AS a, end_ns::BIGINT AS b FROM period_totals ORDER BY a, b "
        f"LIMIT {MAX_PERIODS}"
    )
    counted = dict(zip(a["a"].tolist(), a["n"].tolist(), strict=True))
    told = []
    for start, end in periods:
        ((rows,),) = context.store.sql(
            f"SELECT count(*) FROM cuda_calls WHERE pid = {int(pid)} AND start_ns >= {start} AND start_ns < {end}"
        )
        if (counted.get(start, 0) - int(rows)) * A_CALL_NS <= end - start:
            told.append((start, end))
    seen = intervals.from_bounds([0, *(a for a, _ in told)], [until, *(b for _, b in told)])
    return intervals.subtract(intervals.single(0, MAX_TIME_NS), seen)


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
