"""Traces that somebody hostile has written: one line at worst, and never more memory than a bounded window."""

from __future__ import annotations

import gzip
import itertools
import json
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.analyze.gpu_activity import read_devices
from gpuaudit.analyze.store import Store
from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.bundle.reader import Bundle
from gpuaudit.capture.importers import json_stream, kineto, kineto_events
from gpuaudit.capture.importers.batches import Batches
from gpuaudit.capture.importers.json_stream import members
from gpuaudit.capture.importers.kineto_events import Events
from gpuaudit.capture.importers.model import Told
from gpuaudit.capture.importers.run import ImportOptions, run_import
from tests.kineto_traces import BASE_US, call, imported, kernel, operator, written

GOOD = json.dumps(operator())


@pytest.fixture(autouse=True)
def _keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_AUDIT_KEYS", str(tmp_path / "keys"))


def refused(tmp_path: Path, text: str | bytes, match: str) -> None:
    path = tmp_path / "hostile.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputUnusable, match=match) as failed:
        run_import(ImportOptions((path,), tmp_path / "x.db"))
    assert "\n" not in str(failed.value)
    assert failed.value.hint
    assert not list(tmp_path.glob("x.db*"))


def unread(tmp_path: Path, events: str, count: int, match: str) -> None:
    """``events`` beside two good ones: so many cannot be read, and the others are there."""
    path = tmp_path / "hostile.json"
    path.write_text(f'{{"traceEvents": [{GOOD}, {events}, {GOOD}]}}')
    (told,) = run_import(ImportOptions((path,), tmp_path / "x.db", force=True)).files
    assert (told["unreadable"], told["rows"]["user_ranges"]) == (str(count), "2")  # type: ignore[index]
    assert match in str(told["unreadable_examples"])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"traceEvents": [' + GOOD, "cut off"),
        ('{"traceEvents": [' + GOOD + ", {", "cut off|not JSON|inside a value"),
        ('{"traceEvents": [' + GOOD + "]", "expected a comma or the end"),
        ('{"traceEvents": [' + GOOD + ', {"a": [}]}]}', "neither|expected|inside a value"),
        ('{"traceEvents": [' + GOOD + ", [1, 2", "inside a value"),
        ('{"traceEvents": [' + GOOD + "]} x", "text follows its end"),
        ('{"traceEvents": [' + GOOD + " " + GOOD + "]}", "expected a comma"),
        ('{"traceEvents": [' + GOOD + '], "a" 1}', "expected a member"),
        ('{"traceEvents": [' + GOOD + '], "other": "' + "x" * 100, "ends inside a value"),
        ('{"traceEvents": []}', "no line of it could be read"),
        ('{"traceEvents": {}}', "no line of it could be read"),
        ('{"traceEvents": [1, 2]}', "no line of it could be read.*not an object"),
    ],
)
def test_structure_that_breaks_off(tmp_path: Path, text: str, match: str) -> None:
    refused(tmp_path, text, match)


def test_an_archive_that_breaks_off(tmp_path: Path) -> None:
    whole = gzip.compress(f'{{"traceEvents": [{", ".join([GOOD] * 1000)}]}}'.encode())
    refused(tmp_path, whole[:-20], "broken after")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"ts": "soon"}, "expected microseconds"), ({"ts": None}, "expected microseconds"),
        ({"ts": -1}, "expected microseconds"), ({"ts": True}, "expected microseconds"),
        ({"ts": 10**30}, "expected microseconds"), ({"dur": -3}, "dur is -3"), ({"dur": [1]}, "dur is [1]"),
        ({"pid": "x"}, "no process and thread"), ({"pid": -7}, "no process and thread"),
        ({"tid": 10**12}, "no process and thread"), ({"name": 7}, "its name is 7"),
        ({"name": None}, "its name is None"),
    ],
)  # fmt: skip
def test_events_that_are_none_are_counted(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    unread(tmp_path, json.dumps({**operator(), **change}), 1, match)


@pytest.mark.parametrize(
    "number",
    ["1e400", "1e999999999", "1E+99999999999999999999", "0." + "9" * 40 + "e30", "NaN", "-Infinity", "9" * 5000],
)
def test_numbers_past_every_range(tmp_path: Path, number: str) -> None:
    unread(tmp_path, GOOD.replace(str(BASE_US), number), 1, "line 2")


def test_events_that_are_no_json_inside(tmp_path: Path) -> None:
    """Kernels' names with a backslash, and inf as a ratio, were written by real profilers."""
    backslash = GOOD.replace("aten::add", "a\\qb")
    ratio = GOOD.replace('"args": {"External id": 5}', '"args": {"x": inf}')
    unread(tmp_path, ", ".join([backslash, ratio, "{,}", "nothing"]), 4, "Invalid")


def test_nested_beyond_the_parser(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    unread(tmp_path, GOOD.replace("5}", deep + "}"), 1, "recursion")
    unread(tmp_path, deep, 1, "recursion")
    path = tmp_path / "other.json"
    path.write_text(f'{{"other": {deep}, "traceEvents": [{GOOD}]}}')
    assert run_import(ImportOptions((path,), tmp_path / "y.db")).files[0]["unreadable"] == "0"


def test_nothing_but_events_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kineto, "MAX_UNREADABLE", 50)
    refused(tmp_path, f'{{"traceEvents": [{GOOD}, {",".join(["{,}"] * 60)}]}}', "more than 50 of its events")


def test_a_value_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "MAX_ELEMENT_CHARS", 1 << 16)
    monkeypatch.setattr(json_stream, "MAX_MEMBER_CHARS", 1 << 16)
    long = "x" * (5 << 20)
    refused(tmp_path, f'{{"traceEvents": [{GOOD}, {{"name": "{long}', "more than 65536 characters")
    refused(tmp_path, f'{{"distributedInfo": {{"a": "{long}', "more than 65536 characters")
    refused(tmp_path, f'{{"traceEvents": [{GOOD}], "other": ["{long}', "more than 65536 characters")
    members_of_nothing = ",".join(f'"m{i}":0' for i in range(json_stream.MAX_MEMBERS + 1))
    refused(tmp_path, f'{{"traceEvents": [{GOOD}], {members_of_nothing}}}', "more than 10000 members")


def test_two_bases_of_time(tmp_path: Path) -> None:
    """One in an event's argument, where no base stands, must not move the times of the trace."""
    hidden = json.dumps({**operator(), "args": {"baseTimeNanoseconds": 1_500_000_000_000_000_000}})
    refused(tmp_path, f'{{"traceEvents": [{hidden}]}}', "is None and 1500000000000000000 elsewhere")
    both = f'{{"baseTimeNanoseconds": 5, "traceEvents": [{hidden}]}}'
    refused(tmp_path, both, "is 5 and 1500000000000000000 elsewhere")
    refused(tmp_path, f'{{"baseTimeNanoseconds": -1, "traceEvents": [{GOOD}]}}', "is -1 and None")
    quoted = json.dumps({**operator(), "name": '"baseTimeNanoseconds": 7 '})
    unread(tmp_path, quoted.replace('"ph": "X"', '"ph": 1'), 0, "")


def test_a_base_past_every_time(tmp_path: Path) -> None:
    refused(tmp_path, f'{{"traceEvents": [{GOOD}], "baseTimeNanoseconds": 9{"0" * 18}}}', "which is no time")


def test_more_processes_than_a_trace_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kineto_events, "MAX_PROCESSES", 3)
    unread_ = ",".join(json.dumps(operator(pid=n, cat="cpu_op")) for n in range(100, 105))
    path = tmp_path / "t.json"
    path.write_text(f'{{"traceEvents": [{unread_}]}}')
    (told,) = run_import(ImportOptions((path,), tmp_path / "x.db")).files
    assert told["unreadable"] == "2"


def test_values_that_fit_no_column_are_null(tmp_path: Path) -> None:
    odd = kernel(1, BASE_US + 5)
    odd["args"] |= {"device": -5, "stream": 2**70, "correlation": -3, "grid": [1, "x", 2**40], "block": [1, 2],
                    "shared memory": "lots", "Group size": 1e300, "Collective name": ["a"], "context": {}}  # fmt: skip
    odd |= {"pid": "GPU", "tid": None}
    store, _ = imported([written(tmp_path / "t.json", [operator(), odd])], tmp_path / "t.db")
    assert store.sql(
        "SELECT device, stream, correlation, grid_x, grid_y, grid_z, block_x, shared_bytes, group_size, collective, "
        "context FROM gpu_activities"
    ) == [(None, None, None, 1, None, None, None, None, None, None, None)]
    assert store.row_count("gaps") == 0, "no row was dropped"


def test_text_from_a_trace_stays_data(tmp_path: Path) -> None:
    """Lone surrogates, NUL, escape sequences and bytes that are no UTF-8 end as text in the bundle."""
    raw = json.dumps({"traceEvents": [operator(name="\ud800\x00\x1b[31m")]}).encode()
    path = tmp_path / "t.json"
    path.write_bytes(raw)
    store, _ = imported([path], tmp_path / "t.db")
    assert store.sql("SELECT name FROM user_ranges") == [("\\ud800\x00\x1b[31m",)]


def test_long_names_are_cut_and_long_details_left_out(tmp_path: Path) -> None:
    events = [operator(name="n" * 10_000), operator(args={"Call stack": "f" * 10_000})]
    store, result = imported([written(tmp_path / "t.json", events)], tmp_path / "t.db")
    assert store.sql("SELECT length(name), detail FROM user_ranges ORDER BY 1") == [(9, None), (4096, None)]
    told = str(result.files[0]["not_carried"])
    assert "names past 4096 characters, cut: 1" in told
    assert "details past 4096 bytes, left out: 1" in told


def test_a_thousand_kinds_of_events_are_told_as_sixty_four(tmp_path: Path) -> None:
    events = [operator()] + [operator(cat=f"kind{n}") for n in range(1000)]
    _, result = imported([written(tmp_path / "t.json", events)], tmp_path / "t.db")
    told = result.files[0]["not_carried"]
    assert isinstance(told, list)
    assert "other events: 936" in told
    assert sum(int(str(t).rpartition(": ")[2]) for t in told if "kind" in str(t)) == 64


class Rows:
    """A sink that counts the processes of GPU work and keeps nothing else."""

    def __init__(self) -> None:
        self.processes: list[object] = []

    def add_records(self, table: str, records: Sequence[Mapping[str, object]]) -> None:
        if table == "gpu_activities" and len(self.processes) < 100:
            self.processes += [r["pid"] for r in records]

    def gap(
        self, source: str, reason: str, start_ns: int, end_ns: int | None, *, table: str | None = None,
        pid: int | None = None,
    ) -> None:  # fmt: skip
        raise AssertionError((source, reason, start_ns, end_ns, table, pid))


def test_work_that_waits_for_its_process_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kineto_events, "MAX_WAITING", 10)
    sink = Rows()
    told = Told("cuda")
    events = Events(Batches(sink, told), told, 0)
    for n in range(25):
        events.add(kernel(n + 1, BASE_US + n))
    events.add(call(1))
    events.finish()
    assert sorted(str(p) for p in sink.processes) == ["77"] * 10 + ["None"] * 15


def test_memory_does_not_grow_with_the_trace() -> None:
    """Ten times the events, read from blocks that nobody keeps: the peak stays where it was."""
    event = json.dumps(kernel(1)).encode() + b","

    def blocks(count: int) -> Iterator[bytes]:
        yield b'{"traceEvents": [' + json.dumps(operator()).encode() + b","
        block = event * 2000
        yield from itertools.repeat(block, count)
        yield GOOD.encode() + b"]}"

    def peak(count: int) -> int:
        told = Told("cuda")
        events = Events(Batches(Rows(), told), told, 0)
        tracemalloc.start()
        for key, value in members("t", blocks(count), "traceEvents", ()):
            assert key == "traceEvents"
            events.add(value)
        events.finish()
        reached = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert told.rows["gpu_activities"] == count * 2000
        return reached

    small = peak(6)
    assert peak(60) < small * 2


def test_a_bundle_of_hostile_activities_is_analysed(tmp_path: Path) -> None:
    """No length, one instant, all streams: nothing divides by zero."""
    events = [operator(), kernel(1, BASE_US, 0), kernel(2, BASE_US, None)]
    path = written(tmp_path / "t.json", events)
    run_import(ImportOptions((path,), tmp_path / "t.db"))
    with Bundle.open(tmp_path / "t.db") as bundle:
        assert read_devices(Store.from_bundle(bundle)) == []
