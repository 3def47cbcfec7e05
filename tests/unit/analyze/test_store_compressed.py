"""Evidence that is held compressed gives the same rows in the same order."""

from __future__ import annotations

import pytest

from gpuaudit.analyze import store as store_module
from gpuaudit.analyze.store import Store
from gpuaudit.bundle.columns import Rows, from_records
from gpuaudit.bundle.tables import TABLES


def _segments(count: int, rows: int) -> list[Rows]:
    """Segments of samples whose values have nulls and repeat, so that every kind of compression has something to do."""
    out = []
    for s in range(count):
        at = range(s * rows, (s + 1) * rows)
        records = [
            {
                "start_ns": 10**15 + i * 250_000_000,
                "engine": 0,
                "series": i % 7,
                "value": None if i % 11 == 0 else i / 8,
            }
            for i in at
        ]
        out.append(from_records(TABLES["engine_samples"], records))
    return out


def test_compressed_or_not_the_rows_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Store.from_tables({"engine_samples": _segments(5, 3_000)})
    monkeypatch.setattr(store_module, "COMPRESS_ROWS", 2_000)
    small = Store.from_tables({"engine_samples": _segments(5, 3_000)})
    for query in ("SELECT * FROM engine_samples", "SELECT leaf, count(*), sum(value) FROM engine_samples GROUP BY 1"):
        assert small.sql(query) == plain.sql(query)
    kinds = {k for (k,) in small.sql("SELECT DISTINCT compression FROM pragma_storage_info('engine_samples')")}
    assert kinds - {"Uncompressed", "Constant"}
