"""Launch-bound streams: gaps in which the host did nothing but launch, and gaps of other kinds."""

from __future__ import annotations

from tests.rule_scenes.launch_bound import stream
from tests.scenes import MS, US
from tests.unit.analyze.test_causes_of_calls import chains, number


def test_gaps_between_short_kernels_are_the_hosts_and_the_pause_is_not() -> None:
    (chain,) = chains(stream(), "launch_bound")
    assert number(chain, "gaps") == 2 * 399
    assert number(chain, "explained") == 2 * 399 * 15 * US
    assert number(chain, "effect_time") == 2 * 399 * 15 * US + 10 * MS + 15 * US
    assert number(chain, "kernel") == 5 * US
    assert number(chain, "pace") == 20 * US
    assert "CUDA graph" in chain.experiment


def test_a_gpu_that_is_behind_its_host_has_no_such_gap() -> None:
    assert chains(stream(kernel=30 * US), "launch_bound") == []


def test_a_host_that_does_something_else_between_launches_is_not_bound_by_them() -> None:
    assert chains(stream(pace=200 * US), "launch_bound") == []


def test_work_whose_call_is_not_in_the_recording_is_not_judged() -> None:
    scene = stream()
    for row in scene.rows["cuda_calls"]:
        row["correlation"] = None
    assert chains(scene, "launch_bound") == []


def test_work_that_was_queued_before_the_gap_did_not_wait_for_its_host() -> None:
    scene = stream()
    for row in scene.rows["cuda_calls"]:
        row["start_ns"] -= 25 * US
    assert chains(scene, "launch_bound") == []
