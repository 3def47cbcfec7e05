"""How many sequences an engine's KV cache holds, by every way that the recorded figures allow.

The ways answer different questions: full-length sequences as the server tells them, as the pool or the headroom would
hold them, as many as would fit at the length that requests really have, and what the traffic itself shows. Counts are
sequences of one data-parallel engine, not sums over them; None where a way is not possible.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.analyze.inference import memory
from gpuaudit.analyze.inference.baseline import Baseline
from gpuaudit.analyze.inference.model import EngineRun, Number


@dataclass(frozen=True)
class Capacity:
    """Sequences by each way. ``reported``: kv_cache_max_concurrency. ``pool``: blocks that the server tells.

    ``headroom``: computed from VRAM and weights. ``sized``: of the full-length capacity, at the mean size of requests.
    ``shorter``: were max_model_len what requests need. ``shown``: mean running by peak KV use.
    """

    reported: Fraction | None
    pool: int | None
    headroom: int | None
    sized: int | None
    shorter: Fraction | None
    shown: Fraction | None


def capacity(run: EngineRun) -> Capacity:
    """Every way, for one engine."""
    b, t = run.ceiling, run.totals
    reported = run.number("kv_cache_max_concurrency")
    pool = _pool_seats(run, b)
    headroom = _headroom_seats(run, b)
    full: Number | None = next((n for n in (reported, pool, headroom) if n is not None), None)
    prompt, generated = t.prompt_size.mean, t.generation_size.mean
    need = None if prompt is None or generated is None else round(prompt + generated)
    running = None if t.running is None else t.running / run.data_parallel
    peak = None if t.kv_peak_share is None else t.kv_peak_share * 100
    return Capacity(
        reported, pool, headroom, memory.seats_at_observed_size(full, _whole(run, "max_model_len"), prompt, generated),
        memory.seats_at_length(
            _whole(run, "num_gpu_blocks"), _whole(run, "block_size"), reported, _whole(run, "max_model_len"), need
        ),
        memory.empirical_max_seqs(running, peak),
    )  # fmt: skip


def _whole(run: EngineRun, key: str) -> int | None:
    value = run.number(key)
    return int(value) if value is not None and value >= 1 and value.denominator == 1 else None


def _pool_seats(run: EngineRun, b: Baseline | None) -> int | None:
    """Declined with several GPUs: blocks are then told per shard."""
    if b is None or b.facts.kv is None:
        return None
    shape, element = b.facts.kv.value, b.facts.kv_element.size_bytes
    if _whole(run, "num_gpu_blocks") is None:
        return None
    pool = memory.pool_bytes(
        shape, element, _whole(run, "num_gpu_blocks"), _whole(run, "block_size"),
        mamba_page_bytes=_whole(run, "mamba_page_size_padded"),
    )  # fmt: skip
    return memory.derived_max_seqs(pool, b.sequence_bytes, b.tp)


def _headroom_seats(run: EngineRun, b: Baseline | None) -> int | None:
    if b is None or b.facts.kv is None:
        return None
    if b.tp == 1:
        return b.derived_max_seqs
    length = _whole(run, "max_model_len")
    return memory.sharded_max_seqs(b.kv_headroom_gb, b.facts.kv.value, b.facts.kv_element.size_bytes, length, b.tp)
