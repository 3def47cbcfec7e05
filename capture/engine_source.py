"""Engines as a source: one thread each, polled at its own pace, and whatever goes wrong is a row.

Here in the recorder everything an engine says is read and parsed; connections come from the attacher's dial desk.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from typing import Any

from gpuaudit.capture.engine_config import Unreadable, of_answer, of_files
from gpuaudit.capture.engine_dial import DialClient
from gpuaudit.capture.engine_labels import from_samples
from gpuaudit.capture.engine_names import UNKNOWN
from gpuaudit.capture.engine_series import SeriesTracker
from gpuaudit.capture.exposition import Limits, MalformedExposition, Parser, Sample
from gpuaudit.capture.http_local import MAX_BODY_BYTES, Connection, ExchangeFailed
from gpuaudit.capture.redact import redact_text
from gpuaudit.capture.source import Capability, RingSink, boottime_ns

POLL_INTERVAL_NS = 250_000_000
"""As the GPUs are polled; short against the windows of 2 s that analysis cuts (docs/reference, windows)."""

SCRAPE_DEADLINE_S = 4.0
"""A busy vLLM server was seen to take 3.4 s for an answer it then gave."""

ASK_DEADLINE_S = 2.0
SLOW_INTERVAL_NS = 2_000_000_000
PATIENCE = 8
"""After so many polls in a row that brought nothing, only every :data:`SLOW_INTERVAL_NS` is asked."""

QUEUE_LIMIT = 256
"""Polls of one engine that may wait for the recorder: a minute. Past it they are dropped, and a gap says so."""

MAX_SETTINGS = 65_536
"""Of all engines: settings that come and go with every answer must not fill the disk."""

SHARE = Fraction(1, 3)
"""Of one core, which reading all engines' answers may take. Past it they are asked less often, each in proportion to
what it costs: the rings and the GPUs are read by the same process."""

MAX_WAITING_BYTES = 64 << 20
"""Of answers, of all engines, that may wait for the recorder as samples, which take about ten times as much memory."""

STOP_S = 1.0
"""At the end of the capture an answer that is on its way has so long to come."""

LIMITS = Limits(bytes=MAX_BODY_BYTES, lines=50_000)


class Budget:
    """What all pollers share: the processor's time and the memory that answers may take."""

    def __init__(self) -> None:
        self.engines = 0
        self._waiting = 0
        self._lock = threading.Lock()

    def pause_s(self, spent_s: float) -> float:
        """How long who spent so much processor time is to leave it to others."""
        return spent_s * self.engines / float(SHARE)

    def hold(self, size: int) -> bool:
        """Whether an answer of ``size`` bytes may wait; then :meth:`release` is due."""
        with self._lock:
            if self._waiting + size > MAX_WAITING_BYTES:
                return False
            self._waiting += size
            return True

    def release(self, size: int) -> None:
        """An answer waits no more."""
        with self._lock:
            self._waiting -= size


@dataclass(frozen=True)
class Engine:
    """One engine as the attacher tells of it."""

    engine: int
    url: str
    host: str
    path: str
    addresses: int
    pid: int | None
    found_by: str
    remote: bool
    files: bool
    found_ns: int

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Engine:
        """From the body of an ``engine`` message; KeyError where it is not one."""
        return cls(**{name: message[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class _Poll:
    """What one poll brought: samples, or what went wrong."""

    start_ns: int
    duration_ns: int
    samples: Sequence[Sample] = ()
    op: str = "ok"
    reason: str = ""
    status: int | None = None
    size_bytes: int | None = None

    @property
    def held_bytes(self) -> int:
        """What it counts for while it waits."""
        return (self.size_bytes or 0) if self.samples else 0


Setting = tuple[str, str, str, str]


class _Poller(threading.Thread):
    """Polls one engine. It touches no row: what it brings waits in :attr:`done` and :attr:`settings`."""

    def __init__(self, engine: Engine, dial: DialClient, files: DialClient, budget: Budget) -> None:
        super().__init__(name=f"engine-{engine.engine}", daemon=True)
        self.engine = engine
        self.budget = budget
        self.charged_s = 0.0
        """Processor time that others spent on this engine's answers."""
        self.reads_files = False
        self.ended = threading.Event()
        self.ask: deque[Sequence[str]] = deque()
        """Paths to ask for settings, put there once it is known what the engine is."""
        self.look_at_files = engine.files
        self.done: deque[_Poll] = deque()
        self.settings: deque[Setting] = deque()
        self.polls = 0
        self.failure = ""
        self.busy_since_ns: int | None = None
        """When the poll under way began."""
        self._files = files
        self._connection = Connection(lambda left_s: dial.connect(engine.engine, engine.addresses, left_s), engine.host)
        self._parser = Parser(LIMITS)

    def run(self) -> None:
        failed = 0
        try:
            while not self.ended.is_set():
                cpu_s = time.thread_time() - self.charged_s
                self.charged_s = 0.0
                poll = self._poll()
                if len(self.done) < QUEUE_LIMIT and self.budget.hold(poll.held_bytes):
                    self.done.append(poll)
                self.polls += 1
                self.busy_since_ns = None
                failed = 0 if poll.op == "ok" else failed + 1
                if not failed:
                    self._configure()
                pace = POLL_INTERVAL_NS if failed < PATIENCE else SLOW_INTERVAL_NS
                left_ns = poll.start_ns + pace - boottime_ns()
                busy_ns = (boottime_ns() - poll.start_ns) // 2  # what is slow to answer, or to read, is asked less
                rest_s = self.budget.pause_s(time.thread_time() - cpu_s)
                self.ended.wait(max(left_ns / 1e9, busy_ns / 1e9, rest_s, 0))
        except Exception as e:  # a defect here must not end the capture
            self.failure = f"{type(e).__name__}: {e}"
        finally:
            self._connection.close()

    def _poll(self) -> _Poll:
        self.busy_since_ns = start = boottime_ns()
        try:
            answer = self._connection.get(self.engine.path, SCRAPE_DEADLINE_S)
        except ExchangeFailed as e:
            return _Poll(start, boottime_ns() - start, op=e.op, reason=e.reason, status=e.status)
        took = boottime_ns() - start
        size = len(answer.body)
        try:
            samples = self._parser.parse(answer.body).samples
        except MalformedExposition as e:
            return _Poll(start, took, (), "malformed", e.message, answer.status, size)
        return _Poll(start, took, samples, "ok", "", answer.status, size)

    def _configure(self) -> None:
        """Ask for settings, after a poll that succeeded; an answer that does not come is no failure of the engine."""
        while self.ask:
            for path in self.ask.popleft():
                try:
                    answer = self._connection.get(path, ASK_DEADLINE_S, accept="application/json")
                    self.settings.extend(of_answer(path, answer.body))
                except (ExchangeFailed, Unreadable):
                    continue
        if self.look_at_files:
            self.look_at_files, self.reads_files = False, True
            threading.Thread(target=self._read_files, name=f"model-{self.engine.engine}", daemon=True).start()

    def _read_files(self) -> None:
        """A model's folder may be on a file system that hangs: that must not keep its engine from being polled."""
        spent_s = time.thread_time()

        def open_file(name: str) -> int:
            nonlocal spent_s
            now_s = time.thread_time()
            self.ended.wait(self.budget.pause_s(now_s - spent_s))
            spent_s = now_s
            return self._files.open_file(self.engine.engine, name)

        try:
            for setting in of_files(open_file):
                self.settings.append(setting)
        except Exception as e:  # as in run
            self.failure = f"reading the model's files: {type(e).__name__}: {e}"
        self.reads_files = False


@dataclass
class _Watched:
    """What the recorder's own thread keeps of one engine."""

    engine: Engine
    poller: _Poller
    tracker: SeriesTracker
    told: bool = False
    scraped_ns: int | None = None
    failing_ns: int | None = None
    failing_reason: str = ""
    taken: int = 0
    last_ns: int = 0


class EngineSource:
    """All engines that the attacher tells of, while it records."""

    name = "engines"

    def __init__(self, dial: DialClient, files: DialClient) -> None:
        self._dial = dial
        self._files = files
        self._numbers: Iterator[int] = count()
        self._watched: dict[int, _Watched] = {}
        self._settings_told: dict[tuple[object, ...], str] = {}
        self._budget = Budget()

    def probe(self) -> Capability:
        """Always available: an engine may come at any time."""
        return Capability(self.name, True)

    def start(self, sink: RingSink) -> None:
        """Nothing to prepare."""

    def add(self, engine: Engine) -> None:
        """Begin to poll an engine, or learn its process of one that is polled."""
        watched = self._watched.get(engine.engine)
        if watched is None:
            self._budget.engines += 1
            poller = _Poller(engine, self._dial, self._files, self._budget)
            self._watched[engine.engine] = _Watched(engine, poller, SeriesTracker(engine.engine, self._numbers))
            poller.start()
            return
        watched.engine = engine
        watched.poller.look_at_files = engine.files

    def poll(self, sink: RingSink) -> int:
        """Hand over what the threads brought."""
        return sum(self._collect(w, sink) for w in self._watched.values())

    def stop(self, sink: RingSink) -> None:
        """End the threads; one that waits for an answer ends by its own deadline."""
        for w in self._watched.values():
            w.poller.ended.set()
        end_s = time.monotonic() + STOP_S
        for w in self._watched.values():
            w.poller.join(max(0.0, end_s - time.monotonic()))
            self._collect(w, sink)
            self._tell(w, sink)
            now, since = boottime_ns(), w.poller.busy_since_ns
            self._end_outage(w, sink, now)
            if since is not None:
                reason = f"{w.engine.url:.120} did not answer until the end"
                sink.gap(self.name, reason, since, now, table="engine_scrapes")
            if w.poller.reads_files:
                reason = f"the files of the model of {w.engine.url:.120} were not read until the end"
                sink.gap(self.name, reason, now, None, table="engine_config")

    def _collect(self, w: _Watched, sink: RingSink) -> int:
        taken = 0
        begin_s = time.thread_time()
        while w.poller.done:
            poll = w.poller.done.popleft()
            self._budget.release(poll.held_bytes)
            self._row(w, poll, sink)
            taken += 1
        w.poller.charged_s += time.thread_time() - begin_s
        w.taken += taken
        missed = w.poller.polls - w.taken - len(w.poller.done)
        now = boottime_ns()
        if missed > 0:
            sink.gap(self.name, f"{missed} polls of {w.engine.url:.120} were dropped", w.last_ns, now,
                     table="engine_scrapes")  # fmt: skip
            w.taken += missed
        while w.poller.settings:
            self._setting(w, w.poller.settings.popleft(), now, sink)
        if w.poller.failure:
            sink.gap(self.name, f"polling {w.engine.url:.120} failed: {w.poller.failure:.200}", now, None,
                     table="engine_scrapes")  # fmt: skip
            w.poller.failure = ""
        if not w.told and w.scraped_ns is not None and (w.engine.pid or now - w.scraped_ns > 5_000_000_000):
            self._tell(w, sink)
        return taken

    def _row(self, w: _Watched, poll: _Poll, sink: RingSink) -> None:
        about = {"http_status": poll.status, "size_bytes": poll.size_bytes}
        w.last_ns = poll.start_ns
        if poll.op != "ok":
            w.tracker.failed(poll.start_ns, poll.duration_ns, poll.op, poll.reason, **about).give(sink)
            if w.failing_ns is None:
                w.failing_ns, w.failing_reason = poll.start_ns, poll.reason
            return
        self._end_outage(w, sink, poll.start_ns)
        before = w.tracker.kind
        rows = w.tracker.scrape(poll.start_ns, poll.duration_ns, poll.samples, **about)
        rows.give(sink)
        if w.tracker.kind is UNKNOWN:
            return
        if before is UNKNOWN:
            w.scraped_ns = poll.start_ns
        if before is UNKNOWN or rows.scrape["reset"]:
            w.poller.ask.append(w.tracker.kind.ask)
        if rows.series:
            for s in from_samples(poll.samples):
                setting = (str(s["op"]), str(s["value"]), str(s["source"]), str(s["detail"]))
                self._setting(w, setting, poll.start_ns, sink)

    def _setting(self, w: _Watched, setting: Setting, now: int, sink: RingSink) -> None:
        key, value, source, detail = setting
        value = redact_text(value)
        place = (w.engine.engine, key, source, detail)
        if self._settings_told.get(place) == value or len(self._settings_told) > MAX_SETTINGS:
            return
        self._settings_told[place] = value
        row = {"start_ns": now, "engine": w.engine.engine, "op": key, "value": value, "source": source}
        sink.add_records("engine_config", [{**row, "detail": detail}])

    def _tell(self, w: _Watched, sink: RingSink) -> None:
        """The row of ``engines``, once."""
        if w.told:
            return
        w.told = True
        kind = w.tracker.kind
        state, reason = "scraped", None
        if w.scraped_ns is None:
            answered = w.failing_ns is None and w.taken > 0
            state = "not an engine" if answered else "refused"
            reason = "its metrics are of no known engine" if answered else w.failing_reason or "it never answered"
        e = w.engine
        sink.add_records("engines", [{
            "start_ns": e.found_ns, "engine": e.engine, "op": kind.name, "url": e.url, "pid": e.pid,
            "found_by": e.found_by, "remote": int(e.remote), "state": state, "reason": reason,
        }])  # fmt: skip

    def _end_outage(self, w: _Watched, sink: RingSink, end_ns: int) -> None:
        if w.failing_ns is not None:
            reason = f"{w.engine.url:.120} could not be scraped: {w.failing_reason:.150}"
            sink.gap(self.name, reason, w.failing_ns, end_ns, table="engine_scrapes")
            w.failing_ns = None
