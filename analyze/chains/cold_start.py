"""Chain: a call was slow because it was the first of its kind: what it needed was made or loaded then, once.

Effect: slow calls, or the lateness of a rank. Cause: time inside calls of the same thread that are the first of their
operation in their process, the first launch of a kernel (its code is loaded then, CUDA C++ Programming Guide, lazy
loading), the first collective of an operation on a communicator (NCCL connects then), or that make a context or load
code themselves. A first synchronisation makes nothing: it waits for work that was given before, however long that
takes. Only of a process that was seen from its start, or that was watched for :data:`WATCHED` before it
called anything: of any other the first call in the recording is not the first that it made. Units: ns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze import intervals, unlisted
from gpuaudit.analyze.call_meanings import LAUNCH, MODULE_LOAD, OUTERMOST, SYNCHRONISE, Meaning, any_of
from gpuaudit.analyze.call_rows import Rows, pids_of
from gpuaudit.analyze.causal import collective_calls, model
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.finding import Declaration, Quantity, Threshold
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.lives import lives
from gpuaudit.analyze.store import NOT_OWN

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

WATCHED = Threshold(
    "watched_ns", 1_000_000_000, "ns",
    "chosen: a process that uses a GPU calls many times a second, so one that was watched for a second and called "
    "nothing had most likely not begun",
)  # fmt: skip

DECLARATION = Declaration(
    id="cold_start",
    kind="chain",
    title="Cold start",
    question="Were slow calls the first of their kind, which load and set up what later ones find ready?",
    inputs=(
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "function", "parent_ns")),
        ("nccl_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "comm_handle", "parent_ns")),
        ("call_totals", ("start_ns", "pid", "op", "count")),
        ("period_totals", ("start_ns", "duration_ns", "pid", "op", "count", "kept")),
        ("processes", ("start_ns", "duration_ns", "pid", "op", "role")),
    ),
    thresholds=(*model.THRESHOLDS, WATCHED),
    texts={
        "operation": "For {explained} of {effect_time} ({share}) of {effect} the thread was in a call that was the "
        "first of its operation in the process ({first}): a cold start, and no sign of what later calls take.",
        "kernel": "For {explained} of {effect_time} ({share}) of {effect} the thread was in the first launch of a "
        "kernel ({first}), which loads its code: a cold start, and no sign of what later launches take.",
        "communicator": "For {explained} of {effect_time} ({share}) of {effect} the thread was in the first collective "
        "of its operation on a communicator ({first}), which connects the ranks: a cold start, and no sign of what "
        "later ones take.",
        "loading": "For {explained} of {effect_time} ({share}) of {effect} the thread was making a context or loading "
        "code ({first} calls), which is done once.",
    },
    never_claims="That later calls are slow, or how long a first call has to take: no second one was seen to compare.",
    assumptions=(
        "A process that began after the capture did, or that was watched and silent for a second, made no call before "
        "its first recorded one.",
    ),
)  # fmt: skip

MAKES = any_of(
    MODULE_LOAD,
    Meaning(
        "make a context",
        "(cu|hip)Init|(cu|hip)CtxCreate|(cu|hip)DevicePrimaryCtxRetain|cudaInitDevice|cudaLibraryGetKernel",
    ),
)
"""Calls that make or load what others need."""

_FIRSTS = {
    "operation": ("cuda_calls", "op", OUTERMOST),
    "kernel": ("cuda_calls", "function", f"function IS NOT NULL AND {OUTERMOST}"),
    "communicator": ("nccl_calls", "comm_handle, op", OUTERMOST),
}
"""By kind: table, what a call is the first of in its process, and which calls count."""

_WHAT = {
    "operation": "first use of an operation", "kernel": "first launch of a kernel",
    "communicator": "first collective on a communicator", "loading": "making contexts and loading code",
}  # fmt: skip

_BECAUSE = {
    "operation": "these calls are the first of their operation in the process",
    "kernel": "these calls are the first launches of their kernels, whose code is loaded then",
    "communicator": "these calls are the first of their operation on their communicator, whose ranks connect then",
    "loading": "its thread made a context or loaded code",
}


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Time in first calls, by the thread that made them."""
    pids = sorted({e.pid for e in effects if e.tid is not None})
    begun = [p for p in pids if _seen_from_its_start(context, p)]
    kinds = {kind: _first(context, kind, begun) for kind in _FIRSTS}
    kinds["loading"] = Rows.read(
        context,
        "cuda_calls",
        f"{pids_of(pids)} AND {context.means(MAKES)}",
        ("pid::BIGINT AS pid", "tid::BIGINT AS tid"),
    )
    return {e.key: list(_causes(context, e, kinds)) for e in effects if e.tid is not None}


def _causes(context: Context, e: Effect, kinds: dict[str, Rows]) -> Iterator[Cause]:
    for kind, rows in kinds.items():
        mine = rows.of((rows.a["pid"] == e.pid) & (rows.a["tid"] == e.tid))
        mine = mine.of(mine.touching(e.time))
        if not len(mine):
            continue
        evidence = mine.evidence(context)
        number = Quantity(len(mine), "count", "derived", evidence(e.time), "calls that are the first of their kind")
        yield Cause(
            culprit=_WHAT[kind], time=_alone(context, e, kind, mine), evidence=evidence, text=kind, what=_BECAUSE[kind],
            values={"first": number}, subject={"kind": kind},
            against=("a first call happens once: it says nothing of the calls that follow",),
        )  # fmt: skip


def _alone(context: Context, e: Effect, kind: str, rows: Rows) -> Intervals:
    """Their time; of a collective without what it waited for ranks that had not entered it yet."""
    if kind != "communicator":
        return rows.time
    calls = [c for c in collective_calls.of_effect(context, e) if c.entered > c.start]
    entering = intervals.from_bounds([c.start for c in calls], [min(c.entered, c.end) for c in calls])
    waited = intervals.union(entering, *(t for _, t in context.waiting.get(e.pid, [])))
    return intervals.subtract(rows.time, waited)


def _first(context: Context, kind: str, pids: Sequence[int]) -> Rows:
    """The first call of each process and operation, kernel, or communicator and operation."""
    table, what, which = _FIRSTS[kind]
    of_kind = {"operation": f" AND NOT {context.means(SYNCHRONISE)}", "kernel": f" AND {context.means(LAUNCH)}"}
    wanted = f"{pids_of(pids)} AND {which} AND {NOT_OWN}{of_kind.get(kind, '')}"
    first = f"SELECT pid, {what}, min(start_ns) AS first_ns FROM {table} WHERE {wanted} GROUP BY ALL"
    rows = Rows.read(
        context, table, f"start_ns = first_ns AND {wanted}", ("pid::BIGINT AS pid", "tid::BIGINT AS tid", "op"),
        join=f"JOIN ({first}) AS firsts USING (pid, {what})",
    )  # fmt: skip
    chosen = np.ones(len(rows), dtype=bool)
    if kind != "communicator":
        for pid, op, since in _counted(context, pids, by_op=kind == "operation"):
            same = (rows.a["pid"] == pid) & ((op == "") | (rows.a["op"] == op))
            chosen &= ~(same & (rows.a["start_ns"] >= since))
    until = unlisted.complete_until(context, table)
    if until is not None:  # of a selection, a first row is a first call only while all were kept
        chosen &= rows.a["start_ns"] < until
    return Rows(table, wanted, rows.of(chosen).a)


def _counted(context: Context, pids: Sequence[int], by_op: bool) -> list[tuple[int, str, int]]:
    """(process, operation, since when) of calls without rows: after the first of them no row is a first.

    Launches that were counted do not tell which kernel, so that of a kernel those of any operation count; of a period
    that another tool counted it is known only at its end that it is over.
    """
    of_op = "true" if by_op else context.means(LAUNCH)
    rows = context.store.sql(
        f"SELECT pid, {'op' if by_op else repr('')}, min(since) FROM (SELECT pid, op, start_ns AS since FROM "
        f"call_totals WHERE count > 0 UNION ALL SELECT pid, op, end_ns FROM period_totals WHERE count > "
        f"coalesce(kept, 0)) WHERE {pids_of(pids)} AND {of_op} GROUP BY ALL ORDER BY ALL"
    )
    return [(int(pid), str(op), int(since)) for pid, op, since in rows]


def _seen_from_its_start(context: Context, pid: int) -> bool:
    """The process began within the capture, or was there to be seen for a while before it made its first call."""
    ((first,),) = context.store.sql(
        f"SELECT min(start_ns) FROM (SELECT start_ns FROM cuda_calls WHERE pid = {int(pid)} UNION ALL "
        f"SELECT start_ns FROM nccl_calls WHERE pid = {int(pid)} UNION ALL "
        f"SELECT start_ns FROM call_totals WHERE pid = {int(pid)})"
    )
    if first is None:
        return False
    begins = [start for start, _ in lives(context, pid)]
    within = bool(begins) and min(begins) > context.window.start_ns
    return within or int(first) - context.window.start_ns >= context.policy.value(WATCHED, DECLARATION.id)


DETECTOR = Detector(
    precedence=100,
    kinds=frozenset({"slow_call", "late_arrival", "gpu_idle", "slow_step"}),
    scope="same thread",
    find=find,
    refuted_by="The same operation, kernel or communicator as slow at its second use in the same process.",
    experiment="Make each operation once before the time that counts (a warm-up step, CUDA_MODULE_LOADING=EAGER), and "
    "see whether the slow calls move there.",
    next_step="Leave the first calls out of what is measured; if start-up itself matters, load code eagerly or keep "
    "the process running.",
)
