"""Series of one engine for a chart: at most 300 bins, each with what the scrapes of that time say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from gpuaudit.analyze.finding import Json
from gpuaudit.analyze.inference import exact
from gpuaudit.analyze.inference.aggregate import P99
from gpuaudit.analyze.inference.exact import F64
from gpuaudit.analyze.inference.model import Number
from gpuaudit.analyze.inference.quantiles import quantile
from gpuaudit.analyze.inference.series import I64, EngineSeries
from gpuaudit.analyze.inference.windows import SECOND_NS, bucket_delta, gained, together

MAX_BINS = 300
"""A chart of 600 points' width shows no more."""

MIN_BIN_NS = SECOND_NS
"""Four polls: fewer make a rate of tokens jump between none and twice as many."""

MAX_MARKS = 20
"""Longest holes that are marked."""

HOLE_NS = SECOND_NS
"""A time without an answer that is marked: four polls in a row."""

MAX_INDEXES = 4
"""Engine indexes whose KV cache has a strip of its own; the table has all."""

SCALE = 1000
"""Values are whole thousandths of their unit."""


@dataclass(frozen=True)
class Bins:
    """``edges`` in ns, one more than bins; scrape ``at[i]`` is the last that was complete at edge i."""

    edges: I64
    at: I64


def strips(series: EngineSeries, slots: int | None) -> dict[str, Json]:
    """``data`` of a chart of kind strips (``docs/reference/findings.md``); needs a successful scrape."""
    bins = _bins(series.scrapes.done_ns)
    n = len(series.scrapes)
    kv = series.gauge("kv_use")
    found = [
        _gauge("running", "requests running", "count", together(series.gauge("running"), n), bins, ceiling=slots),
        _gauge("waiting", "requests waiting", "count", together(series.gauge("waiting"), n), bins),
        *(
            _gauge("kv_use", _of("KV cache in use", i if len(kv) > 1 else ""), "share", v, bins, ceiling=1)
            for i, v in sorted(kv.items())[:MAX_INDEXES]
        ),
        _rate(series, "generation_tokens", "generated tokens", "token/s", bins),
        _rate(series, "prompt_tokens", "prompt tokens", "token/s", bins),
        _rate(series, "preemptions", "preemptions", "1/s", bins),
        _p99(series, "ttft", "time to first token, p99", bins),
        _p99(series, "tpot", "time per output token, p99", bins),
    ]
    widths = np.diff(bins.edges)
    return {
        "times_ns": [str(t) for t in bins.edges[:-1].tolist()], "bin_ns": str(int(widths.max())), "scale": SCALE,
        "marks": _marks(series), "series": [s for s in found if any(v is not None for v in s["mean"])],
    }  # fmt: skip


def _of(label: str, index: str) -> str:
    return f"{label}, engine index {index}" if index else label


def _bins(done: I64) -> Bins:
    length = max(1, int(done[-1] - done[0]))
    width = max(MIN_BIN_NS, -(-length // MAX_BINS))
    edges = int(done[0]) + np.arange(-(-length // width) + 1, dtype=np.int64) * width
    return Bins(edges, np.searchsorted(done, edges, side="right") - 1)


def _gauge(name: str, label: str, unit: str, values: F64, bins: Bins, *, ceiling: int | None = None) -> Json:
    rows: list[tuple[Number, Number, Number] | None] = []
    for low, high in zip(bins.at[:-1].tolist(), bins.at[1:].tolist(), strict=True):
        part = values[low + 1 : high + 1] if low or rows else values[: high + 1]
        mean = exact.mean(part)
        known = part[np.isfinite(part)]
        rows.append(
            None if mean is None else (exact.decimal(float(known.min())), mean, exact.decimal(float(known.max())))
        )
    return _series(name, label, unit, rows, ceiling)


def _rate(series: EngineSeries, meaning: str, label: str, unit: str, bins: Bins) -> Json:
    values = series.counter(meaning, bins.at)

    def per_second(a: int, b: int, seconds: Fraction) -> Number | None:
        amount = gained(float(values[a]), float(values[b]))
        return None if amount is None else Fraction(amount) / seconds

    return _series(meaning, label, unit, _between(series, bins, per_second))


def _p99(series: EngineSeries, meaning: str, label: str, bins: Bins) -> Json:
    h = series.histogram(meaning, bins.at)

    def of_bin(a: int, b: int, seconds: Fraction) -> Number | None:
        found = quantile(bucket_delta(h, a, b), P99)
        return found.value * SECOND_NS if found is not None and seconds > 0 else None

    return _series(f"{meaning}_p99", label, "ns", _between(series, bins, of_bin))


def _between(
    series: EngineSeries, bins: Bins, value: Callable[[int, int, Fraction], Number | None]
) -> list[tuple[Number, Number, Number] | None]:
    """``value`` of each bin with a scrape of its own and no restart, from the scrape before it to its last."""
    done, restarts = series.scrapes.done_ns, np.cumsum(series.scrapes.resets)
    out: list[tuple[Number, Number, Number] | None] = []
    for i in range(len(bins.at) - 1):
        a, b = int(bins.at[i]), int(bins.at[i + 1])
        found = None
        if b > a and restarts[a] == restarts[b] and done[b] > done[a]:
            found = value(i, i + 1, Fraction(int(done[b] - done[a]), SECOND_NS))
        out.append(None if found is None else (found, found, found))
    return out


def _series(
    name: str, label: str, unit: str, rows: Sequence[tuple[Number, Number, Number] | None], ceiling: int | None = None
) -> Json:
    columns = [[None if r is None else str(round(r[k] * SCALE)) for r in rows] for k in range(3)]
    return {
        "name": name, "label": label, "unit": unit, "minimum": columns[0], "mean": columns[1], "maximum": columns[2],
        "ceiling": None if ceiling is None else str(ceiling * SCALE),
    }  # fmt: skip


def _marks(series: EngineSeries) -> Json:
    """Restarts, and the longest times without an answer, in order of time."""
    done, resets = series.scrapes.done_ns, series.scrapes.resets
    restarts = [(int(t), 0, "restart") for t in done[resets].tolist()]
    gaps = np.diff(done)
    longest = np.argsort(-gaps, kind="stable")[:MAX_MARKS]
    holes = [(int(done[i]), int(gaps[i]), "no answer") for i in longest.tolist() if gaps[i] > HOLE_NS]
    return [[str(t), str(d), what] for t, d, what in sorted([*restarts[:MAX_MARKS], *holes])]
