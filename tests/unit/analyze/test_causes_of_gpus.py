"""Detectors whose cause is a state of the GPU: claimed where the state made a difference, not where it always was."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gpuaudit.analyze.finding import Chain
from tests.rule_scenes import clock_capped, gpu_error, gpu_shared, pcie_degraded, throttled
from tests.rule_scenes.gpu_shared import BEGIN, END, waits
from tests.rule_scenes.xid import event
from tests.scenes import T0, S, Scene
from tests.unit.analyze.test_causes_of_calls import chains, number, refused

MAKERS: dict[str, Callable[[Scene], Scene]] = {
    "gpu_shared": gpu_shared.shared, "throttled": throttled.hot, "clock_capped": clock_capped.capped,
    "pcie_degraded": pcie_degraded.narrow,
}  # fmt: skip


@pytest.fixture(scope="module", params=sorted(MAKERS))
def told(request: pytest.FixtureRequest) -> Chain:
    """The one chain of each detector's own scene."""
    (chain,) = chains(MAKERS[request.param](waits()), request.param)
    return chain


def test_a_state_in_which_calls_are_slow_more_often_explains_them(told: Chain) -> None:
    assert number(told, "explained") == number(told, "effect_time") > 0
    assert told.values["contrast"] == "16 of 166 of these calls that began then were slow, 0 of 834 of the others"
    assert told.subject["gpu"] == "GPU-0"
    assert sum(s.share.value or 0 for s in told.shares) == 1


@pytest.mark.parametrize("detector", sorted(MAKERS))
def test_slow_calls_at_another_time_are_not_explained(detector: str) -> None:
    assert chains(MAKERS[detector](waits((T0, BEGIN))), detector) == []


@pytest.mark.parametrize("detector", sorted(MAKERS))
def test_calls_that_are_as_often_slow_without_it_are_not_explained(detector: str) -> None:
    assert chains(MAKERS[detector](waits((T0, T0 + 60 * S))), detector) == []


def test_a_gpu_that_is_throttled_all_the_time_does_not_tell_calls_apart() -> None:
    assert chains(throttled.hot(waits(), T0, T0 + 60 * S), "throttled") == []


def test_a_call_that_does_not_wait_for_the_gpu_is_not_explained_by_it() -> None:
    scene = waits()
    for row in scene.rows["cuda_calls"]:
        row["op"] = "cudaMalloc"
    assert chains(throttled.hot(scene), "throttled") == []


def test_another_mig_instance_is_another_gpu() -> None:
    scene = gpu_shared.shared(waits(), other={"gpu_instance": 2}, mine={"gpu_instance": 1})
    assert chains(scene, "gpu_shared") == []


def test_a_process_that_is_only_listed_did_not_run() -> None:
    scene = gpu_shared.shared(waits(), other={"sm_utilization_percent": 0})
    assert chains(scene, "gpu_shared") == []
    scene = gpu_shared.shared(
        waits(), other={"sm_utilization_percent": None}, mine={"sm_utilization_percent": None}
    )  # fmt: skip
    assert "utilisation of any process" in refused(scene, "gpu_shared")


def test_without_reasons_nothing_is_clear() -> None:
    scene = waits().samples(BEGIN, END, pids=[7], event_reasons=None)
    assert "no clock event reasons" in refused(scene, "throttled")


@pytest.mark.parametrize("detector", ["clock_capped", "pcie_degraded"])
def test_a_setting_or_a_link_that_is_so_all_the_time_does_not_tell_calls_apart(detector: str) -> None:
    make = {"clock_capped": clock_capped.capped, "pcie_degraded": pcie_degraded.narrow}[detector]
    assert chains(make(waits(), T0, T0 + 60 * S), detector) == []


def test_a_narrow_link_does_not_slow_what_is_no_copy() -> None:
    scene = pcie_degraded.narrow(waits())
    for row in scene.rows["cuda_calls"]:
        row["op"] = "cudaStreamSynchronize"
    assert chains(scene, "pcie_degraded") == []


def test_an_xid_inside_a_call_explains_what_follows_it() -> None:
    (chain,) = chains(gpu_error.scenes()[0], "gpu_error")
    assert chain.values["culprit"] == "XID 79"
    assert number(chain, "effect_time") == 20 * S
    assert number(chain, "explained") == 15 * S
    assert chains(event(gpu_error.hanging(), 79, gpu_error.BACK + S), "gpu_error") == []
    assert chains(event(gpu_error.hanging(), 79, gpu_error.HANG + S, gpu=1), "gpu_error") == []
    assert chains(event(gpu_error.hanging(), 74, gpu_error.HANG + S), "gpu_error") == [], "NVLink: fabric_error"


def test_memory_errors_count_between_readings_that_both_lie_in_the_call() -> None:
    (chain,) = chains(gpu_error.scenes()[1], "gpu_error")
    assert (chain.text, number(chain, "explained") == 5 * S) == ("ecc", True)
    outside = gpu_error.hanging(ecc_uncorrected_volatile=lambda at: int(at >= T0 + 43 * S))
    assert chains(outside, "gpu_error") == []
