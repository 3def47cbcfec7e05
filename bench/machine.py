"""What the figures were measured on: enough to tell two results apart, and nothing that names the host."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sqlite3
import subprocess
from importlib import metadata
from pathlib import Path

import gpuaudit

LIBRARIES = ("numpy", "cryptography", "backports.zstd", "duckdb", "pyarrow", "weasyprint", "pyhanko")
TOOLS = {
    "clang": ("clang-16", "--version"), "bpftrace": ("bpftrace", "--version"), "sha256sum": ("sha256sum", "--version"),
    "openssl": ("openssl", "version"),
}  # fmt: skip


def describe() -> dict[str, str]:
    """Name → value: processor, CPUs, memory, kernel, load before the run, versions."""
    out = {
        "processor": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "CPUs": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "memory": f"{int((_field('/proc/meminfo', 'MemTotal') or '0 kB').split()[0]) / 2**20:.1f} GiB",
        "hypervisor": "yes" if "hypervisor" in (_field("/proc/cpuinfo", "flags") or "").split() else "no",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load before": " ".join(f"{x:.2f}" for x in os.getloadavg()),
        "python": platform.python_version(), "sqlite": sqlite3.sqlite_version, "gpu-audit": gpuaudit.__version__,
    }  # fmt: skip
    for name in LIBRARIES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            out[name] = "not installed"
    for name, command in TOOLS.items():
        out[name] = _version(command)
    revision = _output(("git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"))
    if revision:
        out["revision"] = revision
    return out


def _field(path: str, name: str) -> str:
    """The first value of a ``name : value`` file; empty when there is none."""
    try:
        text = Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else ""


def _version(command: tuple[str, ...]) -> str:
    said = _output(command)
    found = re.search(r"\d+(\.\d+)+", said)
    return found.group() if found else "not found"


def _output(command: tuple[str, ...]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip() if done.returncode == 0 else ""
