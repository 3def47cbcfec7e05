"""Chains that say the same of the same rows are one chain.

Arbitration allots each moment of an effect once, so that two causes of one effect never tell of the same time. Chains
that come from elsewhere may still rest on the very same evidence; one reader's time is worth one of them. Units: none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gpuaudit.analyze.finding import Chain, Declaration

GRAVEST_FIRST = ("critical", "warning", "notice")


def merged(chains: Sequence[Chain], order: Mapping[str, int], declared: Mapping[str, Declaration]) -> list[Chain]:
    """``chains`` without those whose evidence and impact are those of another one.

    Of such the gravest is kept, then the one whose detector comes first in ``order`` (those not in it before all), and
    it says which others read the same rows. The order of the rest is kept.
    """
    groups: dict[tuple[frozenset[str], str], list[Chain]] = {}
    for c in chains:
        groups.setdefault((frozenset(c.evidence), str(c.impact.value)), []).append(c)
    kept = {}
    for group in groups.values():
        best = min(group, key=lambda c: (GRAVEST_FIRST.index(c.severity), order.get(c.detector, -1), c.detector))
        kept[id(best)] = _telling_of(best, [c for c in group if c is not best], declared)
    return [kept[id(c)] for c in chains if id(c) in kept]


def _telling_of(chain: Chain, others: Sequence[Chain], declared: Mapping[str, Declaration]) -> Chain:
    if not others:
        return chain
    names = [f"{declared[c.detector].title}{_culprit(c)}" for c in others]
    return replace(chain, against=(*chain.against, f"the same rows were also read as: {'; '.join(sorted(names))}"))


def _culprit(chain: Chain) -> str:
    told = chain.values.get("culprit")
    return f" ({told})" if isinstance(told, str) else ""
