"""Statistics of operations against the plainest computation over all durations."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuaudit.analyze.evidence import EvidenceBook
from gpuaudit.analyze.operations import operations
from tests.scenes import T0, Scene

calls = st.lists(
    st.tuples(st.sampled_from(["cudaMalloc", "cudaFree"]), st.one_of(st.none(), st.integers(0, 30)),
    st.sampled_from([0, 35])),
    min_size=1, max_size=250,
)  # fmt: skip


def number(row: dict[str, Any], key: str) -> int | None:
    value = row[key]["value"]
    return None if value is None else int(value)


@settings(max_examples=25, deadline=None)
@given(calls)
def test_order_statistics(rows: list[tuple[str, int | None, int]]) -> None:
    scene = Scene()
    for op, duration, code in rows:
        scene.cuda(7, op, T0, duration, return_code=None if duration is None else code)
    store = scene.store()
    found = {r["op"]: r for r in operations(store, EvidenceBook(store))}
    assert set(found) == {op for op, _, _ in rows}
    for op, row in found.items():
        mine = [(d, c) for o, d, c in rows if o == op]
        done = sorted(d for d, _ in mine if d is not None)
        n = len(done)
        assert number(row, "count") == len(mine)
        assert number(row, "open") == len(mine) - n
        assert number(row, "errors") == sum(1 for d, c in mine if d is not None and c)
        assert number(row, "total") == (sum(done) if n else None)
        assert number(row, "p50") == (done[math.ceil(n / 2) - 1] if n else None)
        assert number(row, "max") == (done[-1] if n else None)
        assert number(row, "p99") == (done[-(-n * 99 // 100) - 1] if n >= 100 else None)
        if n < 100:
            assert row["p99"]["reason"]
