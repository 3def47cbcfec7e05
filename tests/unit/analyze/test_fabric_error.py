"""Errors of NVLink inside collectives: events by their moment, counters only where both readings lie in the call."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gpuaudit.analyze.context import Found, NotEvaluated
from gpuaudit.analyze.finding import Chain, Quantity
from gpuaudit.analyze.registry import plugins
from tests.rule_scenes.fabric_error import LONG, event, on_gpus, readings, with_counters, with_event
from tests.rule_scenes.tcp_retransmits import PIDS, SLOW_STEP, begin, ranks
from tests.scenes import MS, S, Scene

EVALUATE = next(p.evaluate for p in plugins() if p.declaration.id == "fabric_error")
SLOW = begin(SLOW_STEP)


def chains(scene: Scene) -> list[Chain]:
    outcome = EVALUATE(scene.context())
    assert isinstance(outcome, Found), outcome
    return [c for c in outcome.items if isinstance(c, Chain)]


def number(chain: Chain, name: str) -> int | Fraction | None:
    q = chain.values[name]
    assert isinstance(q, Quantity)
    return q.value


def test_from_the_event_to_the_end_of_the_call_on_every_rank() -> None:
    found = chains(with_event())
    assert {c.subject["pid"]: c.impact.value for c in found} == {str(p): 300 * MS for p in PIDS}
    assert found[0].links[0].explained.value == Fraction(300, 400)
    assert found[0].values["what"] == "XID 74 of GPU 0 (GPU-0), NVLink error: the link, or the device at its other end"
    assert number(found[0], "events") == 1
    assert found[0].gain is not None
    assert found[0].gain.low.value == 0


def test_counted_errors_explain_the_time_between_their_readings() -> None:
    found = chains(with_counters())
    assert {c.impact.value for c in found} == {5 * S}
    assert found[0].links[0].explained.value == Fraction(5 * S, LONG)
    assert found[0].subject["link"] == "3"
    assert number(found[0], "errors") == 2


@pytest.mark.parametrize("low", [-S, 9 * S])
def test_readings_of_which_one_lies_outside_say_nothing(low: int) -> None:
    """The errors may have been counted before the call, or after it."""
    scene = on_gpus(ranks(steps=SLOW_STEP + 1, slow=LONG))
    assert chains(readings(scene, {SLOW + low: 0, SLOW + low + 5 * S: 7})) == []


def test_a_counter_that_began_anew_is_no_error() -> None:
    scene = on_gpus(ranks(steps=SLOW_STEP + 1, slow=LONG))
    assert chains(readings(scene, {SLOW + S: 7, SLOW + 6 * S: 0})) == []


@pytest.mark.parametrize(
    ("at", "gpu", "xid"),
    [(-MS, 0, 74), (401 * MS, 0, 74), (100 * MS, 5, 74), (100 * MS, 0, 31), (100 * MS, 0, 137)],
    ids=["before", "after", "another GPU", "a fault of the application", "an illegal access over NVLink"],
)
def test_twins_that_are_no_cause(at: int, gpu: int, xid: int) -> None:
    scene = event(on_gpus(ranks(slow=400 * MS)), SLOW + at, gpu=gpu, number=xid)
    assert chains(scene) == []


def test_without_gpus_and_events_it_is_not_evaluated() -> None:
    outcome = EVALUATE(ranks().context())
    assert outcome == NotEvaluated("neither events nor links of a GPU were recorded")


def test_errors_of_gpus_whose_processes_are_not_known_are_not_clear() -> None:
    scene = with_event()
    del scene.rows["nvml_processes"]
    outcome = EVALUATE(scene.context())
    assert isinstance(outcome, NotEvaluated)
    assert "whose GPU had errors is not known" in outcome.reason


def test_listened_and_heard_nothing() -> None:
    assert chains(on_gpus(ranks())) == []
