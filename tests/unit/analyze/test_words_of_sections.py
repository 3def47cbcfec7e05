"""Sections, groups and fixes in a terminal, and the way from each of their numbers back to evidence."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gpuaudit.analyze import explain
from gpuaudit.analyze.finding import Evidence
from gpuaudit.analyze.registry import Plugin
from gpuaudit.analyze.show import evidence_of
from gpuaudit.analyze.words import filled, marked
from gpuaudit.bundle.errors import UsageError
from gpuaudit.cli.summary import summary_lines
from tests import documents, engine_documents
from tests.documents import q
from tests.engine_documents import engine_document
from tests.scenes import T0, Scene


def declared() -> tuple[Plugin, ...]:
    made = (documents.LATE_RANK, documents.IDLE, documents.SILENCE, documents.THROTTLING, engine_documents.SATURATED,
            engine_documents.HEADROOM, engine_documents.LOW_REUSE)  # fmt: skip
    return tuple(Plugin(d.id, d, lambda _: None) for d in made)  # type: ignore[arg-type, return-value]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(explain, "plugins", declared)
    return explain.explain_document(engine_document(), 120)


def test_estimates_and_assumptions_are_marked_in_sentences() -> None:
    values = {
        "a": q(Fraction(1, 4), "share", "estimated"),
        "b": q(4, "USD/h", "assumed"),
        "c": q(3, "count", "derived"),
    }
    assert filled("{a}, {b}, {c}, {not a place}", values) == "25.0 % (est), 4.00 USD/h (assumed), 3, {not a place}"
    assert marked(q(None, "share", "estimated", reason="no row")) == "not known (no row)"


def test_summary_tells_sections_and_groups_in_a_line_each() -> None:
    lines = list(summary_lines(engine_document()))
    assert "group     G1 concurrency: F3, supported by F4" in lines
    assert not [x for x in lines if x.startswith("notice    F4")], "what only supports another is not told again"
    engines = [x for x in lines if x.startswith("section   Inference engines")]
    assert engines == [
        "section   Inference engines: Engine 0 finished 406 requests and generated 44,492 tokens in 60.0 s "
        "(742 tokens/s)."
    ]  # fmt: skip
    assert any(x.strip().startswith("Quantisation advisor not evaluated: the weights'") for x in lines)
    assert not any("IMPORTED" in x for x in lines)


def test_an_imported_bundle_says_so_first() -> None:
    imported = engine_document(bundle={**engine_document().bundle, "imported": True})
    assert next(iter(summary_lines(imported))).startswith("IMPORTED: ")
    assert explain.explain_document(
        engine_document(bundle=imported.bundle, findings=[], chains=[], groups=[]), 120
    ).startswith("IMPORTED: ")


TABLES_OF_SECTIONS = {
    "economics": (
        "energy of a token: amount 825 mJ/token", "and 2 more rows in the findings",
        "cost of a million output tokens: amount 1.50 USD/1M tokens (assumed)",
        "recoverable in a year: amount not known (no duty cycle was given)",
    ),
    "vram": ("GPU 0: category KV cache, bf16; precision bf16; bytes 52.8 GiB; of the GPU's memory 66.5 %",),
}  # fmt: skip


@pytest.mark.parametrize("id", TABLES_OF_SECTIONS)
def test_a_section_that_is_asked_for_has_every_row_of_its_tables(told: str, id: str) -> None:
    whole, asked = (" ".join(x.split()) for x in (told, explain.explain_item(engine_document(), id, 120)))
    for part in TABLES_OF_SECTIONS[id]:
        assert part in asked, part
        assert part not in whole, "all of a bundle has to fit a screen or two"
    assert asked.splitlines()[-1] != whole.splitlines()[-1]


def test_explain_tells_what_was_found_and_what_could_not_be_asked(told: str) -> None:
    flat = " ".join(told.split())
    for part in (
        "Economics (economics): What did a token cost, and what could be recovered?",
        "One of these with its tables: audit explain BUNDLE and its name, such as engines",
        "nor a label names a dtype: Quantisation advisor",
        "Could be changed: raise the number of slots: max_num_seqs from 32 to 256",
        "It only supports F3: a limit is the wall only while slots are short",
    ):  # fmt: skip
        assert part in flat, part


def test_every_number_of_a_section_leads_to_its_evidence() -> None:
    made = engine_document()
    assert [e.id for e in evidence_of(made, "engines")] == ["E1", "E2"]
    assert [e.id for e in evidence_of(made, "engines.runs")] == ["E1"]
    assert evidence_of(made, "engines.settings") == []
    assert [e.id for e in evidence_of(made, "G1")] == ["E1", "E2"]
    for wrong in ("engines.nothing", "engine", "G2"):
        with pytest.raises(UsageError, match="no finding, chain, group, section"):
            evidence_of(made, wrong)


def test_a_section_and_an_operation_of_one_name_are_told_apart() -> None:
    """Names of operations come from evidence; an operation cannot hide a section."""
    made = engine_document()
    made.operations[0]["op"] = "engines"
    made.operations[0]["count"] = q(1, "count", evidence=("E9",)).to_json()
    made.evidence.append(Evidence("E9", "cuda_calls", (1,), 1, "SELECT 1"))
    assert "E9" not in [e.id for e in evidence_of(made, "engines")]


def test_engines_on_other_hosts_stand_on_page_one() -> None:
    """Nothing else of a capture comes over a network: a reader must not have to find it in a table."""
    scene = Scene().clock()
    place = {"start_ns": T0, "duration_ns": 0, "op": "vllm", "pid": None, "found_by": "--engine", "state": "scraped",
             "reason": None}  # fmt: skip
    scene.add("engines", engine=0, url="http://127.0.0.1:8000/metrics", remote=0, **place)
    assert not [n for n in scene.document().bundle["notices"] if "network" in n]
    scene.add("engines", engine=1, url="http://192.0.2.7:8000/metrics", remote=1, **place)
    notices = [n for n in scene.document().bundle["notices"] if "network" in n]
    assert notices == [
        "Engines on other hosts were asked over the network, by --allow-remote: http://192.0.2.7:8000/metrics"
    ]
