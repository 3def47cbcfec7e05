"""The technical appendix: every probe, window, threshold and assumption, and where every number can be looked up."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import Any

from gpuaudit.analyze.finding import Document, Quantity, number_from_json
from gpuaudit.bundle.canonical import dumps
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
    thresholds: tuple[Table, ...]
    tables: tuple[Table, ...]
    left_out: tuple[Text, ...]
    evidence: tuple[EvidenceRow, ...]


LEAVES_SHOWN = 24
"""Leaf numbers printed for one entry; a longer list is cut and counted (`audit show` prints all of them)."""


def appendix(document: Document) -> Appendix:
    """The appendix of one document."""
    section = document.appendix
    listed_below = {a["text"] for a in section["assumptions"]}
    return Appendix(
        tuple(_declared(d, listed_below) for d in section["declarations"]),
        _thresholds(section["declarations"]),
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


def _declared(d: dict[str, Any], listed_below: set[str]) -> Declared:
    """Its entry; assumptions stand once, in the table that has those of all, unless that one lacks them."""
    inputs = listed(
        join(data(i["table"]), words(" ("), listed(data(c) for c in i["columns"]), words(")")) for i in d["inputs"]
    )
    facts = [("Reads", inputs), ("Window", prose(d["window"])), ("Never claims", prose(d["never_claims"]))]
    own = [a for a in d["assumptions"] if a not in listed_below]
    if own:
        facts.append(("Assumes", listed((prose(a) for a in own), " ")))
    if d["controls"]:
        facts.append(("Supports controls", listed(data(c) for c in d["controls"])))
    if not d["thresholds"]:
        facts.append(("Thresholds", words("it decides by none")))
    return Declared(prose(d["title"]), data(d["id"]), prose(d["question"]), tuple(facts))


def _thresholds(declarations: list[dict[str, Any]]) -> tuple[Table, ...]:
    """Every threshold with its value and source: one that several rules share with the same source is told once."""
    users: dict[tuple[str, Fraction, str, str], list[str]] = {}
    for d in declarations:
        for t in d["thresholds"]:
            key = (t["name"], Fraction(number_from_json(t["value"]) or 0), t["unit"], t["source"])
            users.setdefault(key, []).append(d["id"])
    rows = [
        (ids, name, Quantity(value, unit, "assumed"), prose(source))
        for (name, value, unit, source), ids in users.items()
    ]
    columns = [Column("threshold"), Column("value", numeric=True)]
    return (
        build("Thresholds of one rule or detector, by the name that a policy file uses",
              [*columns, Column("source", wide=True)],
              [[data(f"{ids[0]}.{name}"), value, source] for ids, name, value, source in rows if len(ids) == 1],
              empty="none"),
        build("Thresholds that several share",
              [*columns, Column("source", widest=True), Column("rules and detectors")],
              _each_list_once([r for r in rows if len(r[0]) > 1]), empty="none", sortable=False),
    )  # fmt: skip


def _each_list_once(rows: list[tuple[list[str], str, Quantity, Text]]) -> list[list[Cell | Text | Quantity]]:
    """Thresholds that the same rules share stand together, and the second one does not name them again."""
    out: list[list[Cell | Text | Quantity]] = []
    for users, group in groupby(sorted(rows, key=lambda r: (-len(r[0]), r[0], r[1])), key=lambda r: r[0]):
        for n, (_, name, value, source) in enumerate(group):
            out.append([data(name), value, source, words("the same") if n else listed(data(u) for u in users)])
    return out


def _left_out(name: str, section: dict[str, Any]) -> Text:
    """A list cut by analysis says how much of it is only in the bundle."""
    return words(f"{half_even(int(section['omitted']))} more rows of {name} are in the bundle and not printed.")


def _definitions(rows: list[dict[str, Any]]) -> Table:
    return build(
        "Definitions", [Column("term"), Column("meaning", wide=True)],
        [[prose(r["term"]), prose(r["text"])] for r in rows], empty="none", sortable=False,
    )  # fmt: skip


def _assumptions(rows: list[dict[str, Any]]) -> Table:
    """Each assumption once, with the ids of all that make it."""
    ids: dict[str, list[dict[str, Any]]] = {}
    for r in rows:
        ids.setdefault(dumps([r["text"], r["value"]]).decode(), []).append(r)
    return build(
        "Assumptions", [Column("id"), Column("assumption", wide=True), Column("value")],
        [[listed(data(r["id"]) for r in same), prose(same[0]["text"]), loose(same[0]["value"])]
         for same in ids.values()], empty="none", sortable=False,
    )  # fmt: skip


_PROBE_COLUMNS = (
    ("op", "function", False), ("library", "library", False), ("mechanism", "attached by", False),
    ("instruction", "first instruction", False), ("hits", "hits", True), ("unmatched", "unmatched", True),
    ("misses", "missed", True), ("expected_cost_ns", "cost of a pair", True),
)  # fmt: skip


def _probes(rows: list[dict[str, Any]]) -> Table:
    """Every probe; those that never fired and stood alike share a row, which names each of them."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for n, r in enumerate(rows):
        idle = all(r.get(key) in (None, "", 0, "0") for key in ("hits", "unmatched", "misses"))
        rest = {key: r.get(key) for key, _, _ in _PROBE_COLUMNS[1:]}
        alike.setdefault(dumps(rest).decode() if idle else str(n), []).append(r)
    body: list[list[Any]] = []
    for same in alike.values():
        line: list[Any] = [listed(loose(r.get("op")) for r in same)]
        for key, _, numeric in _PROBE_COLUMNS[1:]:
            line.append(_probe_number(key, same[0].get(key)) if numeric else loose(same[0].get(key)))
        body.append(line)
    columns = [Column(title, numeric=numeric, wide=key == "op") for key, title, numeric in _PROBE_COLUMNS]
    return build("Probes, as they stood at the end", columns, body, empty="no probe was attached")


def _probe_number(key: str, value: Any) -> Quantity:
    amount = None if value in (None, "") else int(value)
    return Quantity(amount, "ns" if key.endswith("_ns") else "count", "measured")


def _libraries(rows: list[dict[str, Any]]) -> Table:
    keys = ("library", "op", "pid", "path", "build_id", "not_observed", "reason")
    titles = ("library", "state", "process", "path", "build id", "exported, not observed", "reason")
    return build(
        "Libraries that could be probed",
        [Column(t, wide=t == "exported, not observed" and any(r.get("not_observed") for r in rows)) for t in titles],
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
