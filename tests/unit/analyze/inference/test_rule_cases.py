"""Worked examples of the rules on engines, driven through the functions that the rules decide with."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from gpuaudit.analyze.finding import Threshold
from gpuaudit.analyze.inference import limiter, memory, persistence, physics, seats
from gpuaudit.analyze.inference.grouping import Facts, explained
from gpuaudit.analyze.inference.model import Number
from gpuaudit.analyze.rules import (
    r1_under_batching,
    r2_kv_pressure,
    r2b_admission_backlog,
    r3_prefix_reuse,
    r4_oom_risk,
    r5_concurrency_saturation,
    r6_prefill_bound,
    r7_configured_limit,
)
from tests.inference_cases import Case, cases, exact

GB = 10**9


def number(case: Case, key: str, scale: int = 1) -> Number | None:
    """An input as an exact number; what is absent, null or "nan" is not there."""
    value = case.inputs.get(key)
    if value is None or isinstance(value, str):
        return None
    found = exact(value) / scale
    return int(found) if found.denominator == 1 else found


def share(case: Case, key: str) -> Number | None:
    """An input that is in per cent."""
    return number(case, key, 100)


def fired(expected: Any) -> bool:
    """Of an expectation that is a truth value, or has one of the newest generation among others."""
    if isinstance(expected, dict):
        return bool(expected.get("newest", expected.get("fired", expected.get("seed"))))
    return bool(expected)


@pytest.mark.parametrize("case", cases("r1"), ids=str)
def test_r1(case: Case) -> None:
    got = r1_under_batching.gate(
        running=number(case, "running"), waiting=number(case, "waiting"), cap=number(case, "max"),
        efficiency=share(case, "config_eff"), ridge=number(case, "ridge"),
        kv_sequences=number(case, "kv_max_concurrency"),
    )  # fmt: skip
    assert got.fired is fired(case.expected)
    assert got.fired or got.reason
    if isinstance(case.expected, dict):
        told = {
            "occupancy_pct": None if got.occupancy is None else got.occupancy * 100, "idle": got.idle,
            "confidence": got.confidence, "effective_max": got.effective,
        }  # fmt: skip
        for key, want in case.expected.items():
            if key == "wall":
                assert got.wall == want
            elif key != "fired":
                assert case.agrees(told[key], want), key


def _r2_backlog(case: Case) -> None:
    got = r2b_admission_backlog.gate(
        running=number(case, "running"), waiting=number(case, "waiting"), cap=number(case, "max"),
        blocks=number(case, "blocks"), block_size=number(case, "block_size"),
        prompt_mean=number(case, "prompt_mean"), kv_use=share(case, "kv"),
    )  # fmt: skip
    assert got.fired is fired(case.expected)
    if isinstance(case.expected, dict):
        assert case.agrees(got.free_tokens, case.expected["free_tokens"])
        assert case.agrees(got.demand_tokens, case.expected["demand"])
        assert case.agrees(got.queue_share, case.expected["ratio"])


def _r2_confidence(case: Case) -> None:
    if "fired" in case.inputs:
        seen = r2_kv_pressure.Evidence(case.inputs["fired"], case.inputs["evaluable"], 0, 0)
        got = r2_kv_pressure.confidence(seen)
    else:
        full = r2_kv_pressure.near_full(None, share(case, "kv"), _of({r2_kv_pressure.NEAR_FULL: Fraction(95, 100)}))
        got = r2_kv_pressure.early_confidence(preempted=case.inputs["preemptions_active"], full=full)
    assert case.agrees(got, case.expected["confidence"])


@pytest.mark.parametrize("case", cases("r2"), ids=str)
def test_r2(case: Case) -> None:
    if "block_size" in case.inputs:
        return _r2_backlog(case)
    if isinstance(case.expected, dict) and "confidence" in case.expected:
        return _r2_confidence(case)
    got = r2_kv_pressure.gate(
        kv_mean=share(case, "kv_last") if "kv_last" in case.inputs else share(case, "kv"),
        kv_peak=share(case, "kv_peak"), preemptions_per_s=number(case, "preempt"), waiting=number(case, "waiting"),
    )  # fmt: skip
    if "skew_s" in case.inputs:
        # No skew gate: how far apart polls of GPU and engine were is no input, and KV use with a queue fires.
        assert got.full
        queued = r2_kv_pressure.gate(kv_mean=share(case, "kv"), waiting=3)
        return _yes(queued.fired)
    assert got.fired is fired(case.expected)
    return None


def _yes(value: bool) -> None:
    assert value


def _of(values: dict[Threshold, int | Fraction]) -> Callable[[Threshold], int | Fraction]:
    """Limits as declared, but for some."""
    return lambda t: values.get(t, t.value)


SEED_R3 = _of({r3_prefix_reuse.VOLUME: 0, r3_prefix_reuse.REQUESTS: 5})
"""The seed's volume: 5 requests/s, however short their prompts."""


@pytest.mark.parametrize("case", cases("r3"), ids=str)
def test_r3(case: Case) -> None:
    got = r3_prefix_reuse.gate(
        hit_share=number(case, "hit"), prompt_mean=number(case, "prompt_mean"), running=number(case, "running"),
        requests_per_s=number(case, "qps"), caching=case.inputs.get("caching"),
        limit=SEED_R3 if case.era == "seed" else persistence.declared,
    )  # fmt: skip
    assert got.fired is fired(case.expected)
    if isinstance(case.expected, dict) and "impact" in case.expected:
        assert got.impact == case.expected["impact"]
        assert case.agrees(got.confidence, case.expected["confidence"])


SOURCES: dict[str | None, physics.WeightSource] = {
    "env": "explicit", "catalog": "told", "fallback": "fallback", None: "told",
}  # fmt: skip


def _facts(case: Case) -> physics.MemoryFacts:
    vram, util, weight = number(case, "vram_gb"), number(case, "util"), number(case, "weight_gb")
    return physics.MemoryFacts(
        headroom_gb=number(case, "headroom"), source=SOURCES[case.inputs.get("source")],
        request_bytes=number(case, "request_bytes"), tp=case.inputs.get("tp", 1), weight_gb=weight, vram_gb=vram,
        min_tp=memory.min_tp(vram, weight, util),
    )  # fmt: skip


@pytest.mark.parametrize("case", cases("r4"), ids=str)
def test_r4(case: Case) -> None:
    facts = _facts(case)
    if "min_tp" in (case.expected if isinstance(case.expected, dict) else {}):
        return _yes(facts.min_tp is case.expected["min_tp"])
    got = r4_oom_risk.gate(facts.headroom_gb, facts.source, facts.request_bytes, facts.tp)
    if isinstance(case.expected, dict) and "r2_suppressed" in case.expected:
        assert got.fired
        present = {"r4_oom_risk", "r2_kv_pressure"}
        held = explained("r2_kv_pressure", present, Facts(headroom_gb=facts.headroom_gb)) == "r4_oom_risk"
        return _yes(held is case.expected["r2_suppressed"])
    assert got.fired is fired(case.expected)
    if not isinstance(case.expected, dict):
        return None
    assert got.advisory == case.expected.get("advisory", "")
    if "confidence" in case.expected:
        assert case.agrees(got.confidence, case.expected["confidence"])
    if "fix" in case.expected:
        fixes = r4_oom_risk.fixes_of(got.kind, facts, number(case, "util"), None)
        told = {x.setting: x for x in fixes}
        if "TP" in case.expected["fix"]:
            fix = told["tensor_parallel_size"]
            return _yes(case.expected["fix"] == f"TP at least {fix.new} (currently {fix.current})")
        fix = told["gpu_memory_utilization"]
        assert Fraction(fix.new) > Fraction(fix.current) == exact(case.inputs["util"])
        assert case.expected["fix"] in fix.action.lower()
    return None


def _r5_target(case: Case) -> None:
    bound = seats.kv_bound(
        number(case, "kv_bound") if case.inputs.get("source") == "observed" else None,
        number(case, "kv_bound") if case.inputs.get("source") == "derived" else None, None,
    )  # fmt: skip
    target = seats.seat_target(ridge=number(case, "ridge"), bound=bound, current=number(case, "current"))
    assert target is not None
    assert target.target == case.expected["target"]
    (fix,) = r5_concurrency_saturation.fixes_of(Fraction(1, 10), seats.Seats(case.inputs["current"], "x"), target)
    if "fix" in case.expected:
        assert fix.setting == "", "no raise"
        assert "no raise" in fix.action
        assert "within the margin of the ridge" in fix.action
    else:
        assert fix.new == str(target.target)


@pytest.mark.parametrize("case", cases("r5"), ids=str)
def test_r5(case: Case) -> None:
    expected = case.expected if isinstance(case.expected, dict) else {}
    if "target" in expected:
        return _r5_target(case)
    if "suggest_max_model_len" in expected:
        got = seats.shorter_model_len(
            number(case, "prompt_p99"), number(case, "gen_p99"), number(case, "completed"),
            number(case, "max_model_len"),
        )  # fmt: skip
        return _yes(got == expected["suggest_max_model_len"])
    if "confidence" in expected:
        sure = r5_concurrency_saturation.confidence(
            ttft=number(case, "ttft") is not None, kv=number(case, "kv") is not None
        )
        return _yes(case.agrees(sure, expected["confidence"]))
    if "fix" in expected:
        target = seats.seat_target(ridge=Fraction(300), bound=None)
        (fix,) = r5_concurrency_saturation.fixes_of(share(case, "kv_peak"), seats.Seats(32, "x"), target)
        assert fix.setting == fix.new == ""
        return _yes("replica" in fix.action and "never raise" in fix.action)
    flag = case.inputs["seat_wall"][0] if "seat_wall" in case.inputs else None
    gate = r5_concurrency_saturation.gate(
        running=number(case, "running"), waiting=number(case, "waiting"), cap=number(case, "max"), flag=flag
    )
    assert gate.fired is fired(case.expected)
    if "queue_ratio" in expected:
        assert case.agrees(gate.queue_share, expected["queue_ratio"])
    return None


@pytest.mark.parametrize("case", cases("r6"), ids=str)
def test_r6(case: Case) -> None:
    ratio = r6_prefill_bound.Ratio(exact(case.inputs["ratio"]))
    expected = case.expected if isinstance(case.expected, dict) else {}
    if "severity" in expected:
        graded = r6_prefill_bound.graded(ratio)
        assert graded is not None
        assert (graded.word, graded.impact) == (expected["severity"], expected["impact"])
        return _yes(case.agrees(graded.confidence, expected["confidence"]))
    got = r6_prefill_bound.gate(ratio, share(case, "decode_eff"), number(case, "tpot"), number(case, "floor"))
    assert got.fired is fired(case.expected)
    if "confidence_max" in expected:
        assert got.confidence <= exact(expected["confidence_max"])
    return None


@pytest.mark.parametrize("case", cases("r7"), ids=str)
def test_r7(case: Case) -> None:
    cap, running = number(case, "max"), number(case, "running")
    target = seats.seat_target(
        ridge=number(case, "ridge"), bound=seats.kv_bound(number(case, "observed"), None, running),
        running_mean=running, kv_peak_share=share(case, "kv"), current=cap,
    )  # fmt: skip
    got = r7_configured_limit.gate(running=running, waiting=number(case, "waiting"), cap=cap, target=target)
    assert got.fired is fired(case.expected)
    if isinstance(case.expected, dict):
        assert target is not None
        assert target.target == case.expected["target"]


@pytest.mark.parametrize("case", cases("sig"), ids=str)
def test_persistence(case: Case) -> None:
    if "fired" in case.inputs:
        got = persistence.persistent(case.inputs["fired"], case.inputs["total"])
    elif case.inputs["windows"] == "1 with preemptions":
        got = r2_kv_pressure.significant(r2_kv_pressure.Evidence(fired=1, active=12, preempted=1, at_early_full=0))
        assert not r2_kv_pressure.significant(r2_kv_pressure.Evidence(1, 12, 0, 1))
    else:
        assert case.inputs["windows"] == "2 with KV>=95"
        got = r2_kv_pressure.significant(r2_kv_pressure.Evidence(fired=2, active=12, preempted=0, at_early_full=2))
    assert got is case.expected


KINDS: dict[str | None, str] = {
    None: "silent", "decline: waiting unread": "declined", "traffic (30 < 38.25)": "traffic",
    "traffic (7 < 8)": "traffic",
    "hardware (5.7 <= 5.76)": "hardware", "prefill interference": "prefill", "ceiling unknown": "unknown",
}  # fmt: skip
BOUNDS: dict[str | None, Fraction] = {
    "traffic (30 < 38.25)": Fraction(3825, 100), "traffic (7 < 8)": Fraction(8),
    "hardware (5.7 <= 5.76)": Fraction(576, 100),
}  # fmt: skip


@pytest.mark.parametrize("case", cases("lim"), ids=str)
def test_the_limiter(case: Case) -> None:
    got = limiter.limiter(
        limiter.Signals(
            windows=case.inputs.get("n_eval", 3), waiting=number(case, "waiting"), kv_mean=share(case, "kv_mean"),
            running=number(case, "running"), ridge=number(case, "ridge"), tpot_ms=number(case, "tpot"),
            floor_ms=number(case, "floor"), chunked_prefill=case.inputs.get("chunked"), ratio=number(case, "ratio"),
        )
    )  # fmt: skip
    assert got.kind == KINDS[case.expected]
    if case.expected in BOUNDS:
        assert got.bound == BOUNDS[case.expected]
    if case.expected == "decline: waiting unread":
        assert got.reason == "waiting unread"
