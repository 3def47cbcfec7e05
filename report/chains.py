"""What a chain says beside its sentence: its links, where the whole effect went, what a test of it could bring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.analyze.finding import Chain, Gain, Quantity
from gpuaudit.report.tables import Column, Table, build
from gpuaudit.report.text import Text, data, inert, join, number, of, prose, words

Links = Callable[[tuple[str, ...]], Text]
"""References to evidence, as :class:`gpuaudit.report.statements.EvidenceLinks` writes them."""

NOTHING_AGAINST = "nothing was found that does"
NO_CODE = "no stack was recorded of these calls"
NOT_SHOWN = "the recording does not show what would be saved"
ALL_OF_IT = "all of what it explains"


@dataclass(frozen=True)
class Told:
    """The parts of a chain that a finding has not. ``shares`` is None where nothing was allotted."""

    links: Table
    shares: Table | None
    below: tuple[tuple[str, tuple[Text, ...]], ...]
    """Title and lines: what to do, where in the code, what would test it, what speaks against it."""


def told(chain: Chain, links: Links) -> Told:
    """The tables and lines of one chain."""
    rows = [
        ("Next step", (prose(chain.next_step),)),
        ("Lines of code", tuple(data(c) for c in chain.code) or (words(NO_CODE),)),
    ]
    if chain.experiment:
        rows.append(("Experiment", (prose(chain.experiment),)))
    if chain.gain is not None:
        rows.append(("What it could bring", (_gain(chain.gain),)))
    rows += [
        ("What speaks against it", tuple(prose(a) for a in chain.against) or (words(NOTHING_AGAINST),)),
        ("What would refute it", (prose(chain.refuted_by),)),
    ]
    return Told(_links(chain, links), shares(chain), tuple(rows))


def _links(chain: Chain, links: Links) -> Table:
    return build(
        "Links of the chain",
        [Column("effect", wide=True), Column("cause", wide=True), Column("overlap of the effect"), Column("evidence")],
        [
            [prose(x.effect), prose(x.cause), of(x.overlap_ns, x.effect_ns, x.explained), links(x.evidence)]
            for x in chain.links
        ],
        sortable=False,
    )


def shares(chain: Chain) -> Table | None:
    """Every cause of the effect and what is unexplained, with their sum as last row: one that is not all is seen."""
    if not chain.shares:
        return None
    rows: list[list[Text | Quantity]] = [[prose(s.label), s.time, s.share] for s in chain.shares]
    rows.append([
        words("the effect, in all"), _sum([s.time for s in chain.shares]), _sum([s.share for s in chain.shares]),
    ])  # fmt: skip
    return build(
        f"Where the time went, each moment once: {inert(chain.shared_effect) or 'the effect'}",
        [Column("cause", wide=True), Column("time", numeric=True), Column("share of the effect", numeric=True)],
        rows,
        sortable=False,
    )


def _sum(parts: list[Quantity]) -> Quantity:
    known = [Fraction(p.value) for p in parts if p.value is not None]
    if len(known) < len(parts):
        return Quantity(None, parts[0].unit, "derived", reason="a part of it is not known")
    return Quantity(sum(known, Fraction(0)), parts[0].unit, "derived")


def _gain(gain: Gain) -> Text:
    low = number(gain.low)
    if gain.low.value == 0:
        low = join(low, words(f" ({NOT_SHOWN})"))
    return join(words("at least "), low, words(", at most "), number(gain.high), words(f" ({ALL_OF_IT})"))
