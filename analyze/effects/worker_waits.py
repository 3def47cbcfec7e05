"""Worker waits: time in which a process that uses a GPU slept until one that it had started woke it, again and again.

Of the thread that makes most of its calls, between its first call and its last: sleep outside recorded calls that a
worker ended (a child, or a child of one), where it is at least :data:`SHARE` of that time. Each wait may be far shorter
than an API silence, which is its own effect and not in it. Who is woken by a timer, by nobody who is known, or by a
thread of its own waited for no worker: a loader that hands its batches on through such a thread is not seen. Units: ns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from gpuaudit.analyze import intervals, silence, unlisted
from gpuaudit.analyze.call_rows import Rows, pids_of
from gpuaudit.analyze.causal.model import Effect
from gpuaudit.analyze.effects import api_silence
from gpuaudit.analyze.finding import Threshold
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.silence import TABLES, Seen
from gpuaudit.analyze.words import duration

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

KIND = "worker_wait"

OWNER = "input_starvation"
"""Detector whose threshold it is."""

SHARE = Threshold(
    "waits_share", Fraction(1, 20), "share",
    "chosen: a thread that waits for its workers for a twentieth of its time can gain as much at most",
)  # fmt: skip


def effects(context: Context) -> Sequence[Effect]:
    """One per process whose calling thread waits so."""
    if not context.store.sql("SELECT 1 FROM off_cpu WHERE waker_pid IS NOT NULL AND waker_pid <> pid LIMIT 1"):
        return []
    return [e for seen in context.silences if (e := _of_process(context, seen)) is not None]


def _of_process(context: Context, seen: Seen) -> Effect | None:
    from gpuaudit.analyze.family import descendants  # noqa: PLC0415 - it imports the context

    pid, tid = seen.pid, api_silence.caller(context, seen.pid)
    workers = pids_of(descendants(context, pid))
    if tid is None or workers == "false":
        return None
    woken = Rows.read(
        context, "off_cpu", f"pid = {pid} AND tid = {tid} AND op = 'blocked' AND waker_{workers}",
        ("least(coalesce(runqueue_ns, 0), duration_ns)::BIGINT AS runnable_ns",),
    )  # fmt: skip
    # Once woken it waited for a CPU, no longer for the worker.
    asleep = intervals.from_bounds(woken.a["start_ns"], woken.a["end_ns"] - woken.a["runnable_ns"])
    whole, between = _between_calls(context, pid, tid, asleep)
    time = intervals.subtract(between, intervals.union(seen.silent, context.window.asleep))
    least = context.policy.value(SHARE, OWNER)
    if not len(time) or Fraction(intervals.measure(time), intervals.measure(whole)) < least:
        return None
    return Effect(
        kind=KIND, key=f"{KIND}:{pid}",
        name=f"the waits of {context.process_name(pid)} ({pid}) for processes that it had started",
        pid=pid, tid=tid, op="wait", time=time, parts=time, of_ns=intervals.measure(whole),
        evidence=_evidence(context, woken, time), subject={"pid": str(pid), "tid": str(tid)},
        notes=(*_busy(context, pid, time), *unlisted.note(context, pid)),
    )  # fmt: skip


def _between_calls(context: Context, pid: int, tid: int, time: Intervals) -> tuple[Intervals, Intervals]:
    """From the first call of the thread to the end of its last one; and what of ``time`` lies in it and in no call."""
    whole = intervals.EMPTY
    for table in filter(context.store.row_count, (*TABLES, "call_totals")):
        for a in context.store.batches(
            f"SELECT start_ns::BIGINT AS a, end_ns::BIGINT AS b FROM {table} "
            f"WHERE pid = {pid} AND tid = {tid} AND end_ns IS NOT NULL"
        ):
            calls = intervals.from_bounds(a["a"], a["b"])
            if len(calls):
                time = intervals.subtract(time, calls)
                both = intervals.union(whole, intervals.single(int(calls[0, 0]), int(calls[-1, 1])))
                whole = intervals.single(int(both[0, 0]), int(both[-1, 1]))
    return whole, intervals.intersect(time, whole)


def _busy(context: Context, pid: int, time: Intervals) -> tuple[str, ...]:
    """What NVML tells of the GPU in that time: what runs there may have been given before."""
    told, busy, _ = silence.gpu_told(context, pid)
    if not len(intervals.intersect(time, told)):
        return ("no NVML sample tells whether its GPU worked on in that time",)
    worked = intervals.measure(intervals.intersect(time, busy))
    return (f"for {duration(worked)} of it NVML samples tell that its GPU did some work",) if worked else ()


def _evidence(context: Context, woken: Rows, time: Intervals) -> Callable[[], tuple[str, ...]]:
    return lambda: woken.evidence(context)(time)
