"""What the rules ask of an engine's ceilings: rates as shares of them, bounds of the KV cache, memory that is left.

Everything here is None where the GPU, the model or a setting is not known; why is told by :func:`why_no_ceiling`.
Efficiencies are withdrawn for the whole run where any window decoded faster than its ceiling (speculative decoding):
then the ceiling is not what bounds it. Shares are 0–1, sizes GB (1e9 bytes), times per token in ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from gpuaudit.analyze.inference import formulas, memory, seats
from gpuaudit.analyze.inference.model import EngineRun, Number
from gpuaudit.analyze.inference.persistence import Limit, declared

DEFAULT_UTILIZATION = memory.DEFAULT_UTILIZATION

WeightSource = Literal["explicit", "told", "fallback"]
"""Who says how large a weight is: the operator (flag, variable), the server or a file or the catalogue, or nobody."""

EXPLICIT = ("command line", "environment", "given at import")
"""Sources of ``engine_config`` in which an operator speaks."""

MS_PER_S = 1000

RUNS_KEPT = 16
"""Engines whose windows are looked through once; a run is the same object for all rules of an analysis."""


def ridge(run: EngineRun) -> Fraction | None:
    """Sequences in a batch from which on computing costs more time than reading the weights (est)."""
    return run.ceiling.ridge if run.ceiling else None


def decode_ceiling(run: EngineRun) -> Fraction | None:
    """Tokens/s of one sequence at best (est)."""
    return run.ceiling.decode_tps if run.ceiling else None


def tpot_floor_ms(run: EngineRun) -> Fraction | None:
    """Milliseconds per token at the decode ceiling (est)."""
    return run.ceiling.tpot_floor_ms if run.ceiling else None


def why_no_ceiling(run: EngineRun) -> str:
    """Why there is no ceiling, or no efficiency."""
    if run.ceiling is None:
        return run.ceiling_reason or "the GPU or the model is not known"
    return "decoding is faster than its ceiling (speculative decoding)" if speculation(run) else "not known"


@lru_cache(maxsize=RUNS_KEPT)
def speculation(run: EngineRun) -> formulas.Speculation | None:
    """Whether any active window was faster than the ceiling allows, which withdraws efficiencies for the run."""
    windows = [
        formulas.GuardWindow(_ms(w.tpot.window_mean), w.generation_tps, w.running_mean, w.running_peak)
        for w in run.active_windows
    ]
    return formulas.speculation(windows, decode_ceiling(run), ridge(run))


def _ms(seconds: Fraction | None) -> Fraction | None:
    return None if seconds is None else seconds * MS_PER_S


def config_efficiency(run: EngineRun, tps: Number | None) -> Fraction | None:
    """tokens/s / (ceiling × min(max_num_seqs, ridge)), a share of at most 1."""
    if run.ceiling is None or tps is None or speculation(run) is not None:
        return None
    return _share(run.ceiling.config_relative_pct(tps, run.max_num_seqs))


def decode_mfu(run: EngineRun, tps: Number | None) -> Fraction | None:
    """tokens/s / (ceiling × ridge), a share of at most 1; 0 where nothing was generated."""
    if run.ceiling is None or tps is None or speculation(run) is not None:
        return None
    return Fraction(0) if tps == 0 else _share(run.ceiling.decode_mfu_pct(tps))


def batch_efficiency(run: EngineRun) -> Fraction | None:
    """tokens/s / (ceiling × min(mean running, ridge)) over the active windows: for before and after."""
    if run.ceiling is None or speculation(run) is not None:
        return None
    return _share(run.ceiling.batch_relative_pct(run.totals.generation_tps, run.totals.running))


def _share(pct: Fraction | None) -> Fraction | None:
    return None if pct is None else pct / 100


def reported_kv_sequences(run: EngineRun) -> Number | None:
    """Full-length sequences that the KV caches hold, as the server reports it, over all data-parallel engines."""
    one = run.number("kv_cache_max_concurrency")
    return None if one is None or one <= 0 else one * run.data_parallel


def derived_kv_sequences(run: EngineRun) -> int | None:
    """The same computed from the headroom (est)."""
    one = run.ceiling.derived_max_seqs if run.ceiling else None
    return None if one is None else one * run.data_parallel


def blocks(run: EngineRun) -> Number | None:
    """Blocks of the KV caches of all data-parallel engines."""
    one = run.number("num_gpu_blocks")
    return None if one is None or one <= 0 else one * run.data_parallel


def seat_target(
    run: EngineRun, current: Number | None, limit: Limit = declared, *, running_mean: Number | None = None,
    kv_peak: Number | None = None,
) -> seats.SeatTarget | None:  # fmt: skip
    """The seat target of the run, or of a window whose mean running and KV peak are given."""
    totals = run.totals
    bound = seats.kv_bound(reported_kv_sequences(run), derived_kv_sequences(run), totals.running_peak)
    return seats.seat_target(
        ridge=ridge(run), bound=bound, current=current, limit=limit,
        running_mean=running_mean if running_mean is not None else totals.running,
        kv_peak_share=kv_peak if kv_peak is not None else totals.kv_peak_share,
    )  # fmt: skip


def headroom_gb(run: EngineRun) -> Fraction | None:
    """What is left for the KV cache on one GPU (est); negative: it does not fit."""
    return run.ceiling.kv_headroom_gb if run.ceiling else None


@dataclass(frozen=True)
class MemoryFacts:
    """What R4 decides by. GB are decimal and of one GPU, but ``weight_gb``: over all of them."""

    headroom_gb: Number | None
    source: WeightSource
    request_bytes: Number | None = None
    tp: int | None = 1
    weight_gb: Number | None = None
    vram_gb: Number | None = None
    min_tp: int | None = None


def memory_facts(run: EngineRun) -> MemoryFacts | None:
    """The memory of a recorded engine; None without a baseline."""
    b = run.ceiling
    if b is None:
        return None
    return MemoryFacts(
        b.kv_headroom_gb, weight_source(b.facts.weight_type.source, fallback=b.facts.weight_type.fallback),
        b.sequence_bytes, b.tp, b.weights_gb, b.vram_gb, b.min_tp,
    )  # fmt: skip


def weight_source(source: str, *, fallback: bool) -> WeightSource:
    """Who says how large a weight is."""
    if fallback:
        return "fallback"
    return "explicit" if any(source.startswith(name) for name in EXPLICIT) else "told"


def why_no_headroom(run: EngineRun) -> str:
    """Why there is none."""
    if run.ceiling is None:
        return why_no_ceiling(run)
    return run.ceiling.reason("vram_gb") or run.ceiling.reason("weights_gb") or "not known"
