"""Pressure, throttling and page faults of real processes, as the files of the kernel have them before and after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.capture.cgroup_files import Hierarchy, hierarchies, read_counters
from gpuaudit.capture.host_samples import HostSamples
from gpuaudit.capture.pressure_source import NoPressure, read_pressure
from tests.integration.disks import folder_on_disk
from tests.integration.recording import DEADLINE_S, start

pytestmark = pytest.mark.root

BUSY = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True:\n    pass\n"

FAULTS = """
import json, mmap, os, resource, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
os.fsync(fd)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
area = mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
area.madvise(mmap.MADV_RANDOM)  # no page is read before its turn
for i in range(0, len(area), 4096):
    area[i]
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"major": usage.ru_majflt, "minor": usage.ru_minflt}), flush=True)
sys.stdin.readline()
"""


def polled(pids: list[int]) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    HostSamples(lambda table, row: rows[table].append(row)).poll(pids)
    return rows


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def cgroup(hierarchy: Hierarchy) -> Iterator[tuple[str, Path]]:
    """A group of its own below the root: its name, and its directory."""
    name = f"gpuaudit-test-{uuid.uuid4().hex[:8]}"
    folder = hierarchy.mount / name
    folder.mkdir()
    try:
        yield f"{hierarchy.root.rstrip('/')}/{name}", folder
    finally:
        until(lambda: not (folder / "cgroup.procs").read_text("ascii"))
        folder.rmdir()


@contextmanager
def busy(count: int, folder: Path) -> Iterator[list[int]]:
    """So many processes in the group that compete for one CPU."""
    cpu = str(max(os.sched_getaffinity(0)))
    running = [start(sys.executable, "-c", BUSY, cpu) for _ in range(count)]
    try:
        for process in running:
            (folder / "cgroup.procs").write_text(str(process.pid), "ascii")
        yield [process.pid for process in running]
    finally:
        for process in running:
            process.kill()
            process.communicate()


def test_a_quota_that_is_used_up() -> None:
    """A fifth of a CPU: the cgroup has to stop in every period, and the row says what its file says."""
    for hierarchy in hierarchies():
        enabled = hierarchy.mount / "cgroup.subtree_control"
        if "cpu" in hierarchy.controllers or (enabled.exists() and "cpu" in enabled.read_text("ascii").split()):
            break
    else:
        pytest.skip("no hierarchy of cgroups with the controller cpu can be used")
    with cgroup(hierarchy) as (name, folder):
        if hierarchy.version == 2:
            (folder / "cpu.max").write_text("20000 100000", "ascii")
        else:
            (folder / "cpu.cfs_period_us").write_text("100000", "ascii")
            (folder / "cpu.cfs_quota_us").write_text("20000", "ascii")
        with busy(1, folder) as pids:
            until(lambda: read_counters(folder / "cpu.stat")["nr_throttled"] >= 3)
            before = read_counters(folder / "cpu.stat")
            (row,) = [r for r in polled(pids)["cgroup_cpu"] if (r["cgroup"], r["version"]) == (name, hierarchy.version)]
            after = read_counters(folder / "cpu.stat")
    throttled = {1: ("throttled_time", 1), 2: ("throttled_usec", 1000)}[hierarchy.version]
    for column, (file_name, scale) in {
        "periods": ("nr_periods", 1), "throttled_periods": ("nr_throttled", 1), "throttled_ns": throttled,
    }.items():  # fmt: skip
        assert 0 < before[file_name] * scale <= row[column] <= after[file_name] * scale
    assert (row["quota_ns"], row["period_ns"]) == (20_000_000, 100_000_000)


def test_pressure_of_the_host_and_of_a_cgroup() -> None:
    """Two processes on one CPU: one of them always waits, in their cgroup and on the host."""
    unified = next((h for h in hierarchies() if h.version == 2), None)
    if unified is None:
        pytest.skip("no hierarchy of cgroups of version 2 is mounted")
    try:
        read_pressure(Path("/proc/pressure/cpu"))
    except NoPressure as e:
        pytest.skip(str(e))
    with cgroup(unified) as (name, folder), busy(2, folder) as pids:
        files = {None: Path("/proc/pressure/cpu"), name: folder / "cpu.pressure"}
        if not files[name].exists():
            pytest.skip("this kernel has no pressure of cgroups")
        until(lambda: read_pressure(files[name])["some"] > 0)
        before = {place: read_pressure(file)["some"] for place, file in files.items()}
        rows = polled(pids)["pressure"]
        after = {place: read_pressure(file)["some"] for place, file in files.items()}
    told = {row["cgroup"]: row["some_ns"] for row in rows if row["resource"] == "cpu" and row["cgroup"] in files}
    assert told.keys() == files.keys()
    for place in files:
        assert before[place] <= told[place] <= after[place]
    assert {row["cgroup"] for row in rows if row["resource"] == "memory"} >= {None, name}


def test_faults_that_had_to_read_from_the_disk(tmp_path: Path) -> None:
    """Every page of a file that is not in the cache; the process counts the same."""
    pages = 200
    with folder_on_disk(tmp_path) as folder:
        file = folder / "file"
        file.write_bytes(os.urandom(pages * 4096))
        process = start(sys.executable, "-c", FAULTS, file, stdin=subprocess.PIPE)
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        (row,) = polled([process.pid])["process_samples"]
        process.communicate("\n")
    assert said["major"] >= pages
    assert said["major"] <= row["major_faults"] <= said["major"] + 10  # printing may take some
    assert said["minor"] <= row["minor_faults"] <= said["minor"] + 50
    assert row["pid"] == process.pid
