"""The waste ledger, part by part, on scenes worked out by hand."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from gpuaudit.analyze.finding import Document, number_from_json
from gpuaudit.analyze.run import AnalyzeOptions, analyze_store
from tests.scenes import MS, T0, S, Scene, collectives
from tests.verifications import SEALED

Q = dict[str, Any]


def number(q: Q) -> Fraction:
    value = number_from_json(q["value"])
    assert value is not None
    return Fraction(value)


def parts(scene: Scene) -> dict[str, Fraction]:
    return {r["key"]: number(r["gpu_time"]) for r in scene.document().waste["by_key"]}


def bounds(scene: Scene) -> dict[str, tuple[Fraction | int, Fraction | int]]:
    return {r["key"]: (number(r["low"]), number(r["high"])) for r in scene.document().waste["by_key"]}


def test_busy_and_idle_shares_of_a_sample() -> None:
    scene = Scene().clock().samples(T0, T0 + 60 * S, pids=[7], gpu_utilization_percent=75)
    assert parts(scene) == {"useful": 45 * S, "idle_allocated": 15 * S}
    assert bounds(scene) == {"useful": (45 * S, 45 * S), "idle_allocated": (15 * S, 15 * S)}


def test_nobody_on_the_gpu() -> None:
    scene = Scene().clock().samples(T0, T0 + 60 * S, gpu_utilization_percent=0)
    assert parts(scene) == {"idle_unallocated": 60 * S}


def test_blocked_in_half_of_a_half_busy_minute() -> None:
    """30 s blocked in 60 s at 50 %: 15 s of idle are expected in it, between 0 and 30 s are possible."""
    scene = Scene().clock().samples(T0, T0 + 60 * S, pids=[7], gpu_utilization_percent=50)
    scene.cuda(7, "cudaDeviceSynchronize", T0 + 10 * S, 30 * S)
    assert parts(scene) == {"useful": 30 * S, "host_blocked": 15 * S, "idle_allocated": 15 * S}
    assert bounds(scene)["host_blocked"] == (0, 30 * S)


def test_a_thread_that_gave_no_work() -> None:
    scene = Scene().clock().samples(T0, T0 + 60 * S, pids=[7], gpu_utilization_percent=0)
    scene.cuda(7, "cudaLaunchKernel", T0 + 10 * S, S).cuda(7, "cudaLaunchKernel", T0 + 30 * S, S)
    assert parts(scene) == {"starved": 19 * S, "idle_allocated": 41 * S}


def test_lost_calls_starve_nobody() -> None:
    scene = Scene().clock().samples(T0, T0 + 60 * S, pids=[7], gpu_utilization_percent=0)
    scene.cuda(7, "cudaLaunchKernel", T0 + 10 * S, S).cuda(7, "cudaLaunchKernel", T0 + 30 * S, S)
    scene.lost["cuda_calls"] = 1
    assert parts(scene) == {"idle_allocated": 60 * S}


def test_peers_wait_for_the_late_rank_also_while_their_kernels_spin() -> None:
    """Rank 1 of 4 comes 40 ms late, 8 times: the others wait from their call to its, on GPUs that are fully busy."""
    scene = collectives("blocking", ranks=4, steps=8, late={1: 40 * MS}, gap=100 * MS)
    came = {(r["pid"], i // 4): r["start_ns"] for i, r in enumerate(scene.rows["nccl_calls"])}
    waited = sum(came[101, step] - came[pid, step] for pid in (100, 102, 103) for step in range(8))
    for gpu in range(4):
        scene.samples(T0, T0 + 2 * S, gpu, [100 + gpu], gpu_utilization_percent=100)
    told = parts(scene)
    assert told["waiting_for_peers"] == waited
    assert told["useful"] == sum(told.values()) - waited == 4 * 2 * S - waited
    rows = [r for r in scene.document().waste["rows"] if r["key"] == "waiting_for_peers"]
    assert {r["pid"] for r in rows if number(r["gpu_time"])} == {100, 102, 103}, "the late rank waits for nobody"


def test_throttled_is_the_missing_clock() -> None:
    scene = (
        Scene()
        .clock()
        .samples(
            T0,
            T0 + 60 * S,
            pids=[7],
            gpu_utilization_percent=80,
            event_reasons=4,
            clock_sm_mhz=990,
            clock_sm_max_mhz=1980,
        )
    )
    assert parts(scene) == {"useful": 24 * S, "throttled": 24 * S, "idle_allocated": 12 * S}


def test_throttled_without_a_clock_is_not_classified() -> None:
    scene = (
        Scene()
        .clock()
        .samples(T0, T0 + 60 * S, pids=[7], gpu_utilization_percent=80, event_reasons=4, clock_sm_mhz=None)
    )
    assert parts(scene) == {"not_classified": 48 * S, "throttled": 0, "idle_allocated": 12 * S}
    assert bounds(scene)["throttled"] == (0, 48 * S)


def test_headroom_against_the_wall_is_not_called_avoidable() -> None:
    scene = Scene().clock().samples(T0, T0 + 60 * S, pids=[7], gpu_utilization_percent=100)
    scene.add(
        "gpm_samples", start_ns=T0, duration_ns=60 * S, gpu_index=0, gpu_uuid="GPU-0", unavailable="",
        dram_bandwidth_percent=80.0, tensor_percent=20.0,
    )  # fmt: skip
    assert number(scene.document().waste["total"]["gpu_time"]) == 0


def test_a_projection_has_the_bounds_of_its_parts() -> None:
    scene = half_idle()
    scene.rows["nvml_samples"][0] |= {"event_reasons": None}  # whether it was throttled then is not known
    told = analyze_store(scene.store(), SEALED, AnalyzeOptions(rate=Decimal(4), duty_cycle=Fraction(1))).waste
    projection = told["projection"]
    assert number(projection["month_low"]) == number(projection["month"]) < number(projection["month_high"])
    assert number(told["total"]["money_high"]) > number(told["total"]["money"])


def test_memory_bound_needs_gpm_and_a_wall() -> None:
    def scene(dram: float, pipe: float | None) -> Scene:
        out = Scene().clock().samples(T0, T0 + 60 * S, pids=[7], gpu_utilization_percent=100)
        return out.add(
            "gpm_samples", start_ns=T0, duration_ns=30 * S, gpu_index=0, gpu_uuid="GPU-0", unavailable="",
            dram_bandwidth_percent=dram, tensor_percent=pipe,
        )  # fmt: skip

    assert parts(scene(80.0, 20.0)) == {"memory_bound": 24 * S, "useful": 36 * S}
    assert bounds(scene(80.0, 20.0))["memory_bound"] == (0, 30 * S)
    for dram, pipe in ((59.0, 20.0), (80.0, 90.0), (80.0, None)):
        assert parts(scene(dram, pipe)) == {"useful": 60 * S}


def test_a_spare_gpu_of_a_process_is_over_allocated() -> None:
    scene = Scene().clock().samples(T0, T0 + 60 * S, 0, pids=[7], gpu_utilization_percent=100)
    scene.samples(T0, T0 + 60 * S, 1, pids=[7], gpu_utilization_percent=0)
    assert parts(scene) == {"useful": 60 * S, "over_allocated": 60 * S}


def test_no_utilisation_is_not_classified() -> None:
    scene = Scene().clock().samples(T0, T0 + 60 * S, pids=[7], gpu_utilization_percent=None)
    assert parts(scene) == {"not_classified": 60 * S}


def half_idle(name: str = "NVIDIA H100 80GB HBM3") -> Scene:
    scene = Scene().clock().samples(T0, T0 + 60 * S, pids=[7], gpu_utilization_percent=50)
    scene.open_body["gpus"] = [{"index": 0, "uuid": "GPU-0", "name": name, "driver": "1"}]
    return scene


def analyzed(options: AnalyzeOptions) -> Document:
    return analyze_store(half_idle().store(), SEALED, options)


def test_money_of_a_rate_is_assumed_and_labelled() -> None:
    waste = analyzed(AnalyzeOptions(rate=Decimal("7.20"), currency="EUR")).waste
    assert number(waste["total"]["money"]) == Fraction(72, 10) * 30 / 3600
    assert waste["total"]["money"]["provenance"] == "assumed"
    assert waste["total"]["money"]["unit"] == "EUR"
    assert waste["prices"] == ["rate given by the user: 7.20 EUR per GPU-hour"]


def test_money_without_a_rate_is_the_catalogues_estimate_with_its_date() -> None:
    waste = half_idle().document().waste
    assert waste["total"]["money"]["provenance"] == "estimated"
    (label,) = waste["prices"]
    assert label.startswith("catalogue price of 20")
    assert "(est" in label
    assert waste["rate"] is None


def test_a_gpu_that_nobody_knows_has_no_price() -> None:
    waste = half_idle("Frobnicator 9000").document().waste
    assert waste["total"]["money"] is None
    assert (waste["prices"], waste["currency"]) == ([], "")


def test_a_month_is_projected_only_with_a_stated_duty_cycle() -> None:
    rate = Decimal(4)
    assert analyzed(AnalyzeOptions(rate=rate)).waste["projection"] is None
    told = analyzed(AnalyzeOptions(rate=rate, duty_cycle=Fraction(1, 2))).waste["projection"]
    assert number(told["month"]) == 4 * Fraction(1, 2) * 730 * Fraction(1, 2)
    assert number(told["year"]) == 4 * Fraction(1, 2) * 8760 * Fraction(1, 2)
    assert number(told["month_low"]) == number(told["month"]) == number(told["month_high"])  # no doubt about idle time
    assert number(told["duty_cycle"]) == Fraction(1, 2)
    assert 0 < number(told["coverage"]) <= 1


@pytest.mark.parametrize("key", ["low", "high", "gpu_time"])
def test_every_amount_has_evidence(key: str) -> None:
    waste = half_idle().document().waste
    assert all(r[key]["evidence"] for r in [*waste["rows"], *waste["by_key"], waste["total"]])


def evidence(scene: Scene, key: str) -> list[str]:
    """Tables and conditions of the rows that a part rests on."""
    document = scene.document()
    (row,) = (r for r in document.waste["rows"] if r["key"] == key)
    queries = {e["id"]: e["query"] for e in document.to_json()["evidence"]}
    return [queries[i] for i in row["gpu_time"]["evidence"]]


def test_a_part_rests_on_what_told_it_from_the_parts_before() -> None:
    """Idle time of no known reason is what the host's calls leave; a spare GPU is one because another was busy."""
    scene = Scene().clock().samples(T0, T0 + 60 * S, pids=[7], gpu_utilization_percent=0)
    scene.cuda(7, "cudaLaunchKernel", T0 + 10 * S, S).cuda(7, "cudaLaunchKernel", T0 + 30 * S, S)
    assert any("FROM cuda_calls" in q for q in evidence(scene, "idle_allocated"))
    two = Scene().clock().samples(T0, T0 + 60 * S, pids=[7], gpu_utilization_percent=0)
    two.samples(T0, T0 + 60 * S, gpu=1, pids=[7], gpu_utilization_percent=90)
    found = [q for q in evidence(two, "over_allocated") if "FROM nvml_samples" in q]
    assert any("GPU-1" in q for q in found)
    assert any("GPU-0" in q for q in found)


def test_a_mig_device_adds_no_time_to_its_gpu() -> None:
    """Its rows are neither time of their own nor evidence of the time that was observed."""
    scene = Scene().clock().sample(T0, 10 * S, 0, [7], gpu_utilization_percent=40)
    alone = scene.document().waste
    scene.add(
        "nvml_samples", start_ns=T0, duration_ns=10 * S, gpu_index=0, gpu_uuid="MIG-1", parent_uuid="GPU-0",
        gpu_instance=1, gpu_utilization_percent=None, unavailable="",
    )  # fmt: skip
    document = scene.document()
    assert document.waste["observed"]["value"] == alone["observed"]["value"] == str(10 * S)
    assert parts(scene) == {"useful": 4 * S, "idle_allocated": 6 * S}
    rows = {e["id"]: e["rows"] for e in document.to_json()["evidence"]}
    assert [rows[i] for i in document.waste["observed"]["evidence"]] == [1]
