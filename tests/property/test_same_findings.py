"""What may change without changing what is found: the clock's origin, the order of rows, the cut into segments.

All at once: an analysis of each alone took twice as long, and fails for the same mutations.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuaudit.analyze.finding import Document
from tests.scenes import MS, T0, Mode, Row, S, Scene, collectives

TIMES = ("start_ns", "wake_ns", "seen_ns", "monotonic_ns")


def scene(mode: Mode) -> Scene:
    """Late ranks, an idle GPU, a silent process and throttling in one capture."""
    out = collectives(mode, late={2: 30 * MS}, steps=20)
    for rank in range(4):
        out.process(100 + rank)
        out.samples(T0, T0 + 10 * S, gpu=rank, pids=[100 + rank], event_reasons=0x4 if rank == 1 else 0)
        out.samples(T0 + 10 * S, T0 + 20 * S, gpu=rank, pids=[100 + rank], gpu_utilization_percent=0)
    return out


def essence(d: Document) -> dict[str, Any]:
    """What was found, without ids of rows, leaves and moments of time."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in ("evidence", "start", "start_ns", "reason_rows")}
        return [plain(v) for v in value] if isinstance(value, list) else value

    return {
        "findings": plain([f.to_json() for f in d.findings]), "chains": plain([c.to_json() for c in d.chains]),
        "outcomes": [o.to_json() for o in d.outcomes], "waste": plain({k: d.waste[k] for k in ("rows",
        "by_key", "observed")}),
        "operations": plain(d.operations), "grade": d.quality["grade"], "heat": plain(d.charts["rank_heat"]),
    }  # fmt: skip


@cache
def plainly(mode: Mode) -> dict[str, Any]:
    """What is found in the scene as it was made."""
    return essence(scene(mode).document())


def changed(seed: int, shift: int) -> Callable[[str, list[Row]], list[Row]]:
    """Rows in another order, their times from another origin."""

    def change(table: str, rows: list[Row]) -> list[Row]:
        random.Random(f"{seed}{table}").shuffle(rows)
        return [{k: v + shift if k in TIMES and v is not None else v for k, v in r.items()} for r in rows]

    return change


@settings(max_examples=2, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 10**17 + 10**11).map(lambda n: n - 10**11))
def test_order_of_rows_origin_of_the_clock_and_cut_into_segments(seed: int, shift: int) -> None:
    document = scene("asynchronous").mapped(changed(seed, shift)).document(segments=7)
    assert essence(document) == plainly("asynchronous")


def test_the_same_of_calls_that_block() -> None:
    assert essence(scene("blocking").mapped(changed(1, S + 7)).document(segments=7)) == plainly("blocking")
