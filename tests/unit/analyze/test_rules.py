"""The three rules: what they find, what they leave alone, and when they say that they could not look."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gpuaudit.analyze.context import Found, NotEvaluated
from gpuaudit.analyze.finding import Finding, Quantity
from gpuaudit.analyze.registry import plugins
from tests.scenes import MS, T0, S, Scene

RULES = {p.declaration.id: p.evaluate for p in plugins()}


def found(scene: Scene, rule: str) -> list[Finding]:
    outcome = RULES[rule](scene.context())
    assert isinstance(outcome, Found), outcome
    return [x for x in outcome.items if isinstance(x, Finding)]


def refused(scene: Scene, rule: str) -> str:
    outcome = RULES[rule](scene.context())
    assert isinstance(outcome, NotEvaluated), outcome
    return outcome.reason


def value(finding: Finding, name: str) -> int | Fraction | None:
    q = finding.values[name]
    assert isinstance(q, Quantity)
    return q.value


def gpu_scene(busy_s: int, idle_s: int, pids: tuple[int, ...] = (7,)) -> Scene:
    scene = Scene().clock().process(7)
    scene.samples(T0, T0 + busy_s * S, pids=pids)
    return scene.samples(T0 + busy_s * S, T0 + (busy_s + idle_s) * S, pids=pids, gpu_utilization_percent=0)


def test_idle_allocation_measures_the_stretch_and_its_denominator() -> None:
    (finding,) = found(gpu_scene(10, 20), "idle_allocation")
    assert (value(finding, "idle"), value(finding, "observed")) == (20 * S, 30 * S)
    assert value(finding, "share") == Fraction(2, 3)
    assert finding.subject["pid"] == "7"
    assert finding.severity == "critical"


def test_idle_allocation_leaves_short_pauses_alone() -> None:
    assert found(gpu_scene(10, 4), "idle_allocation") == []


def test_idle_allocation_needs_somebody_who_holds_the_gpu() -> None:
    assert found(gpu_scene(10, 20, pids=()), "idle_allocation") == []


def test_idle_allocation_never_counts_the_recorder_as_a_holder() -> None:
    scene = gpu_scene(10, 20)
    scene.rows["processes"][0]["role"] = "recorder"
    assert found(scene, "idle_allocation") == []


def test_idle_time_that_no_sample_covers_is_not_counted() -> None:
    scene = gpu_scene(10, 20)
    for table in ("nvml_samples", "nvml_processes"):
        scene.rows[table] = [r for r in scene.rows[table] if not T0 + 14 * S <= r["start_ns"] < T0 + 16 * S]
    (finding,) = found(scene, "idle_allocation")
    assert value(finding, "idle") == 14 * S  # the 4 s before the hole are below the threshold
    assert value(finding, "observed") == 28 * S


def test_utilisation_that_nvml_did_not_tell_is_not_idle() -> None:
    scene = gpu_scene(10, 20)
    for r in scene.rows["nvml_samples"]:
        r["gpu_utilization_percent"] = None
    assert "no utilisation" in refused(scene, "idle_allocation")


@pytest.mark.parametrize("rule", ["idle_allocation", "throttling"])
def test_without_nvml_the_rules_say_why(rule: str) -> None:
    scene = Scene().clock().process(7).cuda(7, "cudaMalloc", T0, MS)
    scene.open_body["sources"] = [{"source": "nvml", "state": "not available", "reason": "no libnvidia-ml.so.1"}]
    assert "no libnvidia-ml.so.1" in refused(scene, rule)


def test_throttling_names_each_reason_with_its_time() -> None:
    scene = Scene().clock()
    scene.samples(T0, T0 + 10 * S, event_reasons=0x4 | 0x1, clock_sm_mhz=1200, clock_sm_max_mhz=1980)
    scene.samples(T0 + 10 * S, T0 + 15 * S, event_reasons=0x4 | 0x40 | 0x8, clock_sm_mhz=900, clock_sm_max_mhz=1980)
    scene.samples(T0 + 15 * S, T0 + 40 * S, event_reasons=0x1 | 0x2, clock_sm_mhz=1980, clock_sm_max_mhz=1980)
    (finding,) = found(scene, "throttling")
    assert finding.values["reasons"] == "sw_power_cap, hw_slowdown, hw_thermal_slowdown"
    assert [value(finding, n) for n in ("sw_power_cap", "hw_slowdown", "hw_thermal_slowdown")] == [15 * S, 5 * S, 5 * S]
    assert (value(finding, "throttled"), value(finding, "observed")) == (15 * S, 40 * S)
    assert (value(finding, "clock"), value(finding, "clock_max")) == (1200, 1980)


def test_throttling_weighs_samples_by_the_time_they_stand_for() -> None:
    scene = Scene().clock().sample(T0, S, event_reasons=0x80).sample(T0 + S, 9 * S)
    (finding,) = found(scene, "throttling")
    assert value(finding, "share") == Fraction(1, 10)


@pytest.mark.parametrize("bits", [0x0, 0x1, 0x2, 0x10, 0x100])
def test_other_reasons_are_no_throttling(bits: int) -> None:
    assert found(Scene().clock().samples(T0, T0 + 10 * S, event_reasons=bits), "throttling") == []


def test_throttling_below_a_hundredth_is_noise() -> None:
    scene = Scene().clock(end=T0 + S).sample(T0, MS, event_reasons=0x4).sample(T0 + MS, S)
    assert found(scene, "throttling") == []


def busy_process(pid: int = 7, until: int = T0 + 10 * S) -> Scene:
    scene = Scene().clock().process(pid)
    for at in range(T0, until, S):
        scene.cuda(pid, "cudaLaunchKernel", at, MS)
    return scene


def test_silence_after_the_last_call_while_the_process_lives() -> None:
    (finding,) = found(busy_process(), "api_silence")
    assert value(finding, "silent") == value(finding, "longest") == 60 * S - 9 * S - MS + 1_000
    assert finding.values["where"] == "after its last call"
    assert finding.subject["pid"] == "7"


def test_silence_ends_with_the_process() -> None:
    scene = busy_process()
    scene.process(7, op="exited", duration_ns=12 * S, seen_ns=T0 + 11 * S)
    assert found(scene, "api_silence") == []


def test_silence_between_two_calls() -> None:
    scene = busy_process().cuda(7, "cudaMalloc", T0 + 57 * S, MS)
    (finding,) = found(scene, "api_silence")
    assert finding.values["where"] == "between two calls"


def test_a_process_inside_a_call_is_not_silent() -> None:
    scene = busy_process().cuda(7, "cudaStreamSynchronize", T0 + 10 * S, None)
    assert found(scene, "api_silence") == []


def test_a_process_of_which_nothing_is_known_after_its_last_call_is_not_silent() -> None:
    scene = busy_process()
    del scene.rows["processes"]
    assert found(scene, "api_silence") == []


def test_time_in_which_the_source_was_blind_is_not_silence() -> None:
    scene = busy_process().add(
        "gaps", start_ns=T0 + 9 * S, duration_ns=60 * S, source="cuda", reason="the recorder was stopped"
    )
    assert found(scene, "api_silence") == []


def test_time_in_which_records_were_lost_is_not_silence() -> None:
    scene = busy_process()
    scene.lost = {"cuda_calls": 5}
    for at, lost in ((T0, 0), (T0 + 9 * S, 0), (T0 + 59 * S, 5)):
        scene.add("losses", start_ns=at, duration_ns=0, table_name="cuda_calls", cpu=0, seen=100, written=95, lost=lost)
    assert found(scene, "api_silence") == []


def test_losses_at_unknown_times_forbid_the_question() -> None:
    scene = busy_process()
    scene.lost = {"cuda_calls": 5}
    assert "5 records were lost at times that are not known" in refused(scene, "api_silence")


@pytest.mark.parametrize("rule", ["api_silence", "idle_allocation"])
def test_a_capture_shorter_than_the_threshold_is_not_clear(rule: str) -> None:
    scene = Scene().clock(end=T0).process(7).cuda(7, "cudaMalloc", T0, MS).samples(T0, T0 + 4 * S)
    assert "less than the 5.00 s it takes" in refused(scene, rule)


def test_silence_of_a_process_without_calls_is_not_a_question() -> None:
    assert "no API call was recorded" in refused(Scene().clock().process(7), "api_silence")


def test_the_recorder_is_never_silent() -> None:
    scene = busy_process()
    scene.rows["processes"][0]["role"] = "attacher"
    assert "no API call was recorded" in refused(scene, "api_silence")


@pytest.mark.parametrize(("clock", "severity", "deficit"), [(1970, "notice", 15), (990, "critical", 1_500)])
def test_throttling_is_as_grave_as_the_clock_that_was_missing(clock: int, severity: str, deficit: int) -> None:
    """30 s under a power cap, at nearly the highest clock or at half of it."""
    scene = Scene().clock(end=T0 + 30 * S)
    scene.samples(T0, T0 + 30 * S, event_reasons=0x4, clock_sm_mhz=clock, clock_sm_max_mhz=1980)
    (finding,) = found(scene, "throttling")
    assert value(finding, "throttled") == 30 * S
    assert value(finding, "clock_deficit") == finding.impact.value == 30 * S * (1980 - clock) // 1980
    assert int(finding.impact.value or 0) // (10 * MS) == deficit
    assert finding.severity == severity


def test_throttling_without_a_clock_counts_its_whole_time() -> None:
    (finding,) = found(Scene().clock(end=T0 + 30 * S).samples(T0, T0 + 30 * S, event_reasons=0x4), "throttling")
    assert finding.impact.value == 30 * S
