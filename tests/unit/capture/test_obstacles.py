"""What is named when the kernel refuses: the capability, the sysctl or the lockdown mode, with its value."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpuaudit.capture.child import child_environment
from gpuaudit.capture.obstacles import Step, in_words, lockdown_mode, obstacles, settings

NOTHING: frozenset[str] = frozenset()
ALL = frozenset({"CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"})


def host(root: Path, *, lockdown: str | None = None, **sysctls: str) -> Path:
    """A root directory that says of itself what no test can make a kernel be."""
    for name, value in sysctls.items():
        path = root.joinpath("proc/sys/kernel", *name.split("__"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    if lockdown is not None:
        path = root / "sys/kernel/security/lockdown"
        path.parent.mkdir(parents=True)
        path.write_text(f"{lockdown}\n")
    return root


def names(step: Step, have: frozenset[str], root: Path) -> list[str]:
    return [o.name for o in obstacles(step, have, root)]


def test_each_capability_by_its_name(tmp_path: Path) -> None:
    assert names("load BPF programs", NOTHING, tmp_path) == ["CAP_BPF", "CAP_PERFMON"]
    assert names("load BPF programs", frozenset({"CAP_BPF"}), tmp_path) == ["CAP_PERFMON"]
    assert names("probe functions", NOTHING, tmp_path) == ["CAP_PERFMON"]
    assert names("probe functions by perf events", ALL, tmp_path) == ["CAP_SYS_ADMIN"]
    assert names("probe functions by perf events", frozenset({"CAP_SYS_ADMIN"}), tmp_path) == []
    assert names("look into processes", NOTHING, tmp_path) == ["CAP_SYS_PTRACE"]
    assert names("load BPF programs", frozenset({"CAP_SYS_ADMIN"}), tmp_path) == []
    for step in ("load BPF programs", "probe functions", "look into processes", "read memory of processes"):
        assert names(step, ALL, tmp_path) == []


@pytest.mark.parametrize("value", ["1", "2"])
def test_unprivileged_bpf_disabled(tmp_path: Path, value: str) -> None:
    root = host(tmp_path, unprivileged_bpf_disabled=value, perf_event_paranoid="2")
    found = obstacles("load BPF programs", frozenset({"CAP_PERFMON"}), root)
    assert [o.name for o in found] == ["CAP_BPF", "kernel.unprivileged_bpf_disabled"]
    assert f"kernel.unprivileged_bpf_disabled is {value}" in in_words(found)
    assert names("load BPF programs", ALL, root) == []


def test_unprivileged_bpf_that_is_allowed_is_no_obstacle(tmp_path: Path) -> None:
    root = host(tmp_path, unprivileged_bpf_disabled="0")
    assert names("load BPF programs", frozenset({"CAP_PERFMON"}), root) == ["CAP_BPF"]


@pytest.mark.parametrize(("value", "named"), [("-1", False), ("0", False), ("1", True), ("2", True), ("3", True)])
def test_perf_event_paranoid(tmp_path: Path, value: str, named: bool) -> None:
    root = host(tmp_path, perf_event_paranoid=value)
    found = obstacles("probe functions", frozenset({"CAP_BPF"}), root)
    assert ("kernel.perf_event_paranoid" in [o.name for o in found]) == named
    assert (f"kernel.perf_event_paranoid is {value}" in in_words(found)) == named


@pytest.mark.parametrize(
    ("value", "have", "named"),
    [("0", NOTHING, False), ("1", NOTHING, True), ("1", ALL, False), ("2", NOTHING, True), ("3", ALL, True)],
)
def test_ptrace_scope(tmp_path: Path, value: str, have: frozenset[str], named: bool) -> None:
    root = host(tmp_path, yama__ptrace_scope=value)
    found = obstacles("read memory of processes", have, root)
    assert ("kernel.yama.ptrace_scope" in [o.name for o in found]) == named
    assert (f"kernel.yama.ptrace_scope is {value}" in in_words(found)) == named
    assert "kernel.yama.ptrace_scope" not in names("look into processes", have, root)  # it says nothing of maps and fd


@pytest.mark.parametrize("mode", ["none", "integrity", "confidentiality"])
def test_lockdown(tmp_path: Path, mode: str) -> None:
    modes = " ".join(f"[{m}]" if m == mode else m for m in ("none", "integrity", "confidentiality"))
    root = host(tmp_path, lockdown=modes)
    assert lockdown_mode(root) == mode
    found = obstacles("load BPF programs", ALL, root)
    assert ["kernel lockdown"] * (mode == "confidentiality") == [o.name for o in found]
    assert ("confidentiality" in in_words(found)) == (mode == "confidentiality")
    assert names("probe functions", ALL, root) == [o.name for o in found]
    assert names("read memory of processes", ALL, root) == []


def test_settings_as_the_check_prints_them(tmp_path: Path) -> None:
    root = host(tmp_path, lockdown="none [integrity] confidentiality", yama__ptrace_scope="1", perf_event_paranoid="4")
    assert dict(settings(root)) == {
        "kernel.perf_event_paranoid": "4", "kernel.yama.ptrace_scope": "1", "kernel lockdown": "integrity",
    }  # fmt: skip
    assert list(settings(tmp_path / "nowhere")) == []


def test_a_hostile_proc_is_no_error(tmp_path: Path) -> None:
    root = host(tmp_path, perf_event_paranoid="\x1b[2Jabc" * 10_000, lockdown="nothing of the kind")
    assert names("probe functions", NOTHING, root) == ["CAP_PERFMON"]
    assert lockdown_mode(root) is None


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
def test_memory_that_may_not_be_read_names_the_capability() -> None:
    """For real: init's memory, read without CAP_SYS_PTRACE."""
    program = (
        "from gpuaudit.capture.process_memory import ProcessMemory, Unreadable\n"
        "try:\n    ProcessMemory(1).read(4096, 8)\nexcept Unreadable as e:\n    print(e)\n"
    )
    command = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-all", sys.executable, "-c", program]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True)
    assert "CAP_SYS_PTRACE is lacking, to read memory of processes" in done.stdout
