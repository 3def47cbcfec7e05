"""Calls inside calls, and calls that the kernel counted: added up once, in every count and sum, and said."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from gpuaudit.analyze.context import Found
from gpuaudit.analyze.finding import Document, Finding, Quantity, number_from_json
from gpuaudit.analyze.rules.tiny_launches import evaluate as tiny_launches
from tests.scenes import MS, T0, US, S, Scene


def totals(scene: Scene, pid: int, op: str, at: int, **more: Any) -> Scene:
    """A bucket of calls of the main thread; ten of 4 µs to 5 µs unless ``more`` says otherwise."""
    base = {
        "start_ns": at, "duration_ns": S, "pid": pid, "tid": pid, "op": op, "low_ns": 4 * US, "high_ns": 5 * US,
        "count": 10, "sum_ns": 45 * US, "min_ns": 4_100, "max_ns": 4_900, "size_bytes": 0, "errors": 0, "nested": 0,
    }  # fmt: skip
    return scene.add("call_totals", **{**base, **more})


def operation(document: Document, op: str) -> dict[str, Any]:
    (row,) = [o for o in document.operations if o["op"] == op]
    return {k: number_from_json(v["value"]) if isinstance(v, dict) else v for k, v in row.items()}


def scene() -> Scene:
    """Three allocations of 100 µs, two of them with the driver's call of 90 µs inside, and one of the driver alone."""
    s = Scene().clock().process(7)
    for i in range(3):
        at = T0 + S + i * MS
        s.cuda(7, "cudaMalloc", at, 100 * US, size_bytes=100, device_pointer=4096 + i)
        if i < 2:
            inside = {"parent_ns": at, "parent_op": "cudaMalloc", "size_bytes": 100, "device_pointer": 4096 + i}
            s.cuda(7, "cuMemAlloc_v2", at + 5 * US, 90 * US, **inside)
    s.cuda(7, "cuMemAlloc_v2", T0 + 2 * S, 30 * US, size_bytes=50, device_pointer=1 << 20)
    return s


def test_a_call_inside_another_is_linked_and_not_counted_twice() -> None:
    document = scene().document()
    outer, inner = operation(document, "cudaMalloc"), operation(document, "cuMemAlloc_v2")
    assert (outer["count"], outer["total"]) == (3, 300 * US)
    assert "nested" not in outer
    assert (inner["count"], inner["total"], inner["nested"], inner["max"]) == (1, 30 * US, 2, 30 * US)
    assert sum(operation(document, o["op"])["total"] for o in document.operations) == 330 * US


def test_the_evidence_of_a_count_is_the_calls_that_were_counted() -> None:
    document = scene().document()
    rows = {e.id: e.rows for e in document.evidence}
    (inner,) = [o for o in document.operations if o["op"] == "cuMemAlloc_v2"]
    assert [rows[i] for i in inner["count"]["evidence"]] == [1]
    assert [rows[i] for i in inner["nested"]["evidence"]] == [2]


def test_aggregated_calls_are_in_count_and_sum_and_bound_the_percentiles() -> None:
    s = Scene().clock().process(7)
    for i in range(90):
        s.cuda(7, "cudaLaunchKernel", T0 + S + i * MS, 10 * US)
    totals(s, 7, "cudaLaunchKernel", T0 + 2 * S, count=100, sum_ns=450 * US, errors=3)
    totals(s, 7, "cudaLaunchKernel", T0 + 3 * S, count=5, sum_ns=22 * US, nested=1)
    document = s.document()
    told = operation(document, "cudaLaunchKernel")
    assert (told["count"], told["total"], told["errors"]) == (190, 900 * US + 450 * US, 3)
    assert (told["aggregated"], told["nested"]) == (100, 5)
    assert (told["p50"], told["p99"], told["max"]) == (4_900, 10 * US, 10 * US)
    (row,) = document.operations
    assert "at least 4100 ns" in row["p50"]["formula"]
    assert any("105 fast calls were aggregated in the kernel" in r for r in document.quality["reasons"])
    assert document.quality["grade"] == "B"


def test_an_operation_that_was_only_aggregated_has_a_row() -> None:
    s = Scene().clock().process(7)
    totals(s, 7, "cudaStreamQuery", T0 + S)
    totals(s, 7, "ncclAllReduce", T0 + S, count=4, sum_ns=18 * US)
    document = s.document()
    assert operation(document, "cudaStreamQuery")["total"] == 45 * US
    assert {o["op"]: o["table"] for o in document.operations} == {
        "cudaStreamQuery": "cuda_calls",
        "ncclAllReduce": "nccl_calls",
    }


def test_a_storm_of_launches_is_told_though_no_launch_has_a_row() -> None:
    """A second with 200,000 launches of 4.5 µs: nine tenths of it."""
    s = Scene().clock().process(7)
    for i in range(10):
        totals(s, 7, "cudaLaunchKernel", T0 + (1 + i) * S, count=200_000, sum_ns=900 * MS)
    outcome = tiny_launches(s.context())
    assert isinstance(outcome, Found)
    (finding,) = outcome.items
    assert isinstance(finding, Finding)
    values = {k: v.value for k, v in finding.values.items() if isinstance(v, Quantity)}
    assert (values["launches"], values["inside"], values["observed"]) == (2_000_000, 9 * S, 10 * S)
    assert values["share"] == Fraction(9, 10)
    assert values["median"] is None


def test_time_with_aggregated_calls_is_no_silence() -> None:
    """A process that makes fast calls all the time has rows of its first and last only."""
    s = Scene().clock().process(7)
    s.cuda(7, "cudaFree", T0 + S, 10 * US)
    s.cuda(7, "cudaFree", T0 + 59 * S, 10 * US)
    quiet = s.document()
    for i in range(1, 59):
        totals(s, 7, "cudaLaunchKernel", T0 + i * S, count=1000, sum_ns=5 * MS)
    assert [f.rule for f in quiet.findings] == ["api_silence"]
    assert [f.rule for f in s.document().findings] == []


def test_memory_and_bytes_of_the_driver_and_of_hip_are_understood_and_counted_once() -> None:
    s = Scene().clock().process(7).process(8).process(9)
    for pid, malloc, copy in ((7, "cuMemAlloc_v2", "cuMemcpyHtoD_v2"), (8, "hipMalloc", "hipMemcpy")):
        s.cuda(pid, malloc, T0 + S, US, size_bytes=1000, device_pointer=4096)
        s.cuda(pid, copy, T0 + 2 * S, MS, size_bytes=1000, device_pointer=4096, direction=1)
    at = T0 + 2 * S
    s.cuda(9, "cudaMemcpy", at, MS, size_bytes=500, direction=1)
    s.cuda(9, "cuMemcpyHtoD_v2", at + US, MS // 2, size_bytes=500, direction=1, parent_ns=at, parent_op="cudaMemcpy")
    from gpuaudit.analyze.allocations import read_allocations
    from gpuaudit.analyze.transfers import read_transfers

    context = s.context()
    copied = {t.pid: (t.copies, t.bytes, t.blocking_bytes, t.blocking_ns) for t in read_transfers(context)}
    assert copied == {7: (1, 1000, 1000, MS), 8: (1, 1000, 1000, MS), 9: (1, 500, 500, MS)}
    for pid in (7, 8):
        made, _ = read_allocations(context.store, pid, T0 + 60 * S)
        assert (made.size.tolist(), made.once.tolist()) == ([1000], [1000])


def test_bytes_of_aggregated_copies_are_told_without_a_direction() -> None:
    from gpuaudit.analyze.sections.roofline import evaluate
    from gpuaudit.analyze.transfers import read_transfers

    s = Scene().clock().process(7)
    s.cuda(7, "cudaMemcpy", T0 + S, MS, size_bytes=500, direction=1)
    totals(s, 7, "cudaMemcpyAsync", T0 + 2 * S, count=1000, size_bytes=64_000)
    totals(s, 7, "cuMemcpyHtoDAsync_v2", T0 + 2 * S, count=1000, size_bytes=64_000, nested=1)
    context = s.context()
    assert [(t.direction, t.copies, t.bytes) for t in read_transfers(context)] == [
        ("host to device", 1, 500), ("not known", 1000, 64_000)
    ]  # fmt: skip
    (copies,) = [t for t in evaluate(context).tables if t.id == "copies"]
    size, blocking = copies.rows[1][3:5]
    assert isinstance(size, Quantity)
    assert isinstance(blocking, Quantity)
    assert size.value == 64_000
    assert blocking.value is None
    assert "directions and kinds were not kept" in blocking.reason


def test_memory_whose_allocations_were_aggregated_is_not_balanced() -> None:
    s = Scene().clock().process(7)
    for i in range(100):
        s.cuda(7, "cudaMalloc", T0 + i * S // 2, US, size_bytes=1 << 24, device_pointer=4096 * (i + 1))
    assert [f.rule for f in s.document().findings if f.rule == "memory_leak"] == ["memory_leak"]
    totals(s, 7, "cudaFree", T0 + 2 * S)
    told = next(o for o in s.document().outcomes if o.id == "memory_leak")
    assert told.state == "not evaluated"
    assert "10 allocations and frees of it were aggregated in the kernel" in told.reason


def test_the_latency_chart_has_them_in_their_bucket() -> None:
    s = Scene().clock().process(7)
    s.cuda(7, "cudaMalloc", T0 + S, 5 * US)
    totals(s, 7, "cudaMalloc", T0 + 2 * S, low_ns=4096, high_ns=4871)
    (chart,) = s.document().charts["latency"]
    assert chart["bins"] == [["4096", "8192", "11"]]


def test_the_report_says_what_is_inside_others_and_what_has_no_rows() -> None:
    from gpuaudit.analyze.explain import explain_document
    from gpuaudit.report.ledgers import operation_notes, operations
    from gpuaudit.report.text import plain

    s = scene()
    plain_table = operations(Scene().clock().process(7).cuda(7, "cudaMalloc", T0 + S, US).document())
    totals(s, 7, "cuMemAlloc_v2", T0 + 3 * S)
    document = s.document()
    added = [c.title for c in operations(document).columns if c.title not in {x.title for x in plain_table.columns}]
    assert added == ["inside others", "without rows"]
    assert [plain(n).partition(":")[0] for n in operation_notes(document)][-2:] == ["inside others", "without rows"]
    told = " ".join(explain_document(document, 120).split())
    assert "and 2 inside other calls, 10 of them counted in the kernel" in told
