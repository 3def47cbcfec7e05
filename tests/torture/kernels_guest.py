"""Inside the machine: what this kernel lets a capture do, found out by doing it, into files of a folder.

``python -m tests.torture.kernels_guest FOLDER``, as root, with the wheel installed and the tests in the working
directory. Each step has a deadline and its own file, so that one that hangs or fails costs no other.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

AUDIT = [sys.executable, "-P", "-m", "gpuaudit.cli.main"]
STEP_DEADLINE_S = 900.0
RESULTS_DISK = "/dev/vdb"
CALL_TABLES = ("cuda_calls", "nccl_calls", "nccl_comms")
SYSCTLS = ("kernel/perf_event_paranoid", "kernel/unprivileged_bpf_disabled", "kernel/yama/ptrace_scope")

TESTS = (
    "test_check_host", "test_off_cpu", "test_calls_exact", "test_nested_calls", "test_memory_events", "test_block_io",
    "test_tcp_retransmits", "test_ioctls", "test_socket_io", "test_lifecycle", "test_native_stacks",
    "test_python_frames", "test_least_privilege", "test_planted_quota",
    "test_planted_hog", "test_planted_waits",
)  # fmt: skip
"""Of tests/integration: those of the kernel's side, and planted causes: a hog, waits for a disk and for a lock, and a
quota, whose files differ between versions of cgroups."""


def main(folder: Path) -> int:
    """Every step; 0 when each of them wrote its file."""
    folder.mkdir(exist_ok=True)
    work = Path("/tmp/work")
    work.mkdir(mode=0o755)
    steps: dict[str, Callable[[Path], Any]] = {
        "facts": _facts, "check": _check, "late": _without_bpf, "capture": _capture,
        "tests": lambda work: _tests(work, lambda done: _hand_over(folder, "tests", done)),
    }  # fmt: skip
    chosen = _chosen("steps", tuple(steps))
    steps = {name: step for name, step in steps.items() if name in chosen}
    failed = 0
    for name, step in steps.items():
        started = time.monotonic()
        try:
            result = step(work)
        except Exception as e:  # the other steps still have something to say
            traceback.print_exc()
            result, failed = {"failed": f"{type(e).__name__}: {e}"}, failed + 1
        _hand_over(folder, name, result)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    return 1 if failed else 0


def _chosen(what: str, usual: tuple[str, ...]) -> tuple[str, ...]:
    """Names that the kernel's command line has after ``audit_WHAT=``, else the usual ones."""
    found = re.search(rf"\baudit_{what}=(\S+)", _text(Path("/proc/cmdline")) or "")
    return tuple(found[1].split(",")) if found else usual


def _hand_over(folder: Path, name: str, result: Any) -> None:
    """Write a step's file, and all files to the second disk: a machine that is stopped later has told so much."""
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    subprocess.run(["tar", "-cf", RESULTS_DISK, "-C", str(folder), "."], check=True)
    os.sync()


def _facts(_: Path) -> dict[str, Any]:
    btf = Path("/sys/kernel/btf/vmlinux")
    return {
        "release": platform.release(), "machine": platform.machine(), "python": platform.python_version(),
        "btf_bytes": btf.stat().st_size if btf.exists() else None,
        "sysctls": {s.replace("/", "."): _text(Path("/proc/sys") / s) for s in SYSCTLS},
        "virtualised": "audit_accel=kvm" in (_text(Path("/proc/cmdline")) or ""),
        "lockdown": _text(Path("/sys/kernel/security/lockdown")),
    }  # fmt: skip


def _check(_: Path) -> Any:
    done = _run([*AUDIT, "check", "--json"])
    return {"status": done.returncode, "results": json.loads(done.stdout), "stderr": done.stderr}


def _capture(work: Path) -> dict[str, Any]:
    """A whole capture of a workload whose calls are known, sealed and verified, and what its evidence says."""
    from gpuaudit.bundle.reader import Bundle
    from tests.doubles.build import build
    from tests.integration.recording import truth
    from tests.integration.sessions import rows

    lib = work / "lib"
    lib.mkdir()
    for name in ("cudart", "nccl", "ranks"):
        build(name, lib)
    out = work / "kernel.db"
    workload = [lib / "ranks", "--out", work / "truth", "--steps", "20"]
    os.environ["GPU_AUDIT_KEYS"] = str(work / "keys")
    done = _run([*AUDIT, "capture", "--json", "--out", out, "--", *workload])
    if done.returncode:
        return {"status": done.returncode, "stderr": done.stderr}
    verified = _run([*AUDIT, "verify", out, "--receipt", f"{out}.receipt", "--json"])
    with Bundle.open(out) as bundle:
        sources = next(json.loads(data) for _, name, data in bundle.artefacts() if name == "sources")
    made = Counter(r["op"] for path in work.glob("truth.*") for r in truth(path) if "before_ns" in r)
    recorded = [row for table in CALL_TABLES for row in rows(out, table)]
    outermost = Counter(row["op"] for row in recorded if row["parent_ns"] is None)
    return {
        "status": 0, "verify": json.loads(verified.stdout), "sources": sources, "made": made.total(),
        "by_op": {op: [n, outermost[op]] for op, n in made.items()},
        "recorded": len(recorded),
        "probes": rows(out, "probes"), "gaps": rows(out, "gaps"), "lost": sum(r["lost"] for r in rows(out, "losses")),
        "size_bytes": out.stat().st_size,
    }  # fmt: skip


def _tests(work: Path, tell: Callable[[Any], None]) -> dict[str, Any]:
    """Each of :data:`TESTS`, or those asked for, in a pytest of its own: what passed, what failed, what was skipped.

    ``tell`` hears of what is known so far after each of them.
    """
    out: dict[str, Any] = {}
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    for name in _chosen("tests", TESTS):
        path = Path("tests/integration") / f"{name}.py"
        if not path.exists():
            out[name] = {"absent": True}
            continue
        xml = work / f"{name}.xml"
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:hypothesispytest",
                   f"--junitxml={xml}", str(path)]  # fmt: skip
        ended, said = _watched(command, environment, work / f"{name}.txt")
        if not ended:
            out[name] = {"hung": True, "said": said}
        else:
            out[name] = _outcomes(xml) if xml.exists() else {"said": said}
        tell(out)
    return out


def _watched(command: list[str], environment: dict[str, str], said: Path) -> tuple[bool, str]:
    """Whether it ended by itself, and the last of what it said, which goes to the console as it comes.

    What it started goes with it when it did not: a workload that is left behind would hold its pipes, and the machine.
    """
    with said.open("wb") as f:
        child = subprocess.Popen(command, env=environment, stdout=f, stderr=subprocess.STDOUT, start_new_session=True)
        shown, deadline = 0, time.monotonic() + STEP_DEADLINE_S
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(5)
            text = said.read_text("utf-8", "replace")
            print(text[shown:], end="", flush=True)
            shown = len(text)
        ended = child.poll() is not None
        if not ended:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    text = said.read_text("utf-8", "replace")
    print(text[shown:], flush=True)
    return ended, text[-3000:]


def _outcomes(xml: Path) -> dict[str, Any]:
    outcomes: dict[str, Any] = {"passed": [], "failed": {}, "skipped": {}}
    for case in ET.parse(xml).getroot().iter("testcase"):  # noqa: S314 - see above
        name = str(case.get("name"))
        bad = next((case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None), None)
        skipped = case.find("skipped")
        if bad is not None:
            outcomes["failed"][name] = ((bad.get("message") or "") + "\n" + (bad.text or "")[-3000:])[:4000]
        elif skipped is not None:
            outcomes["skipped"][name] = skipped.get("message") or ""
        else:
            outcomes["passed"].append(name)
    return outcomes


def _without_bpf(_: Path) -> dict[str, Any]:
    """What somebody is told who lacks the privileges, in this kernel's words."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return {"absent": True}
    done = _run([setpriv, "--bounding-set=-all", "--inh-caps=-all", *AUDIT, "check", "--json"])
    return {"status": done.returncode, "results": json.loads(done.stdout)}


def _run(command: list[Any], **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=False, timeout=STEP_DEADLINE_S, **more
    )  # fmt: skip


def _text(path: Path) -> str | None:
    try:
        return path.read_text("ascii", "replace").strip()
    except OSError:
        return None


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
