"""What the threads of effects did while they were off a CPU: rows of ``off_cpu`` that overlap an effect, the waits for
a CPU cut by who had it (:mod:`turns`).

Read once for all effects (:func:`of_effects`), for every detector that joins on the thread. Units: ns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals
from gpuaudit.analyze.causal import recorded, turns, unended
from gpuaudit.analyze.causal.during import THREAD, During, rows_during, thread_key
from gpuaudit.analyze.causal.model import Effect
from gpuaudit.analyze.intervals import Intervals

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

Chosen = npt.NDArray[np.bool_]

Place = tuple[int, int | None, bytes]
"""A thread and a set of time."""

UNKNOWN = -1
"""Null in the integer columns."""

TASK_UNINTERRUPTIBLE, TASK_NOLOAD = 0x2, 0x400
"""Bits of ``prev_state``; as a rule the first without the second waits for a disk or a page."""

_NUMBERS = (
    "pid", "tid", "prev_state", "next_pid", "next_tid", "wake_ns", "waker_pid", "waker_tid", "cpu_out",
    "cpu", "runqueue_ns", "syscall", "syscall_arg", "cgroup_id", "next_cgroup_id", "priority", "next_priority",
)  # fmt: skip
_TEXTS = ("op", "comm", "next_comm", "waker_comm")


@dataclass(frozen=True)
class States:
    """Rows of one thread, or parts of them by who had its CPU, in order of time; ``a`` has a column each, null as
    :data:`UNKNOWN` or an empty text."""

    a: dict[str, npt.NDArray[Any]]
    rows: dict[str, npt.NDArray[Any]] | None = None
    """The same before waits were cut, where some were."""

    @property
    def uncut(self) -> States:
        """A row for each time that the thread left its CPU, whoever had it meanwhile."""
        return self if self.rows is None else States(self.rows)

    def __len__(self) -> int:
        return len(self.a["start_ns"])

    @property
    def runnable_from(self) -> npt.NDArray[np.int64]:
        """Since when each row's thread was runnable: from the start where it was preempted, from the wake-up where it
        slept; its end where the wake-up was not seen. Never before the row itself, whatever a stranger's row says."""
        queue = self.a["runqueue_ns"]
        woken = np.where(queue == UNKNOWN, self.a["end_ns"], self.a["end_ns"] - queue)
        woken = np.clip(woken, self.a["start_ns"], self.a["end_ns"])
        out: npt.NDArray[np.int64] = np.where(self.a["op"] == "preempted", self.a["start_ns"], woken)
        return out

    def time(self, chosen: Chosen) -> Intervals:
        """Off the CPU, of the chosen rows."""
        return intervals.from_bounds(self.a["start_ns"][chosen], self.a["end_ns"][chosen])

    def runnable(self, chosen: Chosen) -> Intervals:
        """Of that, runnable."""
        return intervals.from_bounds(self.runnable_from[chosen], self.a["end_ns"][chosen])

    def asleep(self, chosen: Chosen) -> Intervals:
        """Of that, asleep; where the state was not recorded (op ``off``), all that is not known to be runnable."""
        return intervals.from_bounds(self.a["start_ns"][chosen], self.runnable_from[chosen])

    @property
    def uninterruptible(self) -> Chosen:
        """Rows of threads that slept in TASK_UNINTERRUPTIBLE without TASK_NOLOAD (include/linux/sched.h)."""
        state = self.a["prev_state"]
        out: Chosen = (state != UNKNOWN) & ((state & TASK_UNINTERRUPTIBLE) != 0) & ((state & TASK_NOLOAD) == 0)
        return out

    @property
    def unknown(self) -> Chosen:
        """Rows of imports that do not tell in what state the thread left the CPU."""
        out: Chosen = (self.a["op"] != "preempted") & (self.a["prev_state"] == UNKNOWN)
        return out

    def in_calls(self, numbers: Collection[int]) -> Chosen:
        """Rows of threads that left the CPU in one of these system calls."""
        out: Chosen = np.isin(self.a["syscall"], sorted(numbers))
        return out

    def evidence(self, context: Context, chosen: Chosen) -> Callable[[Intervals], tuple[str, ...]]:
        """The chosen rows that touch a given time."""

        def rows(time: Intervals) -> tuple[str, ...]:
            touching = chosen & overlapping(self.a["start_ns"], self.a["end_ns"], time)
            keys = np.stack([self.a["leaf"][touching], self.a["row"][touching]], axis=1).astype(np.int64)
            pid, tid = int(self.a["pid"][0]), int(self.a["tid"][0])
            own = context.book.listed("off_cpu", keys, f"pid = {pid} AND tid = {tid}")
            told = touching & (self.a[turns.TURN_ROW] != UNKNOWN)
            if not told.any():
                return (own,)
            keys = np.stack([self.a[turns.TURN_LEAF][told], self.a[turns.TURN_ROW][told]], axis=1)
            cpus = ", ".join(str(c) for c in sorted(set(self.a["cpu"][told].tolist())))
            return own, context.book.listed("cpu_occupants", keys, f"cpu IN ({cpus})")

        return rows


def overlapping(starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], time: Intervals) -> Chosen:
    """Which of the half-open ``[start, end)`` share a moment with ``time``."""
    if not len(time):
        return np.zeros(len(starts), dtype=bool)
    first = np.searchsorted(time[:, 1], starts, side="right")
    low = time[np.minimum(first, len(time) - 1), 0]
    out: Chosen = (first < len(time)) & (low < ends) & (starts < ends)
    return out


def of_effects(context: Context, effects: Sequence[Effect]) -> dict[str, States]:
    """Per effect key the rows of its thread that overlap it; an effect of no single thread has none.

    What was read is kept with the context: several detectors ask for the same.
    """
    known = context.states
    places = {e.key: _place(e) for e in effects if e.tid is not None}
    wanted = {e.key: (thread_key(e.pid, e.tid), e.time) for e in effects if e.tid is not None}
    unread = {key: what for key, what in wanted.items() if places[key] not in known}
    numbers = {c: f"coalesce(try_cast({c} AS BIGINT), {UNKNOWN})" for c in _NUMBERS}
    texts = {c: f"coalesce({c}, '')" for c in _TEXTS}
    found = rows_during(context, During("off_cpu", THREAD, {**numbers, **texts}, end=unended.END), unread)
    cut = turns.cut(context, found, {key: States(a).runnable_from for key, a in found.items()})
    known.update({places[key]: States(*cut[key]) if key in cut else None for key in unread})
    return {key: s for key, place in places.items() if (s := known[place]) is not None}


def _place(e: Effect) -> Place:
    return e.pid, e.tid, e.time.tobytes()


def unrecorded(context: Context) -> NotEvaluated | None:
    """Why nobody can say what a thread did off its CPU, where so."""
    return recorded.unrecorded(context, "off_cpu", "interval off a CPU")


TOLD = "op IN ('preempted', 'blocked')"
"""SQL condition: in what state the thread left the CPU was recorded."""


def untold(context: Context, told: str = TOLD) -> NotEvaluated | None:
    """The same for those who must know whether it slept or was ready to run: imports may have no row with ``told``."""
    from gpuaudit.analyze.context import NotEvaluated  # noqa: PLC0415 - it imports what imports this

    why = unrecorded(context)
    rows = context.store.row_count("off_cpu")
    if why is not None or not rows or context.store.sql(f"SELECT 1 FROM off_cpu WHERE {told} LIMIT 1"):
        return why
    return NotEvaluated("in what state threads left their CPUs was not recorded")
