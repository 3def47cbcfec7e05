"""The incident timeline: GPUs, gaps, ranks and threads as lanes of classed intervals, bounded in both directions."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gpuaudit.analyze import intervals, lateness, waits
from gpuaudit.analyze.collectives import Collectives
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Chain, Json
from gpuaudit.analyze.gpu_time import UNKNOWN, GpuTime
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.rules.throttling import MASK
from gpuaudit.analyze.store import NOT_OWN

MAX_LANES = 64
"""What fits one page at 4 mm a lane."""

MAX_INTERVALS = 400
"""Marks in one lane; a page is about 1,200 pixels wide."""

LANES_OF = {"gpu": 16, "gap": 4, "rank": 24, "thread": 20}
"""At most so many lanes of a kind; together they are MAX_LANES."""

RULE = (
    f"at most {MAX_LANES} lanes (GPUs by index; gaps by source; ranks by communicator and rank; threads by time "
    f"off CPU) "
    f"and {MAX_INTERVALS} intervals each: neighbours of one class are joined, findings are kept first, then the longest"
)

Marks = list[tuple[int, int, str]]
"""(start_ns, duration_ns, class)."""


def timeline(context: Context, chains: list[Chain]) -> Json:
    """Series ``charts.timeline``."""
    lanes: list[tuple[str, str, Marks]] = []
    left_out = 0
    for kind, made in (
        ("gpu", [_gpu(g) for g in context.gpus]),
        ("gap", _gaps(context)),
        ("rank", [lane for c in context.collectives if c.count for lane in _ranks(context, c, chains)]),
        ("thread", _threads(context)),
    ):
        lanes += [(label, kind, marks) for label, marks in made[: LANES_OF[kind]]]
        left_out += max(0, len(made) - LANES_OF[kind])
    drawn = [_bounded(label, kind, marks) for label, kind, marks in lanes]
    return {
        "start_ns": str(context.window.start_ns),
        "end_ns": str(context.window.end_ns),
        "lanes": drawn,
        "omitted": sum(int(lane["omitted"]) for lane in drawn),
        "omitted_lanes": left_out,
        "rule": RULE,
    }


def _bounded(label: str, kind: str, marks: Marks) -> dict[str, Json]:
    order = sorted(marks, key=lambda m: (m[2] not in ("finding", "gap"), -m[1], m[0]))
    kept = sorted(order[:MAX_INTERVALS])
    return {
        "label": label, "kind": kind, "intervals": [[str(a), str(d), c] for a, d, c in kept],
        "omitted": len(marks) - len(kept), "rule": RULE,
    }  # fmt: skip


def _marks(time: Intervals, name: str) -> Marks:
    return [(int(a), int(b - a), name) for a, b in time]


def _gpu(gpu: GpuTime) -> tuple[str, Marks]:
    throttled = gpu.time((gpu.event_reasons != UNKNOWN) & (gpu.event_reasons & MASK != 0))
    busy = intervals.subtract(gpu.time(gpu.utilization > 0), throttled)
    idle = intervals.subtract(gpu.time(gpu.utilization == 0), throttled)
    return f"GPU {gpu.index}", [*_marks(busy, "busy"), *_marks(idle, "idle"), *_marks(throttled, "throttled")]


def _gaps(context: Context) -> list[tuple[str, Marks]]:
    rows = context.store.sql(
        f"SELECT source, start_ns::BIGINT, coalesce(end_ns, {context.window.end_ns})::BIGINT FROM gaps ORDER BY "
        f"source, 2, 3"
    )
    by_source: dict[str, list[tuple[int, int]]] = {}
    for source, start, end in rows:
        by_source.setdefault(str(source), []).append((int(start), int(end)))
    return [
        (f"gap: {source}", _marks(intervals.from_bounds([s for s, _ in spans], [e for _, e in spans]), "gap"))
        for source, spans in sorted(by_source.items())
    ]


def _ranks(context: Context, c: Collectives, chains: list[Chain]) -> Iterable[tuple[str, Marks]]:
    """Where each rank was in a collective or its synchronisation; late arrivals of a rank with a chain stand out."""
    held, in_sync = waits.carriers(c, context.window.end_ns)
    judged = lateness.judge(c.arrival, context.late_limits)
    named = {x.subject.get("rank") for x in chains if x.subject.get("comm") == c.name}
    for r, rank in enumerate(c.ranks):
        late = np.flatnonzero(judged.late & (judged.last == r)) if str(rank) in named else np.zeros(0, dtype=np.intp)
        finding = intervals.from_bounds(judged.median[late], c.arrival[r, late])
        sync = intervals.from_bounds(held[r, in_sync[r], 0], held[r, in_sync[r], 1])
        call = intervals.from_bounds(held[r, ~in_sync[r], 0], held[r, ~in_sync[r], 1])
        call = intervals.subtract(call, sync)
        yield (
            f"rank {rank} (process {c.pids[r]})",
            [*_marks(sync, "sync"), *_marks(call, "collective"), *_marks(finding, "finding")],
        )


def _threads(context: Context) -> list[tuple[str, Marks]]:
    """Threads that were preempted, most time first: sleep is left out, a thread that waits by choice is no incident."""
    threads = context.store.sql(
        "SELECT pid, tid, sum(duration_ns)::HUGEINT AS t FROM off_cpu WHERE op = 'preempted' AND duration_ns IS "
        "NOT NULL "
        f"AND {NOT_OWN} GROUP BY pid, tid ORDER BY t DESC, pid, tid"
    )
    out = []
    for pid, tid, _ in threads[: LANES_OF["thread"]]:
        a = context.store.arrays(
            "SELECT start_ns::BIGINT AS a, end_ns::BIGINT AS b FROM off_cpu WHERE op = 'preempted' AND "
            "duration_ns IS NOT NULL "
            f"AND pid = {int(pid)} AND tid = {int(tid)} ORDER BY 1, 2"
        )
        label = f"thread {tid} of {pid} ({context.process_name(int(pid))})"
        out.append((label, _marks(intervals.from_bounds(a["a"], a["b"]), "preempted")))
    return out + [("", [])] * max(0, len(threads) - len(out))
