"""What engines may cost the recorder: processor time, memory, and time at the end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from gpuaudit.capture import engine_source
from gpuaudit.capture.engine_dial import DialClient, DialDesk, Line
from gpuaudit.capture.engine_endpoint import parse_endpoint
from gpuaudit.capture.engine_source import SHARE, Budget, Engine, EngineSource, _Poller
from tests.engine_server import ENGINE_TEXT, always, serving


class Sink:
    """Takes what a source gives."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, dict[str, Any]]] = []
        self.gaps: list[str] = []

    def add_records(self, table: str, records: list[dict[str, Any]]) -> None:
        self.rows += [(table, r) for r in records]

    def add(self, table: str, _: object) -> None:
        self.rows.append((table, {}))

    def gap(self, _: str, reason: str, *__: object, **___: object) -> None:
        self.gaps.append(reason)


class Paces:
    """In the place of the event that ends a poller: notes how long it would wait, and ends it after ``turns``."""

    def __init__(self, turns: int) -> None:
        self._turns = turns
        self.waits_s: list[float] = []

    def is_set(self) -> bool:
        return len(self.waits_s) >= self._turns

    def wait(self, seconds: float) -> bool:
        self.waits_s.append(seconds)
        return False


@pytest.fixture
def desk() -> Iterator[DialDesk]:
    desk = DialDesk()
    yield desk
    desk.close()


def engine(number: int, url: str, *, files: bool = False) -> Engine:
    return Engine(number, f"{url}/metrics", "127.0.0.1", "/metrics", 1, 1, "--engine", False, files, 0)


def test_the_more_engines_the_longer_each_rests() -> None:
    budget = Budget()
    for budget.engines in (1, 10, 100):
        assert budget.pause_s(0.5) == pytest.approx(0.5 * budget.engines / SHARE)


def test_an_engine_whose_answers_are_costly_is_asked_less(desk: DialDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock of the thread costs a second here: two a poll, with what others spent on it."""
    spent = iter(range(10_000))
    clocks = SimpleNamespace(thread_time=lambda: float(next(spent)), monotonic=time.monotonic)
    monkeypatch.setattr(engine_source, "time", clocks)
    with serving(always(ENGINE_TEXT)) as server:
        desk.add(0, Line(parse_endpoint(server.url)))
        budget, paces = Budget(), Paces(2)
        budget.engines = 5
        poller = _Poller(engine(0, server.url), DialClient(os.dup(desk.theirs.fileno())), None, budget)  # type: ignore[arg-type]
        poller.ended = paces  # type: ignore[assignment]
        poller.charged_s = 7.0
        poller.run()
    assert paces.waits_s[0] == pytest.approx((1 + 7) * 5 / SHARE)
    assert paces.waits_s[1] == pytest.approx(1 * 5 / SHARE)
    assert [p.op for p in poller.done] == ["ok", "ok"]


def test_answers_that_wait_are_bounded_and_what_is_dropped_is_a_gap(
    desk: DialDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_source, "MAX_WAITING_BYTES", len(ENGINE_TEXT))
    client = DialClient(os.dup(desk.theirs.fileno()))
    source, sink = EngineSource(client, client), Sink()
    with serving(always(ENGINE_TEXT)) as server:
        desk.add(0, Line(parse_endpoint(server.url)))
        source.add(engine(0, server.url))
        server.wait_for(4)
        source.poll(sink)  # type: ignore[arg-type]
        source.stop(sink)  # type: ignore[arg-type]
    assert any("were dropped" in gap for gap in sink.gaps)
    assert "ok" in {row["op"] for table, row in sink.rows if table == "engine_scrapes"}


def test_files_that_were_not_read_until_the_end_are_a_gap(desk: DialDesk) -> None:
    """A file system that hangs: neither the end waits for it, nor is it forgotten."""
    asked, go_on = threading.Event(), threading.Event()

    def hang(name: str) -> int:
        asked.set()
        go_on.wait()
        raise FileNotFoundError(2, "gone")

    client = DialClient(os.dup(desk.theirs.fileno()))
    source, sink = EngineSource(client, client), Sink()
    with serving(always(ENGINE_TEXT)) as server:
        desk.add(0, Line(parse_endpoint(server.url)))
        files = DialDesk()
        files.add(0, Line(parse_endpoint(server.url), open_file=hang))
        source = EngineSource(client, DialClient(os.dup(files.theirs.fileno())))
        source.add(engine(0, server.url, files=True))
        assert asked.wait(60)
        source.stop(sink)  # type: ignore[arg-type]
        go_on.set()
        files.close()
    assert [g for g in sink.gaps if "not read until the end" in g]
