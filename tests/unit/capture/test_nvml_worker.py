"""A worker's gaps and times, on a clock that the test moves: rounds that are late, dropped, broken or not to be had."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from gpuaudit.capture import nvml_worker
from gpuaudit.capture.nvml_worker import Rows, Task, Unreadable, Worker
from tests.unit.capture.sinks import ListSink

S = 1_000_000_000
ROW: Rows = {"nvml_samples": [{"gpu_index": 0, "gpu_uuid": "GPU-0", "unavailable": ""}]}


class Clock:
    """CLOCK_BOOTTIME as the test has it."""

    def __init__(self) -> None:
        self.now = 100 * S

    def __call__(self) -> int:
        return self.now


def worker(clock: Clock, read: Callable[[], Rows], *, critical: bool = False) -> Worker:
    """Its rounds are called by the test, not by its thread."""
    return Worker(Task("GPU 0", ("nvml_samples",), read, S // 4, critical=critical), clock)


def spans(sink: ListSink) -> list[tuple[float, float]]:
    return [(r["start_ns"] / S, r["duration_ns"] / S) for r in sink.rows["nvml_samples"]]


def gaps(sink: ListSink) -> list[tuple[str, float, float | None]]:
    return [(g["reason"], g["start_ns"] / S, None if g["end_ns"] is None else g["end_ns"] / S) for g in sink.gaps]


def test_a_row_stands_until_the_next_round_and_the_last_for_two_distances_at_most() -> None:
    clock, sink = Clock(), ListSink()
    w = worker(clock, lambda: ROW)
    for _ in range(3):
        w._round()
        clock.now += S // 4
        w.collect(sink)
    assert spans(sink) == [(100, 0.25), (100.25, 0.25)]
    clock.now += 10 * S
    w.finish(sink)
    assert spans(sink)[-1] == (100.5, 0.5)
    assert sink.gaps == []


def test_a_late_round_is_a_gap_and_stands_for_no_time() -> None:
    clock, sink = Clock(), ListSink()

    def hang() -> Rows:
        clock.now += 5 * S
        return ROW

    w = worker(clock, hang)
    w._round()
    w.task = Task("GPU 0", ("nvml_samples",), lambda: ROW, S // 4)
    w._round()
    w.collect(sink)
    assert gaps(sink) == [("NVML answered late for GPU 0 (nvml_samples)", 100, 105)]
    assert spans(sink) == [(100, 0)]


def test_a_round_under_way_is_told_once_when_its_deadline_has_passed_and_then_for_the_rest() -> None:
    clock, sink = Clock(), ListSink()
    w: Worker

    def hang() -> Rows:
        for _ in range(5):
            clock.now += S
            w.collect(sink)  # as the recorder does meanwhile
        return ROW

    w = worker(clock, hang)
    w._round()
    w.collect(sink)
    late = "NVML answered late for GPU 0 (nvml_samples)"
    assert gaps(sink) == [(late, 100, 103), (late, 103, 105)]


def test_a_round_that_never_ends_is_told_to_the_end() -> None:
    clock, sink = Clock(), ListSink()
    reading, release = threading.Event(), threading.Event()

    def hang() -> Rows:
        reading.set()
        release.wait(60)
        return ROW

    w = worker(clock, hang)
    w.start()
    assert reading.wait(60)
    clock.now += 3 * S
    w.collect(sink)
    clock.now += 4 * S
    w.ended.set()
    w.finish(sink)
    release.set()
    w.join(60)
    assert gaps(sink) == [
        ("NVML answered late for GPU 0 (nvml_samples)", 100, 103),
        ("NVML did not answer for GPU 0 until the end (nvml_samples)", 103, 107),
    ]


def test_time_in_which_nothing_was_asked_is_no_row_s_time() -> None:
    clock, sink = Clock(), ListSink()
    w = worker(clock, lambda: ROW)
    w._round()
    clock.now += 30 * S  # the host was suspended, or this process was
    w._round()
    w.collect(sink)
    assert spans(sink) == [(100, 0.25)]
    assert gaps(sink) == [("GPU 0 was not asked in time (nvml_samples)", 100.25, 130)]


def test_rounds_that_the_recorder_did_not_take_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml_worker, "QUEUE_LIMIT_ROUNDS", 3)
    clock, sink = Clock(), ListSink()
    w = worker(clock, lambda: ROW)
    for _ in range(8):
        w._round()
        clock.now += S // 4
    w.collect(sink)
    assert [reason for reason, _, _ in gaps(sink)] == [
        "rounds of GPU 0 were lost (5), the recorder was busy (nvml_samples)"
    ]
    assert spans(sink) == [(101.25, 0.25), (101.5, 0.25)]


def test_a_defect_is_told_once_and_does_not_end_the_reading() -> None:
    clock, sink = Clock(), ListSink()
    answers = iter([TypeError("no such member"), TypeError("no such member"), None])

    def read() -> Rows:
        defect = next(answers)
        if defect is not None:
            raise defect
        return ROW

    w = worker(clock, read)
    for _ in range(3):
        assert w._round()
        clock.now += S // 4
        w.collect(sink)
    w.finish(sink)
    assert gaps(sink) == [("reading GPU 0 failed: TypeError: no such member", 100, None)]
    assert spans(sink) == [(100.5, 0.25)]


@pytest.mark.parametrize(("why", "told"), [("", []), ("refused", [("refused", 100, None)])])
def test_what_cannot_be_read_ends_the_thread(why: str, told: list[object]) -> None:
    clock, sink = Clock(), ListSink()

    def read() -> Rows:
        raise Unreadable(why)

    w = worker(clock, read)
    w.start()
    w.join(60)
    assert not w.is_alive()
    w.finish(sink)
    assert gaps(sink) == told


def test_critical_rows_do_not_wait_for_the_next_round() -> None:
    clock, sink = Clock(), ListSink()
    event = {"start_ns": clock.now, "duration_ns": 0, "gpu_index": 0, "gpu_uuid": "GPU-0", "op": "xid", "event_type": 8}
    w = worker(clock, lambda: {"nvml_events": [event]}, critical=True)
    w._round()
    w.collect(sink)
    assert sink.critical == [("nvml_events", event)]


def test_one_more_round_at_the_end() -> None:
    count = 0

    def read() -> Rows:
        nonlocal count
        count += 1
        return ROW

    w = Worker(Task("GPU 0", ("nvml_health",), read, 3600 * S, at_end=True))
    w.start()
    w.ended.set()
    w.join(60)
    assert count == 2
