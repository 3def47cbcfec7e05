"""Seats of an engine: how many sequences it may run, how many it should, and what stands in the way (R5, R7).

The wall is the lower of two bounds: the ridge, past which a larger batch costs time for each token, and the sequences
that the KV cache holds. The target keeps a margin to it. Without any wall there is no number. Seats are those of the
whole engine, over all its data-parallel parts. Unit: sequences (count); KV use is a share, 0–1.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from gpuaudit.analyze.finding import Threshold
from gpuaudit.analyze.inference.model import EngineRun, Number
from gpuaudit.analyze.inference.persistence import Limit, declared

_SOURCE = "rules of the reference profiler for vLLM (2026-08), seat target: "

MARGIN = Threshold("seat_margin", Fraction(80, 100), "share", _SOURCE + "80 % of the wall")
STEP = Threshold(
    "seat_step", 2, "ratio",
    _SOURCE + "at most twice the seats at once where only traffic bounds them; chosen as well where no ridge is known",
)  # fmt: skip
KV_NOISE = Threshold("kv_noise", Fraction(1, 100), "share", _SOURCE + "1 % of KV use or less tells no capacity")
KV_FULL = Threshold(
    "kv_raise_below", Fraction(80, 100), "share", _SOURCE + "seats are raised only where KV use peaked below 80 %"
)
TARGET_THRESHOLDS = (MARGIN, STEP, KV_NOISE, KV_FULL)

PLATEAU_SCRAPES = Threshold(
    "plateau_scrapes", 40, "count",
    "chosen: ten seconds of scrapes at 4 Hz, so that several requests ended and were replaced in between",
)  # fmt: skip
PLATEAU_AT = Threshold(
    "plateau_at", Fraction(1, 4), "share",
    "chosen: a batch that is refilled between two scrapes stands at its limit most of the time; a quarter leaves room "
    "for slow refills",
)  # fmt: skip
PLATEAU_NEAR = Threshold(
    "plateau_near", Fraction(3, 4), "share",
    "chosen: the rest of the time it is short of its limit by a tenth at most, for requests that just ended",
)  # fmt: skip
PLATEAU_SLACK = Threshold(
    "plateau_slack", Fraction(1, 10), "share", "chosen: a tenth of the seats between one scheduling step and the next"
)
PLATEAU_WAITING = Threshold(
    "plateau_waiting", 2, "count", "as in the saturation flag: fewer than two waiting may just have arrived"
)
PLATEAU_THRESHOLDS = (PLATEAU_SCRAPES, PLATEAU_AT, PLATEAU_NEAR, PLATEAU_SLACK, PLATEAU_WAITING)

SEAT_SETTING = {
    "vllm": "max_num_seqs", "sglang": "max_running_requests", "tgi": "max_batch_size", "triton": "max_batch_size",
    "llama_cpp": "parallel",
}  # fmt: skip
"""What each engine calls its seats: vLLM --max-num-seqs, SGLang --max-running-requests, TGI --max-batch-size, Triton
with TensorRT-LLM max_batch_size, llama.cpp --parallel (their manuals, November 2026)."""

BoundSource = Literal["observed", "derived"]
WallKind = Literal["memory", "ridge", "traffic"]


@dataclass(frozen=True)
class KvBound:
    """Full-length sequences that the KV cache holds, as the server tells (observed) or computed (derived)."""

    seats: Number
    source: BoundSource


@dataclass(frozen=True)
class SeatTarget:
    """How many seats to set. ``wall`` is what ``kind`` bounds; ``traffic``: lowered to what the traffic showed to fit.

    ``bound`` is the KV bound that was used, None where there was none; ``stepped``: cut to twice the current seats.
    ``ridge_known`` False: computing may be the lower wall, and nobody knows where it is.
    """

    target: int
    wall: Number
    kind: WallKind
    bound: KvBound | None = None
    stepped: bool = False
    ridge_known: bool = True

    @property
    def doubt(self) -> str:
        """What a sentence adds to the number: why it is not the wall's; empty where it is."""
        if not self.ridge_known:
            cut = "at most twice the present ones at once, since " if self.stepped else ""
            return f"{cut}the ridge of the GPU is not known: measure the time per token before the next raise"
        return "at most twice the present ones at once" if self.stepped else ""


def kv_bound(observed: Number | None, derived: Number | None, running_peak: Number | None) -> KvBound | None:
    """The observed bound, else the derived one; either is refuted by more sequences than that having run at once."""
    choices: tuple[tuple[Number | None, BoundSource], ...] = ((observed, "observed"), (derived, "derived"))
    for value, source in choices:
        if value is not None and value >= 1 and (running_peak is None or running_peak <= int(value)):
            return KvBound(value, source)
    return None


def seat_target(
    *, ridge: Number | None, bound: KvBound | None, running_mean: Number | None = None,
    kv_peak_share: Number | None = None, current: Number | None = None, limit: Limit = declared,
) -> SeatTarget | None:  # fmt: skip
    """``floor(0.80 · min(ridge, KV bound))``; None where neither is known.

    Where no KV bound is known, live traffic may lower it: ``floor(0.80 · mean running / peak KV use)``, then to at most
    twice the current seats. Twice them is the most as well where no ridge is known: a small model's cache may hold
    thousands of sequences that the GPU could not compute, and only a step shows it.
    """
    walls: list[tuple[Number, WallKind]] = []
    if bound is not None:
        walls.append((bound.seats, "memory"))
    if ridge is not None and ridge > 0:
        walls.append((ridge, "ridge"))
    if not walls:
        return None
    wall, kind = min(walls, key=lambda w: w[0])  # of equal ones the first: memory
    target = int(limit(MARGIN) * wall)
    if bound is None and running_mean is not None and kv_peak_share is not None and kv_peak_share > limit(KV_NOISE):
        fits = Fraction(running_mean) / Fraction(kv_peak_share)
        if int(limit(MARGIN) * fits) < target:
            lowered, cap = int(limit(MARGIN) * fits), None if current is None else int(limit(STEP) * current)
            stepped = cap is not None and cap < lowered
            return SeatTarget(cap if stepped and cap is not None else lowered, fits, "traffic", None, stepped)
    known = ridge is not None and ridge > 0
    if not known and current is not None and int(limit(STEP) * current) < target:
        return SeatTarget(int(limit(STEP) * current), wall, kind, bound, True, False)
    return SeatTarget(target, wall, kind, bound, False, known)


def watch(target: SeatTarget) -> str:
    """How a fix's side effect ends: what to look at when the seats are raised to a target of little evidence."""
    if target.kind == "traffic":
        return "; monitor KV use, the number comes from this traffic only."
    return "." if target.ridge_known else "; measure it, the ridge of the GPU is not known."


@dataclass(frozen=True)
class Seats:
    """The most sequences an engine may run, and how that is known: a setting, or a plateau in what ran.

    ``scrapes`` had requests waiting and KV use below its limit, ``at`` of them ran exactly ``seats``.
    """

    seats: int
    source: str
    inferred: bool = False
    scrapes: int = 0
    at: int = 0


def seats_of(run: EngineRun, limit: Limit = declared) -> Seats | None:
    """``max_num_seqs`` where any source tells it, else the plateau of running sequences, else None."""
    known = run.max_num_seqs
    if known is not None:
        setting = run.config.get("max_num_seqs")
        return Seats(known, setting.source if setting else "setting")
    return plateau(run, limit)


def plateau(run: EngineRun, limit: Limit = declared) -> Seats | None:
    """The number of sequences that never was exceeded while requests waited and the KV cache had room.

    It is no setting that was read: that N sequences ran while others waited says that something let no more than N
    run, usually ``max_num_seqs``. Only scrapes of windows in which KV use stayed below ``kv_raise_below`` count.
    """
    highest, queued = 0, []
    for w in run.windows:
        told = np.isfinite(w.running_polls) & np.isfinite(w.waiting_polls)
        running, waiting = w.running_polls[told], w.waiting_polls[told]
        highest = max(highest, int(running.max(initial=0)))
        if w.kv_peak_share is not None and w.kv_peak_share < limit(KV_FULL):
            queued.append(running[waiting >= float(limit(PLATEAU_WAITING))])
    scrapes = np.concatenate(queued) if queued else np.zeros(0)
    count = len(scrapes)
    if count < limit(PLATEAU_SCRAPES) or highest < 1:
        return None
    at = int((scrapes == highest).sum())
    near = int((scrapes >= float(highest * (1 - Fraction(limit(PLATEAU_SLACK))))).sum())
    if Fraction(at, count) < limit(PLATEAU_AT) or Fraction(near, count) < limit(PLATEAU_NEAR):
        return None
    return Seats(highest, "plateau of running sequences while others waited", True, count, at)


LENGTH_REQUESTS = Threshold(
    "length_requests", 100, "count", _SOURCE + "a length is suggested from at least 100 finished requests"
)
LENGTH_CUT = Threshold("length_cut", Fraction(5, 100), "share", _SOURCE + "a cut of less than 5 % is not suggested")
LENGTH_THRESHOLDS = (LENGTH_REQUESTS, LENGTH_CUT)


def shorter_model_len(
    prompt_p99: Number | None, generated_p99: Number | None, completed: Number | None, max_model_len: Number | None,
    limit: Limit = declared,
) -> int | None:  # fmt: skip
    """``floor(p99 prompt) + floor(p99 generated)`` as a new max_model_len; None where it is not worth it or not known.

    The 99th percentiles of prompt and answer need not be of one request: the sum is on the safe side of theirs.
    """
    if prompt_p99 is None or generated_p99 is None or completed is None or max_model_len is None:
        return None
    length = int(prompt_p99) + int(generated_p99)
    if completed < limit(LENGTH_REQUESTS) or length < 1:
        return None
    return length if length <= (1 - limit(LENGTH_CUT)) * max_model_len else None
