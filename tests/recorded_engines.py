"""The recorded vLLM series of ``tests/data/vllm`` as a store, read by the real importer, without a bundle between.

Reading one takes a second, so each is read once. Do not change what these give: rows are shared.
"""

from __future__ import annotations

import atexit
import gzip
import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.evidence import EvidenceBook
from gpuaudit.analyze.inference.model import EngineRun
from gpuaudit.analyze.quality import read_quality
from gpuaudit.analyze.store import Store
from gpuaudit.analyze.window import read_window
from gpuaudit.bundle.columns import Rows, concat, from_records
from gpuaudit.bundle.tables import TABLES
from gpuaudit.capture.importers import engine_series
from gpuaudit.capture.importers.model import Request, Told

DATA = Path(__file__).parent / "data" / "vllm"
REGIMES = ("idle", "light", "heavy_queue", "prefix_hits", "kv_pressure")


class Sink:
    """Takes rows as a recorder would, and keeps them by table."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Rows]] = {}

    def add(self, table: str, rows: Rows) -> None:
        """Columns of one table."""
        self.rows.setdefault(table, []).append(rows)

    def add_records(self, table: str, records: Sequence[Mapping[str, object]]) -> None:
        """One mapping per row."""
        if records:
            self.add(table, from_records(TABLES[table], records))

    def gap(self, *told: object, **more: object) -> None:
        """Time in which the recording has nothing; no recording of ours has any."""
        raise AssertionError(f"{told} {more}")

    def tables(self) -> dict[str, Rows]:
        """All rows of each table as one leaf."""
        return {name: concat(parts) for name, parts in sorted(self.rows.items())}


@cache
def recorded(regime: str, settings: tuple[tuple[str, str], ...] = ()) -> dict[str, Rows]:
    """The tables that importing one recording gives; ``settings`` as ``audit import --setting`` has them."""
    sink = Sink()
    with gzip.open(DATA / f"{regime}.jsonl.gz", "rt", encoding="utf-8") as lines:
        numbered = ((i, line) for i, line in enumerate(lines, start=1))
        engine_series.read(
            f"{regime}.jsonl.gz", numbered, sink, Request(settings=settings), Told("engines", series_numbers=count())
        )
    return sink.tables()


@cache
def store(regime: str, settings: tuple[tuple[str, str], ...] = ()) -> Store:
    """One recording as evidence."""
    return Store.from_tables(recorded(regime, settings), open_body={"synthetic": False, "imported": {"files": 1}})


atexit.register(store.cache_clear)  # DuckDB complains of connections that outlive the interpreter


def context(evidence: Store) -> Context:
    """What rules and sections get."""
    window = read_window(evidence)
    return Context(evidence, window, read_quality(evidence, window, "SEALED"), EvidenceBook(evidence))


@cache
def run(regime: str, settings: tuple[tuple[str, str], ...] = ()) -> EngineRun:
    """The one engine of a recording."""
    (found,) = context(store(regime, settings)).engine_runs
    return found


def clients_truth(regime: str) -> list[dict[str, object]]:
    """What the clients of a recording say of each request of theirs."""
    text = (DATA / f"{regime}.load.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines() if line]
