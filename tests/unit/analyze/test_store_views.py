"""The tables of a store are those that ``bundle/tables.py`` defines: names, order and types, rows or none."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from gpuaudit.analyze.store import NOT_OWN, Store
from gpuaudit.bundle.columns import from_records
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


def test_a_column_that_is_null_in_the_first_leaf_has_its_values_in_the_next() -> None:
    call = {"start_ns": T0, "pid": 7, "tid": 7, "op": "cudaMalloc", "cpu": 0, "seq": 0}
    table = TABLES["cuda_calls"]
    store = Store.from_tables(
        {
            "cuda_calls": [
                from_records(table, [call]),
                from_records(table, [{**call, "duration_ns": US, "parent_op": "ncclAllReduce", "size_bytes": 5}]),
            ]
        }
    )
    query = "SELECT leaf, end_ns, parent_op, size_bytes, stream, tid FROM cuda_calls ORDER BY leaf"
    assert store.sql(query) == [(1, None, None, None, None, 7), (2, T0 + US, "ncclAllReduce", 5, None, 7)]
    at_once = Store.from_tables({"cuda_calls": from_records(table, [{**call, "duration_ns": US, "size_bytes": 5}])})
    (row,) = at_once.sql("SELECT * EXCLUDE (parent_op, leaf) FROM cuda_calls")
    assert store.sql("SELECT * EXCLUDE (parent_op, leaf) FROM cuda_calls")[1] == row
    with pytest.raises(pa.ArrowInvalid, match="null"):
        list(store.batches("SELECT size_bytes FROM cuda_calls"))
    assert store.sql("DESCRIBE cuda_calls") == Store.from_tables({}).sql("DESCRIBE cuda_calls")


def test_what_is_said_of_tables_without_rows_is_said_of_no_others() -> None:
    """Such answers are kept, for every store: nothing that is done to one shows in the next, and no rows are missed."""
    empty, full = Scene().clock().store(), Scene().cuda(7, "cudaMalloc", T0, US).process(7).store()
    for query in ("SELECT pid, op FROM cuda_calls", f"SELECT pid, op FROM CUDA_CALLS WHERE {NOT_OWN}"):
        for _ in range(2):
            rows, arrays = empty.sql(query), empty.arrays(query)
            assert (rows, {n: a.tolist() for n, a in arrays.items()}) == ([], {"pid": [], "op": []})
            rows.append((1, "spoiled"))
            arrays["pid"] = np.ones(1)
        assert full.sql(query) == [(7, "cudaMalloc")]
        assert full.arrays(query)["op"].tolist() == ["cudaMalloc"]
    assert empty.sql("SELECT count(*) FROM processes") == [(0,)]
    assert full.sql("SELECT count(*) FROM processes") == [(1,)]
    leaves = "SELECT count(*) FROM leaves"
    assert [store.sql(leaves) for store in (empty, full)] == [[(2,)], [(3,)]]
    for n in (1, 2):
        with empty.relation("handed_over", {"n": np.arange(n)}):
            assert empty.sql("SELECT count(*) FROM handed_over") == [(n,)]
    full.sql("CREATE TEMP TABLE made AS SELECT 1 AS n")
    assert full.sql("SELECT n FROM made") == [(1,)]
