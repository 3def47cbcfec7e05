"""What limits an engine on which no rule fired: the traffic, the memory, the hardware, prefill or the framework.

Said only from at least three evaluable windows, with the queue known to be short: a queue that no rule explains gets no
explanation here either. Evaluable windows count, idle ones too, because an idle engine is limited by its traffic.
Units: sequences, KV use as a share (0–1), milliseconds per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from gpuaudit.analyze.finding import Threshold
from gpuaudit.analyze.inference import physics
from gpuaudit.analyze.inference.aggregate import over
from gpuaudit.analyze.inference.model import EngineRun, Number
from gpuaudit.analyze.inference.persistence import Limit, declared

_SOURCE = "rules of the reference profiler for vLLM (2026-08), limiter without findings: "

WINDOWS = Threshold("limiter_windows", 3, "count", _SOURCE + "at least 3 windows", least=1)
WAITING = Threshold("limiter_waiting", 2, "count", _SOURCE + "silent from 2 waiting on")
KV_FULL = Threshold("limiter_kv", Fraction(80, 100), "share", _SOURCE + "memory from 80 % of KV use on")
RIDGE_SHARE = Threshold("traffic_ridge", Fraction(25, 100), "share", _SOURCE + "traffic below a quarter of the ridge")
RUNNING = Threshold("traffic_running", 8, "count", _SOURCE + "and below 8 running where that is more")
HEADROOM = Threshold("hardware_headroom", Fraction(10, 100), "share", _SOURCE + "hardware below 10 % of headroom")
FLOOR_TIMES = Threshold("hardware_floor", Fraction(12, 10), "ratio", _SOURCE + "or up to 1.2 times the TPOT floor")
PREFILL_RATIO = Threshold(
    "prefill_ratio", Fraction(1, 2), "ratio", _SOURCE + "prefill from half a prompt token per generated one on"
)
THRESHOLDS = (WINDOWS, WAITING, KV_FULL, RIDGE_SHARE, RUNNING, HEADROOM, FLOOR_TIMES, PREFILL_RATIO)


Kind = Literal["silent", "declined", "memory", "traffic", "hardware", "unknown", "prefill", "framework"]


@dataclass(frozen=True)
class Limiter:
    """What limits, or why nothing is said; ``bound`` is what the deciding value was compared with."""

    kind: Kind
    reason: str = ""
    bound: Number | None = None


@dataclass(frozen=True)
class Signals:
    """What the limiter reads of a run; None is "not known". ``headroom`` is a share (1 − decode MFU).

    ``ratio`` is prompt tokens per generated one; ``no_floor`` says why there is no TPOT floor.
    """

    windows: int
    waiting: Number | None
    kv_mean: Number | None = None
    running: Number | None = None
    ridge: Number | None = None
    speculative: bool = False
    headroom: Number | None = None
    tpot_ms: Number | None = None
    floor_ms: Number | None = None
    no_floor: str = ""
    chunked_prefill: bool | None = None
    ratio: Number | None = None


def traffic_bound(ridge: Number | None, limit: Limit = declared) -> Number:
    """``max(0.25 · ridge, 8)``: fewer running sequences than that leave the GPU waiting for work."""
    return max(Fraction(limit(RIDGE_SHARE)) * (ridge or 0), Fraction(limit(RUNNING)))


def limiter(s: Signals, limit: Limit = declared) -> Limiter:
    """The first that holds, in the order of the reference."""
    if s.windows < limit(WINDOWS):
        return Limiter("silent", f"{s.windows} evaluable windows are too few", limit(WINDOWS))
    if s.waiting is None:
        return Limiter("declined", "waiting unread")
    if s.waiting >= limit(WAITING):
        return Limiter("silent", "requests waited, and no rule explains it", limit(WAITING))
    return _load(s, limit) or _engine(s, limit)


def _load(s: Signals, limit: Limit) -> Limiter | None:
    """What limits from outside: a full cache, or too little traffic."""
    if s.kv_mean is not None and s.kv_mean >= limit(KV_FULL):
        return Limiter("memory", "the KV cache is nearly full, without harm so far", limit(KV_FULL))
    bound = traffic_bound(s.ridge, limit)
    if s.running is None:
        return Limiter("declined", "running unread")
    if s.running < bound:
        return Limiter("traffic", "too few requests to fill the batch", bound)
    return None


def _engine(s: Signals, limit: Limit) -> Limiter:
    """With traffic and without a queue: the hardware, prefill, or what is left."""
    if s.speculative:
        return Limiter("declined", "speculative decoding makes more than one token per step")
    if s.headroom is not None and s.headroom < limit(HEADROOM):
        return Limiter("hardware", "decoding is near the compute roof", limit(HEADROOM))
    if s.floor_ms is not None and s.tpot_ms is not None and s.tpot_ms <= limit(FLOOR_TIMES) * s.floor_ms:
        return Limiter("hardware", "tokens come as fast as the memory can be read", limit(FLOOR_TIMES) * s.floor_ms)
    if s.floor_ms is None:
        return Limiter("unknown", f"ceiling unknown ({s.no_floor or 'GPU or model not known'})")
    if s.chunked_prefill and s.ratio is not None and s.ratio >= limit(PREFILL_RATIO):
        return Limiter("prefill", "chunks of prompts run between the tokens", limit(PREFILL_RATIO))
    return Limiter("framework", "what the engine does besides: scheduling, sampling, launches, the host")


def signals_of(run: EngineRun) -> Signals:
    """The signals of a recorded engine: means over its active windows, over all evaluable ones where it was idle."""
    totals = run.totals
    windows = [w for w in run.windows if w.evaluable]
    running, waiting = totals.running, totals.waiting
    if not totals.active:
        running, waiting = over(windows, lambda w: w.running), over(windows, lambda w: w.waiting)
    mfu, tpot = physics.decode_mfu(run, totals.generation_tps), totals.tpot.mean
    ratio = None
    if totals.prompt_tps is not None and totals.generation_tps:
        ratio = totals.prompt_tps / totals.generation_tps
    return Signals(
        windows=totals.evaluable, waiting=waiting, kv_mean=totals.kv_avg_share, running=running,
        ridge=physics.ridge(run), speculative=physics.speculation(run) is not None,
        headroom=None if mfu is None else 1 - mfu, tpot_ms=None if tpot is None else tpot * physics.MS_PER_S,
        floor_ms=physics.tpot_floor_ms(run), no_floor=physics.why_no_ceiling(run),
        chunked_prefill=run.switch("enable_chunked_prefill"), ratio=ratio,
    )  # fmt: skip
