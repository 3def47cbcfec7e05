"""Which steps of a thread its host paced, by what the host's own calls prove without the GPU's record.

A wait that returns at once tells that the GPU had finished whatever it waits for when the host asked. So a step
(:mod:`gpuaudit.analyze.steps`) was *paced by its host* where all of this holds:

- Its closing wait covers every kernel, graph and collective of the step: a device that is the process's only one, their
  stream, or an event that was recorded there after the last of them.
- From the return of its last launch to the end of that wait, and in calls before that may have waited for the GPU, no
  more than a given share of the step passed. Had the GPU needed no time at all, the step would be shorter by no more.
- Nothing in it speaks another language: no graph was captured or made, no call about its work failed, no question for a
  stream or an event was answered "not yet", and no other thread of the process gave a GPU work or waited for one.

Waits by other means than calls (memory that the GPU writes and the host looks at) are not seen. Units: ns.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import call_totals, intervals
from gpuaudit.analyze.call_meanings import (
    ALLOCATE,
    ALLOCATE_HOST,
    ALLOCATE_MANAGED,
    BLOCKING_COPY,
    COPY,
    DEVICE_SYNC,
    EVENT_QUERY,
    EVENT_RECORD,
    EVENT_SYNC,
    FIRST,
    FREE,
    FREE_HOST,
    GRAPH_LAUNCH,
    GRAPH_MAKE,
    LAUNCH,
    MODULE_LOAD,
    SET,
    STREAM_QUERY,
    STREAM_SYNC,
    SYNCHRONISE,
    Meaning,
    any_of,
)
from gpuaudit.analyze.causal.states import overlapping
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.graphs import BEGIN
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.steps import Steps
from gpuaudit.analyze.syncs import NOT_READY

KERNELS = any_of(LAUNCH, GRAPH_LAUNCH)
QUERY = any_of(STREAM_QUERY, EVENT_QUERY)
WAITING = any_of(
    SYNCHRONISE, BLOCKING_COPY, ALLOCATE, ALLOCATE_MANAGED, ALLOCATE_HOST, FREE, FREE_HOST, MODULE_LOAD
)  # fmt: skip
"""Calls that may wait for the GPU however short they are."""

SET_DEVICE = Meaning("choose a device", "(cuda|hip)SetDevice")
SET_CONTEXT = Meaning("choose a context", "(cu|hip)Ctx(SetCurrent|PushCurrent)")
OWN_DEFAULT = Meaning("a call whose default stream is the thread's own", "(cuda|cu|hip).*_(ptsz|ptds|spt)")

TO_DEVICE, ON_DEVICE = 1, 3
"""cudaMemcpyHostToDevice and cudaMemcpyDeviceToDevice (driver_types.h): given without ``Async`` in their name they are
blocking copies; else the host need not wait for them. A copy to pageable memory of the host does wait."""

NO_STREAM, LEGACY, PER_THREAD = range(3)
"""Streams without a handle: one that is not told; cudaStreamLegacy and cudaStreamPerThread (driver_types.h), of which 0
is one or the other."""

OTHER, KERNEL, RECORD, OF_DEVICE, OF_STREAM, OF_EVENT = range(6)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Paced:
    """``parts``: from the first launch of each step that its host paced until it asked; ``judged``: how many steps of
    the thread could be judged."""

    parts: Intervals
    judged: int


@dataclass(frozen=True)
class _Places:
    """Of each step, among the calls of its thread: its first and its last kernel, and its closing wait."""

    first: Array
    last: Array
    asked: Array


def may_wait(context: Context) -> str:
    """SQL condition of a call that may wait for the GPU, however short it is."""
    told = f"coalesce(direction IN ({TO_DEVICE}, {ON_DEVICE}), false)"
    return f"({context.means(WAITING)} OR ({context.means(COPY)} AND NOT {told}))"


def gives_work(context: Context) -> str:
    """SQL condition of a call that gives a GPU work, and waits for none where it returns at once."""
    return f"({context.means(any_of(LAUNCH, GRAPH_LAUNCH, COPY, SET))} AND NOT {may_wait(context)})"


def paced(context: Context, s: Steps, share: Fraction, queue_ns: int) -> Paced:
    """Steps of one thread; a call that took longer than ``queue_ns`` may have waited, whatever it is."""
    calls = _calls(context, s)
    at = _places(s, calls)
    length = calls["end_ns"] - calls["start_ns"]
    waited = np.where(calls["blocks"] | (length > queue_ns), length, 0)
    slack = s.ends - calls["end_ns"][at.last] + _sums(waited, at.first, at.last)
    told = _covered(calls, at, _one_device(context, s.pid)) & (_sums(calls["spoilt"], at.first, at.asked) == 0)
    told &= (at.last < at.asked) & ~overlapping(s.starts, s.ends, _unsure(context, s))
    fast = told & (slack <= _part(s.ends - s.starts, share))
    return Paced(np.stack([s.starts[fast], s.asked[fast]], axis=1), int(told.sum()))


def _part(lengths: Array, share: Fraction) -> Array:
    """The whole ns of a share, at most 1, of each length: exact whatever a policy sets."""
    return np.array([n * share.numerator // share.denominator for n in lengths.tolist()], dtype=np.int64)


def _sums(values: Array, first: Array, last: Array) -> Array:
    """Of the values from one place to another, both included."""
    upto = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    out: Array = upto[last + 1] - upto[first]
    return out


def _places(s: Steps, calls: dict[str, Array]) -> _Places:
    asked = np.searchsorted(calls["start_ns"], s.asked)
    kernels = np.flatnonzero(calls["what"] == KERNEL)
    last = kernels[np.searchsorted(kernels, asked) - 1]
    return _Places(np.searchsorted(calls["start_ns"], s.starts), last, asked)


def _covered(calls: dict[str, Array], at: _Places, one_device: bool) -> Array:
    """Which closing waits wait for all kernels of their step."""
    what, stream, handle = calls["what"], calls["stream"], calls["handle"]
    # An event stands for what its stream had been given when it was recorded.
    records = np.flatnonzero(what == RECORD)
    place = np.searchsorted(records, at.asked) - 1
    record = records[np.maximum(place, 0)] if len(records) else np.zeros_like(at.asked)
    same = (place >= 0) & (record > at.last) & (handle[record] == handle[at.asked]) & (handle[record] != 0)
    kind = what[at.asked]
    waits_for = np.where(kind == OF_STREAM, stream[at.asked], NO_STREAM)
    waits_for = np.where((kind == OF_EVENT) & same, stream[record], waits_for)
    # A step has one stream where none of its kernels has another than the one before it.
    kernels = np.flatnonzero(what == KERNEL)
    other = np.zeros(len(what), dtype=np.int64)
    other[kernels[1:]] = stream[kernels[1:]] != stream[kernels[:-1]]
    one_stream = _sums(other, at.first, at.last) - other[at.first] == 0
    of_stream = one_stream & (waits_for == stream[at.last]) & (waits_for != NO_STREAM)
    out: Array = of_stream | ((kind == OF_DEVICE) & one_device)
    return out


def _calls(context: Context, s: Steps) -> dict[str, Array]:
    """Every call of the thread, collectives too, in order of time."""
    means = context.means
    copy = means(BLOCKING_COPY)
    failed = "coalesce(return_code, 0) <> 0"
    what = (
        f"CASE WHEN {means(KERNELS)} THEN {KERNEL} WHEN {means(EVENT_RECORD)} THEN {RECORD} "
        f"WHEN {means(DEVICE_SYNC)} THEN {OF_DEVICE} WHEN {means(STREAM_SYNC)} OR {copy} THEN {OF_STREAM} "
        f"WHEN {means(EVENT_SYNC)} THEN {OF_EVENT} ELSE {OTHER} END"
    )
    default = f"CASE WHEN {means(OWN_DEFAULT)} THEN {PER_THREAD} ELSE {LEGACY} END"
    stream = (
        f"CASE WHEN stream = 0 OR (stream IS NULL AND {copy}) THEN {default} ELSE coalesce(stream, {NO_STREAM}) END"
    )
    spoilt = (
        f"{means(any_of(BEGIN, GRAPH_MAKE))} OR ({means(QUERY)} AND coalesce(return_code, 0) = {NOT_READY}) "
        f"OR ({failed} AND {means(any_of(KERNELS, EVENT_RECORD, SYNCHRONISE, BLOCKING_COPY))})"
    )
    times, mine = "start_ns::BIGINT AS start_ns, end_ns::BIGINT AS end_ns", f"pid = {s.pid} AND tid = {s.tid}"
    a = context.store.arrays_by_start(
        f"SELECT {times}, ({what})::UTINYINT AS what, ({may_wait(context)}) AS blocks, ({stream})::UBIGINT AS stream, "
        f"coalesce(handle, 0)::UBIGINT AS handle, ({spoilt}) AS spoilt FROM cuda_calls "
        f"WHERE {mine} AND {FIRST} AND end_ns IS NOT NULL"
    )
    default = f"CASE WHEN stream = 0 THEN {LEGACY} ELSE coalesce(stream, {NO_STREAM}) END"
    b = context.store.arrays_by_start(
        f"SELECT {times}, {KERNEL}::UTINYINT AS what, false AS blocks, ({default})::UBIGINT AS stream, "
        f"0::UBIGINT AS handle, ({failed}) AS spoilt FROM nccl_calls WHERE {mine} AND end_ns IS NOT NULL"
    )
    if not len(b["start_ns"]):
        return a
    both = {name: np.concatenate([values, b[name]]) for name, values in a.items()}
    order = np.argsort(both["start_ns"], kind="stable")
    return {name: values[order] for name, values in both.items()}


def _one_device(context: Context, pid: int) -> bool:
    """Whether the process chose no two devices or contexts, as far as its calls tell."""
    ((devices, contexts),) = context.store.sql(
        f"SELECT count(DISTINCT device) FILTER ({context.means(SET_DEVICE)}), "
        f"count(DISTINCT handle) FILTER ({context.means(SET_CONTEXT)} AND handle <> 0) FROM cuda_calls "
        f"WHERE pid = {pid}"
    )
    return max(int(devices), int(contexts)) <= 1


def _unsure(context: Context, s: Steps) -> Intervals:
    """Time in which other threads of the process gave work, waited or asked, or calls of it were only counted."""
    used = context.means(any_of(KERNELS, SYNCHRONISE, BLOCKING_COPY, QUERY))
    end = context.window.end_ns
    a = context.store.arrays_by_start(
        f"SELECT start_ns::BIGINT AS start_ns, coalesce(end_ns, {end})::BIGINT AS end_ns FROM cuda_calls "
        f"WHERE pid = {s.pid} AND tid <> {s.tid} AND {used} AND {FIRST}"
    )
    return intervals.union(intervals.from_bounds(a["start_ns"], a["end_ns"]), call_totals.windows(context.store, s.pid))
