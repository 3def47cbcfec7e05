"""Import of Ingero databases: conventions of time, threads, parents, roles, versions, and what is not carried."""

# ruff: noqa: S608, ARG002 - statements put together from this file alone, and a sink with the protocol's arguments

from __future__ import annotations

import sqlite3
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from gpuaudit.bundle.errors import InputUnusable, UsageError
from gpuaudit.capture.importers import ingero
from gpuaudit.capture.importers.model import Request, Told
from gpuaudit.capture.importers.reading import Recording
from gpuaudit.capture.importers.run import ImportOptions, run_import
from gpuaudit.cli.import_ import default_out
from tests.ingero_maker import MS, SCHEMA, US, Maker, S

Row = Mapping[str, object]


class Rows:
    """A sink that keeps rows by table, or only counts them."""

    def __init__(self, *, keep: bool = True) -> None:
        self.keep = keep
        self.rows: dict[str, list[Row]] = {}
        self.gaps: list[tuple[str, int, int | None]] = []
        self.count = 0

    def add_records(self, table: str, records: Sequence[Row]) -> None:
        self.count += len(records)
        if self.keep:
            self.rows.setdefault(table, []).extend(records)

    def gap(
        self, source: str, reason: str, start_ns: int, end_ns: int | None, *, table: str | None = None,
        pid: int | None = None,
    ) -> None:  # fmt: skip
        assert "between two of its sessions" in reason, "a selection of rows is told as a weakness, not as a gap"
        self.gaps.append((source, start_ns, end_ns))


def read(path: Path, *, keep: bool = True) -> tuple[Rows, Told]:
    recording, sink, told = Recording(path), Rows(keep=keep), Told("cuda")
    try:
        ingero.read(recording, sink, Request(), told)
    finally:
        recording.close()
    return sink, told


@pytest.fixture
def maker() -> Maker:
    return Maker(11)


def change(path: Path, *statements: str) -> Path:
    with sqlite3.connect(path) as db:
        for s in statements:
            db.execute(s)
    db.close()
    return path


def test_entry_times_and_end_times(maker: Maker, tmp_path: Path) -> None:
    maker.call(50, 3, 7 * MS, 2 * MS, 0xFFFF_8000_0000_1000)
    maker.off(50, 20 * MS, 3 * MS)
    maker.disk(50, 1, 30 * MS, 4 * MS)
    sink, _ = read(maker.write(tmp_path / "a.db"))
    t0 = maker.t0
    (call,), (off,), (disk,) = (sink.rows[t] for t in ("cuda_calls", "off_cpu", "block_io"))
    assert (call["start_ns"], call["duration_ns"]) == (t0 + 7 * MS, 2 * MS)
    assert (off["start_ns"], off["duration_ns"]) == (t0 + 20 * MS, 3 * MS)
    assert (disk["start_ns"], disk["duration_ns"], disk["size_bytes"]) == (t0 + 30 * MS, 4 * MS, 64 * 512)
    assert call["function"] == 0xFFFF_8000_0000_1000, "64 bits that SQLite holds signed"
    assert (off["op"], off.get("prev_state"), off.get("cpu_out")) == ("off", None, None), "what is not told is null"
    assert (disk.get("major"), disk.get("minor")) == (None, None)


def test_calls_inside_calls(maker: Maker, tmp_path: Path) -> None:
    """A driver call is inside the runtime call that encloses it on its thread, also where both begin at once."""
    maker.call(50, 1, MS, MS, 4096)
    maker.call(50, 5, MS, 500 * US, 4096, source=4)
    maker.call(50, 1, 3 * MS, MS, 4096)
    maker.call(50, 1, 4 * MS, MS, source=4)
    maker.call(51, 1, 3 * MS, MS, source=4)
    sink, _ = read(maker.write(tmp_path / "a.db"))
    found = [(c["op"], c["pid"], c["parent_op"]) for c in sink.rows["cuda_calls"]]
    assert sorted(found, key=str) == sorted(
        [
            ("cudaMalloc", 50, None), ("cuMemAlloc_v2", 50, "cudaMalloc"), ("cudaMalloc", 50, None),
            ("cuLaunchKernel", 50, None), ("cuLaunchKernel", 51, None),
        ], key=str,
    )  # fmt: skip


def test_a_wake_up_belongs_to_the_sleep_that_it_ends(maker: Maker, tmp_path: Path) -> None:
    maker.off(50, 10 * MS, 5 * MS)
    maker._event(60, 3, 2, 14 * MS, 0, 0, 50)
    maker.off(50, 30 * MS, 5 * MS)
    maker._event(60, 3, 2, 20 * MS, 0, 0, 50)
    sink, told = read(maker.write(tmp_path / "a.db"))
    first, second = sink.rows["off_cpu"]
    assert (first["op"], first["wake_ns"], first["runqueue_ns"]) == ("blocked", maker.t0 + 14 * MS, MS)
    assert (first["waker_pid"], first.get("prev_state")) == (60, None)
    assert (second["op"], second.get("wake_ns")) == ("off", None)
    assert "wake-ups with no interval off a CPU around them: 1" in told.not_carried


def test_a_stack_is_carried_once_and_told_apart(maker: Maker, tmp_path: Path) -> None:
    for n in range(3):
        maker.call(50, 3, n * MS, US)
    path = maker.write(tmp_path / "a.db")
    frames = '[{"pf":"/x/t.py","pfn":"step","pl":7},{"s":"launch+0x1c","f":"liba.so"},{"i":"0x7f00","f":"libb.so"}]'
    change(
        path, "UPDATE events SET stack_hash = -5", f"INSERT INTO stack_traces VALUES (-5, '', '{frames}')",
        "INSERT INTO stack_traces VALUES (9, '', '[]')",
    )  # fmt: skip
    sink, told = read(path)
    rows = [(r["kind"], r["depth"], r["path"], r["symbol"]) for r in sink.rows["stack_frames"]]
    assert rows == [
        ("python", 0, "/x/t.py", "step"), ("native", 0, "liba.so", "launch"), ("native", 1, "libb.so", None),
    ]  # fmt: skip
    python, native, unnamed = sink.rows["stack_frames"]
    assert (python["first_line"], python.get("line")) == (7, None)
    assert (native["symbol_offset"], unnamed["reason"]) == (0x1C, "not named when it was recorded")
    stacks = {(c["native_stack"], c["python_stack"]) for c in sink.rows["cuda_calls"]}
    assert stacks == {((1 << 64) - 5, (1 << 64) - 5)}
    assert "stacks that no row refers to: 1" in told.not_carried
    assert [w["grade"] for w in told.weaknesses if "rows were taken out" in str(w["text"])] == ["C"]


def test_what_is_not_carried_is_named(maker: Maker, tmp_path: Path) -> None:
    maker.call(50, 9, MS, MS, 1024, 1)
    maker._event(50, 9, 1, 2 * MS, MS)
    maker._event(50, 3, 11, 3 * MS, 0)
    path = change(
        maker.write(tmp_path / "a.db"), "INSERT INTO annotations VALUES (1, '{}')",
        "CREATE TABLE later_addition(a)", "CREATE TABLE event_aggregates_5s AS SELECT * FROM event_aggregates",
        "INSERT INTO event_aggregates VALUES (1,1,1,50,4,1,9,1,5,64)",
        "INSERT INTO event_aggregates_5s VALUES (1,1,1,50,4,1,9,1,5,64)",
    )  # fmt: skip
    sink, told = read(path)
    text = " / ".join(told.not_carried)
    for said in (
        "rows of source 9, op 1: 1", "rows of source 3, op 11: 1", "without their heights: 1",
        "annotations (1 rows, of the user)",
        "tables that are not known: later_addition", "event_aggregates_5s (1 rows)",
    ):  # fmt: skip
        assert said in text
    assert [(r["op"], r["count"], r["kept"]) for r in sink.rows["period_totals"]] == [("cudaMalloc", 4, 1)]
    (copy,) = sink.rows["cuda_calls"]
    assert (copy["op"], copy.get("size_bytes"), copy["direction"]) == ("cudaMemcpy2D", None, 1)


@pytest.mark.parametrize(("version", "user", "reads"), [
    ("0.8", 0, True), ("0.9", 0, True), ("0.10", 10, True), ("", 9, True), ("", 0, False), ("0.7", 10, False),
    ("0.11", 11, False),
])  # fmt: skip
def test_versions(maker: Maker, tmp_path: Path, version: str, user: int, reads: bool) -> None:
    maker.call(50, 3, MS, MS)
    path = change(
        maker.write(tmp_path / "a.db"), f"UPDATE schema_info SET value = '{version}'" if version else
        "DELETE FROM schema_info", f"PRAGMA user_version = {user}",
    )  # fmt: skip
    if reads:
        _, told = read(path)
        apart = [w for w in told.weaknesses if "user_version" in str(w["text"])]
        assert bool(apart) == (user == 0)
    else:
        with pytest.raises(InputUnusable, match=r"0\.8, 0\.9, 0\.10 can be imported"):
            read(path)


def test_a_merged_database_is_refused(maker: Maker, tmp_path: Path) -> None:
    """Process ids of two hosts would be taken for one another."""
    maker.call(50, 3, MS, MS)
    maker.call(50, 3, 3 * MS, MS)
    path = change(maker.write(tmp_path / "a.db"), "UPDATE events SET node = 'other' WHERE id LIKE '%:2'")
    with pytest.raises(InputUnusable, match="merged from 2 nodes"):
        read(path)


def test_rows_that_cannot_be_are_counted(maker: Maker, tmp_path: Path) -> None:
    for n in range(4):
        maker.call(50, 3, n * MS, US)
    maker.off(50, 9 * MS, US)
    path = change(
        maker.write(tmp_path / "a.db"), "UPDATE events SET timestamp = -1 WHERE id LIKE '%:1'",
        "UPDATE events SET duration = 'long' WHERE id LIKE '%:2'", "UPDATE events SET pid = 1e300 WHERE id LIKE '%:3'",
    )  # fmt: skip
    sink, told = read(path)
    assert told.unreadable == 3
    assert len(told.examples) == 3
    assert sink.count == 2 + len(sink.rows["processes"])


def test_totals_end_where_the_recording_does(maker: Maker, tmp_path: Path) -> None:
    maker.call(50, 3, MS, MS)
    maker.total((3, 1), 50, 0, 7, sum_ns=5 * MS)
    sink, _ = read(maker.write(tmp_path / "a.db"))
    (total,) = sink.rows["period_totals"]
    start, length = int(str(total["start_ns"])), int(str(total["duration_ns"]))
    assert start >= maker.t0 - 3 * S
    assert start + length <= maker.t0 + maker.end + 100 * MS
    assert (total["op"], total["tid"], total["sum_ns"]) == ("off_cpu", 50, 5 * MS)


def test_nothing_was_recorded_between_two_sessions(maker: Maker, tmp_path: Path) -> None:
    """The tool was run twice into one database: in between it could not see, and nobody was silent."""
    maker.call(50, 3, MS, MS)
    maker.call(50, 3, 90 * S, MS)
    path, t0 = maker.write(tmp_path / "a.db"), maker.t0
    change(
        path, f"UPDATE sessions SET stopped_at = {t0 + S}",
        f"INSERT INTO sessions(started_at, stopped_at) VALUES ({t0 + 80 * S}, {t0 + 95 * S})",
        f"INSERT INTO sessions(started_at, stopped_at) VALUES ({t0 + 81 * S}, 0)",
    )  # fmt: skip
    sink, _ = read(path)
    assert sink.gaps == [(s, t0 + S, t0 + 80 * S) for s in ("cuda", "off_cpu", "block_io")]


def test_record_all_is_no_selection(maker: Maker, tmp_path: Path) -> None:
    maker.call(50, 3, MS, MS)
    path = maker.write(tmp_path / "a.db")
    assert any("selection" in str(w["text"]) for w in read(path)[1].weaknesses)
    change(path, "UPDATE sessions SET flags = 'stack,record-all'")
    assert not any("selection" in str(w["text"]) for w in read(path)[1].weaknesses)


def _named(tool: str) -> Callable[[Maker], None]:
    def rename(m: Maker) -> None:
        m.rest.append(("process_names", (4242, tool, m.t0)))
        m.disk(4242, 2, 5 * MS, MS)

    return rename


@pytest.mark.parametrize(("column", "role"), [("ingero_ver", "bystander"), ("watchdog_ver", "recorder")])
def test_a_tool_is_known_by_what_the_database_calls_it(
    maker: Maker, tmp_path: Path, column: str, role: str
) -> None:  # fmt: skip
    """Not by a name of ours: a process called watchdog is the recorder where the database says watchdog wrote it."""
    maker.call(50, 3, MS, MS)
    _named("watchdog")(maker)
    path = maker.write(tmp_path / "a.db")
    if column != "ingero_ver":
        change(path, f"ALTER TABLE sessions RENAME COLUMN ingero_ver TO {column}")
    sink, _ = read(path)
    assert {r["pid"]: r["role"] for r in sink.rows["processes"]} == {50: "traced", 4242: role}


def test_a_bundle_is_never_written_over_its_original(
    maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv("GPU_AUDIT_KEYS", str(tmp_path / "keys"))
    path = maker.write(tmp_path / "a.db")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="one of the files to import"):
        run_import(ImportOptions((path,), path, force=True))
    assert path.read_bytes() == before
    assert default_out(path).name == "a.bundle.db"


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Three times the rows take no more memory: what is held is a batch of each table."""
    peaks = []
    for n in (10_000, 30_000):
        path = tmp_path / f"{n}.db"
        with sqlite3.connect(path) as db:
            db.executescript(SCHEMA)
            db.execute("INSERT INTO schema_info VALUES ('version', '0.10')")
            db.execute("INSERT INTO sessions(started_at) VALUES (1)")
            db.executemany(
                "INSERT INTO events(id, timestamp, pid, tid, source, op, duration) VALUES (?, ?, 7, 7, 1, 3, 900)",
                ((f"n:{i}", 10**18 + i * 1000) for i in range(n)),
            )
        db.close()
        tracemalloc.start()
        sink, _ = read(path, keep=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert sink.count == n + 1
    assert peaks[1] < peaks[0] * 1.25
