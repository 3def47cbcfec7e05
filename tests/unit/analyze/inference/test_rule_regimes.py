"""What the rules and the limiter say of the recorded regimes of a real vLLM server."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import pytest

from gpuaudit.analyze.finding import Document, Finding, Quantity, Section
from gpuaudit.analyze.load import parse_document
from gpuaudit.analyze.run import AnalyzeOptions, analyze_store, document_bytes
from gpuaudit.analyze.words import filled
from tests.recorded_engines import REGIMES, run, store
from tests.verifications import SEALED


@cache
def document(regime: str) -> Document:
    return analyze_store(store(regime), SEALED, AnalyzeOptions())


def engine_findings(regime: str) -> dict[str, Finding]:
    return {f.rule: f for f in document(regime).findings if "engine" in f.subject}


def value(finding: Finding, name: str) -> int | Fraction | None:
    q = finding.values[name]
    assert isinstance(q, Quantity)
    return q.value


def section(regime: str) -> Section:
    return next(s for s in document(regime).sections if s.id == "root_causes")


def sentence(regime: str) -> str:
    (statement,) = section(regime).statements
    return filled(statement.text, statement.values)


@pytest.mark.parametrize(
    ("regime", "rules"),
    [
        ("idle", []),
        ("light", []),
        ("heavy_queue", ["r5_concurrency_saturation", "r3_prefix_reuse"]),
        ("prefix_hits", []),
        ("kv_pressure", ["r2_kv_pressure"]),
    ],
)
def test_the_findings_of_a_regime_are_these_and_no_other(regime: str, rules: list[str]) -> None:
    """Of all rules, those on processes and GPUs too, in the order of the document."""
    assert [f.rule for f in document(regime).findings] == rules


@pytest.mark.parametrize("regime", ["idle", "light"])
def test_little_traffic_fires_nothing_but_the_traffic_limiter(regime: str) -> None:
    assert engine_findings(regime) == {}
    assert document(regime).groups == []
    assert "its traffic limits it" in sentence(regime)
    assert "fewer than 8" in sentence(regime)


def test_the_heavy_queue_is_saturation_of_32_slots_and_not_kv_pressure() -> None:
    found = engine_findings("heavy_queue")
    assert set(found) == {"r5_concurrency_saturation", "r3_prefix_reuse"}, "random prompts share nothing"
    saturated = found["r5_concurrency_saturation"]
    assert value(saturated, "seats") == 32
    assert str(saturated.values["seats_from"]).startswith("inferred: ")
    kv_peak, fired = value(saturated, "kv_peak"), value(saturated, "fired")
    assert kv_peak is not None
    assert kv_peak < Fraction(8, 100)
    assert fired == value(saturated, "active") == 9
    first, second = document("heavy_queue").groups
    assert (first.kind, first.primary, first.supporting) == ("concurrency", saturated.id, ())
    assert (second.kind, second.primary) == ("prefill", found["r3_prefix_reuse"].id)
    assert "ridge of the GPU is not known" in str(saturated.values["doubt"])
    (fix,) = saturated.fixes
    assert (fix.setting, fix.current, fix.new) == ("max_num_seqs", "32 (inferred)", "51")  # 80 % of 64 that fit


def test_told_seats_are_not_inferred() -> None:
    evidence = store("heavy_queue", (("max_num_seqs", "32"),))
    found = {f.rule: f for f in analyze_store(evidence, SEALED, AnalyzeOptions()).findings}
    told = found["r5_concurrency_saturation"]
    assert value(told, "seats") == 32
    assert told.values["seats_from"] == "given at import"
    assert told.score == 4 * Fraction(90, 100)
    assert told.fixes[0].current == "32"
    assert found.keys() & {"r1_under_batching", "r7_configured_limit", "r2b_admission_backlog"} == set()


def test_prefix_hits_have_no_low_reuse() -> None:
    assert engine_findings("prefix_hits") == {}
    (outcome,) = (o for o in document("prefix_hits").outcomes if o.id == "r3_prefix_reuse")
    assert outcome.state == "clear"
    hits = run("prefix_hits").totals.prefix_hit_share
    assert hits is not None
    assert Fraction(95, 100) < hits < Fraction(97, 100)


def test_kv_pressure_keeps_its_58_preemptions_despite_the_gaps() -> None:
    gap = run("kv_pressure").longest_gap_s
    assert gap is not None
    assert gap > 3
    found = engine_findings("kv_pressure")
    assert set(found) == {"r2_kv_pressure"}
    pressure = found["r2_kv_pressure"]
    assert value(pressure, "preemptions") == 58
    assert value(pressure, "kv_peak") == 1
    assert pressure.score == 4
    assert pressure.severity == "critical"
    (group,) = document("kv_pressure").groups
    assert (group.kind, group.primary, group.supporting) == ("memory", pressure.id, ())
    assert [x.setting for x in pressure.fixes] == ["num_gpu_blocks_override"]
    assert (pressure.fixes[0].current, pressure.fixes[0].new) == ("40", "none")
    assert "limited by R2 KV cache pressure first" in sentence("kv_pressure")


@pytest.mark.parametrize("regime", REGIMES)
def test_the_document_can_be_read_back(regime: str) -> None:
    back = parse_document(document_bytes(document(regime)))
    assert [g.to_json() for g in back.groups] == [g.to_json() for g in document(regime).groups]


@pytest.mark.parametrize("regime", REGIMES)
def test_rules_that_could_not_be_evaluated_say_why(regime: str) -> None:
    states = {o.id: o for o in document(regime).outcomes}
    for rule in ("r4_oom_risk", "r6_prefill_bound"):  # no GPU was recorded
        assert states[rule].state == "not evaluated"
        assert "the engine's GPU is not known" in states[rule].reason
    assert states["r1_under_batching"].state == "not evaluated"
    assert "max_num_seqs is not known" in states["r1_under_batching"].reason
