"""A host of any number of events, from a seed: four ranks that train, what keeps them off their CPUs, and a disk.

Each rank makes its calls one after the other on one thread: a step is launches, copies, an all-reduce and a
synchronisation. One call in 250 is slow, and its thread is off the CPU for part of it: preempted, asleep on a futex, or
asleep while its own disk read goes on. Between steps it sleeps, which explains nothing. Of a hundred rows about 78 are
CUDA calls, 2 collectives, 15 intervals off a CPU and 5 disk requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.evidence import START_NS, new_writer
from gpuaudit.bundle.columns import ColumnData, Rows, from_records, null_column
from gpuaudit.bundle.table import NUMPY_DTYPE
from gpuaudit.bundle.tables import TABLES
from gpuaudit.bundle.writer import BundleWriter

RANKS = 4
STEP_OPS = (
    *("cudaLaunchKernel",) * 40, *("cudaMemcpyAsync",) * 6, "ncclAllReduce", *("cudaLaunchKernel",) * 3,
    "cudaStreamSynchronize",
)  # fmt: skip
MEDIAN_NS = {
    "cudaLaunchKernel": 5_000, "cudaMemcpyAsync": 8_000, "ncclAllReduce": 15_000, "cudaStreamSynchronize": 600_000,
}  # fmt: skip
"""Medians of the natural durations; they scatter as a log-normal variable with sigma 0.3."""

SLOW_PER_CALL = 1 / 250
OFF_PER_STEP = 9
"""Short sleeps and preemptions between calls, for each step of each rank."""

DISK_PER_STEP = 3
ROWS_PER_STEP = RANKS * (len(STEP_OPS) * (1 + SLOW_PER_CALL) + OFF_PER_STEP + DISK_PER_STEP)
COMM = 0x5EED_0000_0000_0002
CHUNK_STEPS = 2_500
"""Steps in memory at once: about half a million rows of calls."""

Columns = dict[str, Any]


@dataclass
class _Rank:
    """A rank and where its clock has got to."""

    number: int
    now_ns: int = START_NS

    @property
    def pid(self) -> int:
        return 4_000 + 17 * self.number


def write_bundle(path: Path, events: int, seed: int = 1) -> dict[str, int]:
    """Seal about ``events`` rows; how many of each table."""
    writer, _ = new_writer(path)
    rows: dict[str, int] = {}
    end_ns = START_NS
    for table, columns in chunks(max(1, round(events / ROWS_PER_STEP)), seed):
        _append(writer, table, filled(table, columns), rows)
        end_ns = max(end_ns, int(columns["start_ns"].max()))
    for table, records in (("processes", _processes()), ("clock", _clock(end_ns))):
        _append(writer, table, from_records(TABLES[table], records), rows)
    writer.seal({})
    writer.close()
    return rows


def chunks(steps: int, seed: int) -> Iterator[tuple[str, Columns]]:
    """Columns of every table that is filled, some steps at a time, every rank in each."""
    draw = np.random.default_rng(seed)
    ranks = [_Rank(i) for i in range(RANKS)]
    for first in range(0, steps, CHUNK_STEPS):
        n = min(CHUNK_STEPS, steps - first)
        parts: dict[str, list[Columns]] = {}
        for rank in ranks:
            for table, columns in _rank(draw, rank, n):
                parts.setdefault(table, []).append(columns)
        latest = max(r.now_ns for r in ranks)
        for rank in ranks:
            rank.now_ns = latest
        for table, some in parts.items():
            yield table, {name: np.concatenate([p[name] for p in some]) for name in some[0]}


def _rank(draw: np.random.Generator, rank: _Rank, steps: int) -> Iterator[tuple[str, Columns]]:
    """Calls one after the other with short gaps, an all-reduce at the same place of each step of every rank."""
    ops = np.tile(np.array(STEP_OPS), steps)
    median = np.tile(np.array([MEDIAN_NS[op] for op in STEP_OPS]), steps)
    duration = (median * draw.lognormal(0, 0.3, len(ops))).astype("<u8")
    slow = np.flatnonzero(draw.random(len(ops)) < SLOW_PER_CALL)
    lost = draw.integers(1_000_000, 20_000_000, len(slow)).astype("<u8")
    duration[slow] += lost
    gap = draw.integers(1_000, 4_000, len(ops)).astype("<u8")
    gap[:: len(STEP_OPS)] += draw.integers(2_000_000, 3_000_000, steps).astype("<u8")
    start = rank.now_ns + np.cumsum(gap + duration) - duration
    common = {"start_ns": start, "duration_ns": duration, "pid": np.full(len(ops), rank.pid, "<u4")}
    nccl = ops == "ncclAllReduce"
    calls = {**common, "op": ops, "stream": np.full(len(ops), 7, "<u8")}
    yield "cuda_calls", {k: v[~nccl] for k, v in calls.items()}
    yield "nccl_calls", {**{k: v[nccl] for k, v in calls.items()}, "rank": np.full(steps, rank.number, "<i4")}
    inside = start[slow] + duration[slow] - lost
    kind = draw.integers(0, 3, len(slow))
    idle = start[:: len(STEP_OPS)] - gap[:: len(STEP_OPS)]
    yield "off_cpu", _off_cpu(draw, rank, (inside, lost * 9 // 10, kind), (idle, gap[:: len(STEP_OPS)]))
    read = kind == 2
    yield "block_io", _disk(draw, rank, inside[read], lost[read] * 9 // 10, idle)
    rank.now_ns = int(start[-1] + duration[-1])


def _off_cpu(draw: np.random.Generator, rank: _Rank, slow: tuple[Any, Any, Any], idle: tuple[Any, Any]) -> Columns:
    """Inside slow calls by kind (0 preempted, 1 futex, 2 disk); and cuts of the pauses between steps, asleep."""
    at, length, kind = slow
    share = np.repeat(idle[1] // (OFF_PER_STEP + 1), OFF_PER_STEP)
    turn = np.tile(np.arange(OFF_PER_STEP, dtype="<u8"), len(idle[0]))
    pause_at = np.repeat(idle[0], OFF_PER_STEP) + turn * share
    start, duration = np.concatenate([at, pause_at]), np.concatenate([length, share * 9 // 10])
    which = np.concatenate([kind, np.full(len(pause_at), 3)])
    order = np.argsort(start, kind="stable")
    which, start, duration = which[order], start[order], duration[order]
    n = len(start)
    hog = draw.integers(0, 3, n)
    return {
        "start_ns": start, "duration_ns": duration, "pid": np.full(n, rank.pid, "<u4"),
        "op": np.where(which == 0, "preempted", "blocked"),
        "prev_state": np.select([which == 0, which == 2], [0, 2], 1).astype("<u4"),
        "next_pid": np.where(which == 0, 9_000 + hog, 0).astype("<u4"), "cpu_out": np.full(n, rank.number, "<u2"),
        "runqueue_ns": np.where(which == 0, duration, 0).astype("<u8"), "wake_ns": start + duration,
        "waker_pid": np.where(which == 1, rank.pid, 0).astype("<u4"),
        "waker_tid": np.where(which == 1, rank.pid + 1, 0).astype("<u4"),
        "syscall": np.select([which == 1, which == 2], [202, 0], 230).astype("<i4"),
    }  # fmt: skip


def _disk(draw: np.random.Generator, rank: _Rank, at: Any, length: Any, idle: Any) -> Columns:
    """The reads that a slow call waited for, and writes in the pauses, which nothing waited for."""
    other = np.repeat(idle, DISK_PER_STEP) + np.tile(np.arange(DISK_PER_STEP, dtype="<u8") * 300_000, len(idle))
    start = np.concatenate([at, other])
    duration = np.concatenate([length, draw.integers(50_000, 250_000, len(other)).astype("<u8")])
    reads = np.concatenate([np.ones(len(at), bool), np.zeros(len(other), bool)])
    order = np.argsort(start, kind="stable")
    n = len(start)
    return {
        "start_ns": start[order], "duration_ns": duration[order], "pid": np.full(n, rank.pid, "<u4"),
        "op": np.where(reads[order], "read", "write"), "operation": np.where(reads[order], 0, 1).astype("<u4"),
        "major": np.full(n, 259, "<u4"), "minor": np.zeros(n, "<u4"), "sector": draw.integers(0, 1 << 30, n, "<u8"),
        "size_bytes": np.full(n, 131_072, "<u4"), "error": np.zeros(n, "<i4"),
    }  # fmt: skip


def filled(table: str, columns: Columns) -> Rows:
    """Columns of a whole table: what is not told is null where it may be, and else what every such row has."""
    n = len(columns["start_ns"])
    fixed: Columns = {
        "tid": columns["pid"], "comm": "python3", "next_comm": "hog", "waker_comm": "python3", "return_code": 0,
        "comm_handle": 7_000, "comm_id": COMM, "nranks": RANKS, "datatype": 7, "reduce_op": 0, "count": 1_000,
        "cpu": 0, "seq": np.arange(n),
    }  # fmt: skip
    out: Rows = {}
    for c in TABLES[table].columns:
        given = columns.get(c.name, fixed.get(c.name))
        if given is None or (table == "block_io" and c.name.startswith("for_")):
            out[c.name] = null_column(c, n)
        elif c.type == "text":
            names, codes = np.unique(np.asarray(given), return_inverse=True)
            whole = np.broadcast_to(codes.astype("<u4").reshape(-1), (n,)) if codes.size == 1 else codes.astype("<u4")
            out[c.name] = ColumnData(np.ascontiguousarray(whole), None, tuple(str(x) for x in names))
        else:
            out[c.name] = ColumnData(
                np.ascontiguousarray(np.broadcast_to(np.asarray(given, NUMPY_DTYPE[c.type]), (n,)))
            )
    return out


def _append(writer: BundleWriter, table: str, rows: Rows, counts: dict[str, int]) -> None:
    n = len(next(iter(rows.values())))
    counts[table] = counts.get(table, 0) + n
    writer.append_segment(TABLES[table], rows, seen=counts[table], written=counts[table], lost=0)


def _processes() -> list[Columns]:
    base = {"start_ns": START_NS - 10**9, "op": "found", "role": "traced", "comm": "python3", "seen_ns": START_NS}
    return [{**base, "pid": _Rank(i).pid} for i in range(RANKS)]


def _clock(end_ns: int) -> list[Columns]:
    return [
        {"start_ns": at, "duration_ns": 1_000, "realtime_ns": at + 10**18, "monotonic_ns": at}
        for at in (START_NS, end_ns)
    ]
