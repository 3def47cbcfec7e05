"""The tables of the kernel side at the ends of their types, with texts of a stranger: an answer, never a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpuaudit.analyze.explain import explain_document
from gpuaudit.analyze.finding import Document
from gpuaudit.analyze.load import load_document
from gpuaudit.analyze.run import document_bytes
from gpuaudit.analyze.store import MAX_TIME_NS
from gpuaudit.bundle.table import Column
from gpuaudit.bundle.tables import TABLES
from tests.scenes import T0, S, Scene

LONG = "x" * 9_000 + "'; DROP TABLE cuda_calls; --\x00\n{place}"
MOST = {"u8": 2**8 - 1, "u16": 2**16 - 1, "u32": 2**32 - 1, "u64": 2**64 - 1, "i32": -(2**31), "i64": -(2**62)}
KERNEL = (
    "cuda_calls", "nccl_calls", "call_totals", "stack_frames", "off_cpu", "migrations", "ioctls", "socket_io",
    "page_allocations", "reclaims", "oom_kills", "block_io", "tcp_retransmits", "lifecycle", "pressure",
    "process_samples", "cgroup_cpu", "probes", "libraries",
)  # fmt: skip


def value(column: Column, number: int, least: bool) -> Any:
    if column.name == "pid":
        return 7
    if column.name == "start_ns":
        return T0 + number
    if column.type == "text":
        return {"op": "cudaMemcpy", "kind": ("python", "native")[number % 2]}.get(column.name, LONG)
    if column.name.endswith("_ns"):
        return 0 if least else MAX_TIME_NS - 2 * T0
    return 0 if least else 1e300 if column.type == "f64" else MOST[column.type]


def through(scene: Scene, tmp_path: Path) -> Document:
    path = tmp_path / "x.findings.json"
    path.write_bytes(document_bytes(scene.document()))
    return load_document(path)


def scene(least: bool) -> Scene:
    s = Scene().clock().process(7, LONG)
    for name in KERNEL:
        for number in range(3):
            row = {c.name: value(c, number, least) for c in TABLES[name].columns}
            if name in ("cuda_calls", "nccl_calls"):
                row |= {"python_stack": row["native_stack"], "parent_ns": None, "parent_op": None}
            s.add(name, **row)
    return s


def test_the_largest_values_and_long_names(tmp_path: Path) -> None:
    document = through(scene(least=False), tmp_path)
    states = {x.id: x.state for x in document.sections}
    wanted = ("call_sites", "host", "driver_boundary", "observation")
    assert {states[i] for i in wanted} == {"evaluated"}
    assert explain_document(document, 100)


def test_nothing_but_zeros(tmp_path: Path) -> None:
    document = through(scene(least=True), tmp_path)
    assert {x.id for x in document.sections} >= {"call_sites", "host", "driver_boundary", "observation"}


def test_nulls_where_there_may_be_nulls(tmp_path: Path) -> None:
    s = scene(least=False)
    for name in KERNEL:
        for row in s.rows[name]:
            row |= {c.name: None for c in TABLES[name].columns if c.nullable}
    through(s, tmp_path)


def test_intervals_that_contradict_each_other(tmp_path: Path) -> None:
    """More run-queue time than there was an interval; a bucket whose least is above its most; counters that fall."""
    s = Scene().clock().process(7)
    off = {"pid": 7, "tid": 7, "op": "blocked", "comm": "x", "prev_state": 1, "cpu_out": 0}
    s.add("off_cpu", start_ns=T0, duration_ns=5, runqueue_ns=50, syscall=-5, **off)
    s.add("call_totals", start_ns=T0, duration_ns=0, pid=7, tid=7, op="cudaFree", low_ns=9, high_ns=2, count=3,
          sum_ns=0,           min_ns=8, max_ns=1, size_bytes=0, errors=9, nested=0)  # fmt: skip
    for at, faults in ((0, 9), (1, 3)):
        s.add("process_samples", start_ns=T0 + at * S, pid=7, major_faults=faults)
    through(s, tmp_path)
