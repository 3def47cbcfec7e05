"""Chain: a thread was inside copies that return when they are done, and could give the GPU nothing else meanwhile.

Effect: slow calls, the blocking copies of a thread, a late arrival, or a drop of throughput. Cause: time inside
blocking copies of the same thread (of slow calls: those of far more bytes than usual), told apart by direction, by
whether they are small, and by whether the host's side was pageable: where the recording of the GPU says so, where the
address lies in memory that was seen to be pinned, and where a process that was seen from its start pinned no such
memory. Time in which the GPU's own record shows a kernel of the process is no copy's: the call waited for it. Units:
ns; bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals
from gpuaudit.analyze.allocations import MAX_ADDRESS
from gpuaudit.analyze.call_meanings import BLOCKING_COPY, FIRST
from gpuaudit.analyze.call_rows import Rows, pids_of
from gpuaudit.analyze.causal import model
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.finding import Declaration, Quantity, Threshold
from gpuaudit.analyze.gpu_time import UNKNOWN, bounded
from gpuaudit.analyze.lives import lives
from gpuaudit.analyze.pinned import read_pinned
from gpuaudit.analyze.store import NOT_OWN

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

SMALL = Threshold(
    "small_bytes", 65_536, "bytes",
    "CUDA C++ Programming Guide, asynchronous concurrent execution: copies from host to device of 64 KB or less return "
    "early; at that size the call costs more than the bytes",
)  # fmt: skip

LARGER = Threshold(
    "times_usual_bytes", 3, "ratio",
    "the factor by which a call is slow (slow_times_median): a slow copy is explained by its bytes where it has as "
    "many times the median of its operation, and not where others of its size were fast",
)  # fmt: skip

DECLARATION = Declaration(
    id="synchronous_copy",
    kind="chain",
    title="Synchronous copy on the critical path",
    question="Was the thread that feeds the GPU held up in blocking copies, of what size, direction and memory?",
    inputs=(
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "size_bytes", "direction", "device_pointer",
                        "source_pointer", "parent_op")),
        ("gpu_activities", ("start_ns", "duration_ns", "pid", "op", "pageable")),
        ("processes", ("start_ns", "pid")),
    ),
    thresholds=(*model.THRESHOLDS, SMALL, LARGER),
    texts={
        "pageable": "For {explained} of {effect_time} ({share}) of {effect} the thread was inside {copies} blocking "
        "copies ({size} at {rate}, {direction}) whose host memory was pageable: the driver stages them through memory "
        "of its own, and the call cannot return before.",
        "pinned": "For {explained} of {effect_time} ({share}) of {effect} the thread was inside {copies} blocking "
        "copies ({size} at {rate}, {direction}) of pinned memory, which an asynchronous copy would not have waited "
        "for.",
        "unknown": "For {explained} of {effect_time} ({share}) of {effect} the thread was inside {copies} blocking "
        "copies ({size} at {rate}, {direction}); whether their host memory was pageable is not known.",
    },
    never_claims="That the GPU was idle meanwhile, nor, where its own record is missing, how much of a call was its "
    "wait for work given to the stream before it.",
    assumptions=("A process that was seen from its start pins host memory only through calls that are probed.",),
)  # fmt: skip

DIRECTIONS = {0: "host to host", 1: "host to device", 2: "device to host", 3: "device to device"}
"""cudaMemcpyKind of driver_types.h; 4 leaves it to the addresses."""

SLOW_CALL = "slow_call"

TO_HOST, BY_ADDRESS = 2, "direction by address"

_WITHOUT_RECORD = (
    "the GPU's own record is missing: a part of these calls may have been a wait for work given to the stream before"
)

Chosen = npt.NDArray[np.bool_]


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Blocking copies of each effect's thread."""
    pids = sorted({e.pid for e in effects if e.tid is not None})
    where = f"{pids_of(pids)} AND {context.means(BLOCKING_COPY)} AND {FIRST} AND {NOT_OWN}"
    host = f"CASE WHEN direction = {TO_HOST} THEN device_pointer ELSE source_pointer END"
    columns = (
        "pid::BIGINT AS pid", "tid::BIGINT AS tid", "op", f"{bounded('size_bytes')} AS size",
        f"coalesce(direction, {UNKNOWN})::BIGINT AS direction",
        f"CASE WHEN {host} < {MAX_ADDRESS} THEN ({host})::BIGINT ELSE 0 END AS address",
    )  # fmt: skip
    rows = Rows.read(context, "cuda_calls", where, columns)
    if not len(rows):
        return {}
    memory = np.full(len(rows), "unknown", dtype="<U8")
    for pid in pids:
        of_process = rows.a["pid"] == pid
        memory[of_process] = _memory(context, pid, rows.of(of_process))
    kernels = {p: Rows.read(context, "gpu_activities", f"pid = {p} AND op IN ('kernel', 'graph')") for p in pids}
    out = {}
    for e in effects:
        mine = (rows.a["pid"] == e.pid) & (rows.a["tid"] == (UNKNOWN if e.tid is None else e.tid))
        if e.kind == SLOW_CALL:
            mine &= _larger(context, e, rows)
        mine &= rows.touching(e.time)
        if mine.any():
            out[e.key] = list(_causes(context, rows.of(mine), memory[mine], kernels[e.pid]))
    return out


def _larger(context: Context, e: Effect, rows: Rows) -> Chosen:
    """Copies of far more bytes than its operation usually copies in the process: of a slow call those bytes are the
    reason, and not that it is a copy."""
    same: Chosen = (rows.a["pid"] == e.pid) & (rows.a["op"] == e.op) & (rows.a["size"] != UNKNOWN)
    sizes = np.sort(rows.a["size"][same])
    if not len(sizes):
        return same
    usual = int(sizes[(len(sizes) + 1) // 2 - 1])
    out: Chosen = same & (rows.a["size"] >= ceil(context.policy.value(LARGER, DECLARATION.id) * usual))
    return out


def _memory(context: Context, pid: int, rows: Rows) -> npt.NDArray[np.str_]:
    """What the host's side of each copy was."""
    starts = [start for start, _ in lives(context, pid)]
    whole = bool(starts) and min(starts) > context.window.start_ns
    told = np.full(len(rows), "pageable" if whole else "unknown", dtype="<U8")
    told[rows.a["address"] <= 0] = "unknown"
    told[read_pinned(context.store, pid).holds(rows.a["address"], rows.a["start_ns"])] = "pinned"
    for kind, flag in (("pinned", 0), ("pageable", 1)):
        copies = Rows.read(context, "gpu_activities", f"pid = {int(pid)} AND op = 'memcpy' AND pageable = {flag}")
        begins = np.sort(copies.a["start_ns"])
        inside = np.searchsorted(begins, rows.a["end_ns"]) > np.searchsorted(begins, rows.a["start_ns"])
        told[inside] = kind
    return told


def _causes(context: Context, rows: Rows, memory: npt.NDArray[np.str_], kernels: Rows) -> Iterator[Cause]:
    limit = int(context.policy.value(SMALL, DECLARATION.id))
    small = (rows.a["size"] != UNKNOWN) & (rows.a["size"] <= limit)
    kinds = zip(memory.tolist(), rows.a["direction"].tolist(), small.tolist(), strict=True)
    for kind, direction, is_small in sorted(set(kinds)):
        chosen = (memory == kind) & (rows.a["direction"] == direction) & (small == is_small)
        yield _cause(context, rows.of(chosen), kind, limit if is_small else None, kernels)


def _cause(context: Context, rows: Rows, kind: str, small: int | None, kernels: Rows) -> Cause:
    """``small``: of copies of at most so many bytes; None of larger ones."""
    evidence = rows.evidence(context)
    every = evidence(rows.time)
    way = DIRECTIONS.get(int(rows.a["direction"][0]), BY_ADDRESS)
    sizes = [s for s in rows.a["size"].tolist() if s != UNKNOWN]
    of = {"pageable": " of pageable memory", "pinned": " of pinned memory", "unknown": ""}[kind]
    spent = intervals.measure(rows.time)
    time = intervals.subtract(rows.time, kernels.time)

    def told(value: int | Fraction, unit: str, how: str) -> Quantity:
        return Quantity(value, unit, "derived", every, how)

    return Cause(
        culprit=f"{'copies' if small is None else 'small copies'} {way}{of}", time=time, evidence=evidence, text=kind,
        what=f"its thread was inside blocking copies {way}{of}",
        values={
            "copies": told(len(rows), "count", "blocking copies of the thread that touch the effect"),
            "size": told(sum(sizes), "bytes", "bytes that they copied"),
            "rate": told(Fraction(sum(sizes) * NS_PER_S, spent), "bytes/s", "size / time inside them"),
            "direction": way, "small": "small" if small is not None else "not small",
        },
        against=() if len(kernels) else (_WITHOUT_RECORD,),
    )  # fmt: skip


NS_PER_S = 10**9

DETECTOR = Detector(
    precedence=130,
    kinds=frozenset({"slow_call", "blocking_copies", "late_arrival", "throughput_drop", "gpu_idle", "slow_step"}),
    scope="same thread",
    find=find,
    refuted_by="The GPU's own record (CUPTI) that shows kernels running during these calls: then they waited for "
    "kernels, and the copy is not what took the time.",
    experiment="Pin the host memory (cudaHostAlloc, pin_memory=True), copy asynchronously on a stream of its own "
    "(cudaMemcpyAsync, non_blocking=True), put small copies together, and capture again.",
    next_step="Look at the line that copies: results read back in every step (.item(), .cpu()) wait for the whole "
    "stream.",
)
