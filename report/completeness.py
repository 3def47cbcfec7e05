"""The completeness box of page 1: grade, reasons, seal, counts per table, gaps, sources. Before any finding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuaudit.analyze.finding import Document, Quantity
from gpuaudit.report.rounding import duration, half_even
from gpuaudit.report.tables import Column, Table, build
from gpuaudit.report.text import Text, data, join, number, prose, words

GRADES = {
    "A": "complete: nothing is known to be missing",
    "B": "nearly complete: what is missing does not bear on the findings",
    "C": "incomplete: findings hold only for what was seen",
    "D": "cannot support conclusions",
}

SEALS = {
    "SEALED": "sealed: every row is covered by the signature of a pinned identity",
    "SEALED-BY-EPOCH": "sealed by its epoch keys; the identity key was absent at the end and signed only the beginning",
    "UNSEALED": "not sealed: proven up to the last checkpoint, and nothing after it is",
    "UNKNOWN-SIGNER": "signed by an identity that was not pinned where it was analysed: its origin is not proven",
}

GAPS_ON_PAGE_ONE = 4
"""Gaps listed in the box; the appendix lists all of them, so that page 1 stays one page."""


@dataclass(frozen=True)
class Completeness:
    """What page 1 says of the evidence; ``gaps`` is the full table, for the appendix."""

    grade: str
    meaning: str
    reasons: tuple[Text, ...]
    seal: Text
    notices: tuple[Text, ...]
    counts: Table
    gap_lines: tuple[Text, ...]
    sources: Table
    gaps: Table


def completeness(document: Document) -> Completeness:
    """The box for one document."""
    quality, bundle = document.quality, document.bundle
    gaps = quality["gaps"]
    return Completeness(
        grade=quality["grade"],
        meaning=GRADES[quality["grade"]],
        reasons=tuple(prose(r) for r in quality["reasons"]),
        seal=join(data(bundle["status"]), words(f": {SEALS.get(bundle['status'], 'a status this version does not know')}")),
        notices=tuple(prose(n) for n in bundle["notices"]),
        counts=_counts(quality["tables"]),
        gap_lines=_gap_lines(gaps, int(document.window["start_ns"])),
        sources=build(
            "Sources of evidence",
            [Column("source"), Column("state"), Column("reason", wide=True)],
            [[data(s["source"]), data(s["state"]), prose(s["reason"] or "–")] for s in quality["sources"]],
            empty="no source is listed",
            sortable=False,
        ),
        gaps=_gaps(gaps, int(document.window["start_ns"])),
    )


def count(value: Any) -> Quantity:
    """A decimal string of the document as a count; null stays null."""
    return Quantity(None if value is None else int(value), "count", "measured", reason="not counted")


def nanoseconds(value: Any, reason: str = "open until the end") -> Quantity:
    """A decimal string of the document as nanoseconds; null stays null, with ``reason``."""
    return Quantity(None if value is None else int(value), "ns", "measured", reason=reason)


def _counts(tables: list[dict[str, Any]]) -> Table:
    return build(
        "Records per table: what the probes saw, what reached the bundle, what was lost",
        [Column("table"), *(Column(n, numeric=True) for n in ("seen", "written", "lost", "rows read", "leaves"))],
        [[data(t["table"]), *(count(t[k]) for k in ("seen", "written", "lost", "rows", "leaves"))] for t in tables],
        empty="no table holds a row",
        sortable=False,
    )


def _gap_lines(gaps: list[dict[str, Any]], start_ns: int) -> tuple[Text, ...]:
    lines = [
        join(data(g["source"]), words(f", {_when(g, start_ns)}: "), prose(g["reason"])) for g in gaps[:GAPS_ON_PAGE_ONE]
    ]
    left = len(gaps) - len(lines)
    if left:
        lines.append(words(f"and {half_even(left)} more, listed in the appendix"))
    return tuple(lines) or (words("none recorded"),)


def _when(gap: dict[str, Any], start_ns: int) -> str:
    offset = int(gap["start_ns"]) - start_ns
    since = f"from {duration(offset)}" if offset > 0 else "from the start"
    return f"{since}, to the end" if gap["duration_ns"] is None else f"{since}, for {duration(int(gap['duration_ns']))}"


def _gaps(gaps: list[dict[str, Any]], start_ns: int) -> Table:
    return build(
        "Every gap in the evidence",
        [Column("source"), Column("starts at", numeric=True), Column("lasts", numeric=True), Column("process"),
         Column("reason", wide=True)],
        [
            [data(g["source"]), nanoseconds(max(int(g["start_ns"]) - start_ns, 0)), nanoseconds(g["duration_ns"]),
             data(g["pid"]) if g["pid"] is not None else words("whole host"), prose(g["reason"])]
            for g in gaps
        ],
        empty="no gap was recorded",
    )  # fmt: skip


def totals(document: Document) -> Text:
    """Seen, written and lost over all tables, in one sentence."""
    sums = {
        k: sum(int(t[k]) for t in document.quality["tables"] if t[k] is not None) for k in ("seen", "written", "lost")
    }
    parts = {k: number(Quantity(v, "count", "derived")) for k, v in sums.items()}
    return join(
        parts["seen"], words(" records seen, "), parts["written"], words(" written, "), parts["lost"], words(" lost")
    )
