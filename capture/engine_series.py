"""From scrapes to rows: each series named once, a row only where a value changed.

Used by the live source and by the importer. See ``bundle/tables_engine.py`` for what the rows mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

import numpy as np

from gpuaudit.bundle.canonical import dumps
from gpuaudit.bundle.columns import ColumnData, Rows
from gpuaudit.bundle.table import NUMPY_DTYPE
from gpuaudit.capture.engine_names import UNKNOWN, EngineKind, identify, is_recorded
from gpuaudit.capture.exposition import Sample, bound

FULL_INTERVAL_NS = 60_000_000_000
"""A full snapshot this often: a window of a long capture can be read without going back to its beginning."""

MAX_SERIES = 65_536
MAX_LABEL_BYTES = 32 << 20
"""Per engine and capture: a server whose labels change with every request must not fill the disk with names. A real
vLLM server has 420 series and 40 kB of labels per model and engine index."""

_FALLS_AT_RESTART = frozenset({"counter", "histogram_bucket", "histogram_count"})
_START_TIME = "process_start_time_seconds"

Row = dict[str, Any]


class RowSink(Protocol):
    """Where rows go: the recorder."""

    def add(self, table: str, rows: Rows) -> None:
        """Columns of one table."""

    def add_records(self, table: str, records: Sequence[Row]) -> None:
        """One mapping per row."""


@dataclass
class EngineRows:
    """What one poll brought: its row of ``engine_scrapes``, new series, and (series number, value) that changed."""

    scrape: Row
    series: list[Row] = field(default_factory=list)
    samples: list[tuple[int, float | None]] = field(default_factory=list)

    def give(self, sink: RowSink) -> None:
        """Hand the rows over."""
        if self.series:
            sink.add_records("engine_series", self.series)
        if self.samples:
            sink.add("engine_samples", self.sample_columns())
        sink.add_records("engine_scrapes", [self.scrape])

    def sample_columns(self) -> Rows:
        """The rows of ``engine_samples`` as columns."""
        n = len(self.samples)
        valid = np.array([v is not None for _, v in self.samples], dtype=bool)
        values = np.array([0.0 if v is None else v for _, v in self.samples], dtype=NUMPY_DTYPE["f64"])
        return {
            "start_ns": ColumnData(np.full(n, self.scrape["start_ns"], NUMPY_DTYPE["u64"])),
            "engine": ColumnData(np.full(n, self.scrape["engine"], NUMPY_DTYPE["u32"])),
            "series": ColumnData(np.array([s for s, _ in self.samples], dtype=NUMPY_DTYPE["u32"])),
            "value": ColumnData(values, None if valid.all() else valid),
        }

    def sample_records(self) -> list[Row]:
        """The same as one mapping per row."""
        at = {"start_ns": self.scrape["start_ns"], "engine": self.scrape["engine"]}
        return [{**at, "series": series, "value": value} for series, value in self.samples]


@dataclass
class _Known:
    """A recorded series; ``number`` −1: not recorded. ``seen`` is the scrape that had it last."""

    number: int
    falls: bool = False
    created: bool = False
    start_time: bool = False
    value: float | None = None
    seen: int = -1


_NOT_RECORDED = _Known(-1)


class SeriesTracker:
    """The series of one engine over a capture.

    ``numbers`` gives the numbers of new series; engines of one bundle share it. ``kind`` None: told by the first
    scrape that has metrics of a known one.
    """

    def __init__(self, engine: int, numbers: Iterator[int] | None = None, *, kind: EngineKind | None = None) -> None:
        self.engine = engine
        self.kind = kind or UNKNOWN
        self._numbers = count() if numbers is None else numbers
        self._known: dict[str, _Known] = {}
        self._recorded = 0
        self._present = 0
        self._label_bytes = 0
        self._skipped_bytes = 0
        self._turn = 0
        self._full_ns: int | None = None
        self._must_be_full = True

    def scrape(
        self, start_ns: int, duration_ns: int, samples: Sequence[Sample], *, http_status: int | None = None,
        size_bytes: int | None = None,
    ) -> EngineRows:  # fmt: skip
        """Rows of one successful scrape; ``samples`` as :func:`gpuaudit.capture.exposition.parse` gives them."""
        if self.kind is UNKNOWN:
            self._identify(samples)
        self._turn += 1
        rows = EngineRows(self._scrape_row(start_ns, duration_ns, "ok", http_status, size_bytes))
        pairs, refused = self._look_up(samples, start_ns, rows)
        reset = self._reset(pairs)
        full = (
            self._must_be_full or bool(reset) or self._full_ns is None or start_ns - self._full_ns >= FULL_INTERVAL_NS
        )
        for known, value in pairs:
            old = known.value
            if full or old is None or (value != old and not (math.isnan(value) and math.isnan(old))):
                rows.samples.append((known.number, value))
            if old is None:
                self._present += 1
            known.value = value
            known.seen = self._turn
        if self._present > len(pairs):
            self._vanished(rows)
        if full:
            self._full_ns, self._must_be_full = start_ns, False
        reasons = [reset] if reset else []
        if refused:
            reasons.append(f"{refused} series are past what is recorded of one engine")
        rows.scrape |= {
            "series": len(pairs), "skipped": len(samples) - len(pairs), "full": int(full), "reset": int(bool(reset)),
            "reason": "; ".join(reasons) or None,
        }  # fmt: skip
        return rows

    def failed(
        self, start_ns: int, duration_ns: int, op: str, reason: str, *, http_status: int | None = None,
        size_bytes: int | None = None,
    ) -> EngineRows:  # fmt: skip
        """The row of a poll that brought nothing; ``op`` is timeout, refused, failed or malformed."""
        self._must_be_full = True
        row = self._scrape_row(start_ns, duration_ns, op, http_status, size_bytes)
        return EngineRows({**row, "reason": reason[:300]})

    def _scrape_row(
        self, start_ns: int, duration_ns: int, op: str, http_status: int | None, size_bytes: int | None
    ) -> Row:
        return {
            "start_ns": start_ns, "duration_ns": duration_ns, "engine": self.engine, "op": op,
            "http_status": http_status, "size_bytes": size_bytes, "series": None, "skipped": None, "full": 0,
            "reset": 0, "reason": None,
        }  # fmt: skip

    def _identify(self, samples: Sequence[Sample]) -> None:
        self.kind = identify(s.series.metric for s in samples)
        if self.kind is not UNKNOWN:
            self._known = {key: known for key, known in self._known.items() if known.number >= 0}

    def _look_up(
        self, samples: Sequence[Sample], start_ns: int, rows: EngineRows
    ) -> tuple[list[tuple[_Known, float]], int]:
        """The recorded samples, and how many are not for want of room."""
        pairs: list[tuple[_Known, float]] = []
        refused = 0
        table = self._known
        for sample in samples:
            known = table.get(sample.series.key)
            if known is None:
                known = self._new(sample, start_ns, rows)
                if known is None:
                    refused += 1
                    continue
            if known.number >= 0:
                pairs.append((known, sample.value))
        return pairs, refused

    def _new(self, sample: Sample, start_ns: int, rows: EngineRows) -> _Known | None:
        """Number a series that is seen for the first time; None where there is no room for it."""
        metric, labels = sample.metric, dict(sample.labels)
        if not is_recorded(metric, self.kind):
            if self._skipped_bytes <= MAX_LABEL_BYTES:  # to be remembered only saves looking at its name again
                self._skipped_bytes += len(sample.series.key)
                self._known[sample.series.key] = _NOT_RECORDED
            return _NOT_RECORDED
        if self._recorded >= MAX_SERIES or self._label_bytes > MAX_LABEL_BYTES:
            return None
        self._recorded += 1
        self._label_bytes += len(sample.series.key)
        bucket = sample.type == "histogram_bucket"
        le = bound(labels) if bucket else None
        if bucket:
            del labels["le"]
        known = _Known(
            next(self._numbers), sample.type in _FALLS_AT_RESTART, metric.endswith("_created"), metric == _START_TIME
        )
        self._known[sample.series.key] = known
        rows.series.append({
            "start_ns": start_ns, "engine": self.engine, "series": known.number, "op": sample.type, "metric": metric,
            "engine_index": labels.pop("engine", None), "labels": dumps(dict(labels)).decode("utf-8"), "le": le,
        })  # fmt: skip
        return known

    def _reset(self, pairs: list[tuple[_Known, float]]) -> str:
        """How it shows that the server was restarted since the scrape before; empty if it was not."""
        fallen = created = 0
        for known, value in pairs:
            old = known.value
            if old is None or value == old:
                continue
            if known.start_time and not math.isnan(value) and not math.isnan(old):
                return f"{_START_TIME} changed"
            fallen += known.falls and value < old
            created += known.created and value > old
        if fallen:
            return f"{fallen} counters fell"
        return f"{created} _created times changed" if created else ""

    def _vanished(self, rows: EngineRows) -> None:
        for known in self._known.values():
            if known.value is not None and known.seen != self._turn:
                rows.samples.append((known.number, None))
                known.value = None
                self._present -= 1
