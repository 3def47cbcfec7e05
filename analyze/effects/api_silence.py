"""API silence: time in which a process that uses a GPU gave it nothing to do, and the GPU was not known to be busy.

Per process: the stretches that the rule ``api_silence`` judges (after the first call, inside none, as long as its
threshold), less the time in which a GPU that NVML listed the process on was busy: what runs there may have been given
before. The thread that lost it is the one that makes most of the process's calls. Units: ns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gpuaudit.analyze import intervals, silence, unlisted
from gpuaudit.analyze.call_meanings import OUTERMOST
from gpuaudit.analyze.call_totals import OUTER
from gpuaudit.analyze.causal.model import Effect
from gpuaudit.analyze.silence import TABLES, Seen

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

KIND = "api_silence"


def effects(context: Context) -> Sequence[Effect]:
    """One per process that was silent."""
    if silence.unplaced_losses(context) > 0:
        return []
    return [e for seen in context.silences if (e := _of_process(context, seen)) is not None]


def _of_process(context: Context, seen: Seen) -> Effect | None:
    stretches = seen.silent
    told, busy, where = silence.gpu_told(context, seen.pid)
    idle = intervals.subtract(stretches, busy)
    if not len(idle):
        return None
    pid, unknown = seen.pid, intervals.measure(intervals.subtract(stretches, told))
    notes = ("no NVML sample tells whether its GPU worked on in that time",) if unknown else ()
    return Effect(
        kind=KIND, key=f"{KIND}:{pid}",
        name=f"the API silence of {context.process_name(pid)} ({pid})", pid=pid, tid=caller(context, pid),
        op="silence", time=idle, parts=idle, of_ns=seen.observed_ns,
        evidence=_evidence(context, pid, where), subject={"pid": str(pid)},
        notes=(*notes, *unlisted.note(context, pid)),
    )  # fmt: skip


def caller(context: Context, pid: int) -> int | None:
    """The thread that makes most of the calls; of equals the first."""
    calls = " UNION ALL ".join(f"SELECT tid, 1 AS n FROM {t} WHERE pid = {int(pid)} AND {OUTERMOST}" for t in TABLES)
    calls += f" UNION ALL SELECT tid, count FROM call_totals WHERE pid = {int(pid)} AND {OUTER}"
    rows = context.store.sql(f"SELECT tid FROM ({calls}) GROUP BY tid ORDER BY sum(n) DESC, tid LIMIT 1")
    return int(rows[0][0]) if rows else None


def _evidence(context: Context, pid: int, where: Sequence[str]) -> Callable[[], tuple[str, ...]]:
    def rows() -> tuple[str, ...]:
        calls = context.book.present((*TABLES, "call_totals", "processes"), f"pid = {int(pid)}")
        return (*calls, *(context.book.where(t, w) for w in where for t in ("nvml_samples", "nvml_processes")))

    return rows
