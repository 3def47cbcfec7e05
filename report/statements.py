"""Findings and chains in plain words: the declared sentence with its values, shares with their denominators."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from gpuaudit.analyze.finding import Chain, Document, Finding, Quantity
from gpuaudit.analyze.load import quantity
from gpuaudit.analyze.words import counted
from gpuaudit.bundle.display import printable
from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.report import chains
from gpuaudit.report.groups import Groups, fixes
from gpuaudit.report.tables import Column, Table, build
from gpuaudit.report.text import Text, data, fill, join, link, listed, marked, number, prose, words

SEVERITIES = ("critical", "warning", "notice")
PHRASES = frozenset({"effect", "culprit"})
"""Values of chains that are words: "the slow call of cudaMalloc on thread 7", "rank 2 of communicator …"."""


@dataclass(frozen=True)
class Statement:
    """One finding or chain as it is printed. ``anchor`` is made from its place, never from its id."""

    anchor: str
    label: Text
    kind: str
    severity: str
    title: Text
    sentence: Text
    facts: tuple[tuple[str, Text], ...]
    chain: chains.Told | None = None
    held: Text = ()
    supports: str = ""
    fixes: Table | None = None


class EvidenceLinks:
    """From an evidence id to the anchor of its row in the evidence table."""

    def __init__(self, document: Document) -> None:
        self._anchors = {e.id: f"evidence-{n}" for n, e in enumerate(document.evidence, start=1)}

    def text(self, ids: tuple[str, ...]) -> Text:
        """References to ``ids``; one that the table lacks is shown as such."""
        if not ids:
            return words("none")
        return listed(self._one(i) for i in ids)

    def _one(self, id: str) -> Text:
        return link(id, self._anchors[id]) if id in self._anchors else join(data(id), words(" (not in the table)"))


def statements(document: Document) -> tuple[Statement, ...]:
    """Chains and findings, the severe ones first; within a severity chains first, since they explain.

    A finding that is held as supporting evidence stands behind the one that it supports.
    """
    declared = {d["id"]: d for d in document.appendix["declarations"]}
    links = EvidenceLinks(document)
    groups = Groups(document)
    made = [
        _chain(c, f"chain-{n}", _declaration(declared, c.detector), links) for n, c in enumerate(document.chains, 1)
    ]
    for n, f in enumerate(document.findings, 1):
        made.append(_finding(f, f"finding-{n}", _declaration(declared, f.rule), (links, groups)))
    made.sort(key=lambda s: SEVERITIES.index(s.severity))
    return tuple(_held_behind(made))


def _held_behind(made: list[Statement]) -> list[Statement]:
    """Every statement that supports another moved behind it; the order is kept otherwise."""
    out = [s for s in made if not s.held]
    for s in (s for s in made if s.held):
        beside = [at for at, other in enumerate(out) if s.supports in (other.anchor, other.supports)]
        out.insert(beside[-1] + 1 if beside else len(out), s)
    return out


def _declaration(declared: dict[str, dict[str, Any]], id: str) -> dict[str, Any]:
    if id not in declared:
        raise InputUnusable(
            f"findings: {printable(id, 80)!r} found something but is not among the declarations",
            hint="make the findings again with `audit analyze`",
        )
    return declared[id]


def _sentence(declaration: dict[str, Any], key: str, values: dict[str, Any]) -> Text:
    if key not in declaration["texts"]:
        raise InputUnusable(
            f"findings: {printable(declaration['id'], 80)!r} declares no text {printable(key, 80)!r}",
            hint="make the findings again with `audit analyze`",
        )
    return fill(declaration["texts"][key], values, assumed=False, phrases=PHRASES)


def _finding(
    finding: Finding, anchor: str, declaration: dict[str, Any], about: tuple[EvidenceLinks, Groups]
) -> Statement:
    links, groups = about
    leads, held = groups.led(finding.id), groups.held(finding.id)
    facts = (
        ("About", _subject(finding.subject)),
        *((("Leads the group", leads),) if leads else ()),
        ("Impact", number(finding.impact)),
        ("Made from", _provenance(finding.impact.provenance, finding.impact.formula)),
        *((("Score", _score(finding.score)),) if finding.score is not None else ()),
        ("Grade of its evidence", data(finding.grade)),
        ("Evidence", links.text(finding.evidence)),
        ("It never claims", prose(declaration["never_claims"])),
    )
    return Statement(
        anchor, data(finding.id), "Finding", finding.severity, prose(declaration["title"]),
        _sentence(declaration, finding.text, finding.values), facts, held=held.text if held else (),
        supports=held.primary if held else "", fixes=fixes(finding),
    )  # fmt: skip


def _score(score: Fraction) -> Text:
    return join(number(Quantity(score, "count", "assumed")), words(", impact × confidence of the rule's reference"))


def _chain(chain: Chain, anchor: str, declaration: dict[str, Any], links: EvidenceLinks) -> Statement:
    facts = (
        ("About", _subject(chain.subject)),
        ("Impact", number(chain.impact)),
        ("Made from", _provenance(chain.impact.provenance, chain.impact.formula)),
        ("Confidence", join(data(chain.confidence), words(", grade of its evidence "), data(chain.grade))),
        ("Evidence", links.text(chain.evidence)),
        ("It never claims", prose(declaration["never_claims"])),
    )
    return Statement(
        anchor, data(chain.id), "Chain", chain.severity, prose(declaration["title"]),
        _sentence(declaration, chain.text, chain.values), facts, chains.told(chain, links.text),
    )  # fmt: skip


def _subject(subject: dict[str, str]) -> Text:
    if not subject:
        return words("the whole capture")
    return listed(join(data(name), words(" "), data(what)) for name, what in subject.items())


def _provenance(provenance: str, formula: str) -> Text:
    return join(data(provenance), words(": "), prose(formula)) if formula else data(provenance)


WASTE_ANCHOR, WASTE_TITLE = "waste", "Waste ledger"
"""Where GPU time by what became of it stands in a report, and the heading over it."""

STATES = ("finding", "not evaluated", "clear")
"""States of outcomes in the order of their table: what was found, what could not be asked, what was answered by no."""


def outcomes(document: Document) -> Table:
    """What became of every rule and detector; those of one state and one reason share a row."""
    titles = {d["id"]: d["title"] for d in document.appendix["declarations"]}
    alike: dict[tuple[str, str], list[Text]] = {}
    for o in sorted(document.outcomes, key=lambda o: STATES.index(o.state) if o.state in STATES else len(STATES)):
        name = join(prose(titles.get(o.id, "")), words(" "), data(o.id))
        alike.setdefault((o.state, o.reason), []).append(name)
    return build(
        "Every rule and detector, and what became of it",
        [Column("state", whole=True), Column("rule or detector"), Column("reason", wide=True)],
        [[data(state), listed(names, "; "), prose(reason or "–")] for (state, reason), names in alike.items()],
        sortable=False,
    )


def verdict(document: Document, made: tuple[Statement, ...]) -> tuple[Text, ...]:
    """The answer of page 1: how many, how severe, what was not looked at, and what became of the GPUs' time."""
    counts = {s: sum(x.severity == s for x in made) for s in SEVERITIES}
    chains, findings = len(document.chains), len(document.findings)
    looked = sum(o.state != "not evaluated" for o in document.outcomes)
    blind = len(document.outcomes) - looked
    if made:
        severe = ", ".join(f"{n} {s}" for s, n in counts.items() if n)
        first = f"{counted(findings, 'finding')} and {counted(chains, 'causal chain')}: {severe}."
    else:
        first = "Nothing was found. That is an answer to the questions below and to no others."
    second = f"{looked} of {counted(looked + blind, 'rule')} and detectors looked at the evidence"
    held = sum(bool(s.held) for s in made)
    if held:
        first += f" {counted(held, 'finding')} of them only {'supports' if held == 1 else 'support'} another."
    second += f"; {blind} could not, and their answer is unknown." if blind else "."
    return (words(first), words(second), _avoidable(document.waste))


def _avoidable(waste: dict[str, Any]) -> Text:
    """Waste in one sentence with its bounds and, where there is a price, in money; or why it is not known."""
    observed, total = quantity(waste["observed"]), waste["total"]
    time, low, high, share = (quantity(total[name]) for name in ("gpu_time", "low", "high", "share"))
    if observed.value is None or time.value is None:
        return join(words("What became of the GPUs' time is "), number(observed if observed.value is None else time),
                    words("."))  # fmt: skip
    money = join(words(", "), marked(quantity(total["money"]))) if total["money"] is not None else ()
    return join(
        words("Of "), number(observed), words(" observed, "), number(time), words(" ("), number(share), money,
        words("; at least "), number(low), words(", at most "), number(high),
        words(") were avoidable in principle: "), link(WASTE_TITLE, WASTE_ANCHOR), words("."),
    )  # fmt: skip
