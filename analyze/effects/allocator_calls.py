"""Allocator calls: time that a thread spent in allocating and freeing memory, where it is a noticeable part.

Of a thread with at least :data:`LEAST_CALLS` such calls that took at least :data:`SHARE` of its observed time. Calls
without rows of their own are not in it. Units: ns.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from gpuaudit.analyze.call_meanings import ALLOCATE, ALLOCATE_HOST, ALLOCATE_MANAGED, FREE, FREE_HOST, any_of
from gpuaudit.analyze.causal import habits
from gpuaudit.analyze.causal.model import Effect
from gpuaudit.analyze.finding import Declaration, Threshold

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

KIND = "allocator_calls"

SHARE = Threshold(
    "allocator_share", Fraction(1, 20), "share",
    "the share from which a finding is a warning: a program in its steady state has its memory",
)  # fmt: skip
LEAST_CALLS = Threshold("allocator_calls", 20, "count", "chosen: fewer are the set-up of a program, not a habit")

DECLARATION = Declaration(
    id=KIND,
    kind="effect",
    title="Allocating and freeing memory",
    question="Which threads spent a noticeable part of their time in allocating and freeing memory?",
    inputs=(("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "parent_ns")),),
    thresholds=(SHARE, LEAST_CALLS),
    texts={},
    never_claims="That the memory was there already, or that a call could have been saved.",
)

ALLOCATOR = any_of(ALLOCATE, ALLOCATE_MANAGED, ALLOCATE_HOST, FREE, FREE_HOST)


def effects(context: Context) -> Sequence[Effect]:
    """One per thread."""
    share, least = (context.policy.value(t, DECLARATION.id) for t in DECLARATION.thresholds)
    habit = habits.Habit(KIND, ALLOCATOR, "allocator calls", "allocate", least, share)
    return habits.effects(context, habit)
