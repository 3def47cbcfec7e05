"""VRAM topology: parts add up to NVML's number to the byte, whatever is claimed, and nothing unknown is hidden."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gpuaudit.analyze import vram
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Quantity
from gpuaudit.analyze.inference.dtypes import KvElement, WeightType
from gpuaudit.analyze.inference.memory import KvShape
from gpuaudit.analyze.inference.model import EngineRun, RunTotals, Setting
from gpuaudit.analyze.inference.model_facts import Fact, ModelFacts
from gpuaudit.analyze.reclaimable import KV_CONDITION, read_reclaimable
from gpuaudit.analyze.sections import vram as section
from gpuaudit.analyze.vram import Claim, Holding, Topology, fitted, read_topologies
from tests.scenes import MS, T0, S, Scene
from tests.unit.analyze.test_residency import server

MIB, GIB = 1 << 20, 1 << 30
SAMPLE = ("nvml_samples", "true")

claims = st.builds(
    Claim, st.sampled_from([vram.WEIGHTS, vram.KV_CACHE, vram.ALLOCATIONS]), st.just("bf16"), st.integers(0, 120),
    st.just("estimated"), st.just("x"), st.just(()),
)  # fmt: skip
holdings = st.lists(
    st.builds(Holding, st.integers(1, 5), st.none() | st.integers(0, 120), st.lists(claims, max_size=3).map(tuple)),
    max_size=4,
)


@given(st.integers(0, 100), st.none() | st.integers(0, 20), holdings)
def test_parts_are_never_negative_and_add_up(used: int, reserved: int | None, held: list[Holding]) -> None:
    parts = fitted(used, reserved, held, SAMPLE)
    assert sum(p.bytes for p in parts) == used + (reserved or 0)
    assert all(p.bytes >= 0 and p.cut >= 0 for p in parts)
    assert [p.category for p in parts[-2:]] == [vram.UNATTRIBUTED, vram.DRIVER]
    claimed = sum(c.bytes for h in held for c in h.claims)
    fitting = sum(p.bytes for p in parts if p.category in {vram.WEIGHTS, vram.KV_CACHE, vram.ALLOCATIONS})
    assert sum(p.cut for p in parts) >= claimed - fitting


def amounts(t: Topology) -> dict[str, int]:
    out: dict[str, int] = {}
    for p in t.parts:
        out[p.category] = out.get(p.category, 0) + p.bytes
    return out


def claim(category: str, size: int) -> Claim:
    return Claim(category, "bf16", size, "estimated", "x", ())


def test_a_process_in_parts_and_what_nobody_holds() -> None:
    held = [Holding(7, 60, (claim(vram.WEIGHTS, 20), claim(vram.KV_CACHE, 30))), Holding(8, 10, ())]
    parts = fitted(80, 5, held, SAMPLE)
    told = {(p.pid, p.category): p.bytes for p in parts}
    assert told == {
        (7, "weights"): 20, (7, "kv_cache"): 30, (7, "process_remainder"): 10, (8, "other_process"): 10,
        (None, "unattributed"): 10, (None, "driver_reserved"): 5,
    }  # fmt: skip


def test_what_does_not_fit_is_cut_and_told() -> None:
    held = [Holding(7, 60, (claim(vram.WEIGHTS, 50), claim(vram.KV_CACHE, 30))), Holding(8, 40, ())]
    parts = fitted(80, None, held, SAMPLE)
    told = {(p.pid, p.category): (p.bytes, p.cut) for p in parts}
    assert told == {
        (7, "weights"): (50, 0), (7, "kv_cache"): (10, 20), (7, "process_remainder"): (0, 0),
        (8, "other_process"): (20, 20), (None, "unattributed"): (0, 0), (None, "driver_reserved"): (0, 0),
    }  # fmt: skip


def test_a_process_of_which_nvml_tells_no_memory() -> None:
    parts = fitted(80, None, [Holding(7, None, (claim(vram.WEIGHTS, 50),)), Holding(8, None, ())], SAMPLE)
    assert {(p.pid, p.category): p.bytes for p in parts} == {
        (7, "weights"): 50, (None, "unattributed"): 30, (None, "driver_reserved"): 0,
    }  # fmt: skip


def held(scene: Scene, at: int, pid: int, size: int | None, gpu: int = 0, **more: int) -> Scene:
    return scene.add(
        "nvml_processes", start_ns=at, duration_ns=250 * MS, gpu_index=gpu, gpu_uuid=f"GPU-{gpu}", pid=pid,
        op="compute", memory_used_bytes=size, **more,
    )  # fmt: skip


def sampled(scene: Scene, at: int, used: int, **more: int | None) -> Scene:
    told: dict[str, Any] = {"memory_reserved_bytes": 700 * MIB, "memory_total_bytes": 80 * GIB, **more}
    return scene.sample(at, 250 * MS, memory_used_bytes=used, **told)


def test_calls_tell_weights_and_a_pool_whose_purpose_is_not_known() -> None:
    """4 GiB of weights, 16 GiB reserved, 4 MiB more: of 21 GiB that NVML says the process holds."""
    scene = sampled(server(), T0 + 50 * S, 22 * GIB)
    held(scene, T0 + 50 * S, 7, 21 * GIB)
    (t,) = read_topologies(scene.context())
    assert (t.when, t.total) == ("last sample", 22 * GIB + 700 * MIB)
    assert amounts(t) == {
        "weights": 4 * GIB, "reserved_pool": 16 * GIB, "other_allocations": 4 * MIB,
        "process_remainder": GIB - 4 * MIB, "unattributed": GIB, "driver_reserved": 700 * MIB,
    }  # fmt: skip


def test_the_peak_is_told_where_it_is_another_sample() -> None:
    scene = Scene().clock()
    for i, used in enumerate([3, 9, 9, 4]):
        sampled(scene, T0 + i * S, used * GIB)
    first, second = read_topologies(scene.context())
    assert (first.when, first.used, second.when, second.used) == ("last sample", 4 * GIB, "peak", 9 * GIB)
    assert second.at_ns == T0 + S


def run_of(blocks: str | None = "1000", kv_peak: Fraction | None = Fraction(1, 4), **more: object) -> EngineRun:
    """An 8 B bf16 model on GPU 0, blocks of 16 tokens of 131,072 bytes."""
    shape = Fact(KvShape(32, 8, 128, None, None, None), "config.json", "derived")
    facts = ModelFacts(
        name="m", total=None, active=None, weights=Fact(Fraction(16), "safetensors index: total_size", "measured"),
        weight_type=WeightType(16, "bf16", "bfloat16", "config.json"), kv=shape,
        kv_element=KvElement(2, "auto", ""), layers=32, hidden_dim=4096, attention_coeff=None, experts=None,
        experts_per_token=None, row=None,
    )  # fmt: skip
    config = {"block_size": Setting("16", "metric label")}
    if blocks is not None:
        config["num_gpu_blocks"] = Setting(blocks, "metric label")
    totals = RunTotals(kv_peak_share=kv_peak, active=3)
    values: dict[str, object] = {"config": config, "totals": totals, "gpus": ("GPU-0",), "facts": facts, **more}
    return EngineRun(0, "vllm", **values)  # type: ignore[arg-type]


def with_engine(context: Context, run: EngineRun) -> Context:
    context.engine_runs = [run]
    return context


def engine_scene() -> Scene:
    scene = sampled(Scene().clock().process(7), T0 + 50 * S, 30 * GIB)
    return held(scene, T0 + 50 * S, 7, 29 * GIB)


KV = 1000 * 16 * 131_072


def test_an_engine_tells_weights_and_kv_cache() -> None:
    (t,) = read_topologies(with_engine(engine_scene().context(), run_of()))
    assert amounts(t) == {
        "weights": 16 * 10**9, "kv_cache": KV, "process_remainder": 29 * GIB - 16 * 10**9 - KV, "unattributed": GIB,
        "driver_reserved": 700 * MIB,
    }  # fmt: skip
    told = {p.category: (p.precision, p.provenance) for p in t.parts}
    assert told["weights"] == ("bfloat16", "derived")
    assert told["kv_cache"] == ("16 bits (auto)", "derived")


def test_two_gpus_hold_half_of_it_each() -> None:
    config = {"tensor_parallel_size": Setting("2", "command line"), "block_size": Setting("16", "metric label"),
              "num_gpu_blocks": Setting("1000", "metric label")}  # fmt: skip
    (t,) = read_topologies(with_engine(engine_scene().context(), run_of(config=config)))
    assert amounts(t)["weights"] == 8 * 10**9
    assert amounts(t)["kv_cache"] == KV // 2


def test_of_an_engines_processes_the_one_that_holds_most_is_its_worker() -> None:
    scene = engine_scene().process(6, comm="api").process(7, parent_pid=6).process(9, parent_pid=6)
    held(scene, T0 + 50 * S, 9, GIB // 2)
    held(scene, T0 + 50 * S, 10, GIB // 4)
    (t,) = read_topologies(with_engine(scene.context(), run_of(pid=6)))
    told = {(p.pid, p.category): p.bytes for p in t.parts}
    assert told[7, "weights"] == 16 * 10**9
    assert told[9, "other_process"] == GIB // 2
    assert told[10, "other_process"] == GIB // 4


def test_a_process_that_is_not_the_engines_has_none_of_its_weights() -> None:
    """The engine runs without a GPU, or elsewhere: what NVML lists on the GPU is somebody else."""
    (t,) = read_topologies(with_engine(engine_scene().process(6).context(), run_of(pid=6)))
    assert amounts(t) == {"other_process": 29 * GIB, "unattributed": GIB, "driver_reserved": 700 * MIB}


def test_two_engines_on_one_gpu_have_each_its_own_peak() -> None:
    scene = engine_scene().process(8)
    held(scene, T0 + 50 * S, 8, GIB)
    context = scene.context()
    big, small = run_of(pid=7), run_of(pid=8, blocks="10", kv_peak=Fraction(1, 2), facts=None)
    context.engine_runs = [small, big]
    (freed,) = read_reclaimable(context, read_topologies(context))
    assert (freed.bytes, freed.what) == (KV * 3 // 4, "KV cache of engine 0 above its peak use")


def test_kv_cache_above_its_peak_use_can_be_given_back() -> None:
    context = with_engine(engine_scene().context(), run_of())
    (freed,) = read_reclaimable(context, read_topologies(context))
    assert freed.bytes == KV * 3 // 4
    context = with_engine(engine_scene().context(), run_of(kv_peak=None))
    assert read_reclaimable(context, read_topologies(context)) == []
    context = with_engine(engine_scene().context(), run_of(blocks=None))
    assert read_reclaimable(context, read_topologies(context)) == []


def test_an_engine_without_requests_says_nothing_of_the_cache_it_needs() -> None:
    totals = RunTotals(kv_peak_share=Fraction(0), active=0)
    context = with_engine(engine_scene().context(), run_of(totals=totals))
    assert read_reclaimable(context, read_topologies(context)) == []


def test_an_idle_engines_cache_is_not_counted_twice() -> None:
    """Its memory is one row, which holds its KV cache; all rows together are no more than the GPU has."""
    scene = sampled(Scene().clock().process(7), T0 + 50 * S, 30 * GIB)
    held(scene, T0 + 50 * S, 7, 29 * GIB, sm_utilization_percent=0)
    context = with_engine(scene.context(), run_of())
    (freed,) = read_reclaimable(context, read_topologies(context))
    assert (freed.bytes, freed.idle) == (29 * GIB, True)
    assert freed.what.endswith("idle: NVML told a utilisation of 0 of it in all its samples (1)")


def test_an_idle_process_holds_memory_for_nothing() -> None:
    scene = Scene().clock().process(7).process(8)
    for i in range(4):
        at = T0 + i * S
        sampled(scene, at, 10 * GIB, gpu_utilization_percent=50)
        held(scene, at, 7, 4 * GIB, sm_utilization_percent=0)
        held(scene, at, 8, 2 * GIB, sm_utilization_percent=40)
    context = scene.context()
    (freed,) = read_reclaimable(context, read_topologies(context))
    assert (freed.bytes, freed.what.startswith("process 7")) == (4 * GIB, True)


def test_without_its_own_utilisation_the_gpu_must_have_been_idle() -> None:
    for busy, expected in ((0, 1), (1, 0), (None, 0)):
        scene = Scene().clock().process(7)
        for i in range(4):
            sampled(scene, T0 + i * S, 10 * GIB, gpu_utilization_percent=busy)
            held(scene, T0 + i * S, 7, 4 * GIB)
        context = scene.context()
        assert len(read_reclaimable(context, read_topologies(context))) == expected


def test_the_section_adds_up_and_shows_what_is_not_known() -> None:
    made = section.evaluate(with_engine(engine_scene().context(), run_of()))
    (chart,) = made.charts
    (bar,) = chart.data["bars"]
    assert sum(int(p[2]) for p in bar["parts"]) == int(bar["total"]) == 30 * GIB + 700 * MIB
    parts = next(t for t in made.tables if t.id == "topology")
    assert {"unattributed", "driver reserved"} <= {r[3] for r in parts.rows}
    assert [s.text for s in made.statements] == [section.SPARE]
    categories = next(t for t in made.tables if t.id == "categories")
    sizes = [r[4] for r in categories.rows]
    assert all(isinstance(q, Quantity) and q.evidence for q in sizes)
    assert sum(int(q.value or 0) for q in sizes if isinstance(q, Quantity)) == int(bar["total"])
    assert {r[2] for r in categories.rows} == {r[3] for r in parts.rows}
    reclaim = next(t for t in made.tables if t.id == "reclaimable")
    assert reclaim.columns[-1][0] == "condition"
    assert [r[-1] for r in reclaim.rows] == [KV_CONDITION]


def test_an_engine_that_claims_too_much_is_said() -> None:
    scene = sampled(Scene().clock().process(7), T0 + 50 * S, 10 * GIB, memory_reserved_bytes=None)
    made = section.evaluate(with_engine(held(scene, T0 + 50 * S, 7, 9 * GIB).context(), run_of(kv_peak=None)))
    (statement,) = made.statements
    assert "do not fit" in statement.text
    cut = statement.values["cut"]
    assert not isinstance(cut, str)
    assert cut.value == 16 * 10**9 + KV - 9 * GIB
    total = next(t for t in made.tables if t.id == "totals").rows[0][4]
    assert total is not None
    assert not isinstance(total, str)
    assert (total.value, total.reason) == (None, "NVML did not tell it")


def test_a_process_on_two_mig_devices_holds_both_and_one_listed_twice_holds_it_once() -> None:
    scene = sampled(Scene().clock().process(7), T0, 10 * GIB)
    held(scene, T0, 7, 2 * GIB, gpu_instance=1, compute_instance=0)
    held(scene, T0, 7, 3 * GIB, gpu_instance=2, compute_instance=0)
    for op in ("compute", "graphics"):
        scene.add(
            "nvml_processes", start_ns=T0, duration_ns=250 * MS, gpu_index=0, gpu_uuid="GPU-0", pid=8, op=op,
            memory_used_bytes=GIB,
        )  # fmt: skip
    (t,) = read_topologies(scene.context())
    assert {p.pid: p.bytes for p in t.parts} == {7: 5 * GIB, 8: GIB, None: 700 * MIB}
    assert amounts(t)["unattributed"] == 4 * GIB


def test_without_memory_in_any_sample_nothing_is_told() -> None:
    made = section.evaluate(Scene().clock().samples(T0, T0 + S).context())
    assert (made.state, made.tables) == ("not evaluated", ())
