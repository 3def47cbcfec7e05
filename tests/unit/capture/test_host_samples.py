"""What the kernel counts by itself: read from a tree of files whose numbers are known, and from the live ones."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import pytest

from gpuaudit.bundle.columns import from_records
from gpuaudit.bundle.tables import TABLES
from gpuaudit.capture.cgroup_files import Hierarchy, cgroups_of, hierarchies, with_ancestors
from gpuaudit.capture.host_samples import CGROUPS_EVERY_PASSES, MAX_PROCESSES, HostSamples
from gpuaudit.capture.pressure_source import NoPressure, Pressure, read_pressure
from gpuaudit.capture.process_samples import NS_PER_TICK, PAGE_BYTES, sample

SOME = "some avg10=1.50 avg60=0.33 avg300=0.10 total=4000\n"
FULL = "full avg10=0.00 avg60=0.00 avg300=0.00 total=1500\n"

# comm with a blank, a bracket and digits, as a hostile process may call itself
STAT = "77 (a) S 1 (b) R 1 77 77 0 -1 4194304 508168 11 42 7 2259 10478 0 0 20 0 14 0 300 1000000 5788 " + "0 " * 28


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc with one process, in a cgroup of both versions."""
    root = tmp_path / "proc"
    put(root, {
        "self/mountinfo": (
            f"31 1 0:29 / {tmp_path}/two\\040words rw shared:1 - cgroup2 cgroup2 rw,nsdelegate\n"
            f"32 1 0:30 / {tmp_path}/one rw - cgroup cgroup rw,cpu,cpuacct\n"
            f"33 1 0:31 / {tmp_path}/mem rw - cgroup cgroup rw,memory\n"
            "34 1 0:32 / /tmp rw - tmpfs tmpfs rw\n"
        ),
        "77/stat": STAT,
        "77/status": "Name:\ta\nvoluntary_ctxt_switches:\t806\nnonvoluntary_ctxt_switches:\t243\n",
        "77/cgroup": "5:cpu,cpuacct:/slurm/job_5\n4:memory:/x\n0::/kube/pod:1/box\n",
        "pressure/cpu": SOME, "pressure/memory": SOME + FULL, "pressure/io": SOME + FULL, "pressure/irq": FULL,
    })  # fmt: skip
    unified = "two words/kube/pod:1"
    put(tmp_path, {
        f"{unified}/cpu.stat": "usage_usec 33\nnr_periods 9\nnr_throttled 4\nthrottled_usec 700\n",
        f"{unified}/cpu.max": "50000 100000\n", f"{unified}/memory.pressure": SOME,
        f"{unified}/box/cpu.stat": "usage_usec 12\n", f"{unified}/box/cpu.max": "max 100000\n",
        "one/slurm/job_5/cpu.stat": "nr_periods 10\nnr_throttled 6\nthrottled_time 5500\n",
        "one/slurm/job_5/cpu.cfs_quota_us": "20000\n", "one/slurm/job_5/cpu.cfs_period_us": "100000\n",
        "one/slurm/job_5/cpuacct.usage": "123456\n", "one/slurm/cpu.cfs_quota_us": "-1\n",
        "one/slurm/cpu.cfs_period_us": "100000\n", "one/slurm/cpu.stat": "nr_periods 0\n",
    })  # fmt: skip
    return root


def polled(proc: Path, pids: list[int]) -> dict[str, list[dict[str, object]]]:
    rows: dict[str, list[dict[str, object]]] = defaultdict(list)
    samples = HostSamples(lambda table, row: rows[table].append(row), proc)
    samples.poll(pids)
    for table, found in rows.items():
        from_records(TABLES[table], found)  # every row fits its table
    return rows


def without_time(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{k: v for k, v in row.items() if k != "start_ns"} for row in rows]


def test_a_process_is_sampled(proc: Path) -> None:
    (row,) = polled(proc, [77, 78])["process_samples"]  # 78 is gone
    assert without_time([row]) == [{
        "pid": 77, "user_ns": 2259 * NS_PER_TICK, "system_ns": 10478 * NS_PER_TICK, "major_faults": 42,
        "minor_faults": 508168, "resident_bytes": 5788 * PAGE_BYTES, "threads": 14, "voluntary_switches": 806,
        "involuntary_switches": 243, "cpu_cgroup": "/slurm/job_5", "cpu_cgroup_version": 1,
    }]  # fmt: skip


@pytest.mark.parametrize(
    "stat", ["", "77 (a", "77 (a) Z 1 2", STAT.replace(") R ", ") Z "), STAT.replace("508168", "x")]
)
def test_a_process_without_counters_has_no_row(proc: Path, stat: str) -> None:
    put(proc, {"77/stat": stat})
    assert sample(77, 1, proc) is None


def test_switches_that_are_not_told_are_null(proc: Path) -> None:
    (proc / "77/status").unlink()
    row = sample(77, 1, proc)
    assert row is not None
    assert (row["voluntary_switches"], row["involuntary_switches"], row["minor_faults"]) == (None, None, 508168)


def test_pressure_of_host_and_cgroups(proc: Path) -> None:
    rows = without_time(polled(proc, [77])["pressure"])
    assert rows == [
        {"resource": "cpu", "cgroup": None, "some_ns": 4_000_000, "full_ns": None},
        {"resource": "memory", "cgroup": None, "some_ns": 4_000_000, "full_ns": 1_500_000},
        {"resource": "io", "cgroup": None, "some_ns": 4_000_000, "full_ns": 1_500_000},
        {"resource": "irq", "cgroup": None, "some_ns": None, "full_ns": 1_500_000},
        {"resource": "memory", "cgroup": "/kube/pod:1", "some_ns": 4_000_000, "full_ns": None},
    ]


def test_a_resource_the_kernel_lacks_is_named(proc: Path) -> None:
    """That is no gap: most kernels lack one of them, and the others are recorded."""
    (proc / "pressure/irq").unlink()
    samples = HostSamples(lambda _table, _row: None, proc)
    assert samples.note == f"no pressure of irq: this kernel has no {proc}/pressure/irq"
    assert polled(proc, [77])["gaps"] == []


def test_a_kernel_without_pressure_leaves_a_gap(proc: Path) -> None:
    for file in (proc / "pressure").iterdir():
        file.unlink()
    rows = polled(proc, [77])
    assert list(HostSamples(lambda _table, _row: None, proc).missing) == ["pressure"]
    (gap,) = rows["gaps"]
    assert (gap["source"], gap["table_name"], gap["duration_ns"]) == ("memory", "pressure", None)
    assert "/pressure/cpu" in str(gap["reason"])
    assert rows["pressure"] == []
    assert rows["process_samples"] != []


def test_a_kernel_without_cgroups_leaves_a_gap(proc: Path) -> None:
    put(proc, {"self/mountinfo": "34 1 0:32 / /tmp rw - tmpfs tmpfs rw\n"})
    rows = polled(proc, [77])
    assert [(g["table_name"], g["duration_ns"]) for g in rows["gaps"]] == [("cgroup_cpu", None)]
    assert {row["cgroup"] for row in rows["pressure"]} == {None}


@pytest.mark.parametrize(
    "text", ["", "some avg10=0 total=x\n", "some avg10=nan avg60=0 avg300=0 total=1\n", "\0" * 5000]
)
def test_what_is_no_pressure_is_refused(tmp_path: Path, text: str) -> None:
    put(tmp_path, {"cpu": text})
    with pytest.raises(NoPressure, match="is not as the kernel's documentation has it"):
        read_pressure(tmp_path / "cpu")


def test_throttling_of_both_versions_and_at_every_height(proc: Path) -> None:
    assert without_time(polled(proc, [77])["cgroup_cpu"]) == [
        {"cgroup": "/kube/pod:1", "version": 2, "usage_ns": 33_000, "periods": 9, "throttled_periods": 4,
         "throttled_ns": 700_000, "quota_ns": 50_000_000, "period_ns": 100_000_000},
        {"cgroup": "/kube/pod:1/box", "version": 2, "usage_ns": 12_000, "periods": None, "throttled_periods": None,
         "throttled_ns": None, "quota_ns": None, "period_ns": 100_000_000},
        {"cgroup": "/slurm", "version": 1, "usage_ns": None, "periods": 0, "throttled_periods": None,
         "throttled_ns": None, "quota_ns": None, "period_ns": 100_000_000},
        {"cgroup": "/slurm/job_5", "version": 1, "usage_ns": 123_456, "periods": 10, "throttled_periods": 6,
         "throttled_ns": 5_500, "quota_ns": 20_000_000, "period_ns": 100_000_000},
    ]  # fmt: skip


def test_a_process_that_changes_its_cgroup_is_noticed(proc: Path) -> None:
    rows: list[tuple[str, dict[str, object]]] = []
    samples = HostSamples(lambda table, row: rows.append((table, row)), proc)
    samples.poll([77])
    put(proc, {"77/cgroup": "5:cpu,cpuacct:/slurm\n0::/\n"})
    seen = []
    for _ in range(CGROUPS_EVERY_PASSES):
        rows.clear()
        samples.poll([77])
        seen.append({row["cgroup"] for table, row in rows if table == "cgroup_cpu"})
    assert seen[-1] == {"/slurm"}


def test_more_processes_than_are_read_leave_a_gap(proc: Path) -> None:
    rows = polled(proc, list(range(1, MAX_PROCESSES + 2)))
    assert [(g["table_name"], g["reason"]) for g in rows["gaps"]] == [
        ("process_samples", f"more than {MAX_PROCESSES} processes are followed: the others were not read")
    ]


def test_hierarchies_of_a_container_and_of_the_host(tmp_path: Path) -> None:
    put(tmp_path, {"mountinfo": (
        "1 0 0:1 /docker/abc /sys/fs/cgroup/in rw - cgroup2 cgroup2 rw\n"
        "2 0 0:1 / /sys/fs/cgroup/all rw - cgroup2 cgroup2 rw\n"
        "short - cgroup2\n"
    )})  # fmt: skip
    (whole,) = hierarchies(tmp_path / "mountinfo")
    assert (whole.version, whole.root, whole.directory("/a/b")) == (2, "/", Path("/sys/fs/cgroup/all/a/b"))
    inside = Hierarchy(2, Path("/m"), "/docker/abc", frozenset())
    assert inside.directory("/docker/abc/x") == Path("/m/x")
    assert inside.directory("/docker/abcdef") is None
    assert inside.directory("/docker/abc/../other") is None
    assert hierarchies(tmp_path / "absent") == []


def test_cgroups_above(proc: Path) -> None:
    assert with_ancestors(["/a/b/c", "/a/d", "/"]) == {"/a", "/a/b", "/a/b/c", "/a/d"}
    assert cgroups_of(77, proc) == {
        "cpu": "/slurm/job_5", "cpuacct": "/slurm/job_5", "memory": "/x", "": "/kube/pod:1/box"
    }  # fmt: skip
    assert cgroups_of(78, proc) == {}


def test_the_live_files_are_understood() -> None:
    """Of this very process and host; what the host lacks has a reason."""
    row = sample(os.getpid(), 1)
    assert row is not None
    before = os.times()
    assert 0 <= int(str(row["user_ns"])) <= (before.user + 0.02) * 1e9
    assert int(str(row["resident_bytes"])) > 1 << 20
    assert int(str(row["threads"])) >= 1
    pressure = Pressure(None)
    rows = pressure.rows(1, [])
    assert {str(r["resource"]) for r in rows} | set(pressure.missing) == {"cpu", "memory", "io", "irq"}
    assert all(str(reason) for reason in pressure.missing.values())
