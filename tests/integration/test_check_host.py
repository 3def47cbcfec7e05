"""``audit check`` tries what it promises, and says what is missing where something is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpuaudit.capture.check import check_host
from gpuaudit.capture.probes import CUDART, NCCL
from tests.integration.recording import start, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

TRACEPOINTS = {
    "sched_process_fork", "sched_process_exec", "sched_process_exit", "sched_switch", "sched_wakeup",
    "sched_migrate_task", "sys_enter", "sys_exit",
}  # fmt: skip


def test_everything_bpf_is_tried(doubles: Path, tmp_path: Path) -> None:
    cudart, nccl = doubles / "libcudart.so.13", doubles / "libnccl.so.2"
    process = start(
        doubles / "calls", "--cudart", cudart, "--nccl", nccl, "--out", tmp_path / "t", "--pause-file", tmp_path / "go"
    )  # fmt: skip
    wait_for_line(process, "at start")
    try:
        results = {r.name: r for r in check_host()}
    finally:
        process.kill()
        process.communicate()
    failed = {name for name, r in results.items() if not r.ok} - {"NVML"}
    assert failed == set()
    assert {f"tracepoint {t}" for t in TRACEPOINTS} <= set(results)
    assert results["stacks"].ok
    assert results["CPU accounting of cgroups"].ok
    assert results["pressure stall information"].detail
    assert results["function probes by perf uprobe"].detail.endswith("hit 3 times")
    for library, file in ((CUDART, cudart), (NCCL, nccl)):
        command = ["nm", "--dynamic", "--defined-only", "--format=just-symbols", str(file)]
        exported = {name.partition("@")[0] for name in subprocess.check_output(command, text=True).split()}
        known = [p for p in library.probes if p.is_of(file.name) and exported.intersection(p.names)]
        assert f"{len(known)} functions of {file}" in results[f"{library.name} in process {process.pid}"].detail


def test_without_capabilities_it_names_them() -> None:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("setpriv is not installed")
    code = (
        "import json; from gpuaudit.capture.check import check_host\n"
        "print(json.dumps([[r.name, r.ok, r.detail, r.hint] for r in check_host()]))"
    )
    command = [setpriv, "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    results = {name: (ok, detail, hint) for name, ok, detail, hint in json.loads(done.stdout)}
    ok, detail, hint = results["privileges"]
    assert not ok
    assert all(name in detail for name in ("CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "perf_event_paranoid"))
    assert "sudo" in hint
    ok, detail, hint = results["BPF programs"]
    assert not ok
    assert "Operation not permitted" in detail
    assert "CAP_BPF" in hint
    assert "Traceback" not in done.stderr
