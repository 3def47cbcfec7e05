"""Recordings that do not tell in what state a thread left its CPU: a detector that must know has not looked."""

from __future__ import annotations

from typing import Any

import pytest

from gpuaudit.analyze.context import Found, NotEvaluated
from tests.rule_scenes.slow import AT, MS, launches, off

NOT_TOLD: dict[str, Any] = {"op": "off", "prev_state": None, "next_pid": None, "next_tid": None, "next_comm": None}


@pytest.mark.parametrize("detector", ["preempted", "lock_wait", "irq_load"])
def test_whether_it_was_preempted_or_slept_is_not_known(detector: str) -> None:
    outcome = off(launches(), AT, 20 * MS, **NOT_TOLD).context().causal.outcomes[detector]
    assert isinstance(outcome, NotEvaluated)
    assert outcome.reason == "in what state threads left their CPUs was not recorded"


def test_wake_ups_tell_of_waits_for_a_cpu_and_of_nothing_else() -> None:
    scene = off(launches(), AT, 20 * MS, **NOT_TOLD, wake_ns=AT + MS)
    scene.rows["off_cpu"][0]["runqueue_ns"] = 19 * MS
    found = scene.context().causal
    assert [(c.detector, c.impact.value) for c in found.chains] == [("preempted", 19 * MS)]
    assert isinstance(found.outcomes["preempted"], Found)
    assert isinstance(found.outcomes["lock_wait"], NotEvaluated)
