"""Writing: kinds, counters, crashes, full disks, and the one file at the end."""

from __future__ import annotations

import hashlib
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.bundle import sealfile
from gpuaudit.bundle.errors import EXIT_ENVIRONMENT, HostUnfit, OutputExists
from gpuaudit.bundle.reader import Bundle
from gpuaudit.bundle.tables import TABLES
from gpuaudit.bundle.verify import verify
from tests.bundles import MemorySigner, clock_rows, gap_rows, make_bundle, open_writer


def test_everything_written_is_read_back(tmp_path: Path) -> None:
    signer = MemorySigner()
    make_bundle(tmp_path / "bundle.db", signer, challenge="c")
    with Bundle.open(tmp_path / "bundle.db") as bundle:
        assert [h.kind for h in bundle.headers] == ["open", "gap", "clock", "artefact", "event", "seal"]
        assert bundle.open_body == {"host": {}, "challenge": "c", "identity": signer.public_key.hex()}
        assert list(bundle.artefacts()) == [(3, "cost", b'{"probe_pair_ns":"510"}')]
        assert list(bundle.events()) == [(4, "oom", {"pid": 77})]
        assert bundle.seal_body is not None
        assert bundle.seal_body["totals"] == {"gaps": {"seen": "21", "written": "20", "lost": "1"}}
        ((idx, rows),) = bundle.segments("gaps")
        assert idx == 1
        wanted = gap_rows(20)
        assert {n: c.to_list() for n, c in rows.items()} == {n: c.to_list() for n, c in wanted.items()}
        ((_, some),) = bundle.segments("clock", ["realtime_ns", "no_such_column"])
        assert {n: c.to_list() for n, c in some.items()} == {"realtime_ns": clock_rows(5)["realtime_ns"].to_list()}
        assert [i for i, _ in bundle.segments()] == [1, 2]


def test_sealed_bundle_is_one_private_file_with_its_seal(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle.db", MemorySigner())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle.db", "bundle.db.seal"]
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in tmp_path.iterdir())
    db = sqlite3.connect(tmp_path / "bundle.db")
    pragmas = {p: db.execute(f"PRAGMA {p}").fetchone()[0] for p in ("journal_mode", "freelist_count", "user_version")}
    assert pragmas == {"journal_mode": "delete", "freelist_count": 0, "user_version": 1}
    assert db.execute("PRAGMA application_id").fetchone()[0] == int.from_bytes(b"AUD1", "big")
    record = sealfile.parse((tmp_path / "bundle.db.seal").read_bytes())[0]
    data = (tmp_path / "bundle.db").read_bytes()
    assert (record.file_sha256, record.file_len) == (hashlib.sha256(data).hexdigest(), len(data))


def test_opens_from_a_read_only_folder(tmp_path: Path) -> None:
    signer = MemorySigner()
    path = tmp_path / "media" / "bundle.db"
    path.parent.mkdir()
    make_bundle(path, signer)
    path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        assert verify(path, trust=[signer.identity]).status == "SEALED"
    finally:
        path.parent.chmod(0o700)


def test_manifest_is_what_sha256sum_reads(tmp_path: Path) -> None:
    path = tmp_path / "bundle.db"
    make_bundle(path, MemorySigner())
    with Bundle.open(path) as bundle:
        assert bundle.seal_body is not None
        (tmp_path / "SHA256SUMS").write_text(bundle.seal_body["manifest"])
    export = "SELECT writefile('leaf-'||idx||'.payload',payload) FROM leaf WHERE kind<>'seal'"
    subprocess.run(["sqlite3", str(path), export], cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.count(": OK\n") == 5


@pytest.mark.parametrize("beside", ["", "-wal", "-shm", "-journal", ".seal"])
def test_nothing_is_overwritten(tmp_path: Path, beside: str) -> None:
    (tmp_path / f"bundle.db{beside}").write_text("mine")
    with pytest.raises(OutputExists, match="exists already"):
        open_writer(tmp_path / "bundle.db", MemorySigner())
    assert [p.read_text() for p in tmp_path.iterdir()] == ["mine"]


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HostUnfit, match="cannot create"):
        open_writer(tmp_path / "nowhere" / "bundle.db", MemorySigner())


@pytest.mark.parametrize(
    "options",
    [{"capture_uuid": "x"}, {"challenge": "two\nlines"}, {"challenge": "x" * 257}, {"challenge": " x"}],
)
def test_names_that_cannot_stand_in_a_bundle(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"origin|challenge"):
        open_writer(tmp_path / "bundle.db", MemorySigner(), **options)
    assert not list(tmp_path.iterdir())


def test_counters_must_add_up(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "bundle.db", MemorySigner())
    gaps = TABLES["gaps"]
    writer.append_segment(gaps, gap_rows(5), seen=9, written=5, lost=4)
    for seen, written, lost in [(14, 5, 4), (8, 10, 4), (14, 10, 3), (9, 10, 4)]:
        with pytest.raises(ValueError, match="seen, written, lost"):
            writer.append_segment(gaps, gap_rows(5), seen=seen, written=written, lost=lost)
    assert writer.append_segment(gaps, gap_rows(5), seen=14, written=10, lost=4) == 2
    writer.close()


def test_critical_rows_are_an_event(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "bundle.db", MemorySigner())
    from gpuaudit.bundle.columns import from_records

    row = {"start_ns": 1, "table_name": "cuda_calls", "cpu": 0, "seen": 5, "written": 4, "lost": 1}
    rows = from_records(TABLES["losses"], [row])
    writer.append_segment(TABLES["losses"], rows, seen=1, written=1, lost=0, critical=True)
    writer.append_segment(TABLES["losses"], rows, seen=2, written=2, lost=0)
    writer.close()
    with Bundle.open(tmp_path / "bundle.db") as bundle:
        assert [h.kind for h in bundle.headers] == ["open", "event", "segment"]
        assert [i for i, _ in bundle.segments("losses")] == [1, 2]
        assert list(bundle.events()) == []


def test_nothing_may_follow_the_seal(tmp_path: Path) -> None:
    writer = make_bundle(tmp_path / "bundle.db", MemorySigner())
    with pytest.raises(ValueError, match="nothing may follow the seal"):
        writer.append_event("late", {})


def test_full_disk_keeps_the_sealed_prefix_and_the_key(tmp_path: Path) -> None:
    signer = MemorySigner()
    writer = open_writer(tmp_path / "bundle.db", signer)
    writer.append_event("first", {})
    pages = writer._db.execute("PRAGMA page_count").fetchone()[0]
    writer._db.execute(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(HostUnfit, match=r"cannot write leaf 2 .*full") as caught:
        writer.append_artefact("large", bytes(1 << 20))
    assert caught.value.exit_code == EXIT_ENVIRONMENT
    assert "2 leaves before it are sealed" in caught.value.hint
    assert verify(tmp_path / "bundle.db", trust=[signer.identity]).size == 2
    writer.append_event("small", {})  # the key of leaf 2 was kept and signs again
    writer.seal({})
    writer.close()
    assert verify(tmp_path / "bundle.db", trust=[signer.identity]).status == "SEALED"


_VICTIM = """
import os, signal, sys
from pathlib import Path
from tests.bundles import MemorySigner, gap_rows, open_writer
from gpuaudit.bundle.tables import TABLES
signer = MemorySigner()
writer = open_writer(Path(sys.argv[1]), signer)
print(signer.public_key.hex(), flush=True)
for n in range(1, 1000):
    if n == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    writer.append_segment(TABLES["gaps"], gap_rows(10), seen=10 * n, written=10 * n, lost=0)
"""


@pytest.mark.parametrize("at", [1, 3, 40])
def test_killed_writer_leaves_a_prefix_that_verifies(tmp_path: Path, at: int) -> None:
    from gpuaudit.bundle.keys import Identity

    root = str(Path(__file__).resolve().parents[3])
    command = [sys.executable, "-c", _VICTIM, str(tmp_path / "bundle.db"), str(at)]
    done = subprocess.run(command, env={"PYTHONPATH": root}, capture_output=True, text=True, check=False)
    assert done.returncode == -9
    identity = Identity(bytes.fromhex(done.stdout.strip()))
    result = verify(tmp_path / "bundle.db", trust=[identity])
    assert (result.status, result.size) == ("UNSEALED", at)
    assert next(c for c in result.checks if c.name == "identity").ok


def test_seal_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash while it is written must not leave half of it: that would look like tampering."""
    signer = MemorySigner()
    writer = open_writer(tmp_path / "bundle.db", signer)
    with monkeypatch.context() as m:
        m.setattr("os.fsync", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            writer.seal({})
    assert not (tmp_path / "bundle.db.seal").exists()
    assert writer._key._private is None
    writer.close()
    assert verify(tmp_path / "bundle.db", trust=[signer.identity]).status == "SEALED"


def _interrupt(fd: int) -> None:
    if Path(f"/proc/self/fd/{fd}").readlink().is_file():
        raise KeyboardInterrupt


def test_full_bundle_can_still_be_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpuaudit.bundle import limits

    monkeypatch.setattr(limits, "MAX_LEAVES", limits.LEAVES_AT_END + 2)
    signer = MemorySigner()
    writer = open_writer(tmp_path / "bundle.db", signer)
    for n in (1, 2):
        writer.append_segment(TABLES["gaps"], gap_rows(1), seen=n, written=n, lost=0)
    with pytest.raises(HostUnfit, match="the bundle is full: it has 3 leaves"):
        writer.append_segment(TABLES["gaps"], gap_rows(1), seen=3, written=3, lost=0)
    while writer.size < limits.MAX_LEAVES - 1:
        writer.append_artefact("last", b"words")
    with pytest.raises(HostUnfit, match="the bundle is full"):
        writer.append_artefact("last", b"words")
    writer.seal({})
    writer.close()
    result = verify(tmp_path / "bundle.db", trust=[signer.identity])
    assert (result.status, result.size) == ("SEALED", limits.MAX_LEAVES)


def test_manifest_of_the_largest_bundle_fits_into_its_seal() -> None:
    from gpuaudit.bundle import limits

    line = f"{'0' * 64}  leaf-{limits.MAX_LEAVES}.payload\n"
    assert limits.MAX_LEAVES * len(line) < limits.MAX_RAW_BYTES * 3 // 4


_NO_ROOM = """
import resource, signal, sys
from pathlib import Path
from gpuaudit.bundle.errors import HostUnfit
from tests.bundles import MemorySigner, open_writer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    open_writer(Path(sys.argv[1]), MemorySigner())
except HostUnfit as e:
    print(e)
"""


@pytest.mark.parametrize("room_bytes", [0, 4096, 12288])
def test_no_room_to_begin(tmp_path: Path, room_bytes: int) -> None:
    """No room for the first page, for the tables, for leaf 0: one line, and never a traceback."""
    root = str(Path(__file__).resolve().parents[3])
    command = [sys.executable, "-c", _NO_ROOM, str(tmp_path / "bundle.db"), str(room_bytes)]
    done = subprocess.run(command, env={"PYTHONPATH": root}, capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.startswith("cannot ")
    assert done.stdout.count("\n") == 1
