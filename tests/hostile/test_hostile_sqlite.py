"""Databases of other tools that somebody hostile has written: one line each, no harm, and nothing left behind."""

# ruff: noqa: S608 - statements put together from this file alone

from __future__ import annotations

import random
import sqlite3
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.capture.importers import foreign_sqlite, ingero, ingero_processes, ingero_stacks
from gpuaudit.capture.importers.model import Request, Told
from gpuaudit.capture.importers.reading import Recording
from gpuaudit.capture.importers.run import ImportOptions, run_import
from tests.ingero_bundles import NODE_2, original
from tests.ingero_maker import MS, US, Maker


class Sink:
    """Counts rows by table."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Mapping[str, object]]] = {}

    def add_records(self, table: str, records: Sequence[Mapping[str, object]]) -> None:
        self.rows.setdefault(table, []).extend(records)

    def gap(self, source: str, reason: str, start_ns: int, end_ns: int | None, **more: object) -> None:
        """No importer of databases tells of gaps."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    maker = Maker(23)
    for n in range(2_000):
        maker.call(50, 3, n * MS, (20 + n % 9) * US, 0x7F00_0000)
    return maker.write(tmp_path / "hostile.db")


def read(path: Path) -> tuple[Sink, Told]:
    recording, sink, told = Recording(path), Sink(), Told("cuda")
    try:
        ingero.read(recording, sink, Request(), told)
    finally:
        recording.close()
    return sink, told


def refused(path: Path, monkeypatch: pytest.MonkeyPatch, match: str) -> None:
    """The whole import ends in one line, and leaves nothing."""
    monkeypatch.setenv("GPU_AUDIT_KEYS", str(path.parent / "keys"))
    with pytest.raises(InputUnusable, match=match) as error:
        run_import(ImportOptions((path,), path.parent / "x.out"))
    assert "\n" not in str(error.value)
    assert not [p.name for p in path.parent.iterdir() if p.name.startswith("x.out")]


def change(path: Path, *statements: str) -> None:
    db = sqlite3.connect(path)
    for s in statements:
        db.execute(s)
    db.commit()
    db.close()


@pytest.mark.parametrize("share", [0, 1, 3, 50, 99])
def test_cut_off(path: Path, monkeypatch: pytest.MonkeyPatch, share: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * share // 100 + 16])
    refused(path, monkeypatch, "damaged|in no format")


def test_flipped_bytes(tmp_path: Path) -> None:
    """Whatever byte is another: an error of ours, or rows and a count of those that could not be read."""
    whole = original(NODE_2).read_bytes()
    chance = random.Random(5)
    outcomes = set()
    for n in range(60):
        data = bytearray(whole)
        for _ in range(1 + n % 8):
            data[chance.randrange(100, len(data))] ^= 1 << chance.randrange(8)
        path = tmp_path / "flipped.db"
        path.write_bytes(data)
        try:
            read(path)
            outcomes.add("read")
        except InputUnusable as e:
            outcomes.add(str(e).partition(":")[0].partition(" was")[0])
    assert outcomes == {"read", "flipped.db"}


def test_a_page_that_is_served_again_and_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree whose branches all lead to one page has more rows than any disk; it is seen before a row is read."""
    with sqlite3.connect(path) as db:
        ((root,),) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'events'").fetchall()
        ((size,),) = db.execute("PRAGMA page_size").fetchall()
    db.close()
    data = bytearray(path.read_bytes())
    page = (root - 1) * size
    assert data[page] == 5, "the root has branches"
    cells = struct.unpack_from(">H", data, page + 3)[0]
    places = struct.unpack_from(f">{cells}H", data, page + 12)
    for place in places[1:]:
        data[page + place : page + place + 4] = data[page + places[0] : page + places[0] + 4]
    path.write_bytes(data)
    refused(path, monkeypatch, "damaged")


def test_an_index_that_hides_rows(path: Path) -> None:
    """An index that says it has all rows and has none: rows are read from the table, so nothing is hidden."""
    db = sqlite3.connect(path)
    db.execute("DROP INDEX idx_events_timestamp")
    db.execute("CREATE INDEX idx_events_timestamp ON events(timestamp) WHERE timestamp < 0")
    db.execute("PRAGMA writable_schema = ON")
    db.execute("UPDATE sqlite_master SET sql = 'CREATE INDEX idx_events_timestamp ON events(timestamp)' WHERE name = "
               "'idx_events_timestamp'")  # fmt: skip
    db.commit()
    db.close()
    with sqlite3.connect(path) as again:
        assert again.execute("SELECT count(*) FROM (SELECT timestamp FROM events ORDER BY timestamp)").fetchall() == [
            (0,)
        ], "SQLite itself believes the index"
    again.close()
    sink, _ = read(path)
    assert len(sink.rows["cuda_calls"]) == 2_000


@pytest.mark.parametrize("statements", [
    ("ALTER TABLE events RENAME TO real_events", "CREATE VIEW events AS SELECT * FROM real_events"),
    ("DROP TABLE events", "CREATE VIRTUAL TABLE events USING fts4(timestamp, pid, tid, source, op, duration)"),
    ("DROP TABLE sessions",),
])  # fmt: skip
def test_what_is_no_table(path: Path, monkeypatch: pytest.MonkeyPatch, statements: tuple[str, ...]) -> None:
    change(path, *statements)
    refused(path, monkeypatch, "in no format")


def test_a_column_that_computes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generated column may call a function with the file's own arguments: it is no column to us, and never runs."""
    change(
        path, "ALTER TABLE events RENAME TO old", "CREATE TABLE events(timestamp, pid, tid, source, op, duration, "
        "arg0, arg1 AS (length(printf('%.9000000d', 1))), ret_code, stack_hash, cgroup_id, id)",
        "INSERT INTO events SELECT timestamp, pid, tid, source, op, duration, arg0, ret_code, stack_hash, cgroup_id, "
        "id FROM old LIMIT 5",
    )  # fmt: skip
    refused(path, monkeypatch, "its table events has no column arg1")


def test_rows_in_a_log_beside_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.with_name(path.name + "-wal").write_bytes(b"x" * 64)
    refused(path, monkeypatch, "hostile.db-wal lies beside it")


def test_a_value_past_the_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(path, f"INSERT INTO process_names VALUES (9, zeroblob({foreign_sqlite.MAX_VALUE_BYTES + 1}), 0)")
    refused(path, monkeypatch, "too big")


def test_more_work_than_its_size_allows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_sqlite, "_WORK_LEAST", 1_000)
    monkeypatch.setattr(foreign_sqlite, "_WORK_PER_BYTE", 0)
    monkeypatch.setattr(foreign_sqlite, "_WORK_EVERY", 500)
    refused(path, monkeypatch, "more work than its size allows")


def test_more_processes_than_a_host_has(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(path, "UPDATE events SET pid = rowid + 100, tid = rowid + 100")
    monkeypatch.setattr(ingero_processes, "MAX_IDS", 100)
    refused(path, monkeypatch, "more than 100 processes")


def test_more_stacks_than_are_carried(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(
        path, "UPDATE events SET stack_hash = rowid",
        """INSERT INTO stack_traces SELECT rowid, '', '[{"s":"f"}]' FROM events""",
    )  # fmt: skip
    monkeypatch.setattr(ingero_stacks, "MAX_STACKS", 50)
    sink, told = read(path)
    assert len(sink.rows["stack_frames"]) == 50
    assert any("past the number that is carried: 1950" in x for x in told.not_carried)


def test_a_file_that_changes_while_it_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = ingero._read

    def meanwhile(*given: object) -> None:
        inner(*given)  # type: ignore[arg-type]
        with path.open("ab") as f:
            f.write(b"more")

    monkeypatch.setattr(ingero, "_read", meanwhile)
    refused(path, monkeypatch, "was changed while it was read")


@pytest.mark.parametrize("text", [
    "[" * 60_000, '[{"pfn": "\\ud800", "pf": 5, "pl": 99999999999999999999}]', '[{"s": "f+0xzz"}]', "{}", "[1, 2]",
    "[" + "9" * 20_000 + "]", '[{"s": ["f"], "f": {"a": 1}}]',
])  # fmt: skip
def test_json_that_is_none(path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the frames of a stack and in the timeline of a conclusion; what can be carried is."""
    monkeypatch.setenv("GPU_AUDIT_KEYS", str(path.parent / "keys"))
    db = sqlite3.connect(path)
    db.execute("UPDATE events SET stack_hash = 7 WHERE rowid < 9")
    db.execute("INSERT INTO stack_traces VALUES (7, '', ?)", (text,))
    db.execute("INSERT INTO causal_chains VALUES ('c', 1, 'HIGH', 's', 'r', ?, ?, 'cudaFree', 9, 3, 3.0, ?, '')",
               (text, text, text))  # fmt: skip
    db.commit()
    db.close()
    result = run_import(ImportOptions((path,), path.parent / "x.out"))
    rows = result.files[0]["rows"]
    assert isinstance(rows, dict)
    assert rows["cuda_calls"] == "2000"
    assert rows["stored_conclusions"] == "1"


@pytest.mark.parametrize("column", ["timestamp", "pid", "tid", "source", "op", "duration", "arg0", "arg1", "ret_code",
                                    "stack_hash", "cgroup_id"])  # fmt: skip
def test_cells_of_another_kind(path: Path, column: str) -> None:
    """SQLite keeps any kind of value in any column; each row is checked by itself."""
    for n, value in enumerate(("'x'", "1.5", "x'00'", "9223372036854775807", "-9223372036854775808", "1e300")):
        change(path, f"UPDATE events SET {column} = {value} WHERE rowid = {n + 1}")
    sink, told = read(path)
    assert told.unreadable >= 4
    carried = sum(len(rows) for t, rows in sink.rows.items() if t not in ("processes", "host_samples"))
    assert 1_994 <= carried <= 1_996
