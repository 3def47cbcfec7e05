"""One chain in words, in the order in which somebody woken by it asks: what to do, why, where, and how sure it is."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from gpuaudit.analyze.finding import Chain, Gain, Quantity, Share
from gpuaudit.analyze.words import amount

Line = tuple[int, str]
"""Indentation and text of one paragraph."""

NO_CODE = "not known, no stack was recorded of these calls"
COLUMN = 10
"""Width of the columns of times and shares: "999 GPU-ms" is the widest usual one."""


def lines(c: Chain, indent: int = 4) -> Iterator[Line]:
    """The chain below its sentence."""
    yield indent, f"Next: {c.next_step}"
    for link in c.links:
        yield indent, f"Effect: {link.effect}"
        explained = f"{amount(link.overlap_ns)} of {amount(link.effect_ns)} ({amount(link.explained)})"
        yield indent + 2, f"because {link.cause}: {explained}"
    if c.shares:
        yield indent, f"Where the time went, each moment once: {c.shared_effect or 'the effect'}"
        yield from ((indent + 2, row) for row in _shares(c.shares))
    for n, line in enumerate(c.code or (NO_CODE,)):
        yield indent, f"Code: {line}" if n == 0 else f"      {line}"
    if c.experiment:
        yield indent, f"To test it: {c.experiment}"
    if c.gain is not None:
        yield indent, f"It could bring: {_gain(c.gain)}"
    yield indent, f"Confidence {c.confidence}. Against it: {'; '.join(c.against) or 'nothing found'}"
    yield indent, f"It would be refuted by: {c.refuted_by}"


def _shares(shares: tuple[Share, ...]) -> Iterator[str]:
    for s in shares:
        yield _row(amount(s.time), amount(s.share), s.label)
    times, parts = [s.time for s in shares], [s.share for s in shares]
    if all(q.value is not None for q in (*times, *parts)):
        yield _row(_sum(times), _sum(parts), "in all")


def _row(time: str, share: str, label: str) -> str:
    return f"{time:>{COLUMN}} {share:>{COLUMN}}  {label}"


def _sum(parts: list[Quantity]) -> str:
    total = sum((Fraction(q.value) for q in parts if q.value is not None), Fraction(0))
    return amount(Quantity(total, parts[0].unit, "derived"))


def _gain(gain: Gain) -> str:
    low = amount(gain.low)
    if gain.low.value == 0:
        low += " (the recording does not show what would be saved)"
    return f"at least {low}, at most {amount(gain.high)} (all of what it explains)"
