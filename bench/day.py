"""A day of eight GPUs and four engines, made from recorded loads of a real vLLM server put end to end.

Every poll of the five recordings in ``tests/data/vllm`` goes through the parser and the tracker of a capture once; what
they recorded is then repeated: times move on, counters go on from where they were. So series, changes per scrape and
values are a real server's, and only the length is made. GPU samples are drawn from a seed, 4 a second per GPU.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from bench.evidence import START_NS, new_writer
from gpuaudit.bundle.columns import ColumnData, Rows, from_records, text_column
from gpuaudit.bundle.keys import FileSigner
from gpuaudit.bundle.table import NUMPY_DTYPE
from gpuaudit.bundle.tables import TABLES
from gpuaudit.bundle.writer import BundleWriter
from gpuaudit.capture.engine_labels import from_samples
from gpuaudit.capture.engine_series import SeriesTracker
from gpuaudit.capture.exposition import Parser

LOADS = ("idle", "light", "heavy_queue", "prefix_hits", "kv_pressure")
RECORDINGS = Path(__file__).resolve().parents[1] / "tests" / "data" / "vllm"
GPUS, ENGINES, HZ = 8, 4, 4
POLL_NS = 1_000_000_000 // HZ
SEGMENT_ROWS = 500_000
_GROWING = ("counter", "histogram_bucket", "histogram_sum", "histogram_count")


@dataclass(frozen=True)
class Loop:
    """One engine over all loads once: columns of samples, the series they are of, and how long it lasts."""

    at_ns: np.ndarray
    series: np.ndarray
    values: np.ndarray
    growth: np.ndarray
    """By series: what a counter gains in one loop, 0 for a gauge."""
    named: list[dict[str, Any]]
    settings: list[dict[str, Any]]
    polls: int

    @property
    def length_ns(self) -> int:
        """Polls at an even 4 Hz."""
        return self.polls * POLL_NS


def read_loop() -> Loop:
    """The five recordings through parser and tracker, polls put on an even grid of 250 ms."""
    parser, tracker = Parser(), SeriesTracker(0, count())
    at: list[int] = []
    series: list[int] = []
    values: list[float] = []
    named: list[dict[str, Any]] = []
    settings: list[dict[str, Any]] = []
    base: dict[int, float] = {}
    poll = 0
    for load in LOADS:
        offset = dict(base)
        first: dict[int, float] = {}
        for text in _texts(RECORDINGS / f"{load}.jsonl.gz"):
            samples = parser.parse(text).samples
            rows = tracker.scrape(poll * POLL_NS, POLL_NS // 10, samples)
            named += rows.series
            settings = settings or [dict(s) for s in from_samples(samples)]
            for number, value in rows.samples:
                grows = value is not None and named[number]["op"] in _GROWING
                start = first.setdefault(number, value or 0.0)
                base[number] = offset.get(number, 0.0) + (value or 0.0) - start if grows else 0.0
                at.append(poll)
                series.append(number)
                values.append(base[number] if grows else (value or 0.0))
            poll += 1
    growth = np.array([base.get(i, 0.0) for i in range(len(named))])
    return Loop(np.array(at, "<u8") * POLL_NS, np.array(series, "<u4"), np.array(values), growth, named, settings, poll)


def _texts(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as f:
        for line in f:
            poll = json.loads(line)
            if poll.get("text"):
                yield poll["text"]


@dataclass
class Counts:
    """Rows written per table so far."""

    rows: dict[str, int]

    def append(self, writer: BundleWriter, table: str, rows: Rows) -> None:
        """Seal one segment."""
        n = len(next(iter(rows.values())))
        self.rows[table] = self.rows.get(table, 0) + n
        total = self.rows[table]
        writer.append_segment(TABLES[table], rows, seen=total, written=total, lost=0)


def write_day(path: Path, seconds: int) -> tuple[FileSigner, dict[str, int]]:
    """Seal ``seconds`` of it; the identity and the rows of each table."""
    loop = read_loop()
    writer, identity = new_writer(path)
    counts = Counts({})
    _names(writer, counts, loop)
    for number in range(-(-seconds * HZ // loop.polls)):
        start = START_NS + number * loop.length_ns
        left = seconds * HZ - number * loop.polls
        _engines(writer, counts, loop, _Turn(number, start, min(left, loop.polls)))
    for begin in range(0, seconds, 600):
        _gpus(writer, counts, START_NS + begin * 10**9, min(600, seconds - begin) * HZ, begin)
    ends = np.array([START_NS, START_NS + seconds * 10**9], "<u8")
    counts.append(writer, "clock", {
        "start_ns": ColumnData(ends), "duration_ns": ColumnData(ends * 0),
        "realtime_ns": ColumnData(ends.astype("<i8") + 10**18), "monotonic_ns": ColumnData(ends),
    })  # fmt: skip
    writer.seal({"tables": {}})
    writer.close()
    return identity, counts.rows


def _names(writer: BundleWriter, counts: Counts, loop: Loop) -> None:
    n = len(loop.named)
    for engine in range(ENGINES):
        series = [{**s, "engine": engine, "series": s["series"] + engine * n, "start_ns": START_NS} for s in loop.named]
        told = [{**s, "engine": engine, "start_ns": START_NS} for s in loop.settings]
        url = f"http://127.0.0.1:{8000 + engine}/metrics"
        row = {"start_ns": START_NS, "duration_ns": None, "engine": engine, "op": "vllm", "url": url, "pid": None,
               "found_by": "--engine", "remote": 0, "state": "scraped", "reason": None}  # fmt: skip
        for table, records in (("engine_series", series), ("engine_config", told), ("engines", [row])):
            counts.append(writer, table, from_records(TABLES[table], records))


@dataclass(frozen=True)
class _Turn:
    """Which repeat of the loop, when it begins, and how many of its polls are wanted."""

    number: int
    start_ns: int
    polls: int


def _engines(writer: BundleWriter, counts: Counts, loop: Loop, turn: _Turn) -> None:
    """One loop of every engine."""
    keep = loop.at_ns < turn.polls * POLL_NS
    at, series = turn.start_ns + loop.at_ns[keep], loop.series[keep]
    values = loop.values[keep] + turn.number * loop.growth[series]
    grid = np.arange(turn.polls, dtype="<u8")
    for engine in range(ENGINES):
        counts.append(writer, "engine_samples", {
            "start_ns": ColumnData(at), "engine": ColumnData(np.full(len(at), engine, "<u4")),
            "series": ColumnData(series + np.uint32(engine * len(loop.named))), "value": ColumnData(values),
        })  # fmt: skip
        counts.append(writer, "engine_scrapes", _scrapes(engine, turn.start_ns + grid * POLL_NS, len(loop.named)))


def _scrapes(engine: int, at: np.ndarray, series: int) -> Rows:
    n = len(at)
    none = ColumnData(np.zeros(n, "<u4"), np.zeros(n, bool), ())
    return {
        "start_ns": ColumnData(at), "duration_ns": ColumnData(np.full(n, POLL_NS // 10, "<u8")),
        "engine": ColumnData(np.full(n, engine, "<u4")), "op": text_column(["ok"] * n),
        "http_status": ColumnData(np.full(n, 200, "<u2")), "size_bytes": ColumnData(np.full(n, 55_000, "<u8")),
        "series": ColumnData(np.full(n, series, "<u4")), "skipped": ColumnData(np.full(n, 200, "<u4")),
        "full": ColumnData(np.zeros(n, "<u1")), "reset": ColumnData(np.zeros(n, "<u1")), "reason": none,
    }  # fmt: skip


def _gpus(writer: BundleWriter, counts: Counts, start_ns: int, polls: int, seed: int) -> None:
    """GPU samples that wander as those of a serving host: utilisation, power, clock and temperature move together."""
    draw = np.random.default_rng(seed)
    at = start_ns + np.repeat(np.arange(polls, dtype="<u8") * POLL_NS, GPUS)
    n = len(at)
    index = np.tile(np.arange(GPUS, dtype="<u4"), polls)
    busy = np.clip(np.round(60 + 40 * np.sin(np.arange(n) / 900) + draw.normal(0, 8, n)), 0, 100).astype("<u4")
    uuids = text_column([f"GPU-{i}" for i in range(GPUS)])
    told: dict[str, np.ndarray] = {
        "gpu_utilization_percent": busy, "memory_utilization_percent": busy // 2,
        "memory_total_bytes": np.full(n, 85_899_345_920, "<u8"),
        "memory_used_bytes": np.full(n, 77_309_411_328, "<u8"),
        "power_mw": 90_000 + busy * 5_900 + draw.integers(0, 900, n, "<u4"),
        "power_limit_mw": np.full(n, 700_000, "<u4"),
        "temperature_c": 40 + busy // 4, "clock_sm_mhz": np.where(busy > 0, 1755, 345).astype("<u4"),
        "clock_memory_mhz": np.full(n, 2619, "<u4"), "clock_sm_max_mhz": np.full(n, 1980, "<u4"),
        "event_reasons": np.where(busy > 95, 4, 0).astype("<u8"),
    }  # fmt: skip
    rows: Rows = {
        "start_ns": ColumnData(at), "duration_ns": ColumnData(np.full(n, POLL_NS, "<u8")),
        "gpu_index": ColumnData(index), "gpu_uuid": ColumnData(uuids.values[index], None, uuids.dictionary),
        "unavailable": text_column([""] * n),
    }  # fmt: skip
    for c in TABLES["nvml_samples"].columns:
        if c.name in told:
            rows[c.name] = ColumnData(told[c.name].astype(NUMPY_DTYPE[c.type]))
        elif c.name not in rows:
            empty = np.zeros(n, NUMPY_DTYPE[c.type])
            rows[c.name] = ColumnData(empty, np.zeros(n, bool), () if c.type == "text" else None)
    counts.append(writer, "nvml_samples", {c.name: rows[c.name] for c in TABLES["nvml_samples"].columns})
