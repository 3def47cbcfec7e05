"""The quantisation advisor against worked examples: memory, bounds, conditions, and quality only where published."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from gpuaudit.analyze.catalogue import Catalogue
from gpuaudit.analyze.finding import Quantity
from gpuaudit.analyze.inference.baseline import Baseline, Site, baseline
from gpuaudit.analyze.inference.model import EngineRun, Latency, RunTotals, Setting
from gpuaudit.analyze.inference.model_facts import Recorded, model_facts
from gpuaudit.analyze.quality_effects import effects, quality
from gpuaudit.analyze.quantisation import INT4_BITS, METHODS, Advice, advise, kv_options
from gpuaudit.analyze.sections import quantisation as section
from tests.scenes import Scene

F = Fraction
H100, A100, B200 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA B200"
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
W, KV, C = 16 * 10**9, 131_072, 2 * 4096 * 32


def run(gpu: str = H100, dtype: str = "bfloat16", tp: int = 1, model: str = LLAMA, **totals: object) -> EngineRun:
    """40 requests of 512 prompt and 200 output tokens."""
    catalogue = Catalogue.load()
    facts = model_facts([Recorded("model", model, "/v1/models"), Recorded("dtype", dtype, "/server_info")], catalogue)
    base = baseline(catalogue.gpu(gpu), facts, Site(gpu, tp, tp, 80 << 30, None, 512, 8192))
    assert isinstance(base, Baseline), base
    told: dict[str, Any] = {
        "running": F(40), "prompt_size": Latency(F(512)), "generation_size": Latency(F(200)), **totals,
    }  # fmt: skip
    config = {"num_gpu_blocks": Setting("1000", "metric label"), "block_size": Setting("16", "metric label")}
    return EngineRun(
        0, "vllm", model=model, config=config, totals=RunTotals(**told), ceiling=base, facts=facts,
        gpus=("GPU-0",) * tp,
    )  # fmt: skip


def by_method(made: list[Advice]) -> dict[str, Advice]:
    return {a.method: a for a in made}


def test_fp8_halves_the_weights_and_doubles_the_tensor_peak_of_hopper() -> None:
    fp8 = by_method(advise(run()))["fp8"]
    assert fp8.freed_bytes == W // 2
    assert fp8.more_kv_tokens == W // 2 // KV
    cache = 40 * 612 * KV
    assert fp8.decode_change == F(W + cache, W // 2 + cache)
    assert fp8.prefill_change == F(1979, 989)
    assert fp8.hardware == "Hopper: yes"


def test_on_ampere_fp8_frees_memory_and_prefill_gains_nothing() -> None:
    fp8 = by_method(advise(run(A100)))["fp8"]
    assert fp8.freed_bytes == W // 2
    assert fp8.prefill_change == 1
    assert fp8.decode_change is not None
    assert fp8.decode_change > 1
    assert "have no FP8" in fp8.hardware


def test_four_bits_with_scales_compute_in_sixteen() -> None:
    int4 = by_method(advise(run()))["int4"]
    assert F(133, 32) == INT4_BITS
    assert int4.freed_bytes == int(W * (1 - F(133, 32) / 16))
    assert int4.prefill_change == 1
    cache = 40 * 612 * KV
    assert int4.decode_change == F(W + cache) / (F(W) * F(133, 512) + cache)


def test_fp4_needs_blackwell() -> None:
    assert by_method(advise(run()))["nvfp4"].decode_change is None
    assert "have no NVFP4" in by_method(advise(run()))["nvfp4"].reason
    nvfp4 = by_method(advise(run(B200)))["nvfp4"]
    assert nvfp4.reason == ""
    assert nvfp4.freed_bytes == int(W * (1 - F(9, 2) / 16))


def test_each_way_says_what_hardware_and_engine_have_to_have() -> None:
    made = by_method(advise(run()))
    for method, hardware, engine in (
        ("fp8", "compute capability 8.9", "vLLM: --quantization fp8"), ("int8", "for the architecture", "calibration"),
        ("int4", "Marlin kernels", "a checkpoint quantised to 4 bits"), ("nvfp4", "Blackwell", "a checkpoint in NVFP4"),
    ):  # fmt: skip
        assert hardware in made[method].needs
        assert engine in made[method].needs
    options = {o.option.partition(" (")[0]: o.needs for o in kv_options(run())}
    assert "vLLM: --kv-cache-dtype fp8" in options["KV cache in 8 bits"]
    assert "attention kernel" in options["KV cache in 8 bits"]
    assert "vLLM: --kv-offloading-size" in options["evicted blocks to host memory"]
    assert "PCIe link" in options["evicted blocks to host memory"]


@pytest.mark.parametrize(
    ("gpu", "method"),
    [("AMD Instinct MI250X", "fp8"), ("AMD Instinct MI355X", "nvfp4"), ("AMD Instinct MI300X", "int4"), (B200, "int8")],
)
def test_what_is_not_known_to_run_on_the_gpu_has_no_bound(gpu: str, method: str) -> None:
    """FP8 weights are kept and widened on Turing and Ampere only; CDNA 4 has MXFP4 and not NVFP4."""
    a = by_method(advise(run(gpu)))[method]
    assert (a.decode_change, a.prefill_change) == (None, None)
    assert a.reason == a.hardware
    assert ": yes" not in a.hardware
    assert "tokens/s" not in a.falsified_by


def test_nothing_larger_or_equal_is_offered() -> None:
    assert set(by_method(advise(run(dtype="fp8")))) == {"int4", "nvfp4"}
    assert set(by_method(advise(run()))) == {m.name for m in METHODS}


def test_the_decode_bound_does_not_pass_the_compute_roof() -> None:
    """4,000 short sequences are compute-bound in 16 bits; 4-bit weights computed in 16 bits change nothing."""
    made = by_method(advise(run(running=F(4000), prompt_size=Latency(F(8)), generation_size=Latency(F(2)))))
    assert made["int4"].decode_change == 1
    assert made["fp8"].decode_change is not None
    assert 1 < made["fp8"].decode_change <= F(1979, 989)


def test_two_gpus_free_half_each_and_the_same_ratio() -> None:
    one, two = by_method(advise(run()))["fp8"], by_method(advise(run(tp=2)))["fp8"]
    assert two.freed_bytes == W // 4
    assert two.more_kv_tokens == one.more_kv_tokens
    assert two.decode_change == one.decode_change


def test_without_a_load_memory_is_told_and_bounds_are_not() -> None:
    fp8 = by_method(advise(run(running=None, prompt_size=Latency(), generation_size=Latency())))["fp8"]
    assert (fp8.freed_bytes, fp8.decode_change, fp8.prefill_change) == (W // 2, None, None)


def test_quality_is_published_for_the_model_or_not_known() -> None:
    assert "effectively lossless" in quality("fp8", LLAMA)
    assert "2411.02355" in quality("fp8", LLAMA)
    assert not quality("fp8", LLAMA).startswith("not known")
    assert quality("fp8", "Qwen/Qwen2.5-7B").startswith("not known: measure; published for other models, llama 3.1")
    assert quality("fp8", None).startswith("not known")
    assert quality("nvfp4", LLAMA) == "not known: measure"
    assert "5.47 to 5.60" in quality("int4", "meta-llama/Llama-2-7b-hf")
    assert "4.88 to 4.97" in quality("int4", "/models/meta_llama-2-13b-hf/")


@pytest.mark.parametrize("name", [
    "meta-llama/Llama-2-13b-chat-hf", "nvidia/Llama-3.1-Nemotron-70B-Instruct", "Llama-3.1-8B-Instruct-abliterated",
    "RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8", "Llama-3.1", "x" * 600,
])  # fmt: skip
def test_a_figure_does_not_hold_for_what_others_made_of_the_model(name: str) -> None:
    for method in ("fp8", "int4"):
        assert quality(method, name).startswith("not known: measure") == (name != "Llama-3.1")


def test_every_effect_has_a_source_and_a_date() -> None:
    assert {e.method for e in effects()} <= {m.name for m in METHODS}
    for e in effects():
        assert "arXiv:" in e.source
        assert len(e.date) == len("2024-11-04")
        assert e.models == e.models.lower()


def test_the_kv_cache_in_eight_bits_and_what_eviction_can_do() -> None:
    made = {o.option.partition(" (")[0]: o for o in kv_options(run())}
    fp8 = made["KV cache in 8 bits"]
    assert fp8.freed_bytes == 1000 * 16 * KV // 2
    cache = 40 * 612 * KV
    assert fp8.decode_change == F(W + cache) / (W + F(cache, 2))
    assert fp8.quality == "not known: measure"
    assert made["evicted blocks to host memory"].quality.startswith("unchanged")


def test_without_an_engine_or_its_ceilings_the_section_says_so() -> None:
    context = Scene().clock().context()
    context.engine_runs = []
    assert section.evaluate(context).reason == "no inference engine was found"
    context.engine_runs = [replace(run(), ceiling=None, ceiling_reason="GPU not in catalogue: 'X'")]
    made = section.evaluate(context)
    assert (made.state, made.tables) == ("not evaluated", ())
    assert "GPU not in catalogue" in made.reason


@pytest.mark.parametrize("gpu", [H100, A100, B200])
def test_the_section_labels_everything_estimated(gpu: str) -> None:
    context = Scene().clock().context()
    context.engine_runs = [run(gpu)]
    made = section.evaluate(context)
    assert [t.id for t in made.tables] == ["weights", "conditions", "kv_cache"]
    for table in made.tables:
        for row in table.rows:
            assert len(row) == len(table.columns)
            for cell in row:
                if isinstance(cell, Quantity):
                    assert cell.provenance == "estimated"
                    assert cell.evidence
                    assert (cell.value is None) == bool(cell.reason)
