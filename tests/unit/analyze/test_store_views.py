"""The tables of a store are those that ``bundle/tables.py`` defines: names, order and types, rows or none."""

from __future__ import annotations

import pytest

from gpuaudit.bundle.table import SQL_TYPE, Table
from gpuaudit.bundle.tables import TABLES
from tests.scenes import T0, US, S, Scene


def declared(table: Table) -> list[tuple[str, str]]:
    """Names and types that a query sees."""
    columns = [(c.name, SQL_TYPE[c.type]) for c in table.columns]
    if {"start_ns", "duration_ns"} <= {name for name, _ in columns}:
        columns.append(("end_ns", "UBIGINT"))
    return [*columns, ("leaf", "UINTEGER"), ("row", "UINTEGER")]


@pytest.mark.parametrize("rows", [False, True])
def test_tables_are_the_declared_ones(rows: bool) -> None:
    scene = Scene().clock()
    if rows:
        scene.process(7).cuda(7, "cudaMalloc", T0 + S, US).cuda(7, "cudaFree", T0 + 2 * S, None)
    store = scene.store()
    for table in TABLES.values():
        shown = store.sql(f'DESCRIBE "{table.name}"')
        assert [(r[0], r[1]) for r in shown] == declared(table), table.name
        assert len(store.sql(f'SELECT * FROM "{table.name}"')) == store.row_count(table.name)
    if rows:
        ends = store.sql("SELECT start_ns, duration_ns, end_ns, leaf, row FROM cuda_calls ORDER BY row")
        assert [e[:3] for e in ends] == [(T0 + S, US, T0 + S + US), (T0 + 2 * S, None, None)]
        assert [e[4] for e in ends] == [0, 1]
