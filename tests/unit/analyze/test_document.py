"""The whole document: traceable, bounded, readable again; hostile ones are refused with a place and a reason."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.analyze.explain import explain_document
from gpuaudit.analyze.finding import Document
from gpuaudit.analyze.load import load_document, parse_document
from gpuaudit.analyze.run import AnalyzeOptions, analyze_store, document_bytes
from gpuaudit.bundle import canonical
from gpuaudit.bundle.errors import InputUnusable, UsageError
from tests.scenes import MS, T0, S, Scene, collectives
from tests.unit.analyze.test_conformance import everything
from tests.verifications import SEALED


@pytest.fixture(scope="module")
def document() -> Document:
    return everything().document(rate=Decimal("2.99"))


def quantities(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        if {"value", "unit", "provenance"} <= set(value):
            yield path, value
        else:
            for k, v in value.items():
                yield from quantities(v, f"{path}.{k}")
    elif isinstance(value, list):
        for i, v in enumerate(value):
            yield from quantities(v, f"{path}[{i}]")


def test_every_query_gives_the_rows_it_claims(document: Document) -> None:
    store = everything().store()
    assert len(document.evidence) > 20
    for e in document.evidence:
        rows = store.sql(f"SELECT leaf FROM ({e.query})")
        assert len(rows) == e.rows, e
        assert tuple(sorted({r[0] for r in rows})) == e.leaves


def test_every_number_that_is_not_assumed_has_evidence(document: Document) -> None:
    known = {e.id for e in document.evidence}
    found = list(quantities(document.to_json()))
    assert len(found) > 100
    for path, q in found:
        if q["provenance"] != "assumed":
            assert q.get("evidence"), path
            assert set(q["evidence"]) <= known, path
        if q["value"] is None:
            assert q["reason"], path


def test_money_is_exact_and_assumed(document: Document) -> None:
    observed = int(document.waste["observed"]["value"])
    total = sum(
        Fraction(int(m["num"]), int(m["den"])) if isinstance(m, dict) else Fraction(int(m))
        for r in document.waste["by_key"]
        for m in [r["money"]["value"]]
    )
    assert total == Fraction("2.99") * observed / 3_600_000_000_000
    assert {r["money"]["provenance"] for r in document.waste["rows"]} == {"assumed"}


def test_without_a_rate_there_is_no_money() -> None:
    waste = collectives("blocking", steps=2).samples(T0, T0 + S).document().waste
    assert waste["rate"] is None
    assert all(r["money"] is None for r in [*waste["rows"], *waste["by_key"]])


@pytest.mark.parametrize("rate", ["0", "-1", "NaN", "Infinity", "1e9"])
def test_rates_that_are_none(rate: str) -> None:
    with pytest.raises(UsageError, match="not a price"):
        analyze_store(everything().store(), SEALED, AnalyzeOptions(rate=Decimal(rate)))


def test_there_and_back(document: Document, tmp_path: Path) -> None:
    data = document_bytes(document)
    assert b"e-0" not in data
    (tmp_path / "f.json").write_bytes(data)
    again = load_document(tmp_path / "f.json")
    assert document_bytes(again) == data
    assert again.chains == document.chains
    assert again.findings == document.findings


Change = Callable[[dict[str, Any]], Any]
HOSTILE: dict[str, tuple[Change, str]] = {
    "other schema": (lambda d: d.update(schema="gpu-audit/findings/2"), "schema"),
    "section missing": (lambda d: d.pop("waste"), "the member 'waste'"),
    "section more": (lambda d: d.update(extra=1), "no member of that name"),
    "float": (lambda d: d["chains"][0]["impact"].update(value="1.5"), "chains[0].impact"),
    "number": (lambda d: d["chains"][0]["impact"].update(value=15), "chains[0].impact"),
    "zero denominator": (lambda d: d["chains"][0]["impact"].update(value={"num": "1", "den": "0"}), "denominator"),
    "long number": (lambda d: d["chains"][0]["impact"].update(value="9" * 5000), "chains[0].impact"),
    "unit": (lambda d: d["chains"][0]["impact"].update(unit="<b>"), "a unit of the schema"),
    "evidence absent": (lambda d: d["chains"][0]["evidence"].append("E9999"), "refers to evidence E9999"),
    "evidence twice": (lambda d: d["evidence"].append(d["evidence"][0]), "stands twice"),
    "finding twice": (lambda d: d["findings"].append(d["findings"][0]), "stands twice"),
    "rule undeclared": (lambda d: d["findings"][0].update(rule="no_such"), "is not declared"),
    "text undeclared": (lambda d: d["findings"][0].update(text="no_such"), "is not declared"),
    "severity": (lambda d: d["findings"][0].update(severity="fine"), "one of critical"),
    "grade": (lambda d: d["quality"].update(grade="A+"), "one of A"),
    "lanes": (lambda d: d["charts"]["timeline"].update(lanes=d["charts"]["timeline"]["lanes"] * 40), "at most 64"),
    "class": (lambda d: d["charts"]["timeline"]["lanes"][0]["intervals"][0].__setitem__(2, "x\" onload"), "one "
    "of busy"),
    "long text": (lambda d: d["host"].update(hostname="x" * 2000), "host.hostname"),
    "null host": (lambda d: d.update(host=None), "host"),
    "bool as number": (lambda d: d["host"].update(cpus=True), "host.cpus"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents_are_refused_with_a_place(document: Document, name: str) -> None:
    body = copy.deepcopy(json.loads(document_bytes(document)))
    change, words = HOSTILE[name]
    change(body)
    with pytest.raises(InputUnusable) as e:
        parse_document(canonical.dumps(body), "f.json")
    assert words in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"schema":"gpu-audit/findings/1"}',
        b'{"a":1,"a":2}',
        b"NaN",
    ],
)
def test_bytes_that_are_no_document(data: bytes) -> None:
    with pytest.raises(InputUnusable, match="is not a findings document"):
        parse_document(data)


def test_bytes_that_are_not_canonical(document: Document) -> None:
    with pytest.raises(InputUnusable, match="canonical"):
        parse_document(document_bytes(document) + b"\n")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputUnusable, match="cannot read"):
        load_document(tmp_path / "none.json")


def test_the_charts_are_bounded() -> None:
    scene = collectives("asynchronous", steps=1_000, gap=10 * MS, late={2: 2 * MS})
    for gpu in range(20):
        scene.samples(T0, T0 + 30 * S, gpu)
        scene.rows["nvml_samples"][-1]["gpu_utilization_percent"] = 0
    for i in range(0, len(scene.rows["nvml_samples"]), 2):
        scene.rows["nvml_samples"][i]["gpu_utilization_percent"] = 0
    charts = scene.document().charts
    lanes = charts["timeline"]["lanes"]
    assert len(lanes) <= 64
    assert max(len(lane["intervals"]) for lane in lanes) <= 400
    rank = next(lane for lane in lanes if lane["kind"] == "rank")
    assert rank["omitted"] > 0
    assert "longest" in rank["rule"]
    assert charts["timeline"]["omitted_lanes"] == 4
    (heat,) = charts["rank_heat"]
    assert len(heat["columns"]) <= 120
    assert heat["columns"][0][0] == 0
    assert heat["columns"][-1][1] == 999
    assert len(charts["nvml"]) == 16
    assert all(len(g["times_ns"]) <= 300 for g in charts["nvml"])
    counts = sum(int(b[2]) for c in charts["latency"] for b in c["bins"])
    assert counts == 8_000


def test_it_can_be_read_at_three_in_the_morning(document: Document) -> None:
    text = explain_document(document, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "SYNTHETIC" in text
    assert "Rank 2 (process 102 (python3))" in " ".join(text.split())
    assert "Next: See what the host thread" in " ".join(text.split())


def test_names_from_evidence_stay_inert() -> None:
    hostile = "\x1b[31m\u202eevil{pid}\n<script>"
    scene = everything()
    for r in scene.rows["processes"]:
        r["comm"] = hostile
    made = scene.document()
    parse_document(document_bytes(made))
    text = explain_document(made, 100)
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_impossible_times_are_refused() -> None:
    with pytest.raises(InputUnusable, match="146 years"):
        Scene().clock().cuda(7, "cudaMalloc", 2**63, 1).store()


def test_leaf_0_of_a_stranger_is_taken_with_care() -> None:
    scene = everything()
    scene.open_body = {"host": {"hostname": "x" * 9999, "cpus": -1, "kernel": 5}, "gpus": [7, {"index": "a",
    "uuid": None}],
                       "sources": "none", "synthetic": "no"}  # fmt: skip
    made = scene.document()
    assert made.host["cpus"] == 0
    assert made.host["kernel"] == "not recorded"
    assert made.bundle["synthetic"] is True
    parse_document(document_bytes(made))
