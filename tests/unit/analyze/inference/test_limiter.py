"""What limits an engine without findings: the order of the reasons, what is absent, and what the section says."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import get_args

import pytest

from gpuaudit.analyze.inference.limiter import Kind, Signals, limiter, traffic_bound
from gpuaudit.analyze.registry import plugins
from gpuaudit.analyze.run import AnalyzeOptions, analyze_store
from gpuaudit.analyze.sections import root_causes
from gpuaudit.analyze.store import Store
from gpuaudit.analyze.words import filled
from tests.engine_scene import EngineScene
from tests.served import Traffic
from tests.verifications import SEALED

BUSY = Signals(
    windows=3, waiting=0, kv_mean=Fraction(1, 2), running=60, ridge=153, tpot_ms=20, floor_ms=5, chunked_prefill=False
)


@pytest.mark.parametrize(
    ("signals", "kind"),
    [
        (replace(BUSY, windows=2), "silent"),
        (replace(BUSY, waiting=None), "declined"),
        (replace(BUSY, waiting=2, kv_mean=1), "silent"),
        (replace(BUSY, kv_mean=Fraction(80, 100), running=1), "memory"),
        (replace(BUSY, kv_mean=None), "framework"),
        (replace(BUSY, running=None), "declined"),
        (replace(BUSY, running=38), "traffic"),
        (replace(BUSY, running=39), "framework"),
        (replace(BUSY, running=7, ridge=None), "traffic"),
        (replace(BUSY, speculative=True, tpot_ms=1), "declined"),
        (replace(BUSY, headroom=Fraction(9, 100)), "hardware"),
        (replace(BUSY, headroom=Fraction(10, 100)), "framework"),
        (replace(BUSY, tpot_ms=6), "hardware"),
        (replace(BUSY, tpot_ms=None), "framework"),
        (replace(BUSY, floor_ms=None), "unknown"),
        (replace(BUSY, chunked_prefill=True, ratio=Fraction(1, 2)), "prefill"),
        (replace(BUSY, chunked_prefill=True, ratio=Fraction(49, 100)), "framework"),
        (replace(BUSY, chunked_prefill=None, ratio=9), "framework"),
    ],
)
def test_the_first_that_holds(signals: Signals, kind: str) -> None:
    assert limiter(signals).kind == kind


def test_the_bound_of_traffic_is_a_quarter_of_the_ridge_or_eight() -> None:
    assert traffic_bound(None) == traffic_bound(20) == 8
    assert traffic_bound(Fraction(295)) == Fraction(295, 4)


def sentence(traffic: Traffic, *rules: str) -> str:
    context = traffic.scene().context()
    for plugin in plugins():
        if plugin.declaration.id in rules:
            plugin.evaluate(context)
    made = root_causes.evaluate(context)
    assert made.state == "evaluated"
    (statement,) = made.statements
    return filled(statement.text, statement.values)


@pytest.mark.parametrize(
    ("traffic", "says"),
    [
        (Traffic(), "its traffic limits it: 8 sequences ran on average, fewer than 73.8 (est)"),
        (Traffic(kv=0.85), "its memory limits it: KV use was 85.0 % on average"),
        (Traffic(running=100, tpot=0.0053), "the hardware limits it"),
        (Traffic(running=100, model=None), "whether the hardware limits it cannot be told, ceiling unknown"),
        (Traffic(running=100, settings={"enable_chunked_prefill": "True"}), "chunks of prompts between the tokens"),
        (Traffic(running=100), "none of traffic, memory, hardware and prefill limits it"),
        (Traffic(waiting=None), "nothing is said of what limits it: waiting unread"),
        (Traffic(waiting=5), "nothing is said of what limits it: requests waited, and no rule explains it"),
    ],
)
def test_the_section_says_it_in_a_sentence(traffic: Traffic, says: str) -> None:
    assert says in sentence(traffic)


def test_rules_that_could_not_be_evaluated_are_named_beside_the_limiter() -> None:
    rules = ("r5_concurrency_saturation", "r2_kv_pressure", "throttling")
    assert sentence(Traffic(), *rules).endswith("Rules that could not be evaluated: R5.")


def test_of_two_engines_each_names_its_own_rules() -> None:
    """Seats of the first are told and those of the second are not: R5 is blind to the second one only."""
    scene = Traffic(settings={"max_num_seqs": "16"}).scene()
    second = EngineScene(engine=1, pid=None, sink=scene.sink)
    for t in range(13):
        second.scrape(t, {"vllm:num_requests_running": 4, "vllm:num_requests_waiting": 0})
    evidence = Store.from_tables(scene.sink.tables(), open_body={"synthetic": False})
    document = analyze_store(evidence, SEALED, AnalyzeOptions())
    (section,) = (s for s in document.sections if s.id == "root_causes")
    blind = [str(s.values["unevaluated"]).rpartition(": ")[2] for s in section.statements]
    assert blind == ["R2b, R3, R4, R6, R7.", "R1, R2, R2b, R3, R4, R5, R6, R7."]


def test_an_engine_that_was_not_scraped_is_said_to_be() -> None:
    context = Traffic().scene().context()
    (run,) = context.engine_runs
    context.__dict__["engine_runs"] = [replace(run, state="refused", reason="not loopback", windows=())]
    (statement,) = root_causes.evaluate(context).statements
    assert "it was not scraped: not loopback" in filled(statement.text, statement.values)


def test_without_engines_the_section_is_not_evaluated() -> None:
    context = Traffic().scene().context()
    context.__dict__["engine_runs"] = []
    made = root_causes.evaluate(context)
    assert (made.state, made.reason) == ("not evaluated", "no inference engine was recorded")


def test_every_kind_has_a_sentence() -> None:
    assert set(get_args(Kind)) == set(root_causes.SENTENCES)
