"""What is known of a served model: files first, catalogue last; sizes exact, types resolved or refused."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from gpuaudit.analyze.catalogue import Catalogue
from gpuaudit.analyze.inference.architecture import counted, kv_shape
from gpuaudit.analyze.inference.dtypes import Claim, WeightType, computing_type, kv_element, weight_type
from gpuaudit.analyze.inference.memory import KvShape, bytes_per_sequence
from gpuaudit.analyze.inference.model import GIVEN
from gpuaudit.analyze.inference.model_facts import OVER_COUNTED, ModelFacts, Recorded, model_facts, type_provenance

CATALOGUE = Catalogue.load()


def fields(**given: Any) -> dict[str, str]:
    return {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in given.items()}


def dense(
    kind: str, vocab: int, hidden: int, layers: int, heads: int, *, kv: int, width: int, **more: Any
) -> dict[str, str]:
    return fields(
        model_type=kind, vocab_size=vocab, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, intermediate_size=width, **more,
    )  # fmt: skip


LLAMA_8B = dense("llama", 128256, 4096, 32, 32, kv=8, width=14336)
LLAMA_8B_PARAMS = 8_030_261_248

PUBLISHED: dict[str, tuple[int, dict[str, str]]] = {
    "Llama-3.1-8B": (LLAMA_8B_PARAMS, LLAMA_8B),
    "Llama-3.1-70B": (70_553_706_496, dense("llama", 128256, 8192, 80, 64, kv=8, width=28672)),
    "Llama-3.2-1B": (
        1_235_814_400, dense("llama", 128256, 2048, 16, 32, kv=8, width=8192, head_dim=64, tie_word_embeddings=True),
    ),
    "Mistral-7B-v0.1": (7_241_732_096, dense("mistral", 32000, 4096, 32, 32, kv=8, width=14336, sliding_window=4096)),
    "Qwen2.5-7B": (7_615_616_512, dense("qwen2", 152064, 3584, 28, 28, kv=4, width=18944)),
    "Qwen3-8B": (8_190_735_360, dense("qwen3", 151936, 4096, 36, 32, kv=8, width=12288, head_dim=128)),
    "gemma-7b": (8_537_680_896, dense("gemma", 256000, 3072, 28, 16, kv=16, width=24576, head_dim=256)),
    "gemma-2-9b": (
        9_241_705_984, dense("gemma2", 256000, 3584, 42, 16, kv=8, width=14336, head_dim=256, sliding_window=4096),
    ),
    "gemma-3-1b": (
        999_885_952, dense("gemma3_text", 262144, 1152, 26, 4, kv=1, width=6912, head_dim=256, sliding_window=512),
    ),
    "Mixtral-8x7B-v0.1": (
        46_702_792_704,
        dense("mixtral", 32000, 4096, 32, 32, kv=8, width=14336, num_local_experts=8, num_experts_per_tok=2),
    ),
    "Qwen3-30B-A3B": (
        30_532_122_624,
        dense("qwen3_moe", 151936, 2048, 48, 32, kv=4, width=6144, head_dim=128, moe_intermediate_size=768,
              num_experts=128, num_experts_per_tok=8),
    ),
    "DeepSeek-V3": (
        671_026_419_200,
        dense("deepseek_v3", 129280, 7168, 61, 128, kv=128, width=18432, q_lora_rank=1536, kv_lora_rank=512,
              qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, moe_intermediate_size=2048,
              n_routed_experts=256, n_shared_experts=1, num_experts_per_tok=8, first_k_dense_replace=3,
              topk_method="noaux_tc"),
    ),
}  # fmt: skip
"""Parameters as the publishers' own model pages count them (safetensors metadata; DeepSeek without its MTP layer)."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_that_publishers_count(name: str) -> None:
    total, config = PUBLISHED[name]
    found = counted(config)
    assert found is not None
    assert found.total == total


def test_active_parameters_of_mixtures() -> None:
    mixtral, deepseek = counted(PUBLISHED["Mixtral-8x7B-v0.1"][1]), counted(PUBLISHED["DeepSeek-V3"][1])
    assert mixtral is not None
    assert deepseek is not None
    assert (mixtral.active, mixtral.experts, mixtral.experts_per_token) == (12_879_925_248, 8, 2)
    assert round((deepseek.active or 0) / 10**9, 1) == 37.6


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_field_that_is_missing_or_no_number_gives_nothing(name: str) -> None:
    config = PUBLISHED[name][1]
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        assert counted({k: v for k, v in config.items() if k != key}) is None
        for text in ("-1", "0", "1e3", "x", "", "9" * 16, "１"):
            assert counted({**config, key: text}) is None
    assert counted({**config, "model_type": "unheard"}) is None
    assert kv_shape({**config, "model_type": "unheard"}) is None
    assert kv_shape({k: v for k, v in config.items() if k != "num_hidden_layers"}) is None


def test_layers_with_a_window() -> None:
    assert kv_shape(PUBLISHED["gemma-3-1b"][1]) == KvShape(26, 1, 256, 512, 22)
    assert kv_shape(PUBLISHED["gemma-2-9b"][1]) == KvShape(42, 8, 256, 4096, 21)
    assert kv_shape(PUBLISHED["Mistral-7B-v0.1"][1]) == KvShape(32, 8, 128, 4096, 32)
    assert kv_shape({**PUBLISHED["Qwen2.5-7B"][1], "sliding_window": "131072"}) == KvShape(28, 4, 128)
    used = {**PUBLISHED["Qwen2.5-7B"][1], "sliding_window": "131072", "use_sliding_window": "true"}
    half = kv_shape(used)
    assert half is not None
    assert half.half_given
    assert bytes_per_sequence(half, 2, 4096) is None
    listed = {**used, "layer_types": '["sliding_attention", "full_attention", "sliding_attention"]'}
    assert kv_shape(listed) == KvShape(28, 4, 128, 131072, 2)


def test_latent_attention_keeps_one_vector_per_token() -> None:
    """576 elements of bf16 in 61 layers: 70,272 bytes per token (DeepSeek-V3)."""
    shape = kv_shape(PUBLISHED["DeepSeek-V3"][1])
    assert shape is not None
    assert bytes_per_sequence(shape, 2, 1) == 61 * (512 + 64) * 2


def said(kind: str, value: str, source: str = "here", **details: str) -> Any:
    return weight_type([Claim(kind, value, source)], details)


@pytest.mark.parametrize(
    ("value", "bits", "compute"),
    [
        ("awq", 4, "bf16"), ("AWQ_Marlin", 4, "bf16"), ("gptq", 4, "bf16"), ("gptq_marlin", 4, "bf16"),
        ("marlin", 4, "bf16"), ("int8", 8, "int8"), ("w8a8", 8, "int8"), ("fp8", 8, "fp8"), ("fbgemm_fp8", 8, "fp8"),
        ("nvfp4", Fraction(9, 2), "fp4"), ("modelopt_fp4", Fraction(9, 2), "fp4"), ("mxfp4", Fraction(17, 4), "bf16"),
    ],
)  # fmt: skip
def test_quantisations_whose_bits_are_certain(value: str, bits: Fraction, compute: str) -> None:
    found = said("quantization", value)
    assert (found.bits, found.compute, found.fallback) == (bits, compute, False)


@pytest.mark.parametrize(
    "value", ["compressed-tensors", "modelopt", "bitsandbytes", "gguf", "quark", "unheard", "torchao"]
)
def test_a_quantisation_whose_bits_are_not_told_is_refused_not_sixteen(value: str) -> None:
    found = weight_type([Claim("quantization", value, "/server_info quantization"), Claim("dtype", "bfloat16", "x")])
    assert found.bits is None
    assert value in found.reason


@pytest.mark.parametrize(
    ("value", "details", "bits", "compute"),
    [
        ("compressed-tensors", {"format": "float-quantized"}, 8, "fp8"),
        ("compressed-tensors", {"format": "int-quantized"}, 8, "int8"),
        ("compressed-tensors", {"format": "nvfp4-pack-quantized"}, Fraction(9, 2), "fp4"),
        ("compressed-tensors", {"a.weights.num_bits": "4", "a.weights.type": "int"}, 4, "bf16"),
        (
            "compressed-tensors",
            {"a.weights.num_bits": "8", "a.weights.type": "float", "a.input_activations.num_bits": "8"}, 8, "fp8",
        ),
        ("compressed-tensors", {"a.weights.num_bits": "4", "b.weights.num_bits": "8"}, None, ""),
        ("compressed-tensors", {"a.weights.num_bits": "4", "a.weights.type": "float"}, None, ""),
        ("modelopt", {"quant_algo": "NVFP4"}, Fraction(9, 2), "fp4"),
        ("modelopt", {"quant_algo": "FP8"}, 8, "fp8"),
        ("bitsandbytes", {"load_in_4bit": "true"}, 4, "bf16"),
        ("bitsandbytes", {"load_in_8bit": "true", "load_in_4bit": "false"}, 8, "bf16"),
        ("gptq", {"bits": "8"}, 8, "bf16"),
        ("gptq", {"bits": "17"}, 4, "bf16"),
    ],
)  # fmt: skip
def test_the_models_own_file_tells_the_width(value: str, details: dict[str, str], bits: Any, compute: str) -> None:
    found = said("quantization", value, **details)
    assert (found.bits, found.compute) == (bits, compute)


@pytest.mark.parametrize(
    ("value", "bits", "compute"),
    [
        ("bfloat16", 16, "bf16"), ("torch.float16", 16, "fp16"), ("half", 16, "fp16"), ("float32", 32, "fp32"),
        ("float8_e4m3fn", 8, "fp8"), ("e5m2", 8, "fp8"),
    ],
)  # fmt: skip
def test_plain_types(value: str, bits: int, compute: str) -> None:
    found = said("dtype", value)
    assert (found.bits, found.compute) == (bits, compute)


def test_what_is_not_understood_is_passed_over_and_sixteen_is_called_a_fallback() -> None:
    found = weight_type([Claim("dtype", v, "x") for v in ("auto", "", "None", "mystery")])
    assert (found.bits, found.source, found.fallback) == (16, "fallback", True)
    later = weight_type(
        [Claim("quantization", "none", "a"), Claim("dtype", "mystery", "b"), Claim("dtype", "fp8", "c")]
    )
    assert (later.bits, later.source) == (8, "c")


def test_types_that_the_tensor_cores_lack_are_computed_in_bf16() -> None:
    assert computing_type("fp8", "Hopper") == "fp8"
    assert computing_type("fp8", "Ampere") == "bf16"
    assert computing_type("fp4", "Blackwell") == "fp4"
    assert computing_type("fp4", "Hopper") == "bf16"
    assert computing_type("fp16", "Ampere") == "fp16"


def test_kv_elements() -> None:
    assert kv_element("auto").certainty == "auto"
    assert (kv_element(None).size_bytes, kv_element(None).source) == (2, "not set")
    assert kv_element("auto", model_dtype="float32").size_bytes == 4
    assert (kv_element("mystery").size_bytes, kv_element("mystery").certainty) == (2, "unknown")
    assert (kv_element("fp8_e4m3", "metric label").size_bytes, kv_element("fp8", "x").source) == (1, "x")


def facts(*rows: tuple[str, str, str], config: dict[str, str] | None = None) -> ModelFacts:
    recorded = [Recorded(k, v, s) for k, v, s in rows]
    recorded += [Recorded(k.rsplit(".", 1)[-1], v, "config.json", k) for k, v in (config or {}).items()]
    return model_facts(recorded, CATALOGUE)


def headers(**sizes: int) -> list[tuple[str, str, str]]:
    return [(f"bytes_{k}", str(v), "safetensors header") for k, v in sizes.items()]


def test_the_config_beats_the_catalogue() -> None:
    found = facts(("model", "meta-llama/Llama-3.1-8B", "/v1/models"), config=LLAMA_8B)
    assert found.total is not None
    assert (found.total.value, found.total.provenance) == (LLAMA_8B_PARAMS, "derived")
    assert found.kv is not None
    assert (found.kv.value, found.kv.source) == (KvShape(32, 8, 128), "config.json")
    assert found.conflicts == ()
    assert (found.weight_type.bits, found.weight_type.source) == (16, "catalogue, Llama 3 8B")


def test_the_catalogue_alone_is_an_estimate() -> None:
    found = facts(("model", "meta-llama/Llama-3.1-8B", "metric label"))
    assert found.total is not None
    assert (found.total.value, found.total.provenance) == (8 * 10**9, "estimated")
    assert found.weights is not None
    assert found.weights.value == 16
    assert found.weights.provenance == "estimated"
    assert "2026-08" in found.total.source


def test_the_files_count_elements_and_bytes() -> None:
    rows = headers(bf16=2 * (LLAMA_8B_PARAMS - 4096), f32=4 * 4096)
    found = facts(("model", "our-model", "/v1/models"), ("dtype", "bfloat16", "/server_info"), *rows,
                  config={**LLAMA_8B, "torch_dtype": "bfloat16"})  # fmt: skip
    assert found.total is not None
    assert (found.total.value, found.total.provenance) == (LLAMA_8B_PARAMS, "measured")
    assert found.weights is not None
    assert found.weights.value == Fraction(2 * (LLAMA_8B_PARAMS - 4096) + 4 * 4096, 10**9)
    assert found.weights.provenance == "measured"


def test_an_engine_that_quantises_at_load_has_other_bytes_than_its_files() -> None:
    rows = headers(bf16=2 * LLAMA_8B_PARAMS)
    found = facts(("quantization", "fp8", "command line"), *rows, config={**LLAMA_8B, "torch_dtype": "bfloat16"})
    assert found.weights is not None
    assert found.weights.value == Fraction(LLAMA_8B_PARAMS, 10**9)
    assert found.weight_type.source == "command line quantization"


def test_packed_integers_take_what_the_files_take() -> None:
    """Packed to 4 bits with scales and an unpacked embedding: 4.9 bits on the mean, read from the files."""
    size = LLAMA_8B_PARAMS * 49 // 80
    packed = {**LLAMA_8B, "quantization_config.quant_method": "compressed-tensors",
              "quantization_config.format": "pack-quantized"}  # fmt: skip
    found = facts(*headers(i32=size - 2000, bf16=2000), config=packed)
    assert found.weight_type.bits == Fraction(8 * size, LLAMA_8B_PARAMS)
    assert found.weights is not None
    assert found.weights.value == Fraction(size, 10**9)
    assert facts(config=packed).weight_type.bits is None


def test_the_index_gives_parameters_where_the_type_is_known() -> None:
    index = ("total_size", "16000000000", "safetensors index")
    found = facts(("dtype", "bfloat16", "/server_info"), index)
    assert found.total is not None
    assert (found.total.value, found.total.provenance) == (8 * 10**9, "derived")
    assert facts(index).total is None, "16 bits by fallback are no evidence of a count"


def test_sources_that_disagree_are_told() -> None:
    found = facts(("model", "meta-llama/Llama-3.1-70B", "/v1/models"), config=LLAMA_8B)
    assert len(found.conflicts) == 1
    assert "70000000000 (catalogue, Llama 3 70B (2026-08))" in found.conflicts[0]
    types = facts(("quantization", "fp8", "/server_info"), ("quantization", "awq", "environment"))
    assert types.weight_type.name == "fp8"
    assert types.conflicts == ("type of weights: fp8 (/server_info quantization), but also awq (environment)",)


def test_a_quantised_name_without_a_setting_is_refused() -> None:
    found = facts(("model", "acme/Llama-3.1-8B-AWQ", "/v1/models"))
    assert found.total is not None
    assert found.weight_type.bits is None
    assert found.weights is None


def test_a_model_with_more_than_text_counts_its_text_for_ceilings_only() -> None:
    inner = {f"text_config.{k}": v for k, v in PUBLISHED["gemma-3-1b"][1].items()}
    found = facts(config={"model_type": "gemma3", **inner})
    assert found.total is None
    assert found.active is not None
    assert (found.active.value, "text part" in found.active.source) == (999_885_952, True)
    assert found.kv is not None
    assert found.kv.value.swa_layers == 22


def test_what_is_missing_says_why() -> None:
    found = facts(("model", "acme/unheard", "/v1/models"), config={"model_type": "unheard", "hidden_size": "64"})
    assert found.total is None
    assert "'unheard'" in found.why_missing("total")
    assert "acme/unheard" in found.why_missing("total")
    assert found.why_missing("kv")
    nothing = model_facts([], CATALOGUE)
    assert "names no model" in nothing.why_missing("total")


def test_who_is_asked_for_the_type_and_in_which_order() -> None:
    """The server, then its command line, environment and files; any quantisation before any plain type."""
    said_by = [
        ("dtype", "float32", "/v1/models"), ("quantization", "awq", "environment"),
        ("quantization", "None", "metric label"), ("quantization", "gptq", "given at import"),
    ]  # fmt: skip
    config = {**LLAMA_8B, "quantization_config.quant_method": "fp8", "torch_dtype": "float16"}
    assert facts(*said_by, config=config).weight_type.name == "gptq"
    assert facts(*said_by[:3], config=config).weight_type.source == "environment quantization"
    assert facts(*said_by[:1], config=config).weight_type.source == "config.json quantization_config"
    assert facts(*said_by[:1], config={**LLAMA_8B, "torch_dtype": "float16"}).weight_type.bits == 32
    assert facts(config={**LLAMA_8B, "torch_dtype": "float16"}).weight_type.source == "config.json torch_dtype"
    sglang = facts(("dtype", "bfloat16", "/get_server_info"), config=LLAMA_8B)
    assert sglang.weight_type.source == "/get_server_info dtype"
    kv = facts(("kv_cache_dtype", "auto", "command line"), ("kv_cache_dtype", "fp8_e5m2", "metric label"))
    assert (kv.kv_element.size_bytes, kv.kv_element.source) == (1, "metric label")


def test_a_row_of_the_users_is_not_called_the_catalogues() -> None:
    """What an overlay says of a model is the user's word: named so, and assumed down to the size of the weights."""
    mine = replace(CATALOGUE, models=tuple(replace(m, origin="user") for m in CATALOGUE.models))
    name = [Recorded("model", "meta-llama/Llama-3.1-8B", "/v1/models")]
    ours, theirs = model_facts(name, mine), model_facts(name, CATALOGUE)
    assert ours.total is not None
    assert ours.weights is not None
    assert theirs.weights is not None
    assert ours.total.source == "user's overlay, Llama 3 8B (2026-08)"
    assert ours.weight_type.source == "user's overlay, Llama 3 8B"
    assert (type_provenance(ours.weight_type), ours.weights.provenance) == ("assumed", "assumed")
    assert (type_provenance(theirs.weight_type), theirs.weights.provenance) == ("estimated", "estimated")
    recorded = [Recorded(k, v, "config.json") for k, v in LLAMA_8B.items()]
    files = model_facts([*name, *recorded], mine)
    assert files.weights is not None
    assert files.weights.provenance == "assumed", "counted parameters times the overlay's type"


def test_bits_from_a_size_over_a_count_are_derived() -> None:
    assert type_provenance(weight_type([Claim("dtype", "bfloat16", "config.json torch_dtype")])) == "measured"
    assert type_provenance(weight_type([Claim("quantization", "fp8", f"{GIVEN} quantization")])) == "assumed"
    packed = WeightType(Fraction(9, 2), "bf16", "compressed-tensors", f"safetensors index: total_size {OVER_COUNTED}")
    assert type_provenance(packed) == "derived"
