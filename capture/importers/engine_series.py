"""Polled metrics of an inference server as JSON lines: ``{"t", "text", "took_ms", "status" | "error"}`` per poll.

``t`` is when the poll began, in seconds since 1970; ``text`` the answer of ``/metrics``, with every line of it.
One file is one engine: whether two files tell of the same server nobody can say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.capture.engine_labels import from_samples
from gpuaudit.capture.engine_series import EngineRows, SeriesTracker
from gpuaudit.capture.exposition import MalformedExposition, Parser
from gpuaudit.capture.importers.cells import Unreadable
from gpuaudit.capture.importers.model import MAX_TIME_NS, Format, Line, Request, RowSink, Told

MAX_TOOK_MS = 86_400_000
"""A day: no poll takes longer."""

GIVEN = "given at import"
"""Source of a setting that no recording tells, and that the user knows."""

_MEMBERS = {"t", "text", "took_ms", "status", "error"}


def _parse(line: str) -> dict[str, Any]:
    """One poll. Unreadable where the line is not one."""
    try:
        poll = json.loads(line, parse_float=Decimal, parse_constant=_no_constant)
    except (ValueError, ArithmeticError, RecursionError) as e:
        raise Unreadable(f"no JSON: {str(e)[:80]}") from None
    if not isinstance(poll, dict) or not {"t", "took_ms"} <= set(poll) or not {"text", "error"} & set(poll):
        raise Unreadable("not an object with t, took_ms, and text or error")
    return poll


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _ns(value: Any, factor: int, most: int, what: str) -> int:
    """A time in ns; what is finer than that is cut off."""
    small = isinstance(value, int | Decimal) and not isinstance(value, bool) and 0 <= value < most
    if not small or value * factor >= most:  # in this order: a Decimal past its range cannot be multiplied
        raise Unreadable(f"{what} is {value!r:.40}, expected a time")
    return int(value * factor)


class _Polls:
    """The state of reading one file."""

    def __init__(self, sink: RowSink, told: Told) -> None:
        self._sink = sink
        self._told = told
        self._parser = Parser()
        self._configured: set[tuple[str, str, str]] = set()
        self._last_ns = -1
        self.tracker = SeriesTracker(told.file, told.series_numbers)

    def line(self, text: str) -> None:
        """One poll; Unreadable where the line is none."""
        poll = _parse(text)
        start = _ns(poll["t"], 1_000_000_000, MAX_TIME_NS, "t")
        took = _ns(poll["took_ms"], 1_000_000, MAX_TOOK_MS * 1_000_000, "took_ms")
        if start <= self._last_ns:
            raise Unreadable("its time is not after that of the poll before")
        rows = self._rows(poll, start, took)
        self._last_ns = start
        self._told.at(start)
        for table, records in (
            ("engine_series", rows.series), ("engine_samples", rows.sample_records()), ("engine_scrapes", [rows.scrape])
        ):  # fmt: skip
            if records:
                self._sink.add_records(table, records)
                self._told.rows[table] += len(records)

    def _rows(self, poll: dict[str, Any], start: int, took: int) -> EngineRows:
        status = poll.get("status")
        code = status if isinstance(status, int) and 100 <= status < 1000 else None
        if not isinstance(poll.get("text"), str):
            why = str(poll.get("error"))[:200]
            op = "timeout" if "time" in why.lower() else "failed"
            return self.tracker.failed(start, took, op, f"as recorded: {why}", http_status=code)
        answer: str = poll["text"]
        size = len(answer.encode("utf-8", "replace"))
        if code is not None and code != 200:
            return self.tracker.failed(start, took, "refused", f"status {code}", http_status=code, size_bytes=size)
        try:
            samples = self._parser.parse(answer if answer.endswith("\n") else answer + "\n").samples
        except MalformedExposition as e:
            return self.tracker.failed(start, took, "malformed", e.message, http_status=code, size_bytes=size)
        rows = self.tracker.scrape(start, took, samples, http_status=code, size_bytes=size)
        if rows.series:
            self._configure(start, samples)
        return rows

    def _configure(self, start: int, samples: Sequence[Any]) -> None:
        """Settings that labels tell; series that are new may tell new ones."""
        for setting in from_samples(samples):
            key = (str(setting["op"]), str(setting["value"]), str(setting["source"]))
            if key not in self._configured:
                self._configured.add(key)
                self.setting(start, setting)

    def setting(self, start: int, setting: Mapping[str, str | None]) -> None:
        """One row of ``engine_config``."""
        self._sink.add_records("engine_config", [{"start_ns": start, "engine": self.tracker.engine, **setting}])
        self._told.rows["engine_config"] += 1


def read(name: str, lines: Iterable[Line], sink: RowSink, request: Request, told: Told) -> None:
    """Rows of the engine tables; see :class:`gpuaudit.capture.importers.model.Reader`."""
    polls = _Polls(sink, told)
    for number, text in lines:
        told.lines = number
        if text.strip():
            try:
                polls.line(text)
            except Unreadable as e:
                told.refuse(number, str(e))
    if told.first_ns is None or told.last_ns is None:
        return
    if not told.rows["engine_samples"]:
        raise InputUnusable(f"{name}: none of its polls has metrics of an inference server that is known")
    sink.add_records("engines", [{
        "start_ns": told.first_ns, "duration_ns": told.last_ns - told.first_ns, "engine": told.file,
        "op": polls.tracker.kind.name, "url": f"file:{name}", "pid": None, "found_by": f"imported from {name}",
        "remote": 0, "state": "scraped", "reason": None,
    }])  # fmt: skip
    told.rows["engines"] += 1
    for key, value in request.settings:
        polls.setting(told.first_ns, {"op": key, "value": value, "source": GIVEN, "detail": "--setting"})
    told.assumptions.append("t is taken to be the moment a poll began, by the clock of the host that polled.")
    told.not_carried.append("families of metrics that are not the engine's own")


def recognises(head: Sequence[str]) -> bool:
    """Whether the first line is a poll, and has no member that is not of the format."""
    try:
        return bool(head) and set(_parse(head[0])) <= _MEMBERS
    except Unreadable:
        return False


FORMAT = Format("polled engine metrics (JSON lines)", "engines", recognises, read)
