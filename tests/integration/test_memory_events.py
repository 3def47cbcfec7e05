"""Pages, direct reclaim and kills for want of memory, against what the workload and the kernel count themselves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from gpuaudit.capture.cgroup_files import cgroups_of, hierarchies, read_counters
from gpuaudit.capture.parts import MEMORY as MEMORY_PART
from gpuaudit.capture.selection import Selection
from tests.integration.disks import folder_on_disk
from tests.integration.memory_cgroups import limit, memory_cgroup
from tests.integration.recording import DEADLINE_S, Recording, recording, start, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

PAGE_BYTES = 4096
MEMORY = Selection(sources=frozenset({"memory"}))
ERROR_BYTES = 3 * max(32, 2 * (os.cpu_count() or 1)) * (os.cpu_count() or 1) * PAGE_BYTES
"""What the kernel's three sums of resident pages may lack."""

TRACED = """
import ctypes, json, mmap, os, resource, sys
with open("/proc/self/comm", "w") as f:
    f.write(sys.argv[2])
ctypes.CDLL(sys.argv[1])  # what makes it a traced process
print("at start", flush=True)
sys.stdin.readline()
"""

TOUCH = (
    TRACED
    + """
pages = int(sys.argv[3])
area = mmap.mmap(-1, pages * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.madvise(mmap.MADV_NOHUGEPAGE)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range(0, len(area), 4096):
    area[i] = 1
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
huge = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
huge.madvise(mmap.MADV_HUGEPAGE)
for i in range(0, len(huge), 4096):
    huge[i] = 1
with open("/proc/self/smaps_rollup") as f:
    backed = [int(line.split()[1]) for line in f if line.startswith("AnonHugePages:")]
with open("/sys/kernel/mm/transparent_hugepage/enabled") as f:
    print(json.dumps({"faults": faults, "huge": f.read().split("[")[1], "huge_pages": backed[0] // 2048}), flush=True)
"""
)

READ = (
    TRACED
    + """
with open(sys.argv[3], "rb", buffering=0) as f:
    while f.read(1 << 20):
        pass
"""
)

EAT = (
    TRACED
    + """
area = bytearray(int(sys.argv[3]))
print("eaten", flush=True)
sys.stdin.readline()
"""
)


@pytest.fixture
def memory_group() -> Iterator[Path]:
    with memory_cgroup() as folder:
        yield folder


def join(cgroup: Path, pid: int) -> None:
    (cgroup / "cgroup.procs").write_text(str(pid), "ascii")


def drop_cache(file: Path) -> None:
    """Have the next read come from the disk."""
    with file.open("rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def unified_id() -> int:
    """The id of this process's cgroup in version 2."""
    mount = next(h.mount for h in hierarchies() if h.version == 2)
    return Path(f"{mount}{cgroups_of(os.getpid())['']}").stat().st_ino


def begin(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a workload; it waits for :func:`go`."""
    process = start(sys.executable, "-c", code, *map(str, arguments), stdin=subprocess.PIPE)
    wait_for_line(process, "at start")
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def run_to_end(r: Recording, process: subprocess.Popen[str]) -> str:
    """Record until the workload ends, with a window of sums as often as the loop turns."""
    deadline = time.monotonic() + DEADLINE_S
    while process.poll() is None:
        assert time.monotonic() < deadline, "the workload does not end"
        r.capture.tick()
        r.drain()
    out, _ = process.communicate()
    return out


def test_every_page_is_counted_however_the_windows_fall(doubles: Path) -> None:
    """As many as the kernel counts page faults; a huge page is one of order 9."""
    pages = 20_000
    with recording(MEMORY) as r:
        process = begin(TOUCH, doubles / "libcudart.so.13", "toucher", pages)
        r.capture.scan()
        before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        go(process)
        said = json.loads(run_to_end(r, process).splitlines()[-1])
        r.finish()
        assert process.returncode == 0
        rows = [row for row in r.of("page_allocations", pid=process.pid) if row["start_ns"] >= before]
        assert r.lost() == 0
        assert said["faults"] >= pages
        single = sum(row["count"] for row in rows if row["order"] == 0)
        # besides the pages themselves: their page tables, one for 512 pages, and what the interpreter takes
        assert said["faults"] <= single <= said["faults"] + pages // 512 + 700
        assert len({row["start_ns"] for row in rows if row["order"] == 0}) > 1
        if "never" not in said["huge"]:
            assert sum(row["count"] for row in rows if row["order"] == 9) >= said["huge_pages"] > 0


def test_pages_that_find_no_room_in_the_map_are_told(doubles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for one process and order: the other orders are a gap with their number."""
    narrow = replace(MEMORY_PART, maps={"pages_even": 1, "pages_odd": 1})
    monkeypatch.setattr("gpuaudit.capture.bpf_capture.PARTS", (narrow,))
    with recording(MEMORY) as r:
        process = begin(TOUCH, doubles / "libcudart.so.13", "toucher", 1000)
        r.capture.scan()
        go(process)
        process.communicate(timeout=DEADLINE_S)
        r.finish()
        assert len({(row["pid"], row["order"]) for row in r.rows["page_allocations"]}) == 1
        (reason,) = {row["reason"] for row in r.of("gaps", source="memory")}
        number, _, meaning = reason.partition(" ")
        assert int(number) > 0
        assert meaning.startswith("page allocations were not counted")


def test_nobody_else_s_pages_are_counted(doubles: Path) -> None:
    """A process that maps no probed library is not traced, however much it allocates."""
    with recording(MEMORY) as r:
        process = start(sys.executable, "-c", "bytearray(64 << 20)")
        run_to_end(r, process)
        r.finish()
        assert process.returncode == 0
        assert r.of("page_allocations", pid=process.pid) == []


def test_a_thread_that_must_reclaim_says_so(doubles: Path, memory_group: Path, tmp_path: Path) -> None:
    """A file four times as large as the cgroup's limit: each page that is read after it pushes another one out."""
    pages, room = 16_384, 4_096
    with folder_on_disk(tmp_path) as folder, recording(MEMORY) as r:
        file = folder / "file"
        file.write_bytes(os.urandom(1 << 20) * (pages * PAGE_BYTES >> 20))
        drop_cache(file)
        limit(memory_group, room * PAGE_BYTES)
        process = begin(READ, doubles / "libcudart.so.13", "reader", file)
        r.capture.scan()
        join(memory_group, process.pid)
        before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        go(process)
        run_to_end(r, process)
        after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        r.finish()
        assert process.returncode == 0
        rows = r.of("reclaims", pid=process.pid)
        assert {(row["op"], row["cgroup_limit"], row["tid"]) for row in rows} == {("cgroup", 1, process.pid)}
        assert {row["comm"] for row in rows} == {"reader"}
        # read ahead of the reader, some pages are pushed out before their turn, and read again
        again = read_counters(memory_group / "memory.stat")["workingset_refault_file"]
        reclaimed = sum(row["reclaimed_pages"] for row in rows)
        # the kernel's own memory counts too, and what it charges in advance
        assert pages + again - room - 1024 <= reclaimed <= pages + again + 1024
        assert all(before <= row["start_ns"] <= row["start_ns"] + row["duration_ns"] <= after for row in rows)
        assert r.of("reclaims", duration_ns=None) == []


def test_the_victim_and_whose_allocation_it_was(doubles: Path, memory_group: Path) -> None:
    """One process holds most of what the cgroup may have; another one asks for more, and the first one is killed."""
    limit(memory_group, 64 << 20)
    with recording(Selection(sources=frozenset({"memory"}), pids=frozenset({os.getpid()}))) as r:
        large = begin(EAT, doubles / "libcudart.so.13", "the victim", 40 << 20)
        small = begin(EAT, doubles / "libcudart.so.13", "the eater", 28 << 20)
        Path(f"/proc/{large.pid}/oom_score_adj").write_text("1000", "ascii")
        with suppress(PermissionError):  # on an emulated machine it would be the next victim
            Path(f"/proc/{small.pid}/oom_score_adj").write_text("-1000", "ascii")
        for process in (large, small):
            join(memory_group, process.pid)
        go(large)
        wait_for_line(large, "eaten")
        go(small)
        wait_for_line(small, "eaten")
        go(small)
        assert large.wait(DEADLINE_S) == -signal.SIGKILL
        assert small.wait(DEADLINE_S) == 0
        for process in (large, small):
            process.communicate()
        r.finish()
        (row,) = [row for row in r.rows["oom_kills"] if row["pid"] in (large.pid, small.pid)]
        assert (row["pid"], row["comm"], row["uid"]) == (large.pid, "the victim", 0)
        assert (row["killer_pid"], row["killer_comm"]) == (small.pid, "the eater")
        assert (40 << 20) - ERROR_BYTES <= row["resident_bytes"] < 64 << 20
        in_version_2 = (memory_group / "memory.max").exists()
        assert row["cgroup_id"] == (memory_group.stat().st_ino if in_version_2 else unified_id())
