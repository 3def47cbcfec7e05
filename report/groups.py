"""Findings with one root told as one: the primary finding, then what is held as supporting evidence, and why."""

from __future__ import annotations

from dataclasses import dataclass

from gpuaudit.analyze.finding import Document, Finding, Fix
from gpuaudit.report.tables import Column, Table, build
from gpuaudit.report.text import Text, data, fill, join, link, listed, prose, value, words


@dataclass(frozen=True)
class Held:
    """Why a finding stands behind another: ``primary`` is the other's anchor, ``text`` the whole sentence."""

    primary: str
    text: Text


class Groups:
    """The groups of a document, asked by finding; anchors are made from the finding's place, never from its id."""

    def __init__(self, document: Document) -> None:
        self._anchors = {f.id: f"finding-{n}" for n, f in enumerate(document.findings, 1)}
        self._groups = document.groups

    def held(self, id: str) -> Held | None:
        """Why the finding is held as supporting evidence; None for one that stands alone or leads a group."""
        for g in self._groups:
            for finding, reason in g.supporting:
                if finding == id:
                    behind = join(words("Held as supporting evidence of "), self._link(g.primary))
                    return Held(self._anchors.get(g.primary, ""), join(behind, words(": "), prose(reason), words(".")))
        return None

    def led(self, id: str) -> Text:
        """The group that the finding leads, and what is held behind it; nothing if it leads none."""
        for g in self._groups:
            if g.primary == id:
                held = listed(self._link(f) for f, _ in g.supporting)
                behind = join(words("; behind it, as supporting evidence: "), held) if g.supporting else ()
                return join(data(g.id), words(", "), prose(g.kind), behind)
        return ()

    def _link(self, id: str) -> Text:
        return link(id, self._anchors[id]) if id in self._anchors else data(id)


def fixes(finding: Finding) -> Table | None:
    """What could be changed, from what to what, and what that would cost; None where nothing is offered."""
    if not finding.fixes:
        return None
    return build(
        "What could be changed",
        [Column("change", wide=True), Column("setting"), Column("now"), Column("new"),
         Column("side effects", wide=True)],
        [[_action(x), _or_dash(x.setting), _or_dash(x.current), _or_dash(x.new), _sentence(x, x.side_effects)]
         for x in finding.fixes],
        sortable=False,
    )  # fmt: skip


def _action(x: Fix) -> Text:
    told = [n for n in x.values if f"{{{n}}}" not in x.action + x.side_effects]
    numbers = listed((join(prose(n.replace("_", " ")), words(" "), value(x.values[n])) for n in told), "; ")
    return join(_sentence(x, x.action), join(words(" ("), numbers, words(")")) if told else ())


def _sentence(x: Fix, text: str) -> Text:
    return fill(text, x.values) if text else words("–")


def _or_dash(text: str) -> Text:
    return data(text) if text else words("–")
