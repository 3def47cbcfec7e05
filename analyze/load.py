"""Reading a findings document as if somebody hostile had written it.

Every member has its shape and size, every id that is referred to exists, every rule and text that a finding names is
declared, and the bytes are the canonical encoding of what they say: nothing in the file can hide from the reader.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from gpuaudit.analyze.finding import (
    Chain,
    Document,
    Evidence,
    Finding,
    Fix,
    Gain,
    Group,
    Json,
    Link,
    Quantity,
    RuleOutcome,
    Section,
    SectionChart,
    SectionTable,
    Share,
    Statement,
    number_from_json,
)  # fmt: skip
from gpuaudit.analyze.schema import DOCUMENT
from gpuaudit.analyze.shape import ShapeError
from gpuaudit.bundle import canonical
from gpuaudit.bundle.errors import BundleInvalid, InputUnusable

MAX_FILE_BYTES = 64 << 20
"""Size of a findings document: the largest of ours, with every series full, has about 8 MB."""

_HINT = "make it again with 'audit analyze'"


def load_document(path: Path | str) -> Document:
    """The document in ``path``; InputUnusable, saying where, unless it is one."""
    path = Path(path)
    try:
        with path.open("rb") as f:
            data = f.read(MAX_FILE_BYTES + 1)
    except OSError as e:
        raise InputUnusable(
            f"cannot read {path.name}: {e.strerror}", hint="give a findings file of 'audit analyze'"
        ) from None
    return parse_document(data, path.name)


def parse_document(data: bytes, name: str = "findings") -> Document:
    """The document in ``data``; ``name`` stands in messages."""
    if len(data) > MAX_FILE_BYTES:
        raise InputUnusable(f"{name}: more than {MAX_FILE_BYTES} bytes, which no findings document has", hint=_HINT)
    try:
        body = canonical.loads_canonical(data)
        DOCUMENT(body, "")
        _check_references(body)
    except (BundleInvalid, ShapeError) as e:
        raise InputUnusable(f"{name} is not a findings document: {str(e)[:400]}", hint=_HINT) from None
    return _document(body)


def _check_references(body: dict[str, Json]) -> None:
    entries = [e["id"] for e in body["evidence"]]
    _unique(entries, "evidence")
    known = set(entries)
    for path, ids in _references(body):
        for i in ids:
            if i not in known:
                raise ShapeError(f"{path}: refers to evidence {i}, which is not in the table")
    declared = {d["id"]: d for d in body["appendix"]["declarations"]}
    for section, key in (("findings", "rule"), ("chains", "detector")):
        _unique([x["id"] for x in body[section]], section)
        for x in body[section]:
            declaration = declared.get(x[key])
            if declaration is None or x["text"] not in declaration["texts"]:
                raise ShapeError(f"{section} {x['id']}: {x[key]} with text {x['text']} is not declared")
    _unique([o["id"] for o in body["outcomes"]], "outcomes")
    _unique([x["id"] for x in body["sections"]], "sections")
    found = {x["id"] for x in body["findings"]}
    for g in body["groups"]:
        for i in (g["primary"], *(s["finding"] for s in g["supporting"])):
            if i not in found:
                raise ShapeError(f"groups {g['id']}: refers to finding {i}, which is not in the document")
    for x in body["sections"]:
        for t in x["tables"]:
            if any(len(r) != len(t["columns"]) for r in t["rows"]):
                raise ShapeError(f"sections {x['id']}: table {t['id']} has a row that is not as long as its columns")


def _unique(ids: Sequence[str], where: str) -> None:
    if len(set(ids)) != len(ids):
        raise ShapeError(f"{where}: an id stands twice")


def _references(value: Json) -> Iterator[tuple[str, Iterable[str]]]:
    """Every list called ``evidence`` below the top, which holds ids."""
    pending: list[tuple[Any, str]] = [(v, k) for k, v in value.items() if k != "evidence"]
    while pending:
        item, at = pending.pop()
        if isinstance(item, dict):
            for k, v in item.items():
                if k == "evidence" and isinstance(v, list):
                    yield f"{at}.{k}", v
                else:
                    pending.append((v, f"{at}.{k}"))
        elif isinstance(item, list):
            pending += ((v, f"{at}[{i}]") for i, v in enumerate(item))


def quantity(value: Json) -> Quantity:
    """A quantity from its JSON; the shape has been checked."""
    return Quantity(
        number_from_json(value["value"]), value["unit"], value["provenance"], tuple(value.get("evidence", ())),
        value.get("formula", ""), value.get("reason", ""),
    )  # fmt: skip


def _values(value: Json) -> dict[str, Quantity | str]:
    return {k: v if isinstance(v, str) else quantity(v) for k, v in value.items()}


def _finding(x: Json) -> Finding:
    return Finding(
        x["id"], x["rule"], x["severity"], x["text"], _values(x["values"]), dict(x["subject"]), quantity(x["impact"]),
        x["grade"], tuple(x["evidence"]), tuple(_fix(f) for f in x["fixes"]), _score(x["score"]),
    )  # fmt: skip


def _fix(x: Json) -> Fix:
    return Fix(x["action"], x["setting"], x["current"], x["new"], x["side_effects"], _values(x["values"]))


def _score(x: Json) -> Fraction | None:
    value = number_from_json(x)
    return None if value is None else Fraction(value)


def _group(x: Json) -> Group:
    supporting = tuple((s["finding"], s["reason"]) for s in x["supporting"])
    return Group(x["id"], x["kind"], x["engine"], x["primary"], supporting)


def _cell(x: Json) -> Quantity | str | None:
    return quantity(x) if isinstance(x, dict) else x


def _section(x: Json) -> Section:
    return Section(
        x["id"], x["title"], x["question"], x["state"], x["reason"],
        statements=tuple(Statement(s["text"], _values(s["values"])) for s in x["statements"]),
        tables=tuple(
            SectionTable(
                t["id"], t["title"], tuple((c[0], c[1]) for c in t["columns"]),
                tuple(tuple(_cell(c) for c in r) for r in t["rows"]), tuple(t["notes"]), t["omitted"],
            )
            for t in x["tables"]
        ),
        charts=tuple(SectionChart(c["kind"], c["id"], c["title"], c["data"]) for c in x["charts"]),
        definitions=tuple((d["term"], d["text"]) for d in x["definitions"]), notes=tuple(x["notes"]),
    )  # fmt: skip


def _link(x: Json) -> Link:
    return Link(
        x["effect"], x["cause"], quantity(x["effect_ns"]), quantity(x["overlap_ns"]), quantity(x["explained"]),
        tuple(x["evidence"]),
    )  # fmt: skip


def _chain(x: Json) -> Chain:
    return Chain(
        x["id"], x["detector"], x["severity"], x["text"], _values(x["values"]), dict(x["subject"]),
        tuple(_link(link) for link in x["links"]), quantity(x["impact"]), x["confidence"], x["grade"],
        tuple(x["against"]), x["refuted_by"], x["next_step"], tuple(x["evidence"]), x["experiment"],
        None if x["gain"] is None else Gain(quantity(x["gain"]["low"]), quantity(x["gain"]["high"])),
        tuple(Share(s["label"], quantity(s["time"]), quantity(s["share"])) for s in x["shares"]), tuple(x["code"]),
    )  # fmt: skip


def _document(body: dict[str, Json]) -> Document:
    return Document(
        tool=body["tool"], options=body["options"], bundle=body["bundle"], host=body["host"], window=body["window"],
        quality=body["quality"], operations=body["operations"],
        outcomes=[RuleOutcome(o["id"], o["state"], o["reason"]) for o in body["outcomes"]],
        findings=[_finding(x) for x in body["findings"]], chains=[_chain(x) for x in body["chains"]],
        waste=body["waste"], cost=body["cost"], charts=body["charts"], appendix=body["appendix"],
        groups=[_group(x) for x in body["groups"]], sections=[_section(x) for x in body["sections"]],
        evidence=[Evidence(e["id"], e["table"], tuple(e["leaves"]), e["rows"], e["query"]) for e in body["evidence"]],
    )  # fmt: skip
