"""A sink that keeps what a source hands over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from gpuaudit.bundle.columns import Rows, from_records, row_count
from gpuaudit.bundle.tables import TABLES


class ListSink:
    """Rows as mappings, checked against their tables."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.gaps: list[dict[str, Any]] = []
        self.critical: list[tuple[str, dict[str, Any]]] = []
        self.artefacts: dict[str, dict[str, Any]] = {}
        self.counters: dict[str, tuple[dict[int, int], dict[int, int]]] = {}

    def add(self, table: str, rows: Rows) -> None:
        names = list(rows)
        columns = [rows[n].to_list() for n in names]
        self.rows[table] += [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def add_records(self, table: str, records: Sequence[Mapping[str, object]]) -> None:
        assert row_count(from_records(TABLES[table], records)) == len(records)
        self.rows[table] += [dict(r) for r in records]

    def add_critical(self, table: str, records: Sequence[Mapping[str, object]]) -> None:
        self.add_records(table, records)
        self.critical += [(table, dict(r)) for r in records]

    def artefact(self, name: str, body: Mapping[str, object]) -> None:
        self.artefacts[name] = dict(body)

    def add_drained(self, table: str, rows: Rows) -> None:
        self.add(table, rows)

    def ring_counters(self, table: str, seen: Mapping[int, int], lost: Mapping[int, int]) -> None:
        self.counters[table] = (dict(seen), dict(lost))

    def gap(
        self, source: str, reason: str, start_ns: int, end_ns: int | None, *, table: str | None = None,
        pid: int | None = None,
    ) -> None:  # fmt: skip
        gap = {"source": source, "reason": reason, "start_ns": start_ns, "end_ns": end_ns, "table": table, "pid": pid}
        self.gaps.append(gap)
