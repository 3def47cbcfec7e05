"""API silence beside what NVML saw, reused process ids, and gaps: what the tool's own data would refute is not said."""

from __future__ import annotations

from gpuaudit.analyze.finding import Finding, Quantity
from tests.scenes import MS, T0, S, Scene, outcome


def busy_then_silent() -> Scene:
    scene = Scene().clock().process(7)
    for at in range(T0, T0 + 10 * S, S):
        scene.cuda(7, "cudaLaunchKernel", at, MS)
    return scene


def silence(scene: Scene) -> Finding:
    (finding,) = [f for f in scene.document().findings if f.rule == "api_silence"]
    return finding


def ns(finding: Finding, name: str) -> int | None:
    q = finding.values[name]
    assert isinstance(q, Quantity)
    return None if q.value is None else int(q.value)


def test_silence_while_the_gpu_works_on_is_told_and_is_a_notice() -> None:
    finding = silence(busy_then_silent().samples(T0, T0 + 60 * S, pids=[7]))
    assert (ns(finding, "gpu_busy"), ns(finding, "silent")) == (60 * S - 9 * S - MS, 60 * S - 9 * S - MS + 1_000)
    assert finding.severity == "notice"


def test_silence_on_an_idle_gpu_is_critical() -> None:
    finding = silence(busy_then_silent().samples(T0, T0 + 60 * S, pids=[7], gpu_utilization_percent=0))
    assert ns(finding, "gpu_busy") == 0
    assert finding.severity == "critical"


def test_silence_of_which_no_gpu_is_known_is_no_more_than_a_warning() -> None:
    finding = silence(busy_then_silent().samples(T0, T0 + 60 * S, pids=[8]))
    assert ns(finding, "gpu_busy") is None
    assert finding.severity == "warning"


def test_a_reused_process_id_was_not_silent_before_it_was_given_again() -> None:
    scene = busy_then_silent().process(7, op="exited", duration_ns=11 * S, seen_ns=T0 + 11 * S)
    scene.process(7, start_ns=T0 + 40 * S, seen_ns=T0 + 41 * S, comm="other")
    for at in range(T0 + 45 * S, T0 + 60 * S, S):
        scene.cuda(7, "cudaLaunchKernel", at, MS)
    document = scene.document()
    assert document.findings == []
    assert outcome(document, "api_silence").reason == "1 of 1 processes evaluated"


def test_a_silence_that_a_gap_ends_is_after_the_last_call() -> None:
    scene = busy_then_silent().add("gaps", start_ns=T0 + 30 * S, duration_ns=30 * S, source="cuda", reason="away")
    finding = silence(scene)
    assert finding.values["where"] == "after its last call"
    assert ns(finding, "longest") == 21 * S - MS


def test_a_process_that_was_seen_for_less_than_the_threshold_is_not_clear() -> None:
    scene = Scene().clock().process(7, duration_ns=4 * S).cuda(7, "cudaMalloc", T0, MS)
    found = outcome(scene.document(), "api_silence")
    assert found.state == "not evaluated"
    assert found.reason.startswith("0 of 1 processes evaluated; the others were observed for less than 5.00 s")
