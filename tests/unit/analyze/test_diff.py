"""Two captures of the same engine: pairing, drift, verdict, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from gpuaudit.analyze import diff
from gpuaudit.analyze.finding import number_from_json
from gpuaudit.analyze.inference.model import EngineRun, Setting
from gpuaudit.bundle import canonical
from tests.served import Traffic
from tests.verifications import SEALED

BASE = Traffic(running=100, requests=40, settings={"dtype": "bfloat16", "max_num_seqs": "128"})


_READ: dict[str, diff.Side] = {}


def side(traffic: Traffic) -> diff.Side:
    """The traffic as a side; equal traffic is read once."""
    if repr(traffic) not in _READ:
        _READ[repr(traffic)] = diff.Side(SEALED, traffic.scene().context())
    return _READ[repr(traffic)]


def compared(before: Traffic, after: Traffic, price: tuple[Fraction, str] | None = None) -> dict[str, Any]:
    (engine,) = diff.compare_sides(side(before), side(after), price)["engines"]
    assert isinstance(engine, dict)
    return engine


def figure(engine: Mapping[str, Any], name: str) -> dict[str, Any]:
    (found,) = (f for f in engine["figures"] if f["name"] == name)
    return dict(found)


def number(engine: Mapping[str, Any], name: str, column: str) -> int | Fraction | None:
    return number_from_json(figure(engine, name)[column]["value"])


def test_the_same_capture_has_not_changed() -> None:
    engine = compared(BASE, BASE)
    assert (engine["verdict"], engine["reason"], engine["drift"], engine["notes"]) == ("NoChange", "", [], [])
    assert engine["arms"] == {"efficiency": "flat", "ttft_p99": "flat", "throughput": "flat"}
    assert number(engine, "Throughput", "change") == 0
    assert engine["engine"]["paired_by"] == "URL"


def test_more_tokens_at_the_same_load_are_better() -> None:
    engine = compared(BASE, replace(BASE, requests=60))
    assert engine["verdict"] == "Better"
    # 4,000 then 6,000 of 100 · 209.375 tokens/s
    assert number(engine, "Efficiency", "change") == Fraction(2000 * 100) / (100 * Fraction(3350, 16))
    assert number(engine, "Throughput", "change") == Fraction(1, 2)


def test_worse_latency_vetoes_more_tokens() -> None:
    engine = compared(BASE, replace(BASE, requests=60, ttft=0.3))
    assert engine["verdict"] == "Mixed"
    assert engine["reason"].startswith("latency veto (+")
    assert figure(engine, "TTFT mean")["worse"] is True


def test_fewer_tokens_are_worse_and_noted() -> None:
    engine = compared(BASE, replace(BASE, requests=20))
    assert engine["verdict"] == "Worse"
    assert figure(engine, "Throughput")["worse"] is True
    assert figure(engine, "Efficiency")["worse"] is True
    assert figure(engine, "Running")["worse"] is None


def test_a_changed_type_resets_the_baseline_and_ignores_the_efficiency() -> None:
    engine = compared(BASE, replace(BASE, settings={"dtype": "float16", "max_num_seqs": "64"}))
    assert engine["baseline"] == "Config changed. Baseline reset."
    assert engine["arms"]["efficiency"] == "ignored"
    assert engine["verdict"] == "NoChange"
    assert [(d["key"], d["resets_baseline"]) for d in engine["drift"]] == [("dtype", True), ("max_num_seqs", False)]
    slower = replace(BASE, requests=35, settings={"dtype": "float16"})
    worse = compared(BASE, slower)
    assert worse["verdict"] == "Worse"
    assert worse["reason"].startswith("throughput alone decides: no efficiency, the settings that it depends on")


def test_a_verdict_without_an_efficiency_says_what_it_rests_on() -> None:
    """Twice as late and "Better": the table needs an efficiency for its veto, and the reader has to know."""
    unknown = replace(BASE, gpu=None)
    engine = compared(unknown, replace(unknown, requests=60, ttft=0.4))
    assert engine["verdict"] == "Better"
    assert "it is not known on both sides" in engine["reason"]
    assert "time to first token has no part in it" in engine["reason"]
    assert compared(BASE, replace(BASE, requests=60))["reason"] == ""


def test_changed_seats_reset_nothing() -> None:
    engine = compared(BASE, replace(BASE, requests=60, settings={"dtype": "bfloat16", "max_num_seqs": "256"}))
    assert engine["baseline"] == ""
    assert engine["verdict"] == "Better"


@pytest.mark.parametrize(
    ("key", "resets"),
    [
        *((key, True) for key in (
            "model", "dtype", "quantization", "kv_cache_dtype", "max_model_len", "block_size", "gpu_memory_utilization",
            "tensor_parallel_size", "data_parallel_size", "pipeline_parallel_size",
        )),
        *((key, False) for key in ("max_num_seqs", "enable_prefix_caching", "enable_chunked_prefill")),
    ],
)  # fmt: skip
def test_settings_that_ceilings_depend_on_reset_the_baseline(key: str, resets: bool) -> None:
    before, after = (EngineRun(0, "vllm", config={key: Setting(v, "command line")}) for v in ("1", "2"))
    assert diff.drifts(before, after) == [diff.Drift(key, "1", "2", resets)]
    assert diff.drifts(before, before) == []


def test_another_gpu_resets_the_baseline() -> None:
    engine = compared(BASE, replace(BASE, gpu="NVIDIA A100-SXM4-80GB"))
    assert [d["key"] for d in engine["drift"]] == ["GPU"]
    assert engine["arms"]["efficiency"] == "ignored"


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (replace(BASE, running=50, requests=20), "the load differs"),
        (replace(BASE, seconds=4), "after has 2 windows with traffic"),
        (replace(BASE, running=0, requests=0), "after has 0 windows with traffic"),
    ],
)
def test_without_enough_evidence_there_is_no_verdict(after: Traffic, why: str) -> None:
    engine = compared(BASE, after)
    assert engine["verdict"] == "NotComparable"
    assert engine["reason"].startswith(why)
    assert engine["arms"] is None
    assert figure(engine, "Throughput")["before"]["value"] is not None, "the figures are shown all the same"


def test_absent_figures_stay_absent() -> None:
    engine = compared(replace(BASE, ttft=None, gpu=None), replace(BASE, gpu=None))
    for name in ("TTFT p99", "TTFT mean", "Efficiency", "J/token"):
        found = figure(engine, name)
        assert found["change"]["value"] is None
        assert found["change"]["reason"]
        assert found["worse"] is None or name == "TTFT p99"
    assert engine["arms"]["ttft_p99"] == "flat"
    assert "the engine's GPU is not known" in figure(engine, "Efficiency")["after"]["reason"]


def test_requests_of_another_shape_are_noted() -> None:
    engine = compared(BASE, replace(BASE, prompt=900))
    assert engine["notes"] == [
        "the requests are not alike (prompt mean changed by more than a tenth), which moves every figure"
    ]


def test_money_only_with_a_rate_and_a_turnover() -> None:
    assert not [f for f in compared(BASE, BASE)["figures"] if f["name"] == "Cost/1M"]
    engine = compared(BASE, replace(BASE, requests=60), (Fraction(4), "EUR"))
    cost = figure(engine, "Cost/1M")
    assert cost["before"]["unit"] == "EUR/Mtoken"
    assert cost["before"]["provenance"] == "assumed"
    assert number(engine, "Cost/1M", "before") == Fraction(4 * 10**6, 4000 * 3600)
    idle = compared(
        replace(BASE, running=1000, requests=1), replace(BASE, running=1000, requests=1), (Fraction(4), "EUR")
    )
    assert "fewer requests finished" in figure(idle, "Cost/1M")["before"]["reason"]


def runs(*told: tuple[int, str, str | None]) -> list[EngineRun]:
    return [EngineRun(number, "vllm", url, model=model) for number, url, model in told]


def test_engines_are_paired_by_url_then_model_then_number() -> None:
    before = runs((0, "http://a", "m"), (1, "http://b", "n"), (2, "http://c", None), (3, "http://d", "x"))
    after = runs((0, "http://b", "m"), (1, "http://z", "m"), (2, "http://y", None), (5, "http://w", "y"))
    found = diff.pairs(before, after)
    assert [(p.before.engine, p.after.url, p.by) for p in found] == [
        (0, "http://z", "model"), (1, "http://b", "URL"), (2, "http://y", "number"),
    ]  # fmt: skip


def test_two_engines_with_one_model_are_not_guessed_apart() -> None:
    before = runs((0, "http://a", "m"), (1, "http://b", "m"))
    after = runs((7, "http://c", "m"), (8, "http://d", "m"))
    assert diff.pairs(before, after) == []


def test_an_engine_without_a_partner_is_named() -> None:
    lone = side(BASE)
    other = diff.Side(SEALED, BASE.scene().context())
    other.context.__dict__["engine_runs"] = [
        replace(r, engine=5, url="http://elsewhere", model="other") for r in other.context.engine_runs
    ]
    document = diff.compare_sides(lone, other)
    assert document["engines"] == []
    assert [u["side"] for u in document["unpaired"]] == ["before", "after"]


def test_the_document_is_canonical_and_its_evidence_is_there() -> None:
    fresh = [diff.Side(SEALED, BASE.scene().context()) for _ in range(4)]
    data = diff.document_bytes(diff.compare_sides(fresh[0], fresh[1]))
    assert data == diff.document_bytes(diff.compare_sides(fresh[2], fresh[3])), "the same evidence, the same bytes"
    back = canonical.loads_canonical(data)
    for name in ("before", "after"):
        known = {e["id"] for e in back["evidence"][name]}
        used = {i for e in back["engines"] for f in e["figures"] for i in f[name].get("evidence", [])}
        assert used
        assert used <= known
