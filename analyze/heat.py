"""The rank × collective heat map: how late each rank entered each collective, in at most 120 columns."""

from __future__ import annotations

import numpy as np

from gpuaudit.analyze import lateness
from gpuaudit.analyze.collectives import Collectives
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Json

MAX_COLUMNS = 120
"""Columns of a map on one page; more collectives share a column, which shows the latest of them."""

MAX_COMMUNICATORS = 16
"""Maps in one report: those with the most collectives are kept."""

MAX_RANKS = 64
"""Rows of a map: the ranks that were latest are kept."""


def rank_heat(context: Context) -> list[Json]:
    """One map per evaluated communicator, most collectives first."""
    shown = [c for c in context.collectives if c.count]
    shown.sort(key=lambda c: (-c.count, c.comm_id))
    return [_map(context, c, max(0, len(shown) - MAX_COMMUNICATORS)) for c in shown[:MAX_COMMUNICATORS]]


def _map(context: Context, c: Collectives, omitted: int) -> Json:
    per_column = -(-c.count // MAX_COLUMNS)
    starts = np.arange(0, c.count, per_column)
    late_by = lateness.of_every_rank(c.arrival)
    judged = lateness.judge(c.arrival, context.late_limits)
    rows: list[int] = sorted(int(r) for r in np.argsort(-late_by.max(axis=1), kind="stable")[:MAX_RANKS])
    worst = np.maximum.reduceat(late_by, starts, axis=1)
    late = sorted(
        {
            (c.ranks[int(judged.last[i])], int(i) // per_column)
            for i in np.flatnonzero(judged.late)
            if int(judged.last[i]) in rows
        }
    )
    return {
        "comm_id": c.name,
        "nranks": c.nranks,
        "ranks": [c.ranks[r] for r in rows],
        "columns": [[s, min(s + per_column, c.count) - 1] for s in range(0, c.count, per_column)],
        "lateness_ns": [[str(int(v)) for v in worst[r]] for r in rows],
        "threshold_ns": str(judged.usual_threshold_ns),
        "late": [list(x) for x in late],
        "omitted": c.unmatched,
        "omitted_ranks": len(c.ranks) - len(rows),
        "omitted_communicators": omitted,
    }
