"""The recorded series of one engine, read by meaning.

The recorder wrote a row where a value changed; the value at a scrape is that of the last row not later than it. So
nothing is ever laid out as series × scrapes: a gauge is filled forward over all scrapes one series at a time, a counter
or bucket is looked up only at the scrapes that are asked for (ends of windows, restarts). Only successful scrapes
count: a failed one is a hole.

Label sets of one metric are added up. With data-parallel engines (label ``engine``, SGLang's ``dp_rank``) that is right
for counters and for requests running or waiting, and taking the first one alone would not be; KV use is kept apart per
engine index. The ranks that work on one request together (tensor and pipeline parallel, experts) each tell the same
requests again, where they tell them at all: the first of them speaks for all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.inference.exact import F64
from gpuaudit.analyze.inference.names import MEANINGS, Option, absent_reason, options, plain
from gpuaudit.analyze.store import Store

I64 = npt.NDArray[np.int64]

MAX_LABEL_CHARS = 65_536
"""Labels of one series that are read; the longest known (``vllm:cache_config_info``) has about 2,000."""

LARGEST = 2.0**63
SMALLEST = 1e-15
"""No count, size, share or time of a server lies beyond: a value that does is taken as not finite, or as 0. It also
keeps exact ratios of such values within the digits that a findings document holds (``analyze/shape.py``)."""


SAME_REQUESTS = ("tp_rank", "pp_rank", "moe_ep_rank")
"""Labels of ranks that share every request (SGLang with ``--enable-metrics-for-all-schedulers``)."""

DATA_PARALLEL = "dp_rank"
"""SGLang's label of what vLLM calls ``engine``."""

KV_ROUNDING = 1.01
"""A KV use up to here is a full cache, rounded; one above is no share (a percentage, for one) and is not used."""


@dataclass(frozen=True)
class Series:
    """One series: its number, the metric's name with ``_`` for ``:``, the engine index, other labels, bucket edge."""

    number: int
    metric: str
    index: str
    labels: dict[str, str]
    le: float | None


@dataclass(frozen=True)
class Scrapes:
    """Successful scrapes of one engine in time order: request begun and answer complete, ns on CLOCK_BOOTTIME.

    ``resets[i]``: the server was restarted between scrape i−1 and i. ``failed_ns``: when the failed ones gave up.
    """

    start_ns: I64
    done_ns: I64
    resets: npt.NDArray[np.bool_]
    failed_ns: I64

    def __len__(self) -> int:
        return len(self.start_ns)


@dataclass(frozen=True)
class HistogramAt:
    """A histogram at some scrapes: ``buckets`` is (scrapes, edges); NaN and infinity as for a counter.

    ``edges`` is empty where label sets have different edges, so that they cannot be added up.
    """

    edges: tuple[float, ...]
    buckets: F64
    sum: F64
    count: F64


@dataclass
class EngineSeries:
    """All series of one engine."""

    store: Store
    engine: int
    kind: str
    scrapes: Scrapes
    series: list[Series]
    chosen: dict[str, Option] = field(init=False)
    _held: dict[int, tuple[I64, F64]] = field(init=False, default_factory=dict)
    absent: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        """Choose for each meaning the first option of which there is a series."""
        families = {s.metric for s in self.series}
        self.chosen, self.absent = {}, {}
        for meaning in MEANINGS:
            for option in options(self.kind, meaning):
                names = {plain(m) for m in option.metrics}
                if any(n in families or f"{n}_count" in families for n in names):
                    self.chosen[meaning] = option
                    break
            else:
                self.absent[meaning] = absent_reason(self.kind, meaning)

    @cached_property
    def indexes(self) -> list[str]:
        """Engine indexes that some chosen metric has, in order of number; [""] where there is no such label."""
        metrics = {plain(m) for option in self.chosen.values() for m in option.metrics}
        found = {s.index for s in self.series if s.metric in metrics and s.index}
        return sorted(found, key=lambda i: (not i.isdecimal(), len(i), i)) or [""]

    def hold(self) -> None:
        """Read all gauges, counters, sums and counts at once, a tenth of all rows, and keep them.

        Every reading is a pass over all samples of the bundle, and these are asked for one by one.
        """
        wanted = [
            s for option in self.chosen.values() for suffix in ("", "_sum", "_count") for s in self._of(option, suffix)
        ]
        self._held = self._split(wanted)

    def gauge(self, meaning: str) -> dict[str, F64]:
        """Per engine index the gauge at every successful scrape, NaN where missing; empty where it is absent.

        What cannot be is missing as well: less than nothing, or KV use that is no share. Of several caches of one index
        the fullest counts: shares are not added.
        """
        option = self.chosen.get(meaning)
        out: dict[str, F64] = {}
        every = np.arange(len(self.scrapes))
        for series in self._of(option, "") if option else []:
            values = self._at([series], every)[0]
            values[~np.isfinite(values) | (values < 0)] = np.nan
            if meaning == "kv_use":
                values = np.where(values > KV_ROUNDING, np.nan, np.minimum(values, 1.0))
            join = np.fmax if meaning == "kv_use" else add
            out[series.index] = join(out[series.index], values) if series.index in out else values
        return out

    def counter(self, meaning: str, at: I64) -> F64:
        """The counter at scrapes ``at``, summed over label sets and engine indexes.

        NaN: it had not appeared yet (clients make a counter with its first increment). Infinity: it is no number, or
        was there and is not any more, so that nothing can be said. A label set that has not appeared yet counts 0
        where another one of the metric is there.
        """
        option = self.chosen.get(meaning)
        return self._sum(self._of(option, ""), at) if option else np.full(len(at), np.nan)

    def histogram(self, meaning: str, at: I64) -> HistogramAt:
        """The histogram at scrapes ``at``, summed by position over label sets."""
        option = self.chosen.get(meaning)
        if option is None:
            nothing = np.full(len(at), np.nan)
            return HistogramAt((), np.zeros((len(at), 0)), nothing, nothing)
        edges, buckets = self._buckets(option, at)
        return HistogramAt(
            edges, buckets, self._sum(self._of(option, "_sum"), at), self._sum(self._of(option, "_count"), at)
        )

    def _buckets(self, option: Option, at: I64) -> tuple[tuple[float, ...], F64]:
        by_set: dict[tuple[str, str], list[Series]] = {}
        for s in self._of(option, "_bucket"):
            if s.le is not None and not np.isnan(s.le):
                by_set.setdefault((s.index, json.dumps(s.labels, sort_keys=True)), []).append(s)
        sets = [sorted(group, key=lambda s: s.le or 0.0) for group in by_set.values()]
        schemas = {tuple(s.le for s in group) for group in sets}
        if len(schemas) != 1:
            return (), np.zeros((len(at), 0))
        edges = tuple(float(e) for e in schemas.pop() if e is not None)
        values = self._at([s for group in sets for s in group], at)
        sums = values[: len(edges)]
        for i, more in enumerate(values[len(edges) :]):
            sums[i % len(edges)] = add(sums[i % len(edges)], more)
        return edges, np.stack(sums, axis=1)

    def _of(self, option: Option, suffix: str) -> list[Series]:
        names = {plain(m) + suffix for m in option.metrics}
        return [s for s in self.series if s.metric in names and option.takes(s.labels)]

    def _sum(self, series: list[Series], at: I64) -> F64:
        out = np.full(len(at), np.nan)
        for values in self._at(series, at):
            out = add(out, values)
        return out

    def _at(self, series: list[Series], at: I64) -> list[F64]:
        """The values of each series at scrapes ``at``, one series after the other."""
        if not series:
            return []
        rows = self._held if all(s.number in self._held for s in series) else self._split(series)
        times = self.scrapes.start_ns[at]
        out = []
        for s in series:
            starts, given = rows[s.number]
            found = np.searchsorted(starts, times, side="right") - 1
            values = np.full(len(at), np.nan)
            values[found >= 0] = given[found[found >= 0]]
            values[(found >= 0) & ~np.isfinite(values)] = np.inf
            out.append(values)
        return out

    def _split(self, series: list[Series]) -> dict[int, tuple[I64, F64]]:
        """Times and values of each series, in order of time."""
        rows = self._rows([s.number for s in series])
        order = np.argsort(rows["series"], kind="stable")
        numbers, starts, values = rows["series"][order], rows["start_ns"][order], rows["value"][order]
        out = {}
        for number in {s.number for s in series}:
            low, high = np.searchsorted(numbers, [number, number + 1])
            mine = slice(int(low), int(high))
            if bool((np.diff(starts[mine]) < 0).any()):  # rows of a bundle are in order of time; nobody promises it
                again = np.argsort(starts[mine], kind="stable")
                starts[mine], values[mine] = starts[mine][again], values[mine][again]
            out[number] = (starts[mine], values[mine])
        return out

    def _rows(self, numbers: list[int]) -> dict[str, npt.NDArray[Any]]:
        """Rows of some series, in the order of the bundle."""
        listed = ", ".join(str(n) for n in numbers)
        rows = self.store.arrays(
            "SELECT series::INTEGER AS series, start_ns::BIGINT AS start_ns, coalesce(value, 'NaN'::DOUBLE) AS value "
            f"FROM engine_samples WHERE engine = {self.engine} AND series IN ({listed})"
        )
        return {**rows, "value": _plausible(rows["value"])}


def _plausible(values: F64) -> F64:
    """Values as exported; one past :data:`LARGEST` counts as infinite, one below :data:`SMALLEST` as 0."""
    size = np.abs(values)
    out: F64 = np.where(size > LARGEST, np.inf, np.where(size < SMALLEST, 0.0, values))
    return out


def read_series(store: Store, engine: int, kind: str) -> EngineSeries:
    """What there is of one engine; its values are read when asked for."""
    rows = store.sql(
        "SELECT series, metric, coalesce(engine_index, ''), labels, le FROM engine_series WHERE engine = ? "
        "ORDER BY series, leaf, row",
        [engine],
    )
    seen: dict[int, Series] = {}
    for number, metric, engine_index, text, le in rows:
        labels = _labels(str(text))
        index = str(engine_index) or labels.pop(DATA_PARALLEL, "")
        seen.setdefault(int(number), Series(int(number), plain(str(metric)), index, labels, le))
    return EngineSeries(store, engine, kind, read_scrapes(store, engine), _one_rank(list(seen.values())))


def _one_rank(series: list[Series]) -> list[Series]:
    """Of series that differ only in their ranks the one of the lowest, without these labels; all others as they are."""
    best: dict[tuple[str, str, str, float | None], tuple[list[tuple[int, str]], Series]] = {}
    for s in series:
        labels = {k: v for k, v in s.labels.items() if k not in SAME_REQUESTS}
        ranks = [(len(r), r) for r in (s.labels.get(name, "") for name in SAME_REQUESTS)]
        key = (s.metric, s.index, json.dumps(labels, sort_keys=True), s.le)
        if key not in best or ranks < best[key][0]:
            best[key] = (ranks, replace(s, labels=labels))
    return [s for _, s in best.values()]


def read_scrapes(store: Store, engine: int) -> Scrapes:
    """The polls of one engine; an answer that is complete before the one before it was is out of order and sorted."""
    a = store.arrays(
        "SELECT start_ns::BIGINT AS start_ns, (start_ns + duration_ns)::BIGINT AS done_ns, op = 'ok' AS ok, "
        f"reset = 1 AS reset FROM engine_scrapes WHERE engine = {int(engine)} ORDER BY start_ns, leaf, row"
    )
    ok = a["ok"].astype(bool)
    resets = a["reset"].astype(bool)
    return Scrapes(
        a["start_ns"][ok], np.maximum.accumulate(a["done_ns"][ok]), _carried(resets, ok), np.sort(a["done_ns"][~ok])
    )


def _carried(resets: npt.NDArray[np.bool_], ok: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Resets of successful scrapes; one that is noted at a failed scrape belongs to the next successful one."""
    told = np.cumsum(resets)[ok]
    return np.diff(told, prepend=told[:1]) > 0


def add(a: F64, b: F64) -> F64:
    """Sum where either is a number; NaN where neither is."""
    both_missing = np.isnan(a) & np.isnan(b)
    out: F64 = np.where(np.isnan(a), 0.0, a) + np.where(np.isnan(b), 0.0, b)
    out[both_missing] = np.nan
    return out


def _labels(text: str) -> dict[str, str]:
    try:
        found = json.loads(text[:MAX_LABEL_CHARS]) if text else {}
    except (ValueError, RecursionError):
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
