"""What one engine said of the whole capture, measure by measure, with unit, basis, formula and evidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Quantity
from gpuaudit.analyze.inference.model import EngineRun, Latency, Number, Quantile
from gpuaudit.analyze.inference.names import absent_reason
from gpuaudit.analyze.inference.rows import rows_of
from gpuaudit.analyze.inference.windows import SECOND_NS
from gpuaudit.analyze.store import quoted

ALL, ACTIVE, EVALUABLE, ENERGY = (
    "all polls", "active windows", "evaluable windows", "windows with power of the same time",
)  # fmt: skip

_BY_LENGTH = "Σ mean over polls × length ÷ Σ length"

MIN_FOR_P99 = 100
"""Of fewer observations the 99th percentile is the highest one."""

_COUNTERS = (
    ("completed", "requests finished", "count"),
    ("aborted", "requests aborted or failed", "count"),
    ("prompt_tokens", "prompt tokens", "token"),
    ("generation_tokens", "generated tokens", "token"),
    ("prefix_hits", "prompt tokens found in the prefix cache", "token"),
    ("prefix_queries", "prompt tokens looked up in the prefix cache", "token"),
    ("preemptions", "preemptions", "count"),
)  # fmt: skip

_RATES = (
    ("requests_per_s", "completed", "requests finished per second", "request/s"),
    ("prompt_tps", "prompt_tokens", "prompt tokens per second", "token/s"),
    ("generation_tps", "generation_tokens", "generated tokens per second", "token/s"),
    ("preemptions_per_s", "preemptions", "preemptions per second", "1/s"),
)  # fmt: skip

_LATENCIES = (
    ("ttft", "time to first token"),
    ("tpot", "time per output token"),
    ("queue", "time of a request in the queue"),
    ("prefill", "time of a request in prefill"),
)  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """One line: a key that stays, words for it, the quantity, and which part of the capture it is of."""

    key: str
    label: str
    quantity: Quantity
    basis: str


def measures(context: Context, run: EngineRun) -> list[Measure]:
    """Every measure of an engine, absent ones with their reason."""
    return [
        *_counted(context, run), *_rates(context, run), *_states(context, run), *_latencies(context, run),
        *_sizes(context, run), *_gpu(context, run),
    ]  # fmt: skip


def _why(run: EngineRun, meaning: str, otherwise: str) -> str:
    return run.absent.get(meaning) or (absent_reason(run.kind, meaning) if meaning not in run.metrics else otherwise)


def _counted(context: Context, run: EngineRun) -> Iterator[Measure]:
    for meaning, label, unit in _COUNTERS:
        value = run.totals.deltas.get(meaning)
        formula = f"Δ {run.metrics.get(meaning, '')} from the first answer to the last; after a restart it begins at 0"
        reason = _why(run, meaning, "the counter fell without a restart, or was not there at one end")
        yield Measure(meaning, label, _quantity(value, unit, rows_of(context, run, (meaning,)), formula, reason), ALL)


def _rates(context: Context, run: EngineRun) -> Iterator[Measure]:
    for field, meaning, label, unit in _RATES:
        value: Fraction | None = getattr(run.totals, field)
        formula = f"Σ rate of {run.metrics.get(meaning, '')} × length ÷ Σ length"
        reason = _why(run, meaning, "no active window has the rate")
        yield Measure(field, label, _quantity(value, unit, rows_of(context, run, (meaning,)), formula, reason), ACTIVE)


def _states(context: Context, run: EngineRun) -> Iterator[Measure]:
    t = run.totals
    lines: Sequence[tuple[str, str, str, str, Number | None, str, str]] = (
        ("running", "running", "requests running, mean", "count", t.running, ACTIVE, _BY_LENGTH),
        ("running_peak", "running", "requests running, highest", "count", t.running_peak, EVALUABLE, "max over polls"),
        ("waiting", "waiting", "requests waiting, mean", "count", t.waiting, ACTIVE, _BY_LENGTH),
        ("waiting_peak", "waiting", "requests waiting, highest", "count", t.waiting_peak, EVALUABLE, "max over polls"),
        ("kv_avg_share", "kv_use", "KV cache in use, mean", "share", t.kv_avg_share, EVALUABLE,
         "Σ last poll × length ÷ Σ length"),
        ("kv_peak_share", "kv_use", "KV cache in use, highest", "share", t.kv_peak_share, EVALUABLE, "max over polls"),
        ("prefix_hit_share", "prefix_hits", "prefix cache hits", "share", t.prefix_hit_share, EVALUABLE,
         "Σ hits ÷ Σ tokens looked up"),
    )  # fmt: skip
    for key, meaning, label, unit, value, basis, formula in lines:
        reason = _why(run, meaning, f"no value in {basis}")
        quantity = _quantity(value, unit, rows_of(context, run, (meaning,)), formula, reason)
        yield Measure(key, label, quantity, basis)


def _latencies(context: Context, run: EngineRun) -> Iterator[Measure]:
    for meaning, label in _LATENCIES:
        yield from _distribution(context, run, (meaning, label), "ns", SECOND_NS)


def _sizes(context: Context, run: EngineRun) -> Iterator[Measure]:
    for meaning, label in (
        ("prompt_size", "prompt tokens of a request"),
        ("generation_size", "generated tokens of a request"),
    ):
        yield from _distribution(context, run, (meaning, label), "token", 1)


def _distribution(context: Context, run: EngineRun, of: tuple[str, str], unit: str, scale: int) -> Iterator[Measure]:
    """Mean, median and 99th percentile of one histogram; ``of`` is its meaning and label."""
    meaning, label = of
    basis = ACTIVE if unit == "ns" else EVALUABLE
    found: Latency = getattr(run.totals, meaning)
    evidence = rows_of(context, run, (meaning,))
    metric = run.metrics.get(meaning, "")
    nothing = _why(run, meaning, f"nothing was observed in {basis}")
    mean = None if found.mean is None else found.mean * scale
    formula = f"Σ Δ {metric}_sum ÷ Σ Δ {metric}_count"
    if not found.count and found.mean is not None:
        formula = f"{metric}_sum ÷ {metric}_count before the capture: nothing new was observed"
    yield Measure(f"{meaning}_mean", f"{label}, mean", _quantity(mean, unit, evidence, formula, nothing), basis)
    for name, words, quantile in (("p50", "median", found.p50), ("p99", "99th percentile", found.p99)):
        yield Measure(
            f"{meaning}_{name}", f"{label}, {words}{_clamped(quantile)}",
            _quantity(
                None if quantile is None else quantile.value * scale, unit, evidence,
                f"{words} of the merged buckets of {metric}, linear inside a bucket", nothing,
            ),
            _observed(found, basis) if name == "p99" else basis,
        )  # fmt: skip


def _clamped(quantile: Quantile | None) -> str:
    return " (at least: past the last bucket)" if quantile is not None and quantile.clamped else ""


def _observed(found: Latency, basis: str) -> str:
    few = found.count is not None and 0 < found.count < MIN_FOR_P99
    return f"{basis}; fewer than 100 observations, so near the highest" if few else basis


def _gpu(context: Context, run: EngineRun) -> Iterator[Measure]:
    t = run.totals
    if not run.gpus:
        return
    listed = ", ".join(quoted(u) for u in run.gpus)
    evidence = (context.book.where("nvml_samples", f"gpu_uuid IN ({listed})"),)
    lines: Sequence[tuple[str, str, str, Number | None, str, str]] = (
        ("gpu_utilization", "GPU utilisation, mean", "share", _part(t.gpu_utilization_percent), ACTIVE,
         "Σ mean over polls and GPUs × length ÷ Σ length"),
        ("power", "power of the engine's GPUs", "mW", t.power_mw, ENERGY, "Σ over GPUs of mean over polls, by length"),
        ("vram_used", "GPU memory in use at the end", "bytes", t.vram_used_bytes, EVALUABLE, "Σ over GPUs, last poll"),
        ("vram_peak", "GPU memory in use, highest", "bytes", t.vram_peak_bytes, EVALUABLE,
         "Σ over GPUs of each one's highest"),
    )  # fmt: skip
    for key, label, unit, value, basis, formula in lines:
        yield Measure(key, label, _quantity(value, unit, evidence, formula, f"no GPU told it in {basis}"), basis)


def _part(percent: Fraction | None) -> Fraction | None:
    return None if percent is None else percent / 100


def _quantity(value: Number | None, unit: str, evidence: tuple[str, ...], formula: str, reason: str) -> Quantity:
    return Quantity(value, unit, "derived", evidence, formula, "" if value is not None else reason)
