"""Running every detector over every effect, and allotting what they claim.

A cause that is a thread which was waited for becomes an effect itself, the time for which it was waited for, and the
detectors are run over that too, some rounds deep: the chain then reads from what was lost (a launch was slow) to what
did it (its thread waited for a lock, whose holder had no CPU, on which somebody else ran).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from gpuaudit.analyze.causal.arbitration import Claim, allot
from gpuaudit.analyze.causal.findings import LATE_ARRIVAL, NOT_CHAINS, Claimed, Explained, Findings, Known
from gpuaudit.analyze.causal.model import WAITED_FOR, Causes, Effect
from gpuaudit.analyze.causal.telling import UNEXPLAINED, links, shares, tell, with_causes

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, Found, NotEvaluated

__all__ = ["LATE_ARRIVAL", "UNEXPLAINED", "Findings", "Known", "detect", "detectors", "links", "shares", "with_causes"]

ROUNDS = 3
"""How far a wait is followed from thread to thread; a thread that was come by already is not followed again."""


@cache
def detectors() -> tuple[Known, ...]:
    """Every detector of causes, in the order in which time is allotted to them."""
    from gpuaudit.analyze.registry import detector_modules  # noqa: PLC0415 - detectors import this package

    found = [Known(m.DECLARATION, m.DETECTOR) for m in detector_modules()]
    return tuple(sorted(found, key=lambda k: (k.detector.precedence, k.declaration.id)))


def detect(context: Context) -> Findings:
    """Everything; a detector that could not look says why, and is not "clear"."""
    from gpuaudit.analyze.context import Found  # noqa: PLC0415 - it imports what imports this
    from gpuaudit.analyze.registry import effect_makers  # noqa: PLC0415

    effects = tuple(e for make in effect_makers() for e in make(context) if e.length_ns)
    found = Findings(effects)
    found.outcomes = _explain(context, found, effects)
    come_by = {e.key: frozenset({e.thread}) for e in effects}
    for _ in range(ROUNDS):
        effects = tuple(_waits(context, found, effects, come_by))
        found.effects += effects
        _explain(context, found, effects)
    found.chains = tell(context, found)
    for name, outcome in found.outcomes.items():
        if isinstance(outcome, Found):
            told = [c for c in found.chains if c.detector == name]
            found.outcomes[name] = Found(told, outcome.reason + _elsewhere(context, found, name))
    return found


def _explain(context: Context, found: Findings, effects: Sequence[Effect]) -> dict[str, Found | NotEvaluated]:
    """Run the detectors over ``effects`` and allot; what became of each of them."""
    from gpuaudit.analyze.context import Found, NotEvaluated  # noqa: PLC0415 - it imports what imports this

    claims: dict[str, list[Claim[Claimed]]] = {e.key: [] for e in effects}
    outcomes: dict[str, Found | NotEvaluated] = {}
    for known in detectors():
        name = known.declaration.id
        mine = [e for e in effects if e.kind in known.detector.kinds]
        if not mine:
            outcomes[name] = _nothing_to_explain(context, known)
            continue
        causes = known.detector.find(context, mine)
        if isinstance(causes, NotEvaluated):
            outcomes[name] = causes
            continue
        outcomes[name] = Found((), f"effects looked at: {len(mine)}")
        _claim(claims, known, causes)
    found.allotments.update({e.key: allot(e.time, claims[e.key]) for e in effects})
    return outcomes


def _nothing_to_explain(context: Context, known: Known) -> Found | NotEvaluated:
    from gpuaudit.analyze.context import Found, NotEvaluated  # noqa: PLC0415 - it imports what imports this

    if not any(context.store.row_count(t) for t, _ in known.declaration.inputs):
        return NotEvaluated("none of its tables was recorded")
    kinds = " or ".join(k.replace("_", " ") for k in sorted(known.detector.kinds - {WAITED_FOR}))
    return Found((), f"no {kinds} to explain")


def _claim(claims: Mapping[str, list[Claim[Claimed]]], known: Known, causes: Causes) -> None:
    for key, of_effect in causes.items():
        for cause in of_effect:
            who = (known, cause)
            claims[key].append(
                Claim(known.detector.precedence, f"{known.declaration.id} {cause.culprit}", who, cause.time)
            )


def _waits(
    context: Context, found: Findings, effects: Sequence[Effect], come_by: dict[str, frozenset[tuple[int, int | None]]]
) -> list[Effect]:
    """The waits for other threads that explain ``effects``, as effects."""
    out = []
    for effect in effects:
        for x in found.worth_telling(context, effect):
            if x.cause.thread is not None and x.cause.thread not in come_by[effect.key]:
                out.append(_wait(context, x))
                come_by[x.waited_key] = come_by[effect.key] | {x.cause.thread}
    return out


def _wait(context: Context, x: Explained) -> Effect:
    pid, tid = x.cause.thread or (0, 0)
    allotted = x.part.allotted
    return Effect(
        kind=WAITED_FOR, key=x.waited_key, name=f"the wait for thread {tid} of {context.process_name(pid)} ({pid})",
        pid=pid, tid=tid, op="", time=allotted, parts=allotted, of_ns=x.effect.of_ns,
        evidence=lambda: x.cause.evidence(allotted), subject={"pid": str(pid), "tid": str(tid)},
    )  # fmt: skip


def _elsewhere(context: Context, found: Findings, name: str) -> str:
    """That it explains effects that no chain begins with: its links are in the chains of other detectors."""
    told = sum(
        1
        for e in found.effects
        if e.kind in NOT_CHAINS
        for x in found.worth_telling(context, e)
        if x.known.declaration.id == name
    )
    return f"; {told} more as links of other chains, where those are told" if told else ""
