"""File systems and the disks they lie on, from a tree of files whose numbers are known, and from the live ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpuaudit.bundle.columns import from_records
from gpuaudit.bundle.tables import TABLES
from gpuaudit.capture import mounts
from gpuaudit.capture.mounts import Mounts

Rows = list[tuple[str, dict[str, object]]]

WHOLE = "31 1 7:0 / / rw shared:1 - ext4 /dev/loop0 rw,errors=remount-ro"
PART = "32 31 259:2 / /srv/data\\040sets rw - xfs /dev/nvme0n1p2 rw"
BOUND = "33 31 259:2 /models /models ro - xfs /dev/nvme0n1p2 rw"
MAPPED = "34 31 252:0 / /home rw - btrfs /dev/mapper/home rw"
OTHERS = "35 31 0:29 / /proc rw - proc proc rw\n36 31 0:60 / /net rw - nfs4 host:/x rw\nbroken\n37 31 8:x / / rw - a b"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A disk with a partition, a loop device, and a device made of another."""
    for folder, files in (
        ("sys/devices/nvme0n1", {"dev": "259:0\n", "size": "1000000\n"}),
        ("sys/devices/nvme0n1/nvme0n1p2", {"dev": "259:2\n", "size": "400000\n", "start": "2048\n", "partition": "2"}),
        ("sys/devices/loop0", {"dev": "7:0\n", "size": "8192\n"}),
        ("sys/devices/dm-0", {"dev": "252:0\n", "size": "5000\n"}),
        ("sys/devices/dm-0/slaves/nvme0n1", {}),
        ("sys/devices/loop0/slaves", {}),
        ("proc/1", {}), ("proc/self", {}), ("sys/dev/block", {}),
    ):  # fmt: skip
        (tmp_path / folder).mkdir(parents=True)
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text, "ascii")
    for device, folder in (("259:2", "nvme0n1/nvme0n1p2"), ("259:0", "nvme0n1"), ("7:0", "loop0"), ("252:0", "dm-0")):
        (tmp_path / "sys/dev/block" / device).symlink_to(tmp_path / "sys/devices" / folder)
    return tmp_path


def of(host: Path, *lines: str) -> tuple[Mounts, Rows]:
    """Of a host with these mounts, after the first look."""
    (host / "proc/1/mountinfo").write_text("\n".join(lines) + "\n", "utf-8")
    rows: Rows = []
    made = Mounts(lambda table, row: rows.append((table, row)), host / "proc", host / "sys")
    made.poll()
    for table, row in rows:
        from_records(TABLES[table], [row])  # every row fits its table
    return made, rows


def told(rows: Rows, *columns: str) -> list[tuple[object, ...]]:
    return [tuple(row[c] for c in columns) for table, row in rows if table == "mounts"]


def test_a_file_system_and_its_place_on_the_disk(host: Path) -> None:
    _, rows = of(host, WHOLE, PART, BOUND, MAPPED, OTHERS)
    assert told(rows, "op", "mount_id", "major", "minor", "type", "root", "path") == [
        ("mounted", 31, 7, 0, "ext4", "/", "/"), ("mounted", 32, 259, 2, "xfs", "/", "/srv/data sets"),
        ("mounted", 33, 259, 2, "xfs", "/models", "/models"), ("mounted", 34, 252, 0, "btrfs", "/", "/home"),
    ]  # fmt: skip
    nothing = (None, None, None, None)
    assert told(rows, "disk_major", "disk_minor", "first_sector", "sectors") == [
        (7, 0, 0, 8192), (259, 0, 2048, 400_000), (259, 0, 2048, 400_000), nothing,
    ]  # fmt: skip


def test_neither_servers_nor_options_are_told(host: Path) -> None:
    _, rows = of(host, WHOLE, OTHERS)
    assert "host" not in str(rows)
    assert "remount" not in str(rows)


def test_only_what_changed_is_told_again(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = of(host, WHOLE, PART)
    monkeypatch.setattr(made, "_changes", type("Poll", (), {"poll": lambda *_: []})())
    (host / "proc/1/mountinfo").write_text(f"{WHOLE}\n{BOUND}\n", "utf-8")
    del rows[:]
    made.poll()
    assert rows == [], "the kernel did not say that anything changed"
    change(host, made, monkeypatch, WHOLE, BOUND)
    assert told(rows, "op", "path") == [("unmounted", "/srv/data sets"), ("mounted", "/models")]
    change(host, made, monkeypatch, WHOLE.replace("/ rw", "/ ro"), BOUND)
    assert len(rows) == 2, "options are not recorded, and so are no changes of them"


def test_of_too_many_the_rest_is_a_gap(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "MAX_MOUNTS", 1)
    _, rows = of(host, WHOLE, PART)
    assert told(rows, "path") == [("/",)]
    (gap,) = [row for table, row in rows if table == "gaps"]
    assert (gap["source"], gap["table_name"]) == ("block_io", "mounts")


def change(host: Path, made: Mounts, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Other mounts than before, of which the kernel says so."""
    monkeypatch.setattr(made, "_changes", type("Poll", (), {"poll": lambda *_: [(0, 2)]})())
    (host / "proc/1/mountinfo").write_text("\n".join(lines) + "\n", "utf-8")
    made.poll()


def test_what_was_told_stays_mounted_among_too_many(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = of(host, WHOLE, BOUND)
    monkeypatch.setattr(mounts, "MAX_MOUNTS", 2)
    change(host, made, monkeypatch, WHOLE, PART, BOUND)
    change(host, made, monkeypatch, PART, BOUND)
    assert told(rows, "op", "mount_id") == [("mounted", 31), ("mounted", 33), ("unmounted", 31), ("mounted", 32)]
    assert len([row for table, row in rows if table == "gaps"]) == 1


@pytest.mark.parametrize("limit", [1 << 22, 64], ids=["gone", "too long"])
def test_what_cannot_be_read_is_a_gap_and_no_end_of_mounts(
    host: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    made, rows = of(host, WHOLE, PART)
    monkeypatch.setattr(mounts, "MAX_FILE_BYTES", limit)
    monkeypatch.setattr(made, "_file", host / "proc/1" / ("mountinfo" if limit == 64 else "none"))
    change(host, made, monkeypatch, PART, WHOLE)
    assert told(rows, "op", "mount_id") == [("mounted", 31), ("mounted", 32)]
    (gap,) = [row for table, row in rows if table == "gaps"]
    assert str(gap["reason"]).endswith("could not be read whole")


def test_a_host_that_does_not_tell_has_a_gap_and_no_rows(tmp_path: Path) -> None:
    rows: Rows = []
    made = Mounts(lambda table, row: rows.append((table, row)), tmp_path)
    made.poll()
    made.poll()
    assert [(table, row["table_name"]) for table, row in rows] == [("gaps", "mounts")]


def test_this_host() -> None:
    """Whatever is mounted here: each file system that can be reached has its device's number."""
    rows: Rows = []
    made = Mounts(lambda table, row: rows.append((table, row)))
    try:
        made.poll()
        made.poll()
        assert not [row for table, row in rows if table == "gaps"]
        here = [(Path(str(path)), device) for path, *device in told(rows, "path", "major", "minor")]
        if Path("/proc/1/mountinfo").read_bytes() == Path("/proc/self/mountinfo").read_bytes():
            for path in {p for p, _ in here if os.access(p, os.F_OK)}:  # others: in closed folders, or mounted over
                device = path.stat().st_dev
                assert [os.major(device), os.minor(device)] in [d for p, d in here if p == path] or not os.major(device)
    finally:
        made.close()
        made.close()
