"""What running the detectors gives: effects, what was allotted of each, and what is worth telling of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

from gpuaudit.analyze.causal.arbitration import Allotment, Part
from gpuaudit.analyze.causal.model import LEAST_NS, LEAST_SHARE, WAITED_FOR, Cause, Detector, Effect
from gpuaudit.analyze.finding import Chain, Declaration

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, Found, NotEvaluated

LATE_ARRIVAL = "late_arrival"

NOT_CHAINS = frozenset({LATE_ARRIVAL, WAITED_FOR})
"""Kinds of effect that no chain begins with: what explains them are links of the chain that led to them."""


@dataclass(frozen=True)
class Known:
    """A detector of causes with what its file declares."""

    declaration: Declaration
    detector: Detector


Claimed = tuple[Known, Cause]


@dataclass(frozen=True)
class Explained:
    """A part of an effect that was allotted to a cause."""

    effect: Effect
    allotment: Allotment[Claimed]
    part: Part[Claimed]

    @property
    def known(self) -> Known:
        """The detector."""
        return self.part.who[0]

    @property
    def cause(self) -> Cause:
        """The cause."""
        return self.part.who[1]

    @cached_property
    def evidence(self) -> tuple[str, ...]:
        """Rows of the effect, and those of the cause in the part that was allotted."""
        return tuple(dict.fromkeys((*self.effect.evidence(), *self.cause.evidence(self.part.allotted))))

    @property
    def waited_key(self) -> str:
        """Key of the effect that the wait for the cause's thread is."""
        pid, tid = self.cause.thread or (0, 0)
        return f"{WAITED_FOR}:{self.known.declaration.id}:{pid}:{tid}:{self.effect.key}"


@dataclass
class Findings:
    """Every effect with its allotment, what became of each detector, and the chains."""

    effects: tuple[Effect, ...] = ()
    allotments: dict[str, Allotment[Claimed]] = field(default_factory=dict)
    outcomes: dict[str, Found | NotEvaluated] = field(default_factory=dict)
    chains: list[Chain] = field(default_factory=list)

    def worth_telling(self, context: Context, effect: Effect) -> Iterator[Explained]:
        """Parts of one effect that are links, in the order in which time was allotted."""
        allotment = self.allotments[effect.key]
        for part in allotment.parts:
            known, cause = part.who
            name = known.declaration.id
            enough = Fraction(part.allotted_ns, effect.length_ns) >= context.policy.value(LEAST_SHARE, name)
            if enough and part.allotted_ns >= context.policy.value(LEAST_NS, name) and not cause.observer:
                yield Explained(effect, allotment, part)
