"""How it was observed: mechanisms, costs, what was exported and not probed, what was lost and what was aggregated."""

from __future__ import annotations

from typing import Any

from gpuaudit.analyze.finding import Quantity, Section
from gpuaudit.analyze.sections.observation import evaluate
from tests.scenes import MS, T0, S, Scene


def scene() -> Scene:
    s = Scene().clock().process(7, "train").process(8)
    cudart = {"library": "cudart", "path": "/opt/libcudart.so.13", "mechanism": "uprobe_multi", "start_ns": T0}
    for number, (op, instruction, hits) in enumerate((("cudaMalloc", "push", 10), ("cudaFree", "push", 0),
                                                      ("cudaMemcpy", "endbr64", 4))):  # fmt: skip
        cost = 1_000 if instruction == "push" else 18_000
        place = {"op": op, "offset": 16 * number, "instruction": instruction, "expected_cost_ns": cost}
        s.add("probes", **cudart, **place)
        s.add("probes", **cudart, **place, duration_ns=60 * S, hits=hits, unmatched=0, misses=1)
    s.add("probes", start_ns=T0, op="sched_switch", library="kernel", path="", mechanism="tp_btf")
    for pid in (7, 8):
        s.add("libraries", start_ns=T0, duration_ns=MS, pid=pid, op="attached", library="cudart",
              path="/opt/libcudart.so.13", build_id="aa", device=1, inode=2, probes=3,
              not_observed="cudaFoo,cudaBar", not_observed_count=2)  # fmt: skip
    s.add("libraries", start_ns=T0, pid=8, op="not observable", library="cudart", path="/app/static", device=1, inode=3,
          probes=0, not_observed="", reason="linked statically")  # fmt: skip
    for at, lost in ((1, 5), (2, 9)):
        s.add("losses", start_ns=T0 + at * S, table_name="cuda_calls", cpu=3, seen=100 * at, written=100 * at - lost,
              lost=lost)  # fmt: skip
    bucket = {"low_ns": 1, "high_ns": 2, "min_ns": 1, "max_ns": 1, "size_bytes": 0, "errors": 0, "nested": 0}
    for at in (10, 11, 20):
        s.add("call_totals", start_ns=T0 + at * S, duration_ns=S, pid=7, tid=7, op="cudaLaunchKernel", count=50,
              sum_ns=50, **bucket)  # fmt: skip
    return s


def rows(section: Section, name: str) -> list[list[Any]]:
    (table,) = [t for t in section.tables if t.id == name]
    return [[c.value if isinstance(c, Quantity) else c for c in row] for row in table.rows]


def test_how_probes_were_attached_and_what_they_cost() -> None:
    attached = rows(evaluate(scene().context()), "attached")
    file = ["cudart", "/opt/libcudart.so.13", "uprobe_multi"]
    assert attached == [
        [*file, "endbr64", 1, 1, 4, 0, 1, 18_000, 72_000],
        [*file, "push", 2, 1, 10, 0, 2, 1_000, 10_000],
        ["kernel", "the kernel", "tp_btf", None, 1, 0, None, None, None, None, None],
    ]


def test_what_a_library_exports_and_was_not_observed_is_counted() -> None:
    told = rows(evaluate(scene().context()), "unobserved")
    assert told == [
        ["cudart", "/app/static", 1, 0, None, None, "linked statically"],
        ["cudart", "/opt/libcudart.so.13", 2, 3, 2, "cudaFoo, cudaBar", None],
    ]


def test_losses_and_aggregation_are_told_with_their_place() -> None:
    section = evaluate(scene().context())
    assert rows(section, "lost") == [["cuda_calls", "3", 200, 9]]
    assert rows(section, "aggregated") == [["7 (train)", "cuda_calls", 150, 2, 3 * S, 10 * S]]


def test_every_number_has_its_rows() -> None:
    context = scene().context()
    section = evaluate(context)
    entries = {e.id: e.rows for e in context.book.entries()}
    numbers = [c for t in section.tables for row in t.rows for c in row if isinstance(c, Quantity)]
    assert all(q.formula and q.evidence and all(entries[i] for i in q.evidence) for q in numbers)
    assert all(q.reason for q in numbers if q.value is None)


def test_episodes_of_losses_are_one_reason_per_table() -> None:
    s = scene()
    for at in range(300):
        s.add("gaps", start_ns=T0 + at * 100 * MS, duration_ns=50 * MS, source="cuda", table_name="cuda_calls",
              reason=f"the ring of cuda_calls was full on CPU {at % 2}: {at + 1} records were lost")  # fmt: skip
    document = s.document()
    (told,) = [r for r in document.quality["reasons"] if "rings were full" in r]
    end = T0 + 299 * 100 * MS + 50 * MS
    assert told == (
        f"cuda_calls: the rings were full in 300 stretches, between {T0} and {end} ns (CLOCK_BOOTTIME), and "
        f"{sum(range(1, 301))} records were lost in them"
    )
    assert len([r for r in document.quality["reasons"] if "the ring of" in r]) == 0
    assert len(document.quality["gaps"]) == 300


def test_a_bundle_without_probes_is_not_evaluated() -> None:
    assert evaluate(Scene().clock().context()).state == "not evaluated"
