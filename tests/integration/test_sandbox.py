"""A whole capture does nothing that the sandbox of packaging/systemd forbids: traced, and with the kernel refusing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuaudit.bundle.verify import verify
from tests.integration.sessions import DEADLINE_S, command_line, environment, rows, trust

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

UNIT = Path(__file__).parents[2] / "packaging/systemd/gpu-audit.service"
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
"""include/uapi/linux/prctl.h, since Linux 6.3: what MemoryDenyWriteExecute= asks of newer kernels."""

DENY_WRITE_EXECUTE = (
    "import ctypes, os, sys\n"
    f"if ctypes.CDLL(None).prctl({PR_SET_MDWE}, {PR_MDWE_REFUSE_EXEC_GAIN}, 0, 0, 0):\n"
    "    print('this kernel has no PR_SET_MDWE', file=sys.stderr)\n"
    "os.execv(sys.argv[1], sys.argv[1:])\n"
)

OF_PROBES = {"uretprobe", "uprobe", "syscall_0x14f", "syscall_0x150"}
"""How newer kernels enter a probe from user space; seccomp passes them without asking a filter."""


def allowed() -> set[str]:
    """System calls of the unit's filter, its groups spelled out as systemd has them."""
    found = re.search(r"^SystemCallFilter=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert found is not None
    names = found[1].split()
    return set(spelled_out(names, {n for n in names if not n.startswith("@")}))


def spelled_out(names: list[str], seen: set[str]) -> Iterator[str]:
    for name in names:
        if not name.startswith("@"):
            yield name
        elif name not in seen:
            seen.add(name)
            command = ["systemd-analyze", "syscall-filter", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            inner = [x.strip() for x in done.stdout.splitlines()[1:] if x.strip() and not x.strip().startswith("#")]
            yield from spelled_out(inner, seen)


def test_every_system_call_is_in_the_filter(doubles: Path, tmp_path: Path) -> None:
    for tool in ("strace", "systemd-analyze"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    out, log = tmp_path / "a.db", tmp_path / "calls"
    workload: list[str | Path] = [doubles / "ranks", "--out", tmp_path / "truth", "--steps", "2"]
    sources = [x for s in ("cuda", "nccl", "off_cpu", "memory", "engines") for x in ("--source", s)]
    command = [
        sys.executable, "-c", DENY_WRITE_EXECUTE, shutil.which("strace") or "", "-f", "-qq", "-o", log,
        *command_line(["--out", out, *sources, "--", *workload]),
    ]  # fmt: skip
    done = subprocess.run(
        [str(c) for c in command], env=environment(tmp_path / "keys"), capture_output=True, text=True, check=False,
        timeout=DEADLINE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert verify(out, trust=trust(tmp_path / "keys")).status == "SEALED"
    assert len(rows(out, "cuda_calls")) > 0
    made = set(re.findall(r"^\d+ +([a-z][a-z0-9_]*)\(", log.read_text(errors="replace"), re.MULTILINE))
    assert {"bpf", "mount", "unshare", "capset", "prctl"} <= made, "strace told of too little"
    assert made - allowed() - OF_PROBES == set()


def test_no_socket_is_of_another_family(doubles: Path, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    found = re.search(r"^RestrictAddressFamilies=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert found is not None
    out, log = tmp_path / "a.db", tmp_path / "sockets"
    command = [shutil.which("strace") or "", "-f", "-e", "trace=socket,socketpair", "-o", log,
               *command_line(["--out", out, "--duration", "1", "--source", "nvml", "--source", "engines"])]  # fmt: skip
    subprocess.run(
        [str(c) for c in command], env=environment(tmp_path / "keys"), capture_output=True, check=True,
        timeout=DEADLINE_S,
    )  # fmt: skip
    families = set(re.findall(r"\bsocket(?:pair)?\((\w+)", log.read_text()))
    assert families <= set(found[1].split())
    assert "AF_UNIX" in families
