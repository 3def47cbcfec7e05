"""The completeness box of page 1: grade, reasons, seal, counts per table, gaps, sources. Before any finding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuaudit.analyze.finding import Document, Quantity
from gpuaudit.analyze.words import together
from gpuaudit.bundle.rounding import duration, half_even
from gpuaudit.report.tables import Column, Table, build
from gpuaudit.report.text import Text, data, join, listed, number, prose, words

GRADES = {
    "A": "complete as far as the counters tell",
    "B": "something is missing, and it is named",
    "C": "conclusions need care",
    "D": "cannot support conclusions",
}

SEALS = {
    "SEALED": "every row is covered by the signature of a pinned identity",
    "SEALED-BY-EPOCH": "its epoch keys cover every row; the identity key, absent at the end, signed only the beginning",
    "UNSEALED": "proven up to the last checkpoint, and nothing after it is",
    "UNKNOWN-SIGNER": "signed by an identity that was not pinned where it was analysed: its origin is not proven",
}

UNKNOWN_SEAL = "a status this version does not know"

COUNTERS = (("seen", "seen"), ("written", "written"), ("lost", "lost"))
"""Keys and titles of the counters of page 1."""

ALL_COUNTERS = (*COUNTERS, ("rows", "rows read"), ("leaves", "leaves"))
"""Those of the appendix: rows that were read back, and the sealed leaves that hold them, too."""

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
    counts: tuple[Table, ...]
    gap_lines: tuple[Text, ...]
    source_lines: tuple[Text, ...]
    gaps: Table
    all_counts: Table


def completeness(document: Document) -> Completeness:
    """The box for one document."""
    quality, bundle = document.quality, document.bundle
    gaps = quality["gaps"]
    return Completeness(
        grade=quality["grade"],
        meaning=GRADES[quality["grade"]],
        reasons=tuple(prose(r) for r in together(quality["reasons"])),
        seal=join(data(bundle["status"]), words(f": {SEALS.get(bundle['status'], UNKNOWN_SEAL)}")),
        notices=tuple(prose(n) for n in bundle["notices"]),
        counts=_two_up(quality["tables"]),
        gap_lines=_gap_lines(gaps, int(document.window["start_ns"])),
        source_lines=_source_lines(quality["sources"]),
        gaps=_gaps(gaps, int(document.window["start_ns"])),
        all_counts=_counts("Records per table", quality["tables"], ALL_COUNTERS, together=True),
    )


def count(value: Any) -> Quantity:
    """A decimal string of the document as a count; null stays null."""
    return Quantity(None if value is None else int(value), "count", "measured", reason="not counted")


def nanoseconds(value: Any, reason: str = "open until the end") -> Quantity:
    """A decimal string of the document as nanoseconds; null stays null, with ``reason``."""
    return Quantity(None if value is None else int(value), "ns", "measured", reason=reason)


def _two_up(tables: list[dict[str, Any]]) -> tuple[Table, ...]:
    """Counters of tables that hold something, in two tables side by side: page 1 has room for half as many rows."""
    tables = [t for t in tables if any(int(t[key] or 0) for key, _ in ALL_COUNTERS[:-1])]
    half = (len(tables) + 1) // 2
    parts = [p for p in (tables[:half], tables[half:]) if p]
    captions = ("Records seen by the probes, written to the bundle, lost", "The same, continued")
    return tuple(_counts(caption, part, COUNTERS) for caption, part in zip(captions, parts, strict=False))


def _counts(
    caption: str, tables: list[dict[str, Any]], keys: tuple[tuple[str, str], ...], *, together: bool = False
) -> Table:
    """Counters by table; ``together`` names all tables that hold nothing in one row."""
    rows = [(data(t["table"]), t) for t in tables]
    empty = [t for t in tables if all(t[key] is not None and int(t[key]) == 0 for key, _ in keys)]
    if together and empty:
        rows = [(name, t) for name, t in rows if t not in empty]
        rows.append((listed(data(t["table"]) for t in empty), empty[0]))
    return build(
        caption,
        [Column("table"), *(Column(title, numeric=True) for _, title in keys)],
        [[name, *(count(t[key]) for key, _ in keys)] for name, t in rows],
        empty="no table holds a row",
        sortable=False,
    )


def _source_lines(sources: list[dict[str, Any]]) -> tuple[Text, ...]:
    """What was recorded in one line, then what was not, sources with one reason together."""
    whole = [data(s["source"]) for s in sources if s["state"] == "recorded"]
    lines = [join(words("recorded: "), listed(whole))] if whole else []
    others: dict[tuple[str, str], list[Text]] = {}
    for s in sources:
        if s["state"] != "recorded":
            others.setdefault((s["state"], s["reason"]), []).append(data(s["source"]))
    for (state, why), names in others.items():
        reason = join(words(": "), prose(why)) if why else ()
        lines.append(join(listed(names), words(" "), prose(state), reason))
    return tuple(lines) or (words("none is listed"),)


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
            [data(g["source"]), nanoseconds(max(int(g["start_ns"]) - start_ns, 0)),
             words("to the end") if g["duration_ns"] is None else nanoseconds(g["duration_ns"]),
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
