"""Blocking copies: time that a thread spent in copies that return when they are done, where it is a noticeable part.

Of a thread that the rule ``synchronous_copies`` would tell of, by its thresholds: at least so many of them, for at
least such a share of its observed time. Units: ns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpuaudit.analyze.call_meanings import BLOCKING_COPY
from gpuaudit.analyze.causal import habits
from gpuaudit.analyze.causal.model import Effect

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

KIND = "blocking_copies"


def effects(context: Context) -> Sequence[Effect]:
    """One per thread."""
    from gpuaudit.analyze.rules.synchronous_copies import DECLARATION, MIN_CALLS, SHARE  # noqa: PLC0415 - the same

    least = (context.policy.value(t, DECLARATION.id) for t in (MIN_CALLS, SHARE))
    return habits.effects(context, habits.Habit(KIND, BLOCKING_COPY, "blocking copies", "copy", *least))
