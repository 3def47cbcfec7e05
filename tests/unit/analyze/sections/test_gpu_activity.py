"""What the GPUs did: the section's numbers against plain interval arithmetic over the original traces."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.evidence import EvidenceBook
from gpuaudit.analyze.finding import Quantity, Section, SectionTable
from gpuaudit.analyze.quality import read_quality
from gpuaudit.analyze.sections import gpu_activity
from gpuaudit.analyze.store import Store
from gpuaudit.analyze.window import read_window
from tests.kineto_traces import BASE_US, GPU_CATEGORIES, RecordedTraces, call, imported, kernel, load, operator, written
from tests.scenes import Scene

US = 1000
PUBLISHED = {
    "train128-rank0": (1_222_847, 675_191, 210_320, 396_199, 59_216),
    "train128-rank1": (1_231_186, 651_136, 271_973, 379_053, 75_530),
    "a100-world8-rank3": (464_594, 76_007, 281_336, 163_535, 75_614),
}
"""Span, idle, compute, communication and overlap in µs, worked out by hand for these traces."""

TRACES = (*PUBLISHED, "a100-world2-rank0-collectives", "amd-mi250")


def union(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Disjoint, sorted; the plain way, on Python integers, and none of the product's code."""
    out: list[tuple[int, int]] = []
    for a, b in sorted(p for p in pairs if p[0] < p[1]):
        if out and a <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], b))
        else:
            out.append((a, b))
    return out


def total(pairs: list[tuple[int, int]]) -> int:
    return sum(b - a for a, b in pairs)


def common(x: list[tuple[int, int]], y: list[tuple[int, int]]) -> int:
    """By inclusion and exclusion: |x| + |y| − |x ∪ y|."""
    return total(x) + total(y) - total(union(x + y))


@cache
def original(name: str) -> list[dict[str, Any]]:
    """Work of the GPU and calls of the runtime, as the original JSON has them."""
    return [e for e in load(name)["traceEvents"] if e.get("cat") in (*GPU_CATEGORIES, "cuda_runtime")]


@cache
def by_hand(name: str) -> dict[str, int]:
    """The definitions, over the original JSON."""
    events = [e for e in original(name) if e["cat"] in GPU_CATEGORIES]
    times = [
        (int(Decimal(e["ts"]) * US), int((Decimal(e["ts"]) + Decimal(e["dur"])) * US)) for e in events
    ]  # fmt: skip

    def pick(wanted: Any) -> list[tuple[int, int]]:
        return union([t for t, e in zip(times, events, strict=True) if wanted(e)])

    everything = pick(dict)
    collective = pick(lambda e: e["cat"] == "kernel" and "nccl" in e["name"])
    compute = pick(lambda e: e["cat"] == "kernel" and "nccl" not in e["name"])
    span = everything[-1][1] - everything[0][0]
    return {
        "span": span, "idle": span - total(everything), "compute": total(compute), "communication": total(collective),
        "memory": total(pick(lambda e: e["cat"] != "kernel")), "overlap": common(compute, collective),
        "exposed": total(collective) - common(compute, collective), "count": len(events),
    }  # fmt: skip


def context_of(store: Store) -> Context:
    window = read_window(store)
    return Context(store, window, read_quality(store, window, "SEALED"), EvidenceBook(store))


def rows(section: Section, table: str) -> list[dict[str, Any]]:
    found: SectionTable = next(t for t in section.tables if t.id == table)
    names = [n for n, _ in found.columns]
    return [
        {n: c.value if isinstance(c, Quantity) else c for n, c in zip(names, row, strict=True)} for row in found.rows
    ]


@pytest.mark.parametrize("name", TRACES)
def test_the_times_equal_the_definitions(name: str, recorded_traces: RecordedTraces) -> None:
    store, _ = recorded_traces.of(name)
    context = context_of(store)
    section = gpu_activity.evaluate(context)
    (row,) = rows(section, "times")
    truth = by_hand(name)
    assert {k: row[k] for k in truth} == truth
    if name in PUBLISHED:
        assert [row[k] // US for k in ("span", "idle", "compute", "communication", "overlap")] == list(PUBLISHED[name])
        assert all(row[k] % US == 0 for k in truth if k != "count"), "these traces have whole µs"
    assert row["idle_share"] == Fraction(truth["idle"], truth["span"])
    assert row["unlinked"] == 0
    (idle,) = rows(section, "idle")
    assert idle["idle"] == truth["idle"]
    assert idle["before_call"] + idle["in_call"] + idle["after_call"] + idle["unlinked"] == truth["idle"]
    for e in context.book.entries():
        assert len(store.sql(e.query)) == e.rows


@pytest.mark.parametrize("name", ["train128-rank0", "a100-world8-rank3"])
def test_idle_time_by_the_call_that_ended_it(name: str, recorded_traces: RecordedTraces) -> None:
    """Each gap looked at one by one: the first call of those whose work began at its end."""
    trace = original(name)
    calls = {
        e["args"]["correlation"]: (int(e["ts"] * US), int((e["ts"] + e["dur"]) * US))
        for e in trace if e.get("cat") == "cuda_runtime"
    }  # fmt: skip
    work = [e for e in trace if e.get("cat") in GPU_CATEGORIES]
    givers: dict[int, tuple[int, int]] = {}
    for e in work:
        at, given = int(e["ts"] * US), calls[e["args"]["correlation"]]
        givers[at] = min(givers.get(at, given), given)
    busy = union([(int(e["ts"] * US), int((e["ts"] + e["dur"]) * US)) for e in work])
    parts = [0, 0, 0]
    for (_, a), (b, _) in pairwise(busy):
        begun, done = givers[b]
        begun, done = min(max(begun, a), b), min(max(done, a), b)
        parts = [parts[0] + begun - a, parts[1] + done - begun, parts[2] + b - done]
    (idle,) = rows(gpu_activity.evaluate(context_of(recorded_traces.of(name)[0])), "idle")
    assert [idle["before_call"], idle["in_call"], idle["after_call"], idle["unlinked"]] == [*parts, 0]


def test_the_costliest_kernels(recorded_traces: RecordedTraces) -> None:
    totals: dict[str, list[int]] = {}
    for e in original("train128-rank0"):
        if e.get("cat") == "kernel":
            totals.setdefault(e["name"], []).append(int(e["dur"] * US))
    order = sorted(totals, key=lambda n: (-sum(totals[n]), n))
    section = gpu_activity.evaluate(context_of(recorded_traces.of("train128-rank0")[0]))
    got = rows(section, "kernels")
    assert [r["total"] for r in got] == [sum(totals[n]) for n in order[:20]]
    assert got[0]["kind"] == "communication"
    assert got[0]["kernel"].startswith("ncclKernel_SendRecv")
    for r, n in zip(got, order, strict=False):
        assert (r["count"], r["shortest"], r["longest"]) == (len(totals[n]), min(totals[n]), max(totals[n]))
        assert r["share"] == Fraction(sum(totals[n]), sum(map(sum, totals.values())))
    assert next(t for t in section.tables if t.id == "kernels").omitted == len(order) - 20


def test_every_rank_of_a_bundle_has_its_own_row(recorded_traces: RecordedTraces) -> None:
    store, _ = recorded_traces.of("train128-rank0", "train128-rank1")
    section = gpu_activity.evaluate(context_of(store))
    got = rows(section, "times")
    assert [(r["process"], r["device"]) for r in got] == [
        ("rank 0: 4037 (pyper:trainer:0:0)", "0"), ("rank 1: 4045 (pyper:trainer:0:1)", "1"),
    ]  # fmt: skip
    for r, name in zip(got, ("train128-rank0", "train128-rank1"), strict=True):
        assert r["idle"] == by_hand(name)["idle"]
    assert len(section.statements) == 2


@pytest.mark.parametrize("name", ["cpu-only-rank34", "rank-unavailable"])
def test_without_work_of_a_gpu_nothing_is_said(name: str, recorded_traces: RecordedTraces) -> None:
    section = gpu_activity.evaluate(context_of(recorded_traces.of(name)[0]))
    assert (section.state, section.tables) == ("not evaluated", ())
    assert "audit import" in section.reason


def test_a_live_capture_has_no_record_of_the_gpu() -> None:
    assert gpu_activity.evaluate(Scene().clock().process(7).context()).state == "not evaluated"


def test_work_without_its_call_counts_and_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 µs of linked work, then three pieces without a call: busy like any other, idle before them not explained."""
    monkeypatch.setenv("GPU_AUDIT_KEYS", str(tmp_path / "keys"))
    events = [operator(), call(1, BASE_US, 4), kernel(1, BASE_US + 10, 10), kernel(2, BASE_US + 30, 5),
              kernel(None, BASE_US + 40, 5), kernel(0, BASE_US + 50, 5)]  # fmt: skip
    store, _ = imported([written(tmp_path / "t.json", events)], tmp_path / "t.db")
    section = gpu_activity.evaluate(context_of(store))
    (row,), (idle,) = rows(section, "times"), rows(section, "idle")
    assert (row["count"], row["unlinked"], row["span"], row["idle"]) == (4, 3, 45 * US, 20 * US)
    assert (idle["unlinked"], idle["before_call"], idle["gaps"]) == (20 * US, 0, 3)


def test_a_wait_of_a_stream_is_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUPTI's synchronisation records are carried, and make no GPU busy; no more do ranges of a stream."""
    monkeypatch.setenv("GPU_AUDIT_KEYS", str(tmp_path / "keys"))
    sync = kernel(1, BASE_US + 12, 80, name="Stream Sync", cat="cuda_sync")
    mark = kernel(1, BASE_US + 10, 90, name="step", cat="gpu_user_annotation")
    events = [call(1), kernel(1, BASE_US + 10, 5), sync, mark, kernel(1, BASE_US + 100, 5)]
    store, _ = imported([written(tmp_path / "t.json", events)], tmp_path / "t.db")
    assert store.sql("SELECT op, name, stream FROM gpu_activities WHERE op = 'sync'") == [("sync", "Stream Sync", 7)]
    assert store.sql("SELECT op, tid, detail FROM user_ranges") == [("gpu_annotation", None, '{"device":0,"stream":7}')]
    (row,) = rows(gpu_activity.evaluate(context_of(store)), "times")
    assert (row["span"], row["idle"], row["count"]) == (95 * US, 85 * US, 2)
