"""One thing that is asked of NVML again and again, in a thread of its own: a call that hangs delays nothing else.

A round of reading that takes longer than its deadline is a gap, told as soon as the deadline has passed and again, for
the rest, when the call returns. Rows of a round stand for the time until the next round, unless they say themselves for
what time they stand.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gpuaudit.capture.nvml_read import Row
from gpuaudit.capture.source import boottime_ns

DEADLINE_NS = 2_000_000_000
"""Eight polls missed. A GPU that fell off the bus can hang a call for minutes."""

QUEUE_LIMIT_ROUNDS = 4096
"""Rounds that may wait for the recorder: a quarter of an hour of polls. The oldest are dropped then; a gap says so."""

Rows = Mapping[str, list[Row]]
Notes = deque[tuple[str, int, int | None]]


class Unreadable(Exception):
    """There is nothing to read here, and there will not be; the message says why, and is empty where it is no gap."""


@dataclass(frozen=True)
class Task:
    """What a worker does: ``subject`` is whom it asks, ``tables`` are those it fills, the first of them the main one.

    ``critical``: each row is sealed at once. ``at_end``: one more round when the capture ends. ``notes``: what the
    reader could not see, as (reason, from, to) in CLOCK_BOOTTIME; the worker takes them away and makes gaps of them.
    """

    subject: str
    tables: tuple[str, ...]
    read: Callable[[], Rows]
    interval_ns: int
    deadline_ns: int = DEADLINE_NS
    critical: bool = False
    at_end: bool = False
    notes: Notes = field(default_factory=deque)


@dataclass(frozen=True)
class _Round:
    start_ns: int
    end_ns: int
    rows: Rows


class Output(Protocol):
    """Where a worker hands its rows: a sink of the recorder, or a buffer before it."""

    def add_records(self, table: str, records: Sequence[Mapping[str, object]]) -> None:
        """Rows of one table."""

    def add_critical(self, table: str, records: Sequence[Mapping[str, object]]) -> None:
        """Rows that are sealed at once."""

    def gap(
        self, source: str, reason: str, start_ns: int, end_ns: int | None, *, table: str | None = None,
        pid: int | None = None,
    ) -> None:  # fmt: skip
        """Time in which the source could not see."""


class Worker(threading.Thread):
    """Repeats one task. The recorder's thread calls :meth:`collect` and :meth:`finish`; nothing here blocks it."""

    def __init__(self, task: Task, now_ns: Callable[[], int] = boottime_ns) -> None:
        super().__init__(name=f"nvml-{task.tables[0]}", daemon=True)
        self.task = task
        self.ended = threading.Event()
        self.rounds = 0
        self._now_ns = now_ns
        self._done: deque[_Round] = deque(maxlen=QUEUE_LIMIT_ROUNDS)
        self._busy_since_ns: int | None = None
        self._failure: tuple[str, int] | None = None
        self._taken = 0
        self._held: _Round | None = None
        self._late: tuple[int, int] | None = None  # the round that is late, until when it has been told
        self._failures_told: set[str] = set()

    def run(self) -> None:
        """Read at fixed distances; a round that took longer than that is followed by the next at once."""
        due = self._now_ns()
        while self._round():
            due = max(due + self.task.interval_ns, self._now_ns())
            if self.ended.wait(max(0, due - self._now_ns()) / 1e9):
                break
        else:
            return
        if self.task.at_end:
            self._round()

    def collect(self, sink: Output) -> int:
        """Hand over finished rounds and gaps; returns the number of rounds."""
        count = 0
        while self._done:
            new = self._done.popleft()
            self._tell_returned(new, sink)
            if self.task.critical:
                for table, rows in new.rows.items():
                    sink.add_critical(table, rows)
            else:
                self._emit(new.start_ns, sink)
                self._held = new
            count += 1
        self._taken += count
        dropped = self.rounds - self._taken - len(self._done)
        if dropped > 0:
            self._taken += dropped
            self._gap(
                sink,
                f"rounds of {self.task.subject} were lost ({dropped}), the recorder was busy ({self.task.tables[0]})",
                self._now_ns(),
                self._now_ns(),
            )
        while self.task.notes:
            self._gap(sink, *self.task.notes.popleft())
        self._tell_failure(sink)
        self._tell_hanging(sink)
        return count

    def finish(self, sink: Output) -> None:
        """After :attr:`ended` was set and the thread joined or given up: hand over the rest."""
        self.collect(sink)
        now, since = self._now_ns(), self._busy_since_ns
        if self._held is not None:
            self._emit(min(now, self._held.start_ns + 2 * self.task.interval_ns), sink)
        if since is not None and self.is_alive():
            told_ns = self._late[1] if self._late is not None and self._late[0] == since else since
            self._gap(
                sink, f"NVML did not answer for {self.task.subject} until the end ({self.task.tables[0]})", told_ns, now
            )

    def _round(self) -> bool:
        """One round; False when there is nothing to read."""
        start = self._now_ns()
        self._busy_since_ns = start
        try:
            rows = self.task.read()
        except Unreadable as e:
            if str(e):
                self._failure = (str(e), start)
            self._busy_since_ns = None
            return False
        except Exception as e:  # a defect in a vendor's binding must not end the capture
            self._failure = (f"reading {self.task.subject} failed: {type(e).__name__}: {e}", start)
            rows = {}
        end, self._busy_since_ns = self._now_ns(), None
        self._done.append(_Round(start, end, rows))
        self.rounds += 1
        return True

    def _emit(self, next_ns: int, sink: Output) -> None:
        """Hand over the held round, which stands until ``next_ns``; a round that came late stands for no time."""
        held, self._held = self._held, None
        if held is None:
            return
        end_ns = next_ns
        if held.end_ns - held.start_ns > self.task.deadline_ns:
            end_ns = held.start_ns
        elif next_ns - held.start_ns > max(self.task.deadline_ns, 2 * self.task.interval_ns):
            end_ns = held.start_ns + self.task.interval_ns
            self._gap(sink, f"{self.task.subject} was not asked in time ({self.task.tables[0]})", end_ns, next_ns)
        times = {"start_ns": held.start_ns, "duration_ns": max(0, end_ns - held.start_ns)}
        for table, rows in held.rows.items():
            sink.add_records(table, [{**times, **row} for row in rows])

    def _tell_returned(self, new: _Round, sink: Output) -> None:
        if new.end_ns - new.start_ns > self.task.deadline_ns:
            told_ns = self._late[1] if self._late is not None and self._late[0] == new.start_ns else new.start_ns
            self._gap(sink, self._lateness, told_ns, new.end_ns)
        self._late = None

    def _tell_hanging(self, sink: Output) -> None:
        since, now = self._busy_since_ns, self._now_ns()
        if since is not None and now - since > self.task.deadline_ns and (self._late is None or self._late[0] != since):
            self._gap(sink, self._lateness, since, now)
            self._late = (since, now)

    def _tell_failure(self, sink: Output) -> None:
        failure, self._failure = self._failure, None
        if failure is not None and failure[0] not in self._failures_told:
            self._failures_told.add(failure[0])
            self._gap(sink, failure[0], failure[1], None)

    @property
    def _lateness(self) -> str:
        return f"NVML answered late for {self.task.subject} ({self.task.tables[0]})"

    def _gap(self, sink: Output, reason: str, start_ns: int, end_ns: int | None) -> None:
        sink.gap("nvml", reason, start_ns, end_ns, table=self.task.tables[0])
