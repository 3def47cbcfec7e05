"""Scrapes of a made-up inference server: metrics text in, evidence out, through the real parser and series tracker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.inference.model import EngineRun
from gpuaudit.analyze.store import Store
from gpuaudit.bundle.columns import Rows, from_records
from gpuaudit.bundle.tables import TABLES
from gpuaudit.capture.engine_series import SeriesTracker
from gpuaudit.capture.exposition import parse
from tests.recorded_engines import Sink, context

START_NS = 1_000_000_000_000

Values = Mapping[str, float | int]


class EngineScene:
    """One engine's polls. A key of ``values`` is a sample as exported: ``vllm:num_requests_running{engine="0"}``."""

    def __init__(self, engine: int = 0, pid: int | None = 7, kind: str = "vllm", sink: Sink | None = None) -> None:
        self.engine = engine
        self.sink = sink or Sink()
        self.tracker = SeriesTracker(engine)
        self.sink.add_records("engines", [{
            "start_ns": START_NS, "duration_ns": None, "engine": engine, "op": kind,
            "url": f"http://127.0.0.1:{8000 + engine}/metrics", "pid": pid, "found_by": "--engine", "remote": 0,
            "state": "scraped", "reason": None,
        }])  # fmt: skip

    def scrape(self, at_s: float | Fraction, values: Values, took_s: float | Fraction = 0) -> EngineScene:
        """A successful poll whose answer was complete at ``at_s`` seconds."""
        start, took = _ns(at_s) - _ns(took_s), _ns(took_s)
        rows = self.tracker.scrape(START_NS + start, took, parse(text(values)).samples)
        rows.give(self.sink)
        return self

    def fail(self, at_s: float | Fraction, op: str = "timeout") -> EngineScene:
        """A poll that brought nothing."""
        self.tracker.failed(START_NS + _ns(at_s), 0, op, "made up").give(self.sink)
        return self

    def setting(self, key: str, value: str, source: str, at_s: int = 0) -> EngineScene:
        """One row of ``engine_config``."""
        row = {"start_ns": START_NS + at_s * 10**9, "engine": self.engine, "op": key, "value": value, "source": source}
        self.sink.add_records("engine_config", [{**row, "detail": None}])
        return self

    def rows(self, table: str, records: Sequence[Mapping[str, object]]) -> EngineScene:
        """Rows of any table; times are the caller's."""
        self.sink.add_records(table, records)
        return self

    def context(self, **open_body: Any) -> Context:
        """The scene as evidence."""
        return context(Store.from_tables(self.sink.tables(), open_body={"synthetic": False, **open_body}))

    def run(self) -> EngineRun:
        """This engine of the scene."""
        return next(r for r in self.context().engine_runs if r.engine == self.engine)


def text(values: Values) -> str:
    """Prometheus text of the samples, with the types that their names tell."""
    types: dict[str, str] = {}
    for key in values:
        name = key.partition("{")[0]
        if "le=" in key:
            types[name.removesuffix("_bucket")] = "histogram"
    for key in values:
        name = key.partition("{")[0]
        family = next((name.removesuffix(s) for s in ("_bucket", "_sum", "_count") if name.endswith(s)), name)
        if family not in types:
            types[name] = "counter" if name.endswith("_total") else "gauge"
    lines = [f"# TYPE {name} {kind}" for name, kind in sorted(types.items())]
    return "\n".join([*lines, *(f"{key} {value}" for key, value in values.items())]) + "\n"


def histogram(name: str, sums: float, count: int, buckets: Mapping[str, int]) -> dict[str, float]:
    """Samples of one histogram; ``buckets`` by upper edge, +Inf is added."""
    out: dict[str, float] = {f'{name}_bucket{{le="{le}"}}': n for le, n in buckets.items()}
    return out | {f'{name}_bucket{{le="+Inf"}}': count, f"{name}_sum": sums, f"{name}_count": count}


def gpu_rows(uuid: str, index: int, polls: Sequence[tuple[float, Mapping[str, int | None]]]) -> list[dict[str, object]]:
    """Rows of ``nvml_samples`` at seconds of the scene; a column that is not given is null."""
    none = {c.name: None for c in TABLES["nvml_samples"].columns}
    return [
        {
            **none, "start_ns": START_NS + _ns(at), "duration_ns": 250_000_000, "gpu_index": index, "gpu_uuid": uuid,
            "unavailable": "", **values,
        }
        for at, values in polls
    ]  # fmt: skip


def process_row(pid: int, parent: int | None) -> dict[str, object]:
    """A row of ``processes``."""
    return {
        "start_ns": START_NS, "duration_ns": None, "pid": pid, "op": "found", "role": "traced", "parent_pid": parent,
        "uid": 0, "comm": "vllm", "exe": None, "command_line": None, "cgroup": None, "seen_ns": START_NS,
        "exit_status": None,
    }  # fmt: skip


def holder_row(pid: int, uuid: str, at_s: float = 0) -> dict[str, object]:
    """A row of ``nvml_processes``."""
    return {
        "start_ns": START_NS + _ns(at_s), "duration_ns": 250_000_000, "gpu_index": 0, "gpu_uuid": uuid, "pid": pid,
        "op": "compute", "memory_used_bytes": 1 << 30,
    }  # fmt: skip


def as_rows(table: str, records: Sequence[Mapping[str, object]]) -> Rows:
    """Records of one table as columns."""
    return from_records(TABLES[table], records)


def _ns(seconds: float | Fraction) -> int:
    return round(Fraction(repr(seconds) if isinstance(seconds, float) else seconds) * 10**9)
