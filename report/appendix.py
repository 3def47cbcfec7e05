"""The technical appendix: every probe, window, threshold and assumption, and where every number can be looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuaudit.analyze.finding import Document, Quantity, number_from_json
from gpuaudit.bundle.rounding import half_even
from gpuaudit.report.completeness import count
from gpuaudit.report.tables import Cell, Column, Table, build
from gpuaudit.report.text import Text, data, join, listed, number, prose, words


@dataclass(frozen=True)
class Declared:
    """One rule or detector as it declares itself."""

    title: Text
    id: Text
    question: Text
    facts: tuple[tuple[str, Text], ...]
    thresholds: Table


@dataclass(frozen=True)
class EvidenceRow:
    """One entry of the evidence table; the query stands alone, so that it can be copied."""

    anchor: str
    id: Text
    facts: Text
    query: Text


@dataclass(frozen=True)
class Appendix:
    declared: tuple[Declared, ...]
    tables: tuple[Table, ...]
    left_out: tuple[Text, ...]
    evidence: tuple[EvidenceRow, ...]


LEAVES_SHOWN = 24
"""Leaf numbers printed for one entry; a longer list is cut and counted (`audit show` prints all of them)."""


def appendix(document: Document) -> Appendix:
    """The appendix of one document."""
    section = document.appendix
    return Appendix(
        tuple(_declared(d) for d in section["declarations"]),
        (
            _records("Tool and options of the analysis", {**document.tool, **document.options}),
            _definitions(section["definitions"]),
            _assumptions(section["assumptions"]),
            _records("Windows and settings", section["windows"]),
            _records("Clock", section["clock"]),
            _probes(section["probes"]["rows"]),
            _libraries(section["libraries"]["rows"]),
        ),
        tuple(_left_out(name, section[name]) for name in ("probes", "libraries") if int(section[name]["omitted"])),
        tuple(_evidence(n, e) for n, e in enumerate(document.evidence, start=1)),
    )


def _declared(d: dict[str, Any]) -> Declared:
    inputs = listed(
        join(data(i["table"]), words(" ("), listed(data(c) for c in i["columns"]), words(")")) for i in d["inputs"]
    )
    facts = [("Reads", inputs), ("Window", prose(d["window"])), ("Never claims", prose(d["never_claims"]))]
    if d["assumptions"]:
        facts.append(("Assumes", listed((prose(a) for a in d["assumptions"]), " ")))
    if d["controls"]:
        facts.append(("Supports controls", listed(data(c) for c in d["controls"])))
    thresholds = build(
        "Thresholds",
        [Column("threshold"), Column("value", numeric=True), Column("source", wide=True)],
        [[data(t["name"]), Quantity(number_from_json(t["value"]), t["unit"], "assumed"), prose(t["source"])]
         for t in d["thresholds"]],
        empty="it decides by no threshold",
        sortable=False,
    )  # fmt: skip
    return Declared(prose(d["title"]), data(d["id"]), prose(d["question"]), tuple(facts), thresholds)


def _left_out(name: str, section: dict[str, Any]) -> Text:
    """A list cut by analysis says how much of it is only in the bundle."""
    return words(f"{half_even(int(section['omitted']))} more rows of {name} are in the bundle and not printed.")


def _definitions(rows: list[dict[str, Any]]) -> Table:
    return build(
        "Definitions", [Column("term"), Column("meaning", wide=True)],
        [[prose(r["term"]), prose(r["text"])] for r in rows], empty="none", sortable=False,
    )  # fmt: skip


def _assumptions(rows: list[dict[str, Any]]) -> Table:
    return build(
        "Assumptions", [Column("id"), Column("assumption", wide=True), Column("value")],
        [[data(r["id"]), prose(r["text"]), loose(r["value"])] for r in rows], empty="none", sortable=False,
    )  # fmt: skip


_PROBE_COLUMNS = (
    ("op", "function", False), ("library", "library", False), ("mechanism", "attached by", False),
    ("instruction", "first instruction", False), ("hits", "hits", True), ("unmatched", "unmatched", True),
    ("misses", "missed", True), ("expected_cost_ns", "cost of a pair", True),
)  # fmt: skip


def _probes(rows: list[dict[str, Any]]) -> Table:
    body: list[list[Any]] = []
    for r in rows:
        line: list[Any] = []
        for key, _, numeric in _PROBE_COLUMNS:
            line.append(_probe_number(key, r.get(key)) if numeric else loose(r.get(key)))
        body.append(line)
    columns = [Column(title, numeric=numeric) for _, title, numeric in _PROBE_COLUMNS]
    return build("Probes, as they stood at the end", columns, body, empty="no probe was attached")


def _probe_number(key: str, value: Any) -> Quantity:
    amount = None if value in (None, "") else int(value)
    return Quantity(amount, "ns" if key.endswith("_ns") else "count", "measured")


def _libraries(rows: list[dict[str, Any]]) -> Table:
    keys = ("library", "op", "pid", "path", "build_id", "not_observed", "reason")
    titles = ("library", "state", "process", "path", "build id", "exported, not observed", "reason")
    return build(
        "Libraries that could be probed",
        [Column(t, wide=t in ("path", "build id", "exported, not observed")) for t in titles],
        [[loose(r.get(k)) for k in keys] for r in rows], empty="no process mapped a library of the probe table",
    )  # fmt: skip


def _records(caption: str, value: Any) -> Table:
    """A section that is a mapping, or a list of mappings, as two columns."""
    records = value if isinstance(value, list) else [value]
    rows: list[list[Text]] = []
    for record in records:
        rows += [[data(k), loose(v)] for k, v in record.items()] if isinstance(record, dict) else [[(), loose(record)]]
    return build(caption, [Column("name"), Column("value", wide=True)], rows, empty="none", sortable=False)


def loose(value: Any) -> Text:
    """A value of an open-ended section: a quantity, a name, a list of names, or nothing."""
    if value is None or value == "":
        return words("–")
    if isinstance(value, dict) and {"value", "unit", "provenance"} <= set(value):
        exact = number_from_json(value["value"])
        return number(Quantity(exact, value["unit"], value["provenance"], reason=value.get("reason", "")))
    if isinstance(value, list):
        return listed((loose(v) for v in value), "; ") if value else words("–")
    if isinstance(value, dict):
        return listed((join(data(k), words(" "), loose(v)) for k, v in value.items()), ", ")
    return data(value)


def _evidence(n: int, entry: Any) -> EvidenceRow:
    leaves = ", ".join(str(int(leaf)) for leaf in entry.leaves[:LEAVES_SHOWN])
    if len(entry.leaves) > LEAVES_SHOWN:
        leaves += f" and {half_even(len(entry.leaves) - LEAVES_SHOWN)} more"
    facts = join(
        data(entry.table), words(" · "), number(count(entry.rows)), words(f" rows · leaves {leaves or 'none'}")
    )
    return EvidenceRow(f"evidence-{n}", data(entry.id), facts, data(entry.query))


def evidence_index(rows: tuple[EvidenceRow, ...]) -> Table:
    """The evidence table for HTML and PDF: id, where, query."""
    return build(
        "Every id used above, the sealed leaves it reads and the query that gives its rows",
        [Column("id"), Column("table, rows and leaves"), Column("query", wide=True)],
        [[Cell(r.id, anchor=r.anchor), r.facts, r.query] for r in rows], empty="no evidence is referred to",
    )  # fmt: skip
