"""What formulas say when something is absent or at its edge: None, never 0, and never a wrong number."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from gpuaudit.analyze.inference import formulas, memory
from gpuaudit.analyze.inference.formulas import GuardWindow
from gpuaudit.analyze.inference.memory import KvShape, LinearState

DENSE = KvShape(32, 8, 128)
STATE = LinearState(48, 16, 48, 128, 128, 4, 4)

NEEDED: list[tuple[Callable[..., Any], dict[str, Any], set[str]]] = [
    (formulas.ratio, {"a": 1, "b": 2}, set()),
    (formulas.decode_ceiling_tps, {"bandwidth_gbs": 3350, "params": 8 * 10**9, "bits": 16, "tp": 1}, set()),
    (
        formulas.decode_ceiling_kv_tps,
        {"bandwidth_gbs": 3350, "weight_read_bytes": 16 * 10**9, "batch": 100, "context_tokens": 4096,
         "kv_token_bytes": 131072, "tp": 1},
        set(),
    ),
    (
        formulas.prefill_ceiling_prompts_per_s,
        {"tflops": 989, "params": 8 * 10**9, "prompt_tokens": 512, "tp": 1, "layers": 32},
        {"layers"},
    ),
    (formulas.ridge_batch, {"tflops": 989, "bandwidth_gbs": 3350, "bits": 16}, set()),
    (formulas.band, {"expected": 1}, set()),
    (formulas.floor_ms, {"ceiling_per_s": 1}, set()),
    (
        formulas.prefill_floor_shown_ms,
        {"ceiling_prompts_per_s": 20, "running": 1, "ridge": 100},
        {"running", "ridge"},
    ),
    (formulas.expected_experts, {"experts": 8, "per_token": 2, "batch": 4}, set()),
    (formulas.batch_relative_pct, {"tps": 100, "ceiling_tps": 200, "running": 4, "ridge": 100}, set()),
    (formulas.of_roof_pct, {"tps": 100, "roof_tps": 200}, set()),
    (formulas.decode_mfu_pct, {"tps": 100, "ceiling_tps": 200, "ridge": 100}, set()),
    (formulas.config_relative_pct, {"tps": 100, "ceiling_tps": 200, "max_num_seqs": 4, "ridge": 100}, set()),
    (formulas.headroom_pct, {"efficiency_pct": 40}, set()),
    (formulas.tokens_per_joule, {"tps": 100, "power_w": 50}, set()),
    (formulas.joules_per_token, {"tps": 100, "power_w": 50}, set()),
    (formulas.cost_per_mtoken, {"price_per_hour": 3, "tps": 100}, set()),
    (formulas.recoverable_per_hour, {"price_per_hour": 3, "efficiency_pct": 40}, set()),
    (memory.bytes_to_gb, {"size_bytes": 1}, set()),
    (memory.weight_gb, {"params": 1, "bits": 16}, set()),
    (memory.kv_headroom_gb, {"vram_gb": 80, "weights_gb": 16, "tp": 1, "utilization": Fraction(1)}, {"utilization"}),
    (memory.min_tp, {"vram_gb": 80, "weights_gb": 140, "utilization": Fraction(9, 10)}, {"utilization"}),
    (memory.kv_bytes_per_token, {"layers": 32, "kv_heads": 8, "head_dim": 128, "element_bytes": 2}, set()),
    (memory.kv_copies, {"kv_heads": 8, "tp": 2}, set()),
    (memory.bytes_per_sequence, {"shape": DENSE, "element_bytes": 2, "length": 4096}, {"shape"}),
    (memory.derived_max_seqs, {"pool": 10**10, "sequence_bytes": 10**8, "tp": 1}, set()),
    (
        memory.sharded_max_seqs,
        {"headroom_gb": 10, "shape": DENSE, "element_bytes": 2, "length": 4096, "tp": 2},
        {"shape"},
    ),
    (memory.state_pages, {"blocks": 390, "block_size": 784, "concurrency": 8, "length": 32768}, set()),
    (
        memory.seats_at_length,
        {"blocks": 390, "block_size": 784, "concurrency": 8, "length": 32768, "target": 8192},
        set(),
    ),
    (memory.empirical_max_seqs, {"running": 10, "kv_pct": 50}, set()),
    (
        memory.seats_at_observed_size,
        {"full_capacity": 10, "max_model_len": 4096, "prompt_mean": 100, "generated_mean": 100},
        set(),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("function", "inputs", "optional"), NEEDED, ids=[f.__name__ for f, _, _ in NEEDED])
def test_an_absent_input_makes_an_absent_result(
    function: Callable[..., Any], inputs: dict[str, Any], optional: set[str]
) -> None:
    """With all inputs there is a value; with any needed one absent there is none."""
    assert function(**inputs) is not None
    for name in sorted(set(inputs) - optional):
        assert function(**{**inputs, name: None}) is None, name


def test_every_formula_of_a_number_is_among_them() -> None:
    """A new formula that may be None has to be tried here."""
    tried = {f for f, _, _ in NEEDED}
    elsewhere = {"speculation", "sequence_length", "tensor_parallel", "params_read", "pool_bytes"}
    for module in (formulas, memory):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            public = not name.startswith("_") and function.__module__ == module.__name__
            if public and "None" in str(inspect.signature(function).return_annotation):
                assert function in tried or name in elsewhere, name


def test_nothing_is_divided_by_zero() -> None:
    assert formulas.decode_ceiling_tps(3350, 0, 16) is None
    assert formulas.ridge_batch(989, 0, 16) is None
    assert formulas.ridge_batch(0, 3350, 16) is None
    assert formulas.prefill_ceiling_prompts_per_s(989, 8 * 10**9, 0) is None
    assert formulas.prefill_ceiling_prompts_per_s(989, 0, 100) is None
    assert formulas.tokens_per_joule(100, 0) is None
    assert formulas.tokens_per_joule(0, 100) is None
    assert formulas.cost_per_mtoken(3, 0) is None
    assert memory.min_tp(3, 140) is None
    assert memory.empirical_max_seqs(10, 1) is None
    assert memory.derived_max_seqs(10, 11) is None
    assert memory.derived_max_seqs(10, 0) is None
    assert memory.bytes_per_sequence(DENSE, 2, 0) is None


def test_length_is_the_mean_prompt_else_the_longest_else_nothing() -> None:
    assert formulas.sequence_length(Fraction(1023, 2), 8192) == 512
    assert formulas.sequence_length(0, 8192) == 8192
    assert formulas.sequence_length(None, 8192) == 8192
    assert formulas.sequence_length(None, 0) is None
    assert formulas.sequence_length(None, None) is None


def test_the_recorded_degree_counts_and_says_when_it_exceeds_what_was_seen() -> None:
    assert formulas.tensor_parallel(4, 2) == formulas.Parallel(4, True)
    assert formulas.tensor_parallel(2, 2) == formulas.Parallel(2, False)
    assert formulas.tensor_parallel(None, 2) == formulas.Parallel(2, False)
    assert formulas.tensor_parallel(4, 0) == formulas.Parallel(4, True)
    assert formulas.tensor_parallel(None, 0) is None
    assert formulas.tensor_parallel(0, 0) is None


def test_the_prefill_floor_is_shown_only_where_it_says_something() -> None:
    assert formulas.prefill_floor_shown_ms(20, 10, 100) == 50
    assert formulas.prefill_floor_shown_ms(20, 100, 100) is None
    assert formulas.prefill_floor_shown_ms(9, 10, 100) is None
    assert formulas.prefill_floor_shown_ms(2001, 10, 100) is None
    assert formulas.prefill_floor_shown_ms(2000, 10, 100) == Fraction(1, 2)


def test_attention_is_the_catalogues_else_twice_the_width_else_left_out() -> None:
    assert formulas.attention_coefficient(0, 4096) == 0
    assert formulas.attention_coefficient(None, 4096) == 8192
    assert formulas.attention_coefficient(None, None) == 0


def test_parameters_of_a_mixture_whose_experts_are_not_known_are_read_at_batch_one_only() -> None:
    assert formulas.params_read(47, 13, None, None, 1) == 13
    assert formulas.params_read(47, 13, None, None, 2) is None
    assert formulas.params_read(None, 13, 8, 2, 1) == 13
    assert formulas.params_read(None, 13, 8, 2, 2) is None
    assert formulas.params_read(13, 47, 8, 2, 2) is None
    assert formulas.params_read(47, None, 8, 2, 1) is None
    assert formulas.params_read(47, 47, 8, 8, 5) == 47


def test_a_prompt_of_any_length_touches_all_experts_at_once() -> None:
    assert formulas.expected_experts(256, 8, 10**9) == 256
    assert formulas.expected_experts(256, 8, 40 * 32) == 256
    assert formulas.expected_experts(256, 8, 40 * 32 - 1) == 256, "rounding takes away what is missing"
    assert formulas.expected_experts(4, 4, 1) == 4


def test_mixtral_reads_nearly_all_its_experts_at_batch_sixteen() -> None:
    """8·(1 − (6/8)^16) = 7.92 of 8: the active parameters would make the ceiling 3.6 times too high."""
    assert formulas.expected_experts(8, 2, 16) == Fraction(7919819, 10**6)
    total, active = 46_702_792_704, 12_879_925_248
    read = formulas.params_read(total, active, 8, 2, 16)
    assert read is not None
    assert Fraction(35, 10) < read / active < Fraction(36, 10)


def test_the_kv_aware_ceiling_of_the_reference() -> None:
    """Llama-3-8B in bf16 on an H100, batch 100 at 4k: 20,900 tokens/s by weights alone, 4,810 with the KV cache."""
    token = memory.kv_bytes_per_token(32, 8, 128, 2)
    assert token == 131_072
    assert round(formulas.decode_ceiling_tps(3350, 8 * 10**9, 16) * 100 or 0, -2) == 20_900  # type: ignore[operator]
    got = formulas.decode_ceiling_kv_tps(3350, 16 * 10**9, 100, 4096, token)
    assert got is not None
    assert round(got, -1) == 4_810


def test_a_batch_above_the_band_has_no_efficiency_and_inside_it_is_full() -> None:
    assert formulas.batch_relative_pct(1051, 100, 10, 100) is None
    assert formulas.batch_relative_pct(1050, 100, 10, 100) == 100
    assert formulas.batch_relative_pct(500, 100, 10, 100) == 50
    assert formulas.batch_relative_pct(500, 100, 10, 5) == 100
    assert formulas.batch_relative_pct(0, 100, 10, 100) is None
    assert formulas.config_relative_pct(500, 0, 10, 100) == 0
    assert formulas.headroom_pct(120) == 0


def test_the_guard_prefers_tpot_then_the_stream_then_the_total() -> None:
    total = GuardWindow(None, 10**6, None, None)
    stream = GuardWindow(None, 1000, None, 1)
    tpot = GuardWindow(Fraction(9), None, None, None)
    assert formulas.speculation([total, stream, tpot], 100, 10).detector == "tpot"  # type: ignore[union-attr]
    hit = formulas.speculation([total, stream], 100, 10)
    assert hit == formulas.Speculation("stream", 1, Fraction(1000), Fraction(105))
    assert formulas.speculation([total], 100, 10).window == 0  # type: ignore[union-attr]
    assert formulas.speculation([GuardWindow(10, 1000, 10, None)], 100, 10) is None
    assert formulas.speculation([GuardWindow(None, 100, Fraction(1, 2), 1)], 100, 10) is None, "running is 1 at least"
    assert formulas.speculation([tpot], None, 10) is None
    assert formulas.speculation([], 100, 10) is None


def test_shapes_that_are_not_whole_are_declined() -> None:
    assert memory.bytes_per_sequence(KvShape(32, 8, 128, 1024, None), 2, 4096) is None
    assert memory.bytes_per_sequence(KvShape(32, 8, 128, None, 16), 2, 4096) is None
    assert memory.bytes_per_sequence(KvShape(32, 8, 128, 1024, 33), 2, 4096) is None
    assert memory.bytes_per_sequence(KvShape(None, 8, 128), 2, 4096) is None
    assert memory.sharded_max_seqs(10, KvShape(32, 8, 128, 1024, 16), 2, 4096, 2) is None
    assert memory.sharded_max_seqs(10, KvShape(32, 8, 128, linear=STATE), 2, 4096, 2) is None


def test_pools() -> None:
    """Blocks where they are told and say something, else the headroom; sliding windows are declined."""
    token = memory.kv_bytes_per_token(32, 8, 128, 2)
    assert token is not None
    assert memory.pool_bytes(DENSE, 2, 100, 16) == 1600 * token
    hybrid, windowed = KvShape(16, 4, 256, linear=STATE), KvShape(32, 8, 128, 1024, 16)
    assert memory.pool_bytes(hybrid, 2, 390, 784, mamba_page_bytes=1000) == 390_000
    assert memory.pool_bytes(hybrid, 2, 390, 784) is None
    assert memory.pool_bytes(windowed, 2, 100, 16, headroom_gb=10) is None
    assert memory.pool_bytes(DENSE, 2, None, None, headroom_gb=10) == 10**10
    assert memory.pool_bytes(DENSE, 2, None, None) is None


def test_a_degree_above_one_is_declined_where_the_shards_are_not_priced() -> None:
    assert memory.derived_max_seqs(10**10, 10**8, 2) is None
    whole = memory.bytes_per_sequence(DENSE, 2, 4096)
    assert whole == 536_870_912
    assert memory.sharded_max_seqs(10, DENSE, 2, 4096, 2) == 10**10 * 2 // 536_870_912
    assert memory.sharded_max_seqs(10, DENSE, 2, 4096, 16) == 10**10 * 8 // 536_870_912, "a head is not halved"
    assert memory.kv_copies(8, 16) == 2
    assert memory.kv_copies(8, 4) == 1


def test_state_as_large_as_the_tokens_is_not_explained() -> None:
    assert memory.state_pages(100, 16, 1, 16 * 50) is None
    assert memory.state_pages(100, 16, 2, 16 * 50) == 0
    assert memory.state_pages(100, 16, 0, 16 * 50) is None


def test_seats_at_the_size_requests_have() -> None:
    assert memory.seats_at_observed_size(Fraction(17, 2), 8192, 512, 256) == 90
    assert memory.seats_at_observed_size(8, 8192, 0, 0) is None
