"""What was not observed is never told as idle, silent or clear: suspended hosts, refused lists, samples elsewhere."""

from __future__ import annotations

from fractions import Fraction

from gpuaudit.analyze.explain import explain_document
from gpuaudit.analyze.finding import Document, Quantity
from tests.scenes import MS, T0, S, Scene, outcome


def suspended(until: int) -> Scene:
    """A host that slept from 20 s to 50 s: CLOCK_BOOTTIME counts it, CLOCK_MONOTONIC does not."""
    scene = Scene().process(7)
    for at in range(T0, T0 + until, 5 * S):
        away = 0 if at <= T0 + 20 * S else 30 * S
        if not T0 + 20 * S < at < T0 + 50 * S:
            scene.add("clock", start_ns=at, duration_ns=1_000, realtime_ns=at + 10**18, monotonic_ns=at - away)
    return scene


def by_key(document: Document) -> dict[str, int]:
    return {r["key"]: int(r["gpu_time"]["value"]) for r in document.waste["by_key"]}


def test_a_suspended_host_is_neither_idle_nor_silent() -> None:
    scene = suspended(61 * S)
    for at in (*range(T0, T0 + 20 * S, S), *range(T0 + 51 * S, T0 + 60 * S, S)):
        scene.cuda(7, "cudaLaunchKernel", at, MS)
    scene.samples(T0, T0 + 20 * S, pids=[7]).sample(T0 + 20 * S, 30 * S, 0, [7], gpu_utilization_percent=0)
    document = scene.samples(T0 + 50 * S, T0 + 60 * S, pids=[7]).document()
    assert document.findings == []
    assert document.waste["observed"]["value"] == str(30 * S - 1_000)  # less the width of the second reading
    assert any("suspended" in n for n in document.waste["notes"])


def test_a_refused_list_of_processes_is_not_an_empty_one() -> None:
    scene = (
        Scene()
        .clock()
        .samples(T0, T0 + 60 * S, gpu_utilization_percent=0, unavailable="power_mw=3,compute_processes=3")
    )
    document = scene.document()
    assert by_key(document) == {"not_classified": 60 * S}
    idle = outcome(document, "idle_allocation")
    assert (idle.state, "no list of processes" in idle.reason) == ("not evaluated", True)


def test_processes_listed_at_another_time_hold_nothing_now() -> None:
    scene = Scene().clock().samples(T0, T0 + 10 * S, gpu_utilization_percent=0)
    scene.add("nvml_processes", start_ns=T0 + 50 * S, duration_ns=S, gpu_index=0, gpu_uuid="GPU-0", pid=7, op="compute")
    assert set(by_key(scene.document())) == {"idle_unallocated"}


def test_a_gpu_that_was_listed_and_never_sampled_is_not_clear() -> None:
    scene = Scene().clock().samples(T0, T0 + 60 * S, pids=[7])
    scene.open_body["gpus"] = [{"index": i, "uuid": f"GPU-{i}", "name": "x", "driver": "1"} for i in range(2)]
    document = scene.document()
    for rule in ("idle_allocation", "throttling"):
        assert outcome(document, rule).state == "not evaluated"
        assert "1 of 2 GPUs evaluated" in outcome(document, rule).reason
        assert "cover 60.0 s of 120 s of GPU time" in outcome(document, rule).reason


def test_clear_is_not_said_for_a_hundredth_of_the_time() -> None:
    scene = (
        Scene()
        .clock()
        .sample(T0, S // 2, 0, [7])
        .samples(T0 + S // 2, T0 + 60 * S, pids=[7], gpu_utilization_percent=None, event_reasons=None)
    )
    document = scene.document()
    assert outcome(document, "idle_allocation").state == outcome(document, "throttling").state == "not evaluated"


def test_the_share_of_idle_time_is_of_the_time_for_which_utilisation_was_told() -> None:
    scene = Scene().clock().samples(T0, T0 + 10 * S, pids=[7], gpu_utilization_percent=0)
    scene.samples(T0 + 10 * S, T0 + 20 * S, pids=[7])
    scene.samples(T0 + 20 * S, T0 + 60 * S, pids=[7], gpu_utilization_percent=None)
    (finding,) = scene.document().findings
    share = finding.values["share"]
    assert isinstance(share, Quantity)
    assert share.value == Fraction(1, 2)


def test_a_busy_gpu_that_nobody_holds_is_not_said_to_be_shared() -> None:
    document = Scene().clock().samples(T0, T0 + 10 * S).document()
    assert not any("several processes" in n for n in document.waste["notes"])


def test_nothing_found_is_not_said_without_how_many_rules_looked() -> None:
    nothing = explain_document(Scene().clock().document(), 100)
    assert "Found: nothing, because no rule could be evaluated." in nothing
    document = Scene().clock().samples(T0, T0 + 60 * S).document()
    looked = sum(o.state == "clear" for o in document.outcomes)
    assert 2 <= looked < len(document.outcomes)
    said = f"Found: nothing. {looked} of {len(document.outcomes)} rules and detectors could be evaluated, without a"
    assert f"{said} finding." in explain_document(document, 100)
