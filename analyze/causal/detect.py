"""Running every detector over every effect, allotting what they claim, and telling it as chains.

One chain per detector, culprit and process; it has a link for each effect of that process that the culprit explains.
The causes of a late rank are links of the chain that tells of the late rank: a chain then reads from what was lost
(peers waited) to what did it (somebody ran on the rank's CPU), each link with its own overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Literal

from gpuaudit.analyze import intervals, severity
from gpuaudit.analyze.causal.arbitration import Allotment, Claim, Part, allot
from gpuaudit.analyze.causal.model import HIGH, LEAST_NS, LEAST_SHARE, MEDIUM, Cause, Causes, Detector, Effect
from gpuaudit.analyze.finding import Chain, Declaration, Gain, Grade, Link, Quantity, Share
from gpuaudit.analyze.words import duration

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, Found, NotEvaluated

UNEXPLAINED = "unexplained"

LATE_ARRIVAL = "late_arrival"


@dataclass(frozen=True)
class Known:
    """A detector of causes with what its file declares."""

    declaration: Declaration
    detector: Detector


Claimed = tuple[Known, Cause]


@dataclass
class Findings:
    """Every effect with its allotment, what became of each detector, and the chains."""

    effects: tuple[Effect, ...] = ()
    allotments: dict[str, Allotment[Claimed]] = field(default_factory=dict)
    outcomes: dict[str, Found | NotEvaluated] = field(default_factory=dict)
    chains: list[Chain] = field(default_factory=list)


@cache
def detectors() -> tuple[Known, ...]:
    """Every detector of causes, in the order in which time is allotted to them."""
    from gpuaudit.analyze.registry import detector_modules  # noqa: PLC0415 - detectors import this package

    found = [Known(m.DECLARATION, m.DETECTOR) for m in detector_modules()]
    return tuple(sorted(found, key=lambda k: (k.detector.precedence, k.declaration.id)))


def detect(context: Context) -> Findings:
    """Everything; a detector that could not look says why, and is not "clear"."""
    from gpuaudit.analyze.context import Found, NotEvaluated  # noqa: PLC0415 - it imports what imports this
    from gpuaudit.analyze.registry import effect_makers  # noqa: PLC0415

    effects = tuple(e for make in effect_makers() for e in make(context) if e.length_ns)
    claims: dict[str, list[Claim[Claimed]]] = {e.key: [] for e in effects}
    found = Findings(effects)
    for known in detectors():
        name = known.declaration.id
        mine = [e for e in effects if e.kind in known.detector.kinds]
        if not mine:
            kinds = " or ".join(k.replace("_", " ") for k in sorted(known.detector.kinds))
            looked = any(context.store.row_count(t) for t, _ in known.declaration.inputs)
            found.outcomes[name] = (
                Found((), f"no {kinds} to explain") if looked else NotEvaluated("none of its tables was recorded")
            )
            continue
        causes = known.detector.find(context, mine)
        if isinstance(causes, NotEvaluated):
            found.outcomes[name] = causes
            continue
        found.outcomes[name] = Found((), f"effects looked at: {len(mine)}")
        _claim(claims, known, causes)
    found.allotments = {e.key: allot(e.time, claims[e.key]) for e in effects}
    found.chains = _chains(context, found)
    for name, outcome in found.outcomes.items():
        if isinstance(outcome, Found):
            told = [c for c in found.chains if c.detector == name]
            found.outcomes[name] = Found(told, outcome.reason)
    return found


def _claim(claims: Mapping[str, list[Claim[Claimed]]], known: Known, causes: Causes) -> None:
    for key, of_effect in causes.items():
        for cause in of_effect:
            who = (known, cause)
            claims[key].append(
                Claim(known.detector.precedence, f"{known.declaration.id} {cause.culprit}", who, cause.time)
            )


@dataclass(frozen=True)
class _Explained:
    effect: Effect
    allotment: Allotment[Claimed]
    part: Part[Claimed]


def _chains(context: Context, found: Findings) -> list[Chain]:
    groups: dict[tuple[str, str, int, bool], list[_Explained]] = {}
    for effect in found.effects:
        allotment = found.allotments[effect.key]
        for part in allotment.parts:
            known, cause = part.who
            if _worth_telling(context, known, effect, part):
                late = effect.kind == LATE_ARRIVAL
                pid = 0 if known.detector.one_chain else effect.pid
                groups.setdefault((known.declaration.id, cause.culprit, pid, late), []).append(
                    _Explained(effect, allotment, part)
                )
    return [_chain(context, found, group) for (*_, late), group in groups.items() if not late]


def _worth_telling(context: Context, known: Known, effect: Effect, part: Part[Claimed]) -> bool:
    name = known.declaration.id
    share = Fraction(part.allotted_ns, effect.length_ns)
    return share >= context.policy.value(LEAST_SHARE, name) and part.allotted_ns >= context.policy.value(LEAST_NS, name)


def links(context: Context, found: Findings, key: str) -> tuple[Link, ...]:
    """What explains one effect, each worth telling, in the order in which time was allotted."""
    effect = next((e for e in found.effects if e.key == key), None)
    if effect is None:
        return ()
    allotment = found.allotments[key]
    parts = [p for p in allotment.parts if _worth_telling(context, p.who[0], effect, p)]
    return _links([_Explained(effect, allotment, p) for p in parts])


def _links(group: Sequence[_Explained]) -> tuple[Link, ...]:
    """A link for each effect, followed by those that go on from its cause."""
    return tuple(link for x in group for link in (_link(x), *x.part.who[1].further(x.part.allotted)))


def _link(x: _Explained) -> Link:
    _, cause = x.part.who
    evidence = tuple(dict.fromkeys((*x.effect.evidence(), *cause.evidence(x.part.allotted))))
    return Link(
        effect=x.effect.name,
        cause=cause.what or cause.culprit,
        effect_ns=Quantity(x.effect.length_ns, "ns", "derived", evidence, "time of the effect, each moment once"),
        overlap_ns=Quantity(
            x.part.allotted_ns, "ns", "derived", evidence, "effect ∩ cause, less what a cause before it was allotted"
        ),
        explained=Quantity(x.allotment.share(x.part.allotted_ns), "share", "derived", evidence, "overlap / effect"),
        evidence=evidence,
    )


def _chain(context: Context, found: Findings, group: Sequence[_Explained]) -> Chain:
    known, cause = group[0].part.who
    name = known.declaration.id
    because = dict.fromkeys(key for x in group for key in x.part.who[1].because)
    made = (*_links(group), *(link for key in because for link in links(context, found, key)))
    evidence = tuple(dict.fromkeys(e for link in made for e in link.evidence))
    effect_ns = sum(x.effect.length_ns for x in group)
    explained = sum(x.part.allotted_ns for x in group)
    share = Fraction(explained, effect_ns)
    grade = context.quality.grade_of(tuple(t for t, _ in known.declaration.inputs))
    lead = max(group, key=lambda x: (x.part.allotted_ns, x.effect.key))
    values: dict[str, Quantity | str] = {
        "effect": " and ".join(x.effect.name for x in group),
        "effect_time": Quantity(effect_ns, "ns", "derived", evidence, "time of the effects"),
        "explained": Quantity(explained, "ns", "derived", evidence, "effects ∩ cause"),
        "share": Quantity(share, "share", "derived", evidence, "explained / effect_time"),
        "culprit": cause.culprit,
        **lead.part.who[1].values,
    }
    gain = sum(x.part.who[1].gain_low_ns(x.part.allotted_ns) for x in group)
    return Chain(
        id="",
        detector=name,
        severity=severity.of_share(explained, max(x.effect.of_ns for x in group), context.policy, name),
        text=cause.text or name,
        values=values,
        subject={"pid": str(lead.effect.pid), **lead.effect.subject, **cause.subject},
        links=made,
        impact=Quantity(explained, "ns", "derived", evidence, "effects ∩ cause, each moment once"),
        confidence=_confidence(context, name, share, grade, any(x.part.who[1].refuted for x in group)),
        grade=grade,
        against=tuple(dict.fromkeys(_against(group))),
        refuted_by=known.detector.refuted_by,
        next_step=known.detector.next_step,
        evidence=evidence,
        experiment=known.detector.experiment,
        gain=Gain(
            Quantity(gain, "ns", "derived", evidence, "what the data itself shows would not have been lost"),
            Quantity(explained, "ns", "derived", evidence, "all that was allotted: had the cause not been"),
        ),
        shares=_shares(lead),
        code=tuple(dict.fromkeys(c for x in group for c in (*x.effect.code, *x.part.who[1].code))),
    )


def _confidence(
    context: Context, name: str, share: Fraction, grade: Grade, refuted: bool
) -> Literal["high", "medium", "low"]:
    if refuted:
        return "low"
    if share >= context.policy.value(HIGH, name) and grade <= "B":
        return "high"
    return "medium" if share >= context.policy.value(MEDIUM, name) and grade <= "C" else "low"


def _against(group: Sequence[_Explained]) -> Iterable[str]:
    for x in group:
        yield from x.part.who[1].against
        yield from x.effect.notes
        others = [p.who[0].declaration.title for p in x.allotment.parts if p is not x.part and p.allotted_ns]
        if x.part.contested_ns:
            yield (
                f"{duration(x.part.contested_ns)} more of the effect it covers too, allotted to what is served before "
                f"it ({', '.join(dict.fromkeys(others)) or 'another of its own kind'})"
            )


def _shares(x: _Explained) -> tuple[Share, ...]:
    """Of the effect of which most is explained: every cause, and what is left."""
    return shares(x.effect, x.allotment)


def shares(effect: Effect, allotment: Allotment[Claimed]) -> tuple[Share, ...]:
    """Every cause of an effect with its part, "unexplained" last: together they are the effect."""
    evidence = effect.evidence()
    rows = [(f"{p.who[0].declaration.title}: {p.who[1].culprit}", p.allotted_ns) for p in allotment.parts]
    rows.append((UNEXPLAINED, intervals.measure(allotment.unexplained)))
    return tuple(
        Share(
            label,
            Quantity(ns, "ns", "derived", evidence, "allotted"),
            Quantity(allotment.share(ns), "share", "derived", evidence, "allotted / effect"),
        )
        for label, ns in rows
    )


def with_causes(context: Context, found: Findings, chain: Chain, key: str) -> Chain:
    """``chain`` with the links that explain the effect ``key``, which its last link has as cause."""
    more = links(context, found, key)
    if not more:
        return chain
    effect = next(e for e in found.effects if e.key == key)
    evidence = tuple(dict.fromkeys((*chain.evidence, *(e for x in more for e in x.evidence))))
    parts = found.allotments[key].parts
    code = tuple(dict.fromkeys((*chain.code, *effect.code, *(c for p in parts for c in p.who[1].code))))
    return replace(
        chain, links=(*chain.links, *more), evidence=evidence, shares=shares(effect, found.allotments[key]), code=code
    )
