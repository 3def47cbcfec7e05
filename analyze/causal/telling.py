"""Telling what was allotted as chains: one per detector, culprit and process, with a link for each effect.

The causes of a late rank are links of the chain that tells of the late rank: a chain then reads from what was lost
(peers waited) to what did it (somebody ran on the rank's CPU), each link with its own overlap. Units: ns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from gpuaudit.analyze import intervals, severity
from gpuaudit.analyze.causal import code_lines, unseen
from gpuaudit.analyze.causal.arbitration import Allotment
from gpuaudit.analyze.causal.findings import NOT_CHAINS, Claimed, Explained, Findings
from gpuaudit.analyze.causal.model import HIGH, MEDIUM, Effect
from gpuaudit.analyze.finding import Chain, Gain, Grade, Link, Quantity, Share
from gpuaudit.analyze.words import duration

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

UNEXPLAINED = "unexplained"

MAX_EFFECTS = 20
"""Effects of one chain that have links of their own, those of which most is explained; the sums are of all."""

MAX_LINKS = 80
"""Links of one chain; a document holds a hundred, and the chain of a late rank has one before these."""

MAX_AGAINST = 60
"""Sentences of one chain on what speaks against it; a document holds a hundred."""

MAX_NAMED = 2
"""Effects that the sentence of a chain names."""


def tell(context: Context, found: Findings) -> list[Chain]:
    """The chains, in the order of the effects."""
    groups: dict[tuple[str, str, int], list[Explained]] = {}
    for effect in found.effects:
        if effect.kind not in NOT_CHAINS:
            for x in found.worth_telling(context, effect):
                pid = 0 if x.known.detector.one_chain else effect.pid
                groups.setdefault((x.known.declaration.id, x.cause.culprit, pid), []).append(x)
    return [_chain(context, found, group) for group in groups.values()]


def links(context: Context, found: Findings, key: str) -> tuple[Link, ...]:
    """What explains one effect, each worth telling, in the order in which time was allotted."""
    effect = next((e for e in found.effects if e.key == key), None)
    if effect is None:
        return ()
    return tuple(link for x in found.worth_telling(context, effect) for link in _from(context, found, x))


def _from(context: Context, found: Findings, x: Explained) -> Iterator[Link]:
    """The link of one part, and those that go on from its cause."""
    yield _link(x)
    yield from x.cause.further(x.part.allotted)
    if x.cause.thread is not None:
        yield from links(context, found, x.waited_key)


def _link(x: Explained) -> Link:
    evidence = x.evidence
    return Link(
        effect=x.effect.name,
        cause=x.cause.what or x.cause.culprit,
        effect_ns=Quantity(x.effect.length_ns, "ns", "derived", evidence, "time of the effect, each moment once"),
        overlap_ns=Quantity(
            x.part.allotted_ns,
            "ns",
            "derived",
            evidence,
            "effect within cause, less what a cause before it got",
        ),
        explained=Quantity(x.allotment.share(x.part.allotted_ns), "share", "derived", evidence, "overlap / effect"),
        evidence=evidence,
    )


def _by_thread(group: Sequence[Explained]) -> list[tuple[int, int, int]]:
    """Per thread: ns explained, ns of its effects, ns in which they could have been; each moment of it once."""
    out = []
    for thread in dict.fromkeys(x.effect.thread for x in group):
        mine = [x for x in group if x.effect.thread == thread]
        explained = intervals.measure(intervals.union(*(x.part.allotted for x in mine)))
        effect = intervals.measure(intervals.union(*(x.effect.time for x in mine)))
        out.append((explained, effect, max(x.effect.of_ns for x in mine)))
    return out


def _chain(context: Context, found: Findings, group: Sequence[Explained]) -> Chain:
    group = sorted(group, key=lambda x: (-x.part.allotted_ns, x.effect.key))
    lead, threads = group[0], _by_thread(group)
    name = lead.known.declaration.id
    explained, effect_ns = sum(t[0] for t in threads), sum(t[1] for t in threads)
    made = _links_of(context, found, group)
    linked = (e for link in made for e in link.evidence)
    evidence = tuple(dict.fromkeys((*linked, *(e for x in group for e in x.evidence))))
    share = Fraction(explained, effect_ns)
    grade = context.quality.grade_of(tuple(t for t, _ in lead.known.declaration.inputs))
    values: dict[str, Quantity | str] = {
        "effect": _named(group),
        "effect_time": Quantity(effect_ns, "ns", "derived", evidence, "time of the effects, each moment once a thread"),
        "explained": Quantity(explained, "ns", "derived", evidence, "effects within cause"),
        "share": Quantity(share, "share", "derived", evidence, "explained / effect_time"),
        "culprit": lead.cause.culprit,
        **lead.cause.values,
    }
    gain = sum(x.cause.gain_low_ns(x.part.allotted_ns) for x in group)
    told = lead.known.detector
    return Chain(
        id="",
        detector=name,
        severity=severity.at_most(_severity(context, name, threads), told.gravest),
        text=lead.cause.text or name,
        values=values,
        subject={"pid": str(lead.effect.pid), **lead.effect.subject, **lead.cause.subject},
        links=made,
        impact=Quantity(explained, "ns", "derived", evidence, "effects within cause, each moment once a thread"),
        confidence=_at_most(
            _confidence(context, name, share, grade, any(x.cause.refuted for x in group)), told.inferred
        ),
        grade=grade,
        against=_bounded((*_against(group), *_further_on(context, found, group), *unseen.notes(context, group))),
        refuted_by=told.refuted_by,
        next_step=told.next_step,
        evidence=evidence,
        experiment=told.experiment,
        gain=Gain(
            Quantity(
                min(gain, explained), "ns", "derived", evidence, "what the data itself shows would not have been lost"
            ),
            Quantity(explained, "ns", "derived", evidence, "all that was allotted: had the cause not been"),
        ),
        shares=shares(lead.effect, lead.allotment),
        code=tuple(dict.fromkeys((*(c for x in group for c in x.effect.code), *code_lines.of_parts(context, group)))),
    )


def _links_of(context: Context, found: Findings, group: Sequence[Explained]) -> tuple[Link, ...]:
    made = [link for x in group[:MAX_EFFECTS] for link in _from(context, found, x)]
    because = dict.fromkeys(key for x in group for key in x.cause.because)
    made += [link for key in because for link in links(context, found, key)]
    return tuple(dict.fromkeys(made))[:MAX_LINKS]


def _named(group: Sequence[Explained]) -> str:
    names = list(dict.fromkeys(x.effect.name for x in group))
    more = len(names) - MAX_NAMED
    rest = [] if more <= 0 else [f"of {more} more effect{'s' if more > 1 else ''}"]
    return " and ".join(names[:MAX_NAMED] + rest)


def _severity(
    context: Context, name: str, threads: Sequence[tuple[int, int, int]]
) -> Literal["critical", "warning", "notice"]:
    """By the thread that lost the largest share of its own time."""
    worst = max(threads, key=lambda t: Fraction(t[0], max(t[2], 1)))
    return severity.of_share(worst[0], worst[2], context.policy, name)


def _at_most(confidence: Literal["high", "medium", "low"], inferred: bool) -> Literal["high", "medium", "low"]:
    return "medium" if inferred and confidence == "high" else confidence


def _confidence(
    context: Context, name: str, share: Fraction, grade: Grade, refuted: bool
) -> Literal["high", "medium", "low"]:
    if refuted:
        return "low"
    if share >= context.policy.value(HIGH, name) and grade <= "B":
        return "high"
    return "medium" if share >= context.policy.value(MEDIUM, name) and grade <= "C" else "low"


def _further_on(context: Context, found: Findings, group: Sequence[Explained]) -> Iterator[str]:
    """What speaks against the links that go on from the causes of a chain, as far as those are told."""
    for i, x in enumerate(group):
        waited = [x.waited_key] if i < MAX_EFFECTS and x.cause.thread is not None else []
        for key in (*x.cause.because, *waited):
            yield from _doubts(context, found, key)


def _doubts(context: Context, found: Findings, key: str) -> Iterator[str]:
    """What speaks against each part of one effect, by the name of its detector, and of the waits that it goes on to."""
    effect = next((e for e in found.effects if e.key == key), None)
    for x in () if effect is None else found.worth_telling(context, effect):
        yield from (f"{x.known.declaration.title}: {a}" for a in x.cause.against)
        if x.cause.thread is not None:
            yield from _doubts(context, found, x.waited_key)


def _against(group: Sequence[Explained]) -> Iterable[str]:
    for x in group:
        yield from x.cause.against
        yield from x.effect.notes
        others = [p.who[0].declaration.title for p in x.allotment.parts if p is not x.part and p.allotted_ns]
        if x.part.contested_ns:
            yield (
                f"{duration(x.part.contested_ns)} more of the effect it covers too, allotted to what is served before "
                f"it ({', '.join(dict.fromkeys(others)) or 'another of its own kind'})"
            )
    if len(group) > MAX_EFFECTS:
        yield f"{len(group) - MAX_EFFECTS} more effects are in the sums, each with less of it, and have no link here"


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


def _bounded(doubts: Iterable[str]) -> tuple[str, ...]:
    """Each once; where there are more than :data:`MAX_AGAINST`, the last one says how many."""
    told = tuple(dict.fromkeys(doubts))
    more = len(told) - MAX_AGAINST + 1
    return told if more <= 1 else (*told[: MAX_AGAINST - 1], f"{more} further doubts are not printed")


def with_causes(context: Context, found: Findings, chain: Chain, key: str) -> Chain:
    """``chain`` with the links that explain the effect ``key``, which its last link has as cause, and the next step of
    what explains most of it: what to look for is found then."""
    more = links(context, found, key)
    if not more:
        return chain
    effect = next(e for e in found.effects if e.key == key)
    evidence = tuple(dict.fromkeys((*chain.evidence, *(e for x in more for e in x.evidence))))
    parts = tuple(found.worth_telling(context, effect))
    steps = [x.known.detector.next_step for x in sorted(parts, key=lambda x: -x.part.allotted_ns)]
    code = tuple(dict.fromkeys((*chain.code, *effect.code, *code_lines.of_parts(context, parts))))
    against = _bounded((*chain.against, *_doubts(context, found, key)))
    return replace(
        chain, links=(*chain.links, *more)[:MAX_LINKS], evidence=evidence, against=against,
        shares=shares(effect, found.allotments[key]), code=code, next_step=(*steps, chain.next_step)[0],
    )  # fmt: skip
