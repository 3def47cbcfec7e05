"""The views of a store are those that ``bundle/tables.py`` defines: names, order and types of columns, rows or none."""

from __future__ import annotations

import pytest

from gpuaudit.bundle.tables import TABLES, sql_view
from tests.scenes import T0, US, S, Scene


@pytest.mark.parametrize("rows", [False, True])
def test_views_are_the_declared_ones(rows: bool) -> None:
    scene = Scene().clock()
    if rows:
        scene.process(7).cuda(7, "cudaMalloc", T0 + S, US).cuda(7, "cudaFree", T0 + 2 * S, None)
    store = scene.store()
    for table in TABLES.values():
        shown = store.sql(f'DESCRIBE "{table.name}"')
        if store.row_count(table.name):
            assert shown == store.sql(f"DESCRIBE {sql_view(table)}"), table.name
            assert store.sql(f'SELECT * FROM "{table.name}"') == store.sql(sql_view(table))
        else:
            names = [c.name for c in table.columns]
            end = ["end_ns"] if {"start_ns", "duration_ns"} <= set(names) else []
            assert [r[0] for r in shown] == [*names, *end, "leaf", "row"]
            assert store.sql(f'SELECT * FROM "{table.name}"') == []


def test_an_empty_view_has_the_types_of_a_full_one() -> None:
    full = Scene().clock().cuda(7, "cudaMalloc", T0 + S, US).store()
    empty = Scene().clock().store()
    kinds = [[(r[0], r[1]) for r in s.sql("DESCRIBE cuda_calls")] for s in (full, empty)]
    assert kinds[0] == kinds[1]
