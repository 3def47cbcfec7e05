"""Windows of an engine, cut from its scrapes as ``docs/reference/engines.md`` says.

A window lasts 10 s, or 2 s where the scrapes cover 30 s or less; the partial tail is kept. A scrape belongs to the
window in which its answer was complete. Deltas reach from the last scrape before the window to its last one, so that
the deltas of all windows add up to the run's. Where that last scrape is more than a window's length away (polls
failed), the window starts at its own first scrape: what was counted meanwhile is in the totals of the run and in no
window, because nobody knows when it happened. In a window in which the server was restarted there are no deltas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.inference import exact
from gpuaudit.analyze.inference.exact import F64
from gpuaudit.analyze.inference.model import Buckets, GpuWindow, HistogramDelta, Number, Window
from gpuaudit.analyze.inference.names import COUNTERS, HISTOGRAMS
from gpuaudit.analyze.inference.quantiles import delta
from gpuaudit.analyze.inference.series import I64, EngineSeries, HistogramAt, Scrapes, add

SHORT_RUN_S = 30
"""A run of at most this length has short windows (``docs/reference/engines.md``)."""

SHORT_WINDOW_S, LONG_WINDOW_S = 2, 10

SECOND_NS = 1_000_000_000

MAX_EMPTY = 1_000_000
"""Windows (116 days of 10 s) past which those without a scrape are not listed: a forged time must not fill memory."""


def window_length_s(duration_s: Fraction | int) -> int:
    """How long windows of a run are to be."""
    return SHORT_WINDOW_S if duration_s <= SHORT_RUN_S else LONG_WINDOW_S


def plan(duration_s: Fraction | int, length_s: int) -> list[Fraction]:
    """Lengths of the windows of a run: whole ones, then what is left; one whole one where nothing is."""
    whole = int(duration_s // length_s)
    tail = Fraction(duration_s) - whole * length_s
    out = [Fraction(length_s)] * whole + ([tail] if tail > 0 else [])
    return out or [Fraction(length_s)]


@dataclass(frozen=True)
class Cut:
    """Where the windows of a run lie in its scrapes; arrays have one entry per window.

    Window i has the scrapes ``first[i]`` to ``end[i]`` − 1, none where they are equal; ``base[i]`` is the scrape that
    its deltas start from. ``start_ns`` and ``end_ns`` are its planned bounds; a scrape that was complete at ``end_ns``
    is in.
    """

    start_ns: I64
    end_ns: I64
    first: I64
    end: I64
    base: I64
    reset: npt.NDArray[np.bool_]

    @property
    def last(self) -> I64:
        """The last scrape of each window; meaningless where it has none."""
        return self.end - 1


def cut(scrapes: Scrapes) -> Cut:
    """The windows of a run with at least one successful scrape."""
    done = scrapes.done_ns
    begin, length = int(done[0]), int(done[-1] - done[0])
    width = window_length_s(Fraction(length, SECOND_NS)) * SECOND_NS
    count = max(1, -(-length // width))
    numbers = np.arange(count, dtype=np.int64) if count <= MAX_EMPTY else _occupied(done - begin, width)
    start = begin + numbers * width
    end_ns = np.minimum(start + width, max(int(done[-1]), begin + 1)) if length else start + width
    end = np.searchsorted(done, end_ns, side="right").astype(np.int64)
    first = np.concatenate([np.zeros(1, dtype=np.int64), end[:-1]])
    base = np.maximum(first - 1, 0)
    clipped = np.minimum(first, len(done) - 1)
    own = (start - done[base] > width) | scrapes.resets[clipped]
    base = np.where(own, clipped, base)
    told = np.cumsum(scrapes.resets)
    last = np.maximum(end - 1, 0)
    return Cut(start, end_ns, first, end, base, (end > first) & (told[last] > told[base]))


def _occupied(since_begin_ns: I64, width: int) -> I64:
    """Numbers of the windows that have a scrape; one on a bound is in the window before it, the first in the first."""
    found: I64 = np.unique(np.maximum(-(-since_begin_ns // width) - 1, 0))
    return found


def read_windows(series: EngineSeries, where: Cut, gpus: Sequence[GpuWindow] = ()) -> tuple[Window, ...]:
    """Every window of an engine, in order of time; ``gpus`` has what NVML says in each, or is empty."""
    reader = _Reader(series, where)
    return tuple(reader.window(i, gpus[i] if gpus else GpuWindow()) for i in range(len(where.start_ns)))


class _Gauges:
    """Gauges over all scrapes: sums over engine indexes, and for KV use the mean and the fullest one."""

    def __init__(self, series: EngineSeries) -> None:
        n = len(series.scrapes)
        self.running, self.waiting, self.swapped = (
            together(series.gauge(m), n) for m in ("running", "waiting", "swapped")
        )
        by_index = list(series.gauge("kv_use").values())
        self.kv = np.stack(by_index) if by_index else np.full((1, n), np.nan)


def together(by_index: dict[str, F64], scrapes: int) -> F64:
    """The sum at each scrape over the engine indexes that have the gauge there; NaN where none has."""
    out = np.full(scrapes, np.nan)
    for values in by_index.values():
        out = add(out, values)
    return out


class _Ends:
    """Counters and histograms at both ends of every window: row i at its base, row n + i at its last scrape.

    What had not appeared at the base begins at 0.
    """

    def __init__(self, series: EngineSeries, where: Cut) -> None:
        self.count = n = len(where.start_ns)
        at = np.concatenate([where.base, np.maximum(where.last, 0)])
        self.counters = {m: _born_at_zero(series.counter(m, at), n) for m in COUNTERS}
        self.histograms = {}
        for m in HISTOGRAMS:
            h = series.histogram(m, at)
            self.histograms[m] = HistogramAt(
                h.edges, _born_at_zero(h.buckets, n), _born_at_zero(h.sum, n), _born_at_zero(h.count, n)
            )

    def counter(self, meaning: str, i: int) -> Number | None:
        """What a counter gained in window ``i``."""
        return gained(float(self.counters[meaning][i]), float(self.counters[meaning][self.count + i]))

    def totals(self, i: int) -> dict[str, Number]:
        """Where the counters stood at the end of window ``i``."""
        found = {m: exact.number(float(v[self.count + i])) for m, v in self.counters.items()}
        return {m: v for m, v in found.items() if v is not None}

    def histogram(self, meaning: str, i: int, whole: bool) -> HistogramDelta:
        """What a histogram gained in window ``i``, if the window is ``whole``; and where it stood at its end."""
        h = self.histograms[meaning]
        a, b = i, self.count + i
        total = HistogramDelta(total_sum=_fraction(h.sum[b]), total_count=_whole(h.count[b]))
        if not whole:
            return total
        gain = exact.difference(float(h.sum[a]), float(h.sum[b]))
        count = exact.difference(float(h.count[a]), float(h.count[b]))
        return HistogramDelta(
            gain, None if count is None else int(count), total.total_sum, total.total_count, bucket_delta(h, a, b)
        )


def _born_at_zero(values: F64, bases: int) -> F64:
    """``values`` with 0 in those of the first ``bases`` rows that had not appeared yet."""
    out = values.copy()
    out[:bases][np.isnan(out[:bases])] = 0.0
    return out


def gained(before: float, after: float) -> Number | None:
    """What a counter gained, from 0 where it had not appeared (NaN); None where an end is no number or it fell."""
    found = exact.difference(0.0 if math.isnan(before) else before, after)
    if found is None or found < 0:
        return None
    return int(found) if found.denominator == 1 else found


def _fraction(value: float) -> Fraction | None:
    return exact.decimal(float(value)) if np.isfinite(value) else None


def _whole(value: float) -> int | None:
    return int(value) if np.isfinite(value) and value == int(value) else None


def bucket_delta(h: HistogramAt, a: int, b: int) -> Buckets:
    """What each bucket gained from row ``a`` to row ``b``; empty where an end is missing or is no count."""
    pair = h.buckets[[a, b]]
    if not h.edges or not bool(np.isfinite(pair).all()) or bool((pair != np.floor(pair)).any()):
        return Buckets()
    before, after = ([int(v) for v in row] for row in pair.tolist())
    return delta(h.edges, before, after)


def _share(value: Number | None) -> Fraction | None:
    return None if value is None else Fraction(value)


class _Reader:
    """Makes each window of one engine."""

    def __init__(self, series: EngineSeries, where: Cut) -> None:
        self.where, self.scrapes = where, series.scrapes
        self.ends, self.gauges = _Ends(series, where), _Gauges(series)
        bounds = np.stack([where.start_ns, where.end_ns])
        self.failed = np.diff(np.searchsorted(series.scrapes.failed_ns, bounds, side="right"), axis=0)[0]

    def window(self, i: int, gpu: GpuWindow) -> Window:
        where = self.where
        low, high, base = int(where.first[i]), int(where.end[i]), int(where.base[i])
        frame = Window(
            i, int(where.start_ns[i]), int(where.end_ns[i]),
            Fraction(int(where.end_ns[i] - where.start_ns[i]), SECOND_NS), failed=int(self.failed[i]), gpu=gpu,
        )  # fmt: skip
        if low == high:
            return frame
        elapsed = Fraction(int(self.scrapes.done_ns[high - 1] - self.scrapes.done_ns[base]), SECOND_NS)
        reset = bool(where.reset[i])
        whole = elapsed > 0 and not reset
        values: dict[str, Any] = {m: self.ends.counter(m, i) if whole else None for m in COUNTERS}
        values |= {m: self.ends.histogram(m, i, whole) for m in HISTOGRAMS}
        return replace(
            frame, duration_s=elapsed if elapsed > 0 else None, scrapes=high - low, reset=reset,
            counters=self.ends.totals(i), **values, **self._states(low, high),
        )  # fmt: skip

    def _states(self, low: int, high: int) -> dict[str, Any]:
        """What the gauges say in scrapes ``low`` to ``high`` − 1."""
        running, waiting = self.gauges.running[low:high], self.gauges.waiting[low:high]
        kv = self.gauges.kv[:, low:high]
        return {
            "running": exact.number(float(running[-1])), "running_mean": exact.mean(running),
            "running_peak": exact.peak(running), "running_polls": running,
            "waiting": exact.number(float(waiting[-1])), "waiting_mean": exact.mean(waiting),
            "waiting_peak": exact.peak(waiting), "waiting_polls": waiting,
            "swapped": exact.number(float(self.gauges.swapped[high - 1])),
            "kv_last_share": exact.mean(kv[:, -1]), "kv_mean_share": exact.mean(kv),
            "kv_peak_share": _share(exact.peak(kv)),
        }  # fmt: skip
