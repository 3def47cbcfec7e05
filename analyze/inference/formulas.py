"""Ceilings, efficiencies and economics of inference, as pure functions on exact numbers.

None is "absent", never 0: a function whose input is absent, or whose result would not be a finite number, gives None.
Bandwidth is in GB/s (1e9 bytes/s), compute in TFLOP/s (1e12), sizes in decimal GB, parameters are counts. ``tp`` is the
tensor-parallel degree. Memory (weights, KV cache) is in ``memory.py``.

Every ceiling is an estimate: peak figures of a data sheet over the work of a model that is taken to do nothing but
read its weights once per step and multiply by them (2 FLOP per parameter and token; Kaplan et al. 2020, §2.1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

Number = int | Fraction
"""An exact number."""

GIGA = 10**9
TERA = 10**12
BITS_PER_BYTE = 8
FLOP_PER_PARAM = 2
"""One multiplication and one addition per parameter and token."""

BAND_LOWER = Fraction(85, 100)
BAND_UPPER = Fraction(105, 100)
"""What measured rates of a roofline-bound server spread over, as the reference profiler has it: 0.85 to 1.05."""

FLOOR_MIN_PROMPTS_PER_S = 10
FLOOR_MIN_MS = Fraction(1, 2)
"""Below these a prefill floor says nothing: prompts so long that batching hides it, or a floor under the clock's."""

RECOVERABLE_TARGET = Fraction(80, 100)
"""Assumption: a well-run server reaches 80 % of its ceiling; what is missing to that can be recovered, no more."""

EXPERTS_STEP = 10**6
"""Expected counts of experts are rounded to millionths: they are estimates, and exact powers have 10,000 digits."""

ALL_TOUCHED = 40
"""Choices per expert from which on none is missed: (1 − p)^B is below e^−40, 4e-18, which rounding takes away."""

HOURS_PER_YEAR = 8_760
"""365 days of 24 hours."""


def ratio(a: Number | None, b: Number | None) -> Fraction | None:
    """``a / b``; None where either is absent or ``b`` is 0."""
    if a is None or b is None or b == 0:
        return None
    return Fraction(a) / Fraction(b)


def sequence_length(prompt_tokens_mean: Number | None, max_model_len: int | None) -> int | None:
    """Tokens of a prompt that ceilings are computed for: the mean seen, else the longest that is allowed, else None."""
    if prompt_tokens_mean is not None and round(prompt_tokens_mean) > 0:
        return round(prompt_tokens_mean)
    return max_model_len if max_model_len is not None and max_model_len > 0 else None


@dataclass(frozen=True)
class Parallel:
    """Tensor-parallel degree that counts, and whether it is more than the GPUs that were observed."""

    tp: int
    exceeds_observed: bool


def tensor_parallel(recorded: int | None, gpus_observed: int) -> Parallel | None:
    """The recorded degree, said to exceed where fewer GPUs were observed; unrecorded, the GPUs observed; else None.

    An offline audit keeps what was recorded: GPUs of another host, or that NVML hid, were not seen and still work.
    """
    if recorded is not None and recorded >= 1:
        return Parallel(recorded, recorded > gpus_observed)
    return Parallel(gpus_observed, False) if gpus_observed >= 1 else None


# Ceilings


def decode_ceiling_tps(
    bandwidth_gbs: Number | None, params: Number | None, bits: Number | None, tp: int | None = 1
) -> Fraction | None:
    """Tokens/s of one sequence (batch 1): every weight is read once per token. ``BW·tp·1e9·8 / (P·bits)``.

    ``params`` are those that a token activates.
    """
    if bandwidth_gbs is None or params is None or bits is None or tp is None:
        return None
    return ratio(Fraction(bandwidth_gbs) * tp * GIGA * BITS_PER_BYTE, Fraction(params) * bits)


def decode_ceiling_kv_tps(
    bandwidth_gbs: Number | None,
    weight_read_bytes: Number | None,
    batch: Number | None,
    context_tokens: Number | None,
    kv_token_bytes: Number | None,
    *,
    tp: int | None = 1,
) -> Fraction | None:
    """Tokens/s of a whole batch when each step reads the weights once and every sequence's KV cache.

    ``B·BW·tp / (weights + B·len·kv_token)``; ``kv_token_bytes`` over all GPUs, copies that heads fewer than ``tp``
    make necessary included (:func:`memory.kv_copies`).
    """
    if bandwidth_gbs is None or weight_read_bytes is None or batch is None or tp is None:
        return None
    if context_tokens is None or kv_token_bytes is None or batch <= 0:
        return None
    read = Fraction(weight_read_bytes) + Fraction(batch) * context_tokens * kv_token_bytes
    return ratio(Fraction(batch) * bandwidth_gbs * tp * GIGA, read)


def attention_coefficient(catalogued: Number | None, hidden_dim: Number | None) -> Number:
    """FLOP per layer and square of the prompt: the catalogue's, else twice the hidden size, else 0 (left out)."""
    if catalogued is not None:
        return catalogued
    return 2 * hidden_dim if hidden_dim is not None else 0


def prefill_ceiling_prompts_per_s(
    tflops: Number | None,
    params: Number | None,
    prompt_tokens: Number | None,
    *,
    tp: int | None = 1,
    attention: Number = 0,
    layers: int | None = None,
) -> Fraction | None:
    """Prompts/s (not tokens/s): ``F·tp·1e12 / (2·P·s + c·L·s²)``; times ``s`` it is prompt tokens per second."""
    if tflops is None or params is None or prompt_tokens is None or tp is None or prompt_tokens <= 0:
        return None
    work = FLOP_PER_PARAM * Fraction(params) * prompt_tokens
    work += Fraction(attention) * (layers or 0) * Fraction(prompt_tokens) ** 2
    return ratio(Fraction(tflops) * tp * TERA, work)


def ridge_batch(tflops: Number | None, bandwidth_gbs: Number | None, bits: Number | None) -> Fraction | None:
    """Sequences in a batch at which reading the weights takes as long as computing with them: ``F·bits / (BW·16)``.

    ``tflops`` is the dense tensor-core peak of the type the engine computes in (weights kept in 4 bits and computed
    in bf16 have the bf16 peak), ``bits`` the size of a weight in memory. Independent of ``tp`` and of the model.
    """
    if tflops is None or bandwidth_gbs is None or bits is None or tflops <= 0 or bits <= 0:
        return None
    return ratio(Fraction(tflops) * TERA * bits, Fraction(bandwidth_gbs) * GIGA * FLOP_PER_PARAM * BITS_PER_BYTE)


@dataclass(frozen=True)
class Band:
    """What a measured rate at a ceiling would lie between."""

    lower: Fraction
    upper: Fraction


def band(expected: Number | None) -> Band | None:
    """0.85 to 1.05 of a ceiling."""
    return None if expected is None else Band(BAND_LOWER * expected, BAND_UPPER * expected)


def floor_ms(ceiling_per_s: Number | None) -> Fraction | None:
    """Milliseconds that one takes at a ceiling: TPOT floor of a decode ceiling, prefill floor of a prefill one."""
    return ratio(1000, ceiling_per_s)


def prefill_floor_shown_ms(
    ceiling_prompts_per_s: Number | None, running: Number | None, ridge: Number | None
) -> Fraction | None:
    """The prefill floor where it says something: a batch below the ridge, 10 prompts/s at least, 0.5 ms at least."""
    floor = floor_ms(ceiling_prompts_per_s)
    if floor is None or ceiling_prompts_per_s is None or ceiling_prompts_per_s < FLOOR_MIN_PROMPTS_PER_S:
        return None
    if running is not None and ridge is not None and running >= ridge:
        return None
    return floor if floor >= FLOOR_MIN_MS else None


# Mixtures of experts


def expected_experts(experts: int | None, per_token: int | None, batch: Number | None) -> Fraction | None:
    """Distinct experts of a layer that ``batch`` tokens touch, each choosing ``per_token`` of ``experts`` alike (est).

    ``E·(1 − (1 − k/E)^B)``, between whole batches on a straight line, rounded to millionths. Real routers prefer some
    experts, so that fewer are touched.
    """
    if experts is None or per_token is None or batch is None or batch < 0 or not 0 < per_token <= experts:
        return None
    if Fraction(batch) * per_token >= ALL_TOUCHED * experts:
        return Fraction(experts)
    low = int(batch)
    missed = 1 - Fraction(per_token, experts)
    at_low = experts * (1 - missed**low)
    at_high = experts * (1 - missed ** (low + 1))
    exact = at_low + (Fraction(batch) - low) * (at_high - at_low)
    return Fraction(round(exact * EXPERTS_STEP), EXPERTS_STEP)


def params_read(
    total: Number | None, active: Number | None, experts: int | None, per_token: int | None, batch: Number | None
) -> Fraction | None:
    """Parameters that one decode step of ``batch`` sequences reads of a mixture: the shared ones, and experts touched.

    ``total = shared + E·x`` and ``active = shared + k·x`` give ``x``, the parameters of one expert over all layers.
    At most at batch 1 the active ones are enough to know.
    """
    if active is None or batch is None or batch < 0:
        return None
    if batch <= 1:
        return Fraction(active)
    touched = expected_experts(experts, per_token, batch)
    if total is None or touched is None or experts is None or per_token is None or active > total:
        return None
    if experts == per_token:
        return Fraction(total)
    one = (Fraction(total) - active) / (experts - per_token)
    return Fraction(active) - per_token * one + touched * one


# Efficiency: two numbers, each with its denominator


def of_roof_pct(tps: Number | None, roof_tps: Number | None) -> Fraction | None:
    """Tokens/s in per cent of what a batch could reach; up to 1.05 of it counts as 100, above there is no figure."""
    return None if roof_tps is None else _within_band(tps, roof_tps)


def batch_relative_pct(
    tps: Number | None, ceiling_tps: Number | None, running: Number | None, ridge: Number | None
) -> Fraction | None:
    """Tokens/s in per cent of what the ceiling gives the batch that ran: ``tps / (ceiling · min(running, ridge))``.

    ``running`` is the time-weighted mean of active windows. Up to 1.05 of the ceiling counts as 100; above, the
    ceiling does not hold for this server and there is no figure.
    """
    if running is None or ridge is None or ceiling_tps is None or running <= 0:
        return None
    return _within_band(tps, ceiling_tps * min(running, ridge))


def decode_mfu_pct(tps: Number | None, ceiling_tps: Number | None, ridge: Number | None) -> Fraction | None:
    """Tokens/s in per cent of the compute roof, ``tps / (ceiling · ridge)`` = ``tps · 2P / F``: decode MFU.

    At most 100. The ceiling and the ridge are taken of the same bits and ``tp``.
    """
    if ceiling_tps is None or ridge is None:
        return None
    return _clamped(tps, ceiling_tps * ridge)


def config_relative_pct(
    tps: Number | None, ceiling_tps: Number | None, max_num_seqs: int | None, ridge: Number | None
) -> Fraction | None:
    """Tokens/s in per cent of what the configured seats could give: ``tps / (ceiling · min(max_num_seqs, ridge))``.

    At most 100; 0 where the ceiling is not above 0.
    """
    if max_num_seqs is None or ridge is None or ceiling_tps is None or tps is None:
        return None
    if ceiling_tps <= 0:
        return Fraction(0)
    return _clamped(tps, ceiling_tps * min(max_num_seqs, ridge))


def headroom_pct(efficiency_pct: Number | None) -> Fraction | None:
    """What an efficiency leaves to 100."""
    return None if efficiency_pct is None else 100 - min(Fraction(efficiency_pct), Fraction(100))


def _clamped(tps: Number | None, roof_tps: Number) -> Fraction | None:
    share = ratio(tps, roof_tps)
    return None if share is None or share <= 0 else min(100 * share, Fraction(100))


def _within_band(tps: Number | None, roof_tps: Number) -> Fraction | None:
    share = ratio(tps, roof_tps)
    return None if share is None or share > BAND_UPPER else _clamped(tps, roof_tps)


@dataclass(frozen=True)
class GuardWindow:
    """What the speculation guard reads of one evaluable, non-idle window; the last gauge is not among it."""

    tpot_mean_ms: Number | None
    tps: Number | None
    running_mean: Number | None
    running_peak: Number | None


@dataclass(frozen=True)
class Speculation:
    """More than one token per step was produced: which detector saw it, in which window, and what against what.

    ``tpot``: a token took ``value`` ms, less than ``bound``. ``stream``: one sequence got ``value`` tokens/s, more
    than ``bound``. ``total``: all sequences did.
    """

    detector: str
    window: int
    value: Fraction
    bound: Fraction


def speculation(windows: Iterable[GuardWindow], ceiling_tps: Number | None, ridge: Number | None) -> Speculation | None:
    """Whether any window was faster than 1.05 of the ceiling, which withdraws efficiency for the whole run.

    Detectors in order of preference: mean TPOT below the floor; tokens/s per running sequence (mean of the window,
    else its peak, at least 1) above the ceiling; tokens/s above ceiling × ridge.
    """
    if ceiling_tps is None or ceiling_tps <= 0:
        return None
    upper = BAND_UPPER * ceiling_tps
    hits: dict[str, Speculation] = {}
    for i, w in enumerate(windows):
        for hit in _hits(i, w, upper, ridge):
            hits.setdefault(hit.detector, hit)
    return next((hits[d] for d in ("tpot", "stream", "total") if d in hits), None)


def _hits(index: int, w: GuardWindow, upper: Fraction, ridge: Number | None) -> Iterable[Speculation]:
    if w.tpot_mean_ms is not None and w.tpot_mean_ms < 1000 / upper:
        yield Speculation("tpot", index, Fraction(w.tpot_mean_ms), 1000 / upper)
    running = w.running_mean if w.running_mean is not None else w.running_peak
    if w.tps is not None and running is not None and Fraction(w.tps) / max(running, 1) > upper:
        yield Speculation("stream", index, Fraction(w.tps) / max(running, 1), upper)
    if w.tps is not None and ridge is not None and w.tps > upper * ridge:
        yield Speculation("total", index, Fraction(w.tps), upper * ridge)


# Economics


def tokens_per_joule(tps: Number | None, power_w: Number | None) -> Fraction | None:
    """Tokens/s per watt, the same as tokens per joule; None without tokens or without power."""
    return ratio(tps, power_w) if tps is not None and power_w is not None and tps > 0 and power_w > 0 else None


def joules_per_token(tps: Number | None, power_w: Number | None) -> Fraction | None:
    """The reciprocal of :func:`tokens_per_joule`."""
    return ratio(1, tokens_per_joule(tps, power_w))


def cost_per_mtoken(price_per_hour: Number | None, tps: Number | None) -> Fraction | None:
    """Price of a million output tokens, ``price·1e6 / (tps·3600)``, of all GPUs of the engine together."""
    if price_per_hour is None or tps is None or tps <= 0:
        return None
    return ratio(Fraction(price_per_hour) * 10**6, Fraction(tps) * 3600)


def turned_over(completed: Number | None, running_mean: Number | None) -> bool:
    """Whether the requests that ran were replaced at least once: completed ≥ mean running. Absent counts as no.

    Before that, tokens/s are of a batch that is filling up or draining, and a price from them means nothing.
    """
    return completed is not None and running_mean is not None and completed >= running_mean


def recoverable_per_hour(
    price_per_hour: Number | None, efficiency_pct: Number | None, target: Fraction = RECOVERABLE_TARGET
) -> Fraction | None:
    """``price · (target − efficiency)``: what better use could give back per hour; None where nothing is left."""
    if price_per_hour is None or efficiency_pct is None:
        return None
    missing = target - Fraction(efficiency_pct) / 100
    return price_per_hour * missing if missing > 0 else None


def reclaimed_per_year(gpus: Number, price_per_hour: Number, reclaim: Number, overhead: Number = 0) -> Fraction:
    """``gpus · price · 8,760 · reclaim · (1 + overhead)``: a year of every GPU, all hours of all days paid."""
    return Fraction(gpus) * price_per_hour * HOURS_PER_YEAR * reclaim * (1 + Fraction(overhead))
