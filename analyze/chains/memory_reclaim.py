"""Chain: a thread that wanted memory had to free some itself first (direct reclaim).

Effect: slow calls, the lateness of a rank, or the wait for a thread that was itself waited for. Cause: the direct
reclaims of the same thread, from their beginning to their end, by whose memory was short: that of its cgroup, which was
at its limit, or the host's. A thread in direct reclaim works or waits for pages to be written; both are in it. Units:
ns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze import intervals
from gpuaudit.analyze.causal import model, recorded
from gpuaudit.analyze.causal.during import THREAD, Columns, During, rows_during, thread_key
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.causal.states import Chosen, overlapping
from gpuaudit.analyze.finding import Declaration, Quantity
from gpuaudit.analyze.intervals import Intervals

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

DECLARATION = Declaration(
    id="memory_reclaim",
    kind="chain",
    title="Memory short",
    question="Did a thread have to free memory itself before it got some, while its calls were slow?",
    inputs=(
        ("reclaims", ("start_ns", "duration_ns", "pid", "tid", "op", "reclaimed_pages")),
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "parent_ns")),
        ("nccl_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "parent_ns")),
    ),
    thresholds=model.THRESHOLDS,
    texts={
        "memory_reclaim": "For {explained} of {effect_time} ({share}) of {effect} the thread had to free memory before "
        "it got some, because {culprit} was short: {reclaims} times, {pages} pages.",
    },
    never_claims="Who had filled the memory; nor what other threads lost that waited for memory without freeing any.",
    assumptions=("A thread in direct reclaim can do nothing else until it has ended.",),
)  # fmt: skip

SHORT = {"host": "the host's memory", "cgroup": "the memory of its cgroup, at its limit"}
"""Culprit by the ``op`` of a row."""

_COLUMNS = {
    "start_ns": "start_ns::BIGINT", "op": "coalesce(op, 'host')",
    "pages": "coalesce(try_cast(reclaimed_pages AS BIGINT), -1)",
}  # fmt: skip


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Direct reclaims of each effect's thread, by whose memory was short."""
    why = recorded.unrecorded(context, "reclaims", "direct reclaim", "memory")
    if why is not None:
        return why
    columns = {**_COLUMNS, "end_ns": f"coalesce(end_ns, {context.window.end_ns})::BIGINT"}
    wanted = {e.key: (thread_key(e.pid, e.tid), e.time) for e in effects if e.tid is not None}
    found = rows_during(context, During("reclaims", THREAD, columns), wanted)
    threads = {e.key: f"pid = {e.pid} AND tid = {e.tid}" for e in effects}
    return {key: list(_causes(context, rows, threads[key])) for key, rows in found.items()}


def _causes(context: Context, rows: Columns, thread: str) -> Iterator[Cause]:
    for op in sorted(set(rows["op"].tolist()) & SHORT.keys()):
        chosen = rows["op"] == op
        pages = rows["pages"][chosen]
        evidence = _evidence(context, rows, chosen, thread)
        book = evidence(intervals.from_bounds(rows["start_ns"][chosen], rows["end_ns"][chosen]))
        unknown = "the capture ended before the last reclaim did" if (pages < 0).any() else ""
        yield Cause(
            culprit=SHORT[op],
            time=intervals.from_bounds(rows["start_ns"][chosen], rows["end_ns"][chosen]),
            evidence=evidence,
            text="memory_reclaim",
            what=f"its thread had to free memory before it got some, because {SHORT[op]} was short",
            values={
                "reclaims": Quantity(int(chosen.sum()), "count", "measured", book, "rows within the effect"),
                "pages": Quantity(
                    None if unknown else sum(pages.tolist()),
                    "count",
                    "derived",
                    book,
                    "sum of reclaimed_pages",
                    unknown,
                ),
            },
        )


def _evidence(context: Context, rows: Columns, chosen: Chosen, thread: str) -> Callable[[Intervals], tuple[str, ...]]:
    def listed(time: Intervals) -> tuple[str, ...]:
        touching = chosen & overlapping(rows["start_ns"], rows["end_ns"], time)
        keys = np.stack([rows["leaf"][touching], rows["row"][touching]], axis=1).astype(np.int64)
        return (context.book.listed("reclaims", keys, thread),)

    return listed


DETECTOR = Detector(
    precedence=20,
    kinds=frozenset({"slow_call", "api_silence", "throughput_drop", "late_arrival", model.WAITED_FOR, "slow_step"}),
    scope="same thread",
    find=find,
    refuted_by="The same calls as slow where no thread has to reclaim memory.",
    experiment="Raise the memory limit of the cgroup (memory.max), or free memory of the host (page cache, other "
    "processes), and capture again.",
    next_step="See what fills the memory (memory.stat of the cgroup, audit query on pressure and page_allocations), "
    "and allocate host memory once, before the run.",
)
