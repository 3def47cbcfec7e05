"""Rooflines against worked examples: knees, GPM, decode, prefill, and copies against their link."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from gpuaudit.analyze.catalogue import Catalogue
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Quantity
from gpuaudit.analyze.inference.baseline import Baseline, Site, baseline
from gpuaudit.analyze.inference.model import EngineRun, Latency, RunTotals
from gpuaudit.analyze.inference.model_facts import Recorded, model_facts
from gpuaudit.analyze.roofline import Point, engine_points, gpm_points, gpu_rows, roofs
from gpuaudit.analyze.sections import roofline as section
from gpuaudit.analyze.transfers import LANE_BYTES_PER_S, read_transfers
from tests.scenes import MS, T0, S, Scene, collectives

F = Fraction
H100 = "NVIDIA H100 80GB HBM3"


def scene(name: str = H100, pids: tuple[int, ...] = (7,)) -> Scene:
    out = Scene().clock().samples(T0, T0 + 4 * S, pids=pids)
    out.open_body["gpus"] = [{"index": 0, "uuid": "GPU-0", "name": name, "driver": "1"}]
    return out


def gpm(s: Scene, at: int, **percent: float | None) -> Scene:
    return s.add(
        "gpm_samples", start_ns=T0 + at * S, duration_ns=S, gpu_index=0, gpu_uuid="GPU-0", unavailable="", **percent
    )


def by_pid(points: list[Point]) -> dict[str, Point]:
    return {p.pid: p for p in points}


@pytest.mark.parametrize(("name", "knee"), [(H100, 295.22), ("NVIDIA A100-SXM4-80GB", 153.02)])
def test_knees_of_the_reference(name: str, knee: float) -> None:
    row = Catalogue.load().gpu(name)
    assert row is not None
    bf16 = next(r for r in roofs(row) if r.dtype == "bf16")
    assert float(bf16.knee) == pytest.approx(knee, abs=0.005)
    assert bf16.provenance == "estimated"
    assert bf16.attainable(F(1)) == bf16.bandwidth
    assert bf16.attainable(bf16.knee) == bf16.attainable(bf16.knee * 2) == bf16.flops


def test_a_type_that_the_gpu_does_not_have_has_no_roof() -> None:
    row = Catalogue.load().gpu("NVIDIA A100-SXM4-80GB")
    assert row is not None
    assert "fp8" not in {r.dtype for r in roofs(row)}


def test_gpm_gives_rate_traffic_and_intensity() -> None:
    """Tensor pipe 20 % and 40 % in one second each: 30 % of 989 TFLOP/s, over half of 3,350 GB/s."""
    s = gpm(scene(), 0, tensor_half_percent=20.0, dram_bandwidth_percent=25.0)
    gpm(s, 1, tensor_half_percent=40.0, dram_bandwidth_percent=75.0)
    context = s.context()
    point = by_pid(gpm_points(context, gpu_rows(context)))[""]
    assert point.rate == F(3, 10) * 989 * 10**12
    assert point.traffic == F(1, 2) * 3350 * 10**9
    assert point.intensity == F(3, 5) * F(989_000, 3350)
    assert point.bound == "memory"
    assert point.of_attainable == F(3, 10) * 989 * 10**12 / (point.intensity * 3350 * 10**9)


def test_the_point_of_a_process_is_of_its_time_alone() -> None:
    s = Scene().clock().samples(T0, T0 + S, pids=[7]).samples(T0 + S, T0 + 2 * S, pids=[7, 8])
    s.open_body["gpus"] = scene().open_body["gpus"]
    gpm(s, 0, tensor_half_percent=20.0, dram_bandwidth_percent=25.0)
    gpm(s, 1, tensor_half_percent=40.0, dram_bandwidth_percent=75.0)
    context = s.context()
    points = by_pid(gpm_points(context, gpu_rows(context)))
    assert points["7"].rate == F(1, 5) * 989 * 10**12
    assert points["8"].rate is None
    assert points["8"].reason == "the process never had the GPU to itself"


def test_the_point_of_a_rank_names_its_shard() -> None:
    s = gpm(collectives("asynchronous", ranks=2, steps=4, scene=scene(pids=(101,))), 0, tensor_half_percent=20.0,
            dram_bandwidth_percent=25.0)  # fmt: skip
    context = s.context()
    point = by_pid(gpm_points(context, gpu_rows(context)))["101"]
    assert point.rate == F(1, 5) * 989 * 10**12
    assert point.shard == "rank 1 of 2 (5eed000000000001)"


@pytest.mark.parametrize(
    ("percent", "reason"),
    [
        ({"dram_bandwidth_percent": 20.0}, "no tensor pipe activity"),
        ({"tensor_half_percent": 20.0}, "no DRAM activity"),
        ({}, "no DRAM activity"),
    ],
)
def test_half_a_point_is_none(percent: dict[str, float], reason: str) -> None:
    context = gpm(scene(), 0, **percent).context()
    point = by_pid(gpm_points(context, gpu_rows(context)))[""]
    assert point.rate is None
    assert reason in point.reason


def test_work_without_traffic_has_no_intensity() -> None:
    context = gpm(scene(), 0, tensor_half_percent=20.0, dram_bandwidth_percent=0.0).context()
    point = by_pid(gpm_points(context, gpu_rows(context)))[""]
    assert (point.intensity, point.of_attainable, point.bound) == (None, None, "")


def test_a_gpu_that_is_not_in_the_catalogue_has_no_point() -> None:
    context = gpm(scene("NVIDIA X999"), 0, tensor_half_percent=20.0, dram_bandwidth_percent=25.0).context()
    (point,) = gpm_points(context, gpu_rows(context))
    assert point.reason == "the GPU is not in the catalogue"


def llama(tp: int = 1, model: str = "meta-llama/Llama-3.1-8B-Instruct") -> Baseline:
    catalogue = Catalogue.load()
    facts = model_facts(
        [Recorded("model", model, "/v1/models"), Recorded("dtype", "bfloat16", "/server_info")], catalogue
    )
    made = baseline(catalogue.gpu(H100), facts, Site(H100, tp, tp, 80 << 30, None, 512, 8192))
    assert isinstance(made, Baseline)
    return made


def run(base: Baseline | None, **totals: Any) -> EngineRun:
    told: dict[str, Any] = {
        "generation_tps": F(2000), "prompt_tps": F(5120), "running": F(40), "prompt_size": Latency(F(512)),
        "generation_size": Latency(F(200)), **totals,
    }  # fmt: skip
    return EngineRun(0, "vllm", pid=7, gpus=("GPU-0",), totals=RunTotals(**told), ceiling=base)


P, KV, C = 8 * 10**9, 131_072, 2 * 4096 * 32
"""Parameters, bytes of cache per token (2·32 layers·8 heads·128·2 bytes), and c·L, of Llama 3 8B in the catalogue."""


def test_decode_reads_weights_once_per_step_and_every_cache() -> None:
    decode, _ = engine_points(run(llama()))
    length = 512 + 100
    assert decode.rate == 2000 * (2 * P + 2 * C * length)
    assert decode.traffic == F(2000, 40) * (2 * P + 40 * length * KV)
    assert decode.intensity == F(40 * (2 * P + 2 * C * length), 2 * P + 40 * length * KV)
    assert decode.bound == "memory"
    assert decode.provenance == "estimated"


def test_prefill_is_one_prompt_per_pass_less_what_was_cached() -> None:
    _, prefill = engine_points(run(llama(), prefix_hit_share=F(1, 4)))
    flop = 2 * P * 512 + C * 512**2
    assert prefill.rate == 10 * F(3, 4) * flop
    assert prefill.traffic == 10 * F(3, 4) * (2 * P + 512 * KV)
    assert prefill.bound == "compute"


def test_each_of_two_gpus_does_half() -> None:
    one, two = engine_points(run(llama())), engine_points(run(llama(2)))
    for a, b in zip(one, two, strict=True):
        assert a.rate is not None
        assert b.rate is not None
        assert b.rate * 2 == a.rate
        assert a.intensity == b.intensity
        assert b.shard == "engine 0, one of 2 shards"


def test_fewer_than_one_running_still_reads_all_weights_for_a_token() -> None:
    decode, _ = engine_points(run(llama(), running=F(1, 10)))
    assert decode.intensity == F(2 * P + 2 * C * 612, 2 * P + 612 * KV)


def test_a_mixture_reads_the_experts_that_a_batch_touches() -> None:
    """Mixtral 8x7B: a batch of one reads 13 B parameters, a batch of 40 nearly all 47 B, not 40 × 13 B."""
    base = llama(2, "mistralai/Mixtral-8x7B-Instruct-v0.1")
    small, large = base.weight_read_bytes(1), base.weight_read_bytes(40)
    assert small is not None
    assert large is not None
    assert small == 2 * 13 * 10**9
    assert F(46, 47) < large / (2 * 47 * 10**9) <= 1
    decode, _ = engine_points(run(base))
    assert decode.traffic is not None
    assert decode.traffic > F(2000, 40) * F(46, 47) * 47 * 10**9


@pytest.mark.parametrize(
    ("totals", "reason"),
    [
        ({"generation_tps": None}, "its rate of tokens was not recorded"),
        ({"generation_tps": F(0)}, "no token was generated in an active window"),
        ({"running": None}, "its running requests"),
        ({"generation_size": Latency()}, "length of its prompts and outputs"),
    ],
)
def test_decode_without_an_input_is_not_told(totals: dict[str, Any], reason: str) -> None:
    decode, _ = engine_points(run(llama(), **totals))
    assert decode.rate is None
    assert reason in decode.reason


def test_an_engine_without_ceilings_is_not_told() -> None:
    made = replace(run(None), ceiling_reason="GPU not in catalogue: 'X'")
    assert [p.reason for p in engine_points(made)] == ["GPU not in catalogue: 'X'"] * 2


def test_lanes_of_every_generation() -> None:
    """Published one-direction rates of x16, GB/s: 4, 8, 15.75, 31.5, 63, 118."""
    told = [round(float(LANE_BYTES_PER_S[g] * 16 / 10**9), 2) for g in range(1, 7)]
    assert told == [4.0, 8.0, 15.75, 31.51, 63.02, 118.0]


def test_blocking_copies_against_their_link() -> None:
    s = scene()
    for i in range(4):
        s.cuda(7, "cudaMemcpy", T0 + i * S, 100 * MS, size_bytes=10**9, direction=1)
        s.cuda(7, "cudaMemcpyAsync", T0 + i * S + 500 * MS, MS, size_bytes=10**9, direction=2, stream=1)
    for row in s.rows["nvml_samples"]:
        row |= {"pcie_generation": 1 if row["start_ns"] < T0 + S else 4, "pcie_width": 16}
    up, down = read_transfers(s.context())
    assert (up.direction, up.copies, up.bytes, up.link) == ("host to device", 4, 4 * 10**9, "PCIe 4 x16")
    assert up.rate == 10**10
    assert up.of_link == F(10**10) / (LANE_BYTES_PER_S[4] * 16)
    assert (down.rate, down.of_link, down.bytes) == (None, None, 4 * 10**9)


def test_copies_of_a_process_on_several_gpus_have_no_link() -> None:
    s = scene().samples(T0, T0 + S, 1, [7], pcie_generation=4, pcie_width=16)
    s.cuda(7, "cudaMemcpy", T0, MS, size_bytes=5, direction=1)
    (t,) = read_transfers(s.context())
    assert t.link_bytes_per_s is None
    assert "held several GPUs" in t.reason


def with_engine(context: Context, made: EngineRun) -> Context:
    context.engine_runs = [made]
    return context


def test_the_section_has_every_point_with_numerator_and_denominator() -> None:
    s = gpm(scene(), 0, tensor_half_percent=20.0, dram_bandwidth_percent=25.0)
    made = section.evaluate(with_engine(s.context(), run(llama())))
    assert made.state == "evaluated"
    points = next(t for t in made.tables if t.id == "points")
    names = [n for n, _ in points.columns]
    (chart,) = made.charts
    assert len(chart.data["points"]) == 4
    for cells in points.rows:
        row = dict(zip(names, cells, strict=True))
        rate, traffic, intensity = row["rate"], row["traffic"], row["intensity"]
        assert isinstance(rate, Quantity)
        assert isinstance(traffic, Quantity)
        assert rate.value is not None
        assert traffic.value
        assert rate.formula
        assert traffic.formula
        assert isinstance(intensity, Quantity)
        assert intensity.provenance == "estimated"
        assert intensity.evidence
    assert [c["label"] for c in chart.data["ceilings"]] == [
        f"H100 SXM, {types} dense (est)" for types in ("bf16", "fp8, int8", "tf32", "fp64")
    ]  # two types with one peak are one roof
    assert len({c["flops"] for c in chart.data["ceilings"]}) == 4
    roofs_told = next(t for t in made.tables if t.id == "roofs")
    assert [r[1] for r in roofs_told.rows] == ["bf16", "fp8", "int8", "tf32", "fp64"]


def test_a_section_without_anything_is_not_evaluated() -> None:
    made = section.evaluate(Scene().clock().context())
    assert (made.state, made.reason, made.charts) == (
        "not evaluated", "no GPU was sampled and no engine was scraped", ()
    )  # fmt: skip


def test_roofs_that_the_chart_has_no_room_for_are_told() -> None:
    row = Catalogue.load().gpu(H100)
    assert row is not None
    many = [replace(r, gpu=f"G{i}") for i in range(4) for r in roofs(row)]
    told = [Point("0 (GPU-0)", "", "", "w", F(1), F(1), r, "n", "d") for r in many]
    (chart,) = section._charts(many, told)
    assert (len(chart.data["ceilings"]), len(chart.data["points"])) == (12, 20)
    assert chart.title == "Rate against intensity; 4 roofs and 0 points stand in the tables alone"
