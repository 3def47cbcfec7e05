"""Rows on their way to the recorder, table by table, a bounded number at a time."""

from __future__ import annotations

from gpuaudit.capture.importers.model import RowSink, Told

BATCH_ROWS = 8192


class Batches:
    """Holds rows until a table has :data:`BATCH_ROWS` of them; call :meth:`finish` at the end."""

    def __init__(self, sink: RowSink, told: Told) -> None:
        self._sink = sink
        self._told = told
        self._held: dict[str, list[dict[str, object]]] = {}

    def add(self, table: str, row: dict[str, object]) -> None:
        """One row."""
        held = self._held.get(table)
        if held is None:
            held = self._held[table] = []
        held.append(row)
        if len(held) >= BATCH_ROWS:
            self._hand_over(table)

    def finish(self) -> None:
        """Hand over what is left."""
        for table in list(self._held):
            self._hand_over(table)

    def _hand_over(self, table: str) -> None:
        rows = self._held.pop(table)
        self._sink.add_records(table, rows)
        self._told.rows[table] += len(rows)
