"""Identities between formulas of inference, for any model, GPU and batch."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from gpuaudit.analyze.inference import formulas, memory
from gpuaudit.analyze.inference.memory import KvShape

PARAMS = st.integers(10**6, 10**13)
BITS = st.sampled_from([4, Fraction(17, 4), Fraction(9, 2), 8, 16, 32])
RATES = st.fractions(Fraction(1, 10), 10**5, max_denominator=1000)
TP = st.integers(1, 64)
TPS = st.fractions(Fraction(1, 1000), 10**7, max_denominator=1000)
LENGTHS = st.integers(1, 1 << 20)


@given(RATES, RATES, PARAMS, BITS)
def test_ceiling_times_ridge_is_the_compute_roof(
    tflops: Fraction, bandwidth: Fraction, params: int, bits: Fraction
) -> None:
    ceiling, ridge = formulas.decode_ceiling_tps(bandwidth, params, bits), formulas.ridge_batch(tflops, bandwidth, bits)
    assert ceiling is not None
    assert ridge is not None
    assert ceiling * ridge == tflops * 10**12 / (2 * params)


@given(tflops=RATES, bandwidth=RATES, params=PARAMS, bits=BITS, tps=TPS, tp=TP)
def test_mfu_is_two_flop_per_parameter_and_token(
    tflops: Fraction, bandwidth: Fraction, params: int, bits: Fraction, tps: Fraction, *, tp: int
) -> None:
    ceiling = formulas.decode_ceiling_tps(bandwidth, params, bits, tp)
    got = formulas.decode_mfu_pct(tps, ceiling, formulas.ridge_batch(tflops, bandwidth, bits))
    assert got == min(100 * tps * 2 * params / (tflops * 10**12 * tp), Fraction(100))


@given(RATES, PARAMS, BITS, TP, st.integers(1, 1000))
def test_without_a_cache_the_batch_ceiling_is_the_sequences_own(
    bandwidth: Fraction, params: int, bits: Fraction, tp: int, batch: int
) -> None:
    one = formulas.decode_ceiling_tps(bandwidth, params, bits, tp)
    weights = Fraction(params) * bits / 8
    assert one is not None
    assert formulas.decode_ceiling_kv_tps(bandwidth, weights, batch, 0, 1, tp=tp) == batch * one


@given(
    bandwidth=RATES, params=PARAMS, bits=BITS, batch=st.integers(1, 1000), length=LENGTHS, token=st.integers(1, 10**7)
)  # fmt: skip
def test_reading_the_cache_never_raises_the_ceiling(
    bandwidth: Fraction, params: int, bits: Fraction, batch: int, length: int, *, token: int
) -> None:
    weights = Fraction(params) * bits / 8
    longer = formulas.decode_ceiling_kv_tps(bandwidth, weights, batch, length + 1, token)
    shorter = formulas.decode_ceiling_kv_tps(bandwidth, weights, batch, length, token)
    larger = formulas.decode_ceiling_kv_tps(bandwidth, weights, batch + 1, length, token)
    assert longer is not None
    assert shorter is not None
    assert larger is not None
    assert longer < shorter < larger
    assert shorter < bandwidth * 10**9 / (length * token)


@given(TPS, st.fractions(Fraction(1, 100), 10**5, max_denominator=1000))
def test_joules_and_tokens_are_reciprocals(tps: Fraction, watts: Fraction) -> None:
    a, b = formulas.tokens_per_joule(tps, watts), formulas.joules_per_token(tps, watts)
    assert a is not None
    assert b is not None
    assert a * b == 1


@given(st.integers(2, 512), st.data())
def test_experts_touched_grow_from_those_of_one_token_to_all(experts: int, data: st.DataObject) -> None:
    used = data.draw(st.integers(1, experts))
    batch = data.draw(st.fractions(1, 300, max_denominator=10))
    one, some = formulas.expected_experts(experts, used, 1), formulas.expected_experts(experts, used, batch)
    more = formulas.expected_experts(experts, used, batch + 1)
    assert one is not None
    assert some is not None
    assert more is not None
    assert one == used
    assert used <= some <= more <= experts


@given(st.integers(2, 256), st.data())
def test_a_mixture_reads_its_active_parameters_at_batch_one_and_never_more_than_all(
    experts: int, data: st.DataObject
) -> None:
    used = data.draw(st.integers(1, experts - 1))
    one, shared = data.draw(st.integers(1, 10**9)), data.draw(st.integers(0, 10**10))
    total, active = shared + experts * one, shared + used * one
    batch = data.draw(st.integers(1, 200))
    assert formulas.params_read(total, active, experts, used, 1) == active
    read = formulas.params_read(total, active, experts, used, batch)
    assert read is not None
    assert active <= read <= total


@given(
    layers=st.integers(1, 200), heads=st.integers(1, 128), dim=st.integers(1, 512), element=st.sampled_from([1, 2, 4]),
    length=LENGTHS, window=st.integers(1, 1 << 20),
)  # fmt: skip
def test_a_sequence_is_its_tokens_and_a_window_only_shortens_it(
    layers: int, heads: int, dim: int, element: int, length: int, *, window: int
) -> None:
    token = memory.kv_bytes_per_token(layers, heads, dim, element)
    full = memory.bytes_per_sequence(KvShape(layers, heads, dim), element, length)
    short = memory.bytes_per_sequence(KvShape(layers, heads, dim, window, layers), element, length)
    assert token is not None
    assert full == token * length
    assert short == token * min(length, window)


@given(st.integers(1, 10**5), st.integers(1, 256), st.integers(1, 500), LENGTHS)
def test_seats_at_the_length_observed_are_those_observed(blocks: int, size: int, pages: int, length: int) -> None:
    own = -(-length // size)
    concurrency = Fraction(blocks, own + min(pages, own - 1))
    if own > 1:
        assert memory.seats_at_length(blocks, size, concurrency, length, length) == concurrency


@given(RATES, st.fractions(0, 100, max_denominator=100))
def test_what_can_be_recovered_and_what_is_used_make_up_the_target(price: Fraction, efficiency: Fraction) -> None:
    got = formulas.recoverable_per_hour(price, efficiency)
    assert (got or 0) + price * min(efficiency / 100, Fraction(4, 5)) == price * Fraction(4, 5)
    assert (got is None) == (efficiency >= 80)
