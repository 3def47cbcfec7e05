"""From the windows of an engine to its run, field by field as ``docs/reference/engines.md`` says ("across windows").

Rates and means are of active windows and weighted by duration; token sizes, KV use and prefix hits of evaluable ones;
quantiles come from merged buckets; settings of the moment (VRAM, clock) from the last evaluable window; cumulative
counters from the chronologically last window, evaluable or not. Where no window is evaluable, the last one stands for
the run as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

from gpuaudit.analyze.inference.model import (
    HistogramDelta,
    Latency,
    Number,
    RunTotals,
    Window,
    hit_share,
)  # fmt: skip
from gpuaudit.analyze.inference.quantiles import merge, quantile

P50, P95, P99 = Fraction(50, 100), Fraction(95, 100), Fraction(99, 100)

Get = Callable[[Window], Number | None]


def weighted_mean(pairs: Iterable[tuple[Number | None, Fraction]]) -> Fraction | None:
    """Σ value·weight / Σ weight over the values that are there; None without any, or without weight."""
    known = [(Fraction(v), w) for v, w in pairs if v is not None]
    weight = sum((w for _, w in known), Fraction(0))
    return sum((v * w for v, w in known), Fraction(0)) / weight if weight > 0 else None


def over(windows: Sequence[Window], get: Get) -> Fraction | None:
    """The mean over windows, weighted by their duration (actual, else planned)."""
    return weighted_mean((get(w), w.weight_s) for w in windows)


def highest(windows: Sequence[Window], *gets: Get) -> Number | None:
    """The highest of all values that are there."""
    return max((v for w in windows for get in gets if (v := get(w)) is not None), default=None)


def latency(parts: Sequence[tuple[HistogramDelta, Fraction]]) -> Latency:
    """One histogram over windows (delta, weight): Σ sums / Σ counts, and quantiles of the merged buckets.

    Where no window had a new observation, the mean is the weighted mean of what the histogram said before.
    """
    known = [(h.sum, h.count) for h, _ in parts if h.sum is not None and h.count and h.count > 0 and h.sum >= 0]
    count = sum(c for _, c in known)
    mean = sum((s for s, _ in known), Fraction(0)) / count if count else weighted_mean((h.mean, w) for h, w in parts)
    buckets = merge(h.buckets for h, _ in parts)
    return Latency(
        mean, count if any(h.count is not None for h, _ in parts) else None,
        quantile(buckets, P50), quantile(buckets, P95), quantile(buckets, P99), buckets,
    )  # fmt: skip


def aggregate(windows: Sequence[Window], deltas: dict[str, Number] | None = None) -> RunTotals:
    """The run; ``deltas`` are what the counters gained over all scrapes."""
    evaluable = [w for w in windows if w.evaluable]
    if not windows or not evaluable:
        return _raw(windows, deltas or {})
    active = [w for w in evaluable if w.active]
    return RunTotals(
        windows=len(windows), evaluable=len(evaluable), active=len(active), idle=len(evaluable) - len(active),
        evaluable_s=sum((w.weight_s for w in evaluable), Fraction(0)),
        active_s=sum((w.weight_s for w in active), Fraction(0)),
        **_traffic(active), **_latencies(active, evaluable), **_peaks(evaluable), **_memory(evaluable),
        **_power(evaluable), gpu_utilization_percent=over(active, lambda w: w.gpu.utilization_percent),
        gpu_memory_utilization_percent=over(active, lambda w: w.gpu.memory_utilization_percent),
        counters=dict(windows[-1].counters), deltas=dict(deltas or {}),
    )  # fmt: skip


def _raw(windows: Sequence[Window], deltas: dict[str, Number]) -> RunTotals:
    """Nothing evaluable: the last window as it is, and its counters; no window counts as evaluable."""
    if not windows:
        return RunTotals(deltas=dict(deltas))
    last = list(windows[-1:])
    return RunTotals(
        windows=len(windows), **_traffic(last), **_latencies(last, last), **_peaks(last), **_memory(last),
        **_power(last), gpu_utilization_percent=last[0].gpu.utilization_percent,
        gpu_memory_utilization_percent=last[0].gpu.memory_utilization_percent,
        counters=dict(last[0].counters), deltas=dict(deltas),
    )  # fmt: skip


def _traffic(active: Sequence[Window]) -> dict[str, Any]:
    running = over(active, lambda w: w.running_mean if w.running_mean is not None else w.running)
    waiting = over(active, lambda w: w.waiting_mean if w.waiting_mean is not None else w.waiting)
    queued = None
    if running is not None and waiting is not None and running + waiting > 0:
        queued = waiting / (running + waiting)
    return {
        "running": running, "waiting": waiting, "queue_share": queued,
        "generation_tps": over(active, lambda w: w.generation_tps),
        "prompt_tps": over(active, lambda w: w.prompt_tps),
        "requests_per_s": over(active, lambda w: w.requests_per_s),
        "preemptions_per_s": over(active, lambda w: w.preemptions_per_s),
        "kv_mean_share": over(active, lambda w: w.kv_mean_share),
    }  # fmt: skip


def _latencies(active: Sequence[Window], evaluable: Sequence[Window]) -> dict[str, Any]:
    out = {m: latency([(getattr(w, m), w.weight_s) for w in active]) for m in ("ttft", "tpot", "prefill", "queue")}
    for m in ("prompt_size", "generation_size"):
        out[m] = latency([(getattr(w, m), w.weight_s) for w in evaluable])
    return out


def _peaks(evaluable: Sequence[Window]) -> dict[str, Any]:
    """Peaks, and where the gauge stood at the end of a window."""
    return {
        "running_peak": highest(evaluable, lambda w: w.running_peak, lambda w: w.running),
        "waiting_peak": highest(evaluable, lambda w: w.waiting_peak, lambda w: w.waiting),
        "kv_peak_share": highest(evaluable, lambda w: w.kv_peak_share, lambda w: w.kv_last_share),
        "vram_peak_bytes": highest(evaluable, lambda w: w.gpu.vram_peak_bytes),
        "temperature_peak_c": highest(evaluable, lambda w: w.gpu.temperature_peak_c, lambda w: w.gpu.temperature_c),
    }


def _memory(evaluable: Sequence[Window]) -> dict[str, Any]:
    """KV use and prefix hits over evaluable windows, and the last value of what is a state."""
    hits = [(w.prefix_hits, w.prefix_queries) for w in evaluable]
    known = [(h, q) for h, q in hits if h is not None and q is not None and h >= 0 and q >= 0]
    last = evaluable[-1]
    return {
        "kv_avg_share": over(evaluable, lambda w: w.kv_last_share),
        "prefix_hit_share": hit_share(sum(h for h, _ in known), sum(q for _, q in known)),
        "swapped": last.swapped, "vram_used_bytes": last.gpu.vram_used_bytes,
        "vram_total_bytes": last.gpu.vram_total_bytes, "temperature_c": last.gpu.temperature_c,
        "clock_sm_mhz": last.gpu.clock_sm_mhz,
    }  # fmt: skip


def _power(windows: Sequence[Window]) -> dict[str, Any]:
    pairs = [w for w in windows if w.energy_pair]
    return {
        "power_mw": over(pairs, lambda w: w.gpu.power_mw),
        "energy_generation_tps": over(pairs, lambda w: w.generation_tps),
        "energy_windows": len(pairs),
    }
