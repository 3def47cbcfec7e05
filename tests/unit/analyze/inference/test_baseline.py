"""Baselines: what they need and say is missing, which peak counts, and what a mixture's batch really reads."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from gpuaudit.analyze.catalogue import Catalogue
from gpuaudit.analyze.inference import formulas
from gpuaudit.analyze.inference.baseline import Absent, Baseline, Site, baseline
from gpuaudit.analyze.inference.model_facts import ModelFacts, Recorded, model_facts

CATALOGUE = Catalogue.load()
H100 = "NVIDIA H100 80GB HBM3"
SITE = Site(H100, 1, 1, 80 << 30, None, 512, 8192)


def facts(model: str = "meta-llama/Llama-3.1-8B", **settings: str) -> ModelFacts:
    rows = [Recorded("model", model, "/v1/models"), *(Recorded(k, v, "/server_info") for k, v in settings.items())]
    return model_facts(rows, CATALOGUE)


def made(model: ModelFacts, site: Site = SITE) -> Baseline:
    found = baseline(CATALOGUE.gpu(site.gpu_name), model, site)
    assert isinstance(found, Baseline), found
    return found


def refused(model: ModelFacts, site: Site = SITE) -> str:
    found = baseline(CATALOGUE.gpu(site.gpu_name), model, site)
    assert isinstance(found, Absent)
    return found.reason


def test_what_is_missing_is_named() -> None:
    assert refused(facts(), replace(SITE, gpu_name="Unheard GPU")) == "GPU not in catalogue: 'Unheard GPU'"
    assert refused(facts(), replace(SITE, gpu_name=None)) == "the engine's GPU is not known"
    assert "'acme/unheard'" in refused(facts("acme/unheard"))
    assert "does not tell how many bits" in refused(facts(quantization="gguf"))
    assert refused(facts(), replace(SITE, gpus=0, tp=None)).startswith("no tensor-parallel degree")
    assert "tensor-core peak of H100 SXM for fp32" in refused(facts(dtype="float32"))


def test_a_peak_that_is_not_known_is_not_replaced_by_another() -> None:
    """The L40S has fp8 tensor cores and no fp8 peak in the catalogue; the A100 has none and computes in bf16."""
    assert "L40S for fp8" in refused(facts(quantization="fp8"), replace(SITE, gpu_name="NVIDIA L40S"))
    ampere = made(facts(quantization="fp8"), replace(SITE, gpu_name="NVIDIA A100-SXM4-80GB"))
    assert (ampere.compute, ampere.bits) == ("bf16", 8)
    assert ampere.ridge == Fraction(312 * 10**12 * 8, 2039 * 10**9 * 16)


@pytest.mark.parametrize(
    ("quantization", "bits", "compute", "ridge"),
    [("fp8", 8, "fp8", "295.37"), ("awq", 4, "bf16", "73.81"), ("int8", 8, "int8", "295.37")],
)
def test_the_ridge_is_of_the_type_that_is_computed_in(quantization: str, bits: int, compute: str, ridge: str) -> None:
    b = made(facts(quantization=quantization))
    assert (b.bits, b.compute, f"{float(b.ridge):.2f}") == (bits, compute, ridge)
    assert b.decode_tps * b.ridge == b.tflops * 10**12 / (2 * 8 * 10**9)


def test_degrees_multiply_rates_and_divide_weights() -> None:
    one, four = made(facts()), made(facts(), replace(SITE, gpus=2, tp=4))
    assert four.decode_tps == 4 * one.decode_tps
    assert four.prefill_prompts_per_s == 4 * (one.prefill_prompts_per_s or 0)
    assert four.ridge == one.ridge
    assert (four.tp, four.tp_exceeds_observed, one.tp_exceeds_observed) == (4, True, False)
    assert "2 GPUs of the engine were observed" in four.source("tp")
    assert four.kv_headroom_gb == (one.kv_headroom_gb or 0) + 12
    assert four.derived_max_seqs is None, "sharded state is not priced"
    assert (one.min_tp, four.min_tp) == (1, 1)
    assert made(facts(), replace(SITE, tp=16)).kv_token_bytes == 2 * 131_072, "eight heads on sixteen GPUs: two copies"


def test_parts_that_need_more_are_none_with_their_reason() -> None:
    bare = made(facts(), Site(H100, 1, None))
    assert (bare.prompt_tokens, bare.prefill_prompts_per_s, bare.vram_gb, bare.kv_headroom_gb) == (None,) * 4
    assert (bare.min_tp, bare.sequence_bytes, bare.derived_max_seqs) == (None, None, None)
    for part in ("prefill_prompts_per_s", "vram_gb", "sequence_bytes"):
        assert bare.reason(part)
    assert bare.source("tp") == "GPUs observed"
    assert bare.source("utilization") == "vLLM's default"
    scout = made(facts("meta-llama/Llama-4-Scout-17B-16E-Instruct"))
    assert scout.kv_token_bytes is None
    assert scout.reason("kv_token_bytes")


def test_a_batch_of_a_mixture_reads_the_experts_it_touches() -> None:
    """Active parameters alone would give Mixtral at batch 16 a ceiling more than three times too high."""
    b = made(facts("mistralai/Mixtral-8x7B-Instruct-v0.1"))
    one = Fraction(47 - 13, 6) * 10**9
    touched = formulas.expected_experts(8, 2, 16)
    assert touched is not None
    read = 2 * (13 * 10**9 + (touched - 2) * one)
    assert b.weight_read_bytes(16) == read
    assert b.weight_read_bytes(1) == 26 * 10**9
    top = b.batch_tps(16)
    assert top == 16 * 3350 * 10**9 / read
    assert 3 < 16 * b.decode_tps / top < 4
    assert b.batch_tps(10**6) == b.decode_tps * b.ridge
    half = top / 2
    assert b.batch_relative_pct(half, 16) == 50
    assert b.config_relative_pct(half, 16) == 50
    assert b.batch_relative_pct(half * 3, 16) is None
    assert b.batch_relative_pct(half, None) is None


def test_a_mixture_whose_experts_are_not_known_has_no_share_above_batch_one() -> None:
    b = made(facts("zai-org/GLM-744B"))
    assert b.mixture
    assert b.batch_tps(1) == b.decode_tps
    assert b.batch_tps(2) is None
    assert b.batch_relative_pct(10, 2) is None
    assert b.reason("batch_tps")
    assert b.decode_kv_tps(2, 100) is None


def test_a_dense_batch_is_ceiling_times_batch_up_to_the_ridge() -> None:
    b = made(facts())
    assert b.batch_tps(10) == 10 * b.decode_tps
    assert b.batch_tps(1000) == b.decode_tps * b.ridge
    assert b.batch_tps(0) is None
    assert b.decode_kv_tps(0, 10) is None
    assert b.decode_mfu_pct(b.decode_tps) == 100 / b.ridge
    muse = made(facts("Muse-Glimmer-30B"))
    assert not muse.mixture
    assert muse.batch_tps(10) == 10 * muse.decode_tps, "text and vision, no experts"


def test_every_number_is_an_estimate_and_a_users_row_makes_it_an_assumption() -> None:
    b = made(facts())
    assert b.provenance == "estimated"
    gpu = CATALOGUE.gpu(H100)
    assert gpu is not None
    mine = baseline(replace(gpu, origin="user"), facts(), SITE)
    assert isinstance(mine, Baseline)
    assert mine.provenance == "assumed"
    assert mine.source("gpu").startswith("user's overlay")
    doubtful = made(facts(), replace(SITE, gpu_name="NVIDIA A10G"))
    assert doubtful.source("gpu").endswith("doubtful)")
