"""Allotting the time of an effect to its causes: every nanosecond once, and the rest to nobody.

Causes take their share in the order of their precedence; where two of the same precedence cover the same time, the
one that covers more of the effect, and of equals the first by name: a cause that grows never gets less, and what
processes are called decides nothing but ties. The parts are disjoint, lie within the effect, and with what is left
over they are the effect: shares add up to one, exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

from gpuaudit.analyze import intervals
from gpuaudit.analyze.intervals import Intervals

T = TypeVar("T")


@dataclass(frozen=True)
class Claim(Generic[T]):
    """``who`` claims ``time``; ``precedence`` decides where claims overlap, then what each covers, then ``name``."""

    precedence: int
    name: str
    who: T
    time: Intervals


@dataclass(frozen=True)
class Part(Generic[T]):
    """What was allotted to a claim, and how much of the effect it covers whoever else does."""

    who: T
    allotted: Intervals
    covered: Intervals

    @property
    def allotted_ns(self) -> int:
        """ns allotted."""
        return intervals.measure(self.allotted)

    @property
    def contested_ns(self) -> int:
        """ns that it covers and that went to another cause."""
        return intervals.measure(self.covered) - self.allotted_ns


@dataclass(frozen=True)
class Allotment(Generic[T]):
    """Parts in the order in which they were served; ``unexplained`` is what nothing covers."""

    effect: Intervals
    parts: tuple[Part[T], ...]
    unexplained: Intervals

    def share(self, ns: int) -> Fraction:
        """Of the effect's own time."""
        return Fraction(ns, intervals.measure(self.effect))


def allot(effect: Intervals, claims: Iterable[Claim[T]]) -> Allotment[T]:
    """Serve claims to the time of an effect; a claim that covers nothing of it is left out."""
    left, parts = effect, list[Part[T]]()
    covering = [(c, intervals.intersect(effect, c.time)) for c in claims]
    for claim, covered in sorted(covering, key=_order):
        if not len(covered):
            continue
        got = intervals.intersect(left, covered)
        left = intervals.subtract(left, covered)
        parts.append(Part(claim.who, got, covered))
    return Allotment(effect, tuple(parts), left)


def _order(covering: tuple[Claim[T], Intervals]) -> tuple[int, int, str]:
    claim, covered = covering
    return claim.precedence, -intervals.measure(covered), claim.name
