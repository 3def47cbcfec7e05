"""Blocking copies: time that a thread spent in copies that return when they are done, where it is a noticeable part.

By the thresholds of the rule ``synchronous_copies``: at least so many of them, for at least such a share of the
thread's observed time. Copies before the first launch of the process are its load, which is over once and no habit.
Units: ns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpuaudit.analyze.call_meanings import BLOCKING_COPY, GRAPH_LAUNCH, LAUNCH, any_of
from gpuaudit.analyze.causal import habits
from gpuaudit.analyze.causal.model import Effect
from gpuaudit.analyze.store import NOT_OWN

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

KIND = "blocking_copies"

WORK = any_of(LAUNCH, GRAPH_LAUNCH)


def effects(context: Context) -> Sequence[Effect]:
    """One per thread."""
    from gpuaudit.analyze.rules.synchronous_copies import DECLARATION, MIN_CALLS, SHARE  # noqa: PLC0415 - the same

    calls, share = (context.policy.value(t, DECLARATION.id) for t in (MIN_CALLS, SHARE))
    habit = habits.Habit(KIND, BLOCKING_COPY, "blocking copies", "copy", calls, share, _first_launches(context))
    return habits.effects(context, habit)


def _first_launches(context: Context) -> dict[int, int]:
    """By process: when it first gave its GPU work."""
    rows = context.store.sql(
        " UNION ALL ".join(
            f"SELECT pid, min(start_ns) FROM {t} WHERE {context.means(WORK)} AND {NOT_OWN} GROUP BY pid"
            for t in ("cuda_calls", "call_totals")
        )
    )
    first: dict[int, int] = {}
    for pid, at in rows:
        first[int(pid)] = min(first.get(int(pid), int(at)), int(at))
    return first
