"""Requests to a disk of this test's own (a loop device): every one, with the sectors that were asked for."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gpuaudit.capture.cgroup_files import hierarchies
from gpuaudit.capture.selection import Selection
from gpuaudit.capture.source import boottime_ns
from tests.integration.disks import folder_on_disk
from tests.integration.recording import DEADLINE_S, Recording, Row, recording, start

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

BLOCK_IO = Selection(sources=frozenset({"block_io"}))
SECTOR_BYTES = 512
ALIGNMENT_BYTES = 4096

WRITER = """
import os, sys
with open("/proc/self/comm", "w") as f:
    f.write("the writer")
with open(sys.argv[1], "wb") as f:
    f.write(os.urandom(1 << 20))
"""


def run(*command: str | Path) -> str:
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout.strip()


Disks = Callable[..., Path]


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    """Makes loop devices: ``disks(size_bytes, folder, direct=…)``. They go with ``undo``, at the end of the test."""
    with ExitStack() as all_undone:
        count = 0

        def make(
            size_bytes: int, folder: Path = tmp_path, *, direct: bool = False, undo: ExitStack = all_undone
        ) -> Path:
            nonlocal count
            count += 1
            file = folder / f"disk{count}"
            with file.open("wb") as f:
                f.truncate(size_bytes)
            try:
                device = run("losetup", "--find", "--show", *(["--direct-io=on"] if direct else []), file)
            except (OSError, subprocess.CalledProcessError) as e:
                pytest.skip(f"no loop device can be made here: {getattr(e, 'stderr', e)}")
            undo.callback(run, "losetup", "--detach", device)
            return Path(device)

        yield make


@contextmanager
def mounted(device: str | Path, place: Path, *options: str) -> Iterator[Path]:
    place.mkdir()
    run("mount", *options, device, place)
    try:
        yield place
    finally:
        run("umount", "--lazy", place)  # a loop device lets go of its file a moment after it is detached


def direct(device: Path, flags: int = 0) -> int:
    return os.open(device, os.O_RDWR | os.O_DIRECT | flags)


def block(size_bytes: int) -> mmap.mmap:
    """Memory that O_DIRECT accepts."""
    return mmap.mmap(-1, size_bytes)


def rows_of(r: Recording, device: Path, **wanted: object) -> list[Row]:
    number = device.stat().st_rdev
    return r.of("block_io", major=os.major(number), minor=os.minor(number), **wanted)


def await_issue(device: Path) -> None:
    """Until the device has a request that it works on (/sys/block: inflight)."""
    deadline = time.monotonic() + DEADLINE_S
    while Path("/sys/block", device.name, "inflight").read_text("ascii").split() != ["0", "1"]:
        assert time.monotonic() < deadline, "the request was not issued"
        time.sleep(0.01)


def test_every_request_with_its_sectors(disks: Disks) -> None:
    """Sizes and places are the caller's; the caller is the issuer, and no file stands behind the pages."""
    device = disks(8 << 20)
    asked = [("write", 0, 4096), ("write", 1 << 20, 65536), ("read", 1 << 20, 16384), ("read", 0, 4096),
             ("write", (8 << 20) - 4096, 4096)]  # fmt: skip
    with recording(BLOCK_IO) as r:
        fd = direct(device)
        before = boottime_ns()
        for op, at, size in asked:
            with block(size) as memory:
                done = os.pwritev(fd, [memory], at) if op == "write" else os.preadv(fd, [memory], at)
                assert done == size
        after = boottime_ns()
        os.close(fd)
        r.finish()
        rows = [row for row in rows_of(r, device, pid=os.getpid()) if before <= row["start_ns"] <= after]
    assert [(x["op"], x["sector"] * SECTOR_BYTES, x["size_bytes"]) for x in rows] == asked
    assert {(x["error"], x["tid"], x["for_pid"], x["for_comm"]) for x in rows} == {
        (0, threading.get_native_id(), None, None)
    }
    assert {x["comm"] for x in rows} == {Path("/proc/self/comm").read_text("ascii").strip()}
    ends = [x["start_ns"] + x["duration_ns"] for x in rows]
    assert all(end <= row["start_ns"] for end, row in zip(ends, rows[1:], strict=False))  # one after the other
    assert ends[-1] <= after
    assert all(x["cgroup_id"] for x in rows)
    assert r.lost() == 0
    assert sorted(x["seq"] for x in r.rows["block_io"] if x["cpu"] == 0) == list(
        range(sum(x["cpu"] == 0 for x in r.rows["block_io"]))
    )


def test_the_wait_in_the_queue_is_apart(disks: Disks) -> None:
    """Where a scheduler queues the requests the time until the issue is told; where none does there is none."""
    device = disks(1 << 20)
    scheduler = Path("/sys/block", device.name, "queue/scheduler")
    told, before = {}, scheduler.read_text("ascii").split("[")[1].split("]")[0]
    for name in ("none", "mq-deadline"):
        try:
            scheduler.write_text(name, "ascii")
        except OSError:
            pytest.skip(f"this kernel has no I/O scheduler {name}")
        with recording(BLOCK_IO) as r, block(4096) as memory:
            fd = direct(device)
            os.preadv(fd, [memory], 0)
            os.close(fd)
            r.finish()
            (row,) = rows_of(r, device, pid=os.getpid(), size_bytes=4096)
            told[name] = row["queue_ns"]
    scheduler.write_text(before, "ascii")
    assert told["mq-deadline"] is not None
    assert told["none"] is None


def error_of(call: Callable[[int, list[mmap.mmap], int], int], device: Path, at: int, size_bytes: int) -> int:
    """Number of the error that reading or writing so much there ends with, after what can be done was done."""
    fd = direct(device)
    done = 0
    try:
        while done < size_bytes:
            with block(size_bytes - done) as memory:
                done += call(fd, [memory], at + done)
    except OSError as e:
        return e.errno or 0
    finally:
        os.close(fd)
    return 0


def test_errors_are_the_ones_the_caller_gets(disks: Disks, tmp_path: Path) -> None:
    """A file that ends in the middle of its disk, and one on a file system that is full."""
    middle = 512 << 10
    with ExitStack() as undo:
        place = undo.enter_context(folder_on_disk(tmp_path))
        short = disks(1 << 20, place, direct=True, undo=undo)
        os.truncate(place / "disk1", middle)
        small = undo.enter_context(mounted("none", tmp_path / "small", "-t", "tmpfs", "-o", "size=256k"))
        full = disks(1 << 20, small, undo=undo)
        (small / "filler").write_bytes(bytes(256 << 10))
        with recording(BLOCK_IO) as r:
            assert error_of(os.preadv, short, middle - 4096, 8192) == errno.EIO  # its first half can be read
            assert error_of(os.preadv, short, middle, 8192) == errno.EIO
            no_room = error_of(os.pwritev, full, 0, 65536)
            assert no_room in (errno.ENOSPC, errno.EIO)  # the latter from older loop drivers
            r.finish()
    mine = [(x["sector"] * SECTOR_BYTES, x["size_bytes"], x["error"]) for x in rows_of(r, short, pid=os.getpid())]
    assert mine == [(middle - 4096, 8192, -errno.EIO), (middle, 8192, -errno.EIO)]
    (row,) = rows_of(r, full, op="write")
    assert (row["sector"], row["size_bytes"], row["error"]) == (0, 65536, -no_room)


def test_the_cgroup_that_is_charged(disks: Disks) -> None:
    """Its id is that of the directory, in the hierarchy that the controller lies on."""
    device = disks(1 << 20)
    groups = [h.mount for h in hierarchies() if "blkio" in h.controllers or (h.version == 2 and has_io(h.mount))]
    if not groups:
        pytest.skip("no hierarchy of cgroups has the controller io or blkio")
    group = groups[0] / f"gpuaudit-test-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    try:
        with recording(BLOCK_IO) as r:
            read = 'echo $$ >"$1/cgroup.procs"; exec dd if="$2" of=/dev/null iflag=direct bs=4096 count=1'
            run("sh", "-c", read, "sh", group, device)
            r.finish()
        (row,) = rows_of(r, device, comm="dd", size_bytes=4096)
        assert row["cgroup_id"] == group.stat().st_ino
    finally:
        group.rmdir()


def has_io(mount: Path) -> bool:
    return "io" in (mount / "cgroup.subtree_control").read_text("ascii").split()


def test_writeback_names_whose_pages_it_writes(disks: Disks, tmp_path: Path) -> None:
    """The writer has ended when a kernel thread writes its file; what the file system writes for itself is nobody's."""
    device = disks(32 << 20)
    run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", device)
    with mounted(device, tmp_path / "place") as place, recording(BLOCK_IO) as r:
        file = place / "file"
        writer = start(sys.executable, "-c", WRITER, file)
        _, said = writer.communicate(timeout=DEADLINE_S)
        assert writer.returncode == 0, said
        assert rows_of(r, device, pid=writer.pid, op="write") == []
        os.sync()
        r.drain()
        written = rows_of(r, device, op="write", for_pid=writer.pid)
        assert sum(row["size_bytes"] for row in written) == 1 << 20
        assert {row["for_comm"] for row in written} == {"the writer"}
        assert writer.pid not in {row["pid"] for row in written}
        assert all(row["comm"].startswith("kworker/") for row in written)
        journal = [row for row in rows_of(r, device, op="write") if row["comm"].startswith("jbd2/")]
        assert journal
        assert {row["for_pid"] for row in journal} <= {
            None,
            *{row["pid"] for row in journal},
            *{row["pid"] for row in written},
        }
        r.finish()


def test_a_request_that_never_comes_back_is_told_without_an_end(disks: Disks, tmp_path: Path) -> None:
    """The file system below the disk is frozen; when the capture ends, the write is still on its way."""
    below = disks(32 << 20)
    run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", below)
    with mounted(below, tmp_path / "below") as place, ExitStack() as undo:
        device = disks(1 << 20, place, undo=undo)
        fd = direct(device)
        undo.callback(os.close, fd)
        memory = undo.enter_context(block(4096))
        with recording(BLOCK_IO) as r:
            run("fsfreeze", "--freeze", place)
            try:
                thread = threading.Thread(target=os.pwritev, args=(fd, [memory], 8192))
                thread.start()
                await_issue(device)
                r.finish()
            finally:
                run("fsfreeze", "--unfreeze", place)
            thread.join(DEADLINE_S)
    (row,) = rows_of(r, device, op="write")
    assert (row["duration_ns"], row["error"]) == (None, None)
    assert (row["sector"], row["size_bytes"], row["pid"]) == (8192 // SECTOR_BYTES, 4096, os.getpid())
