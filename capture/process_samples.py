"""Counters of a process that only /proc has: page faults, CPU time, memory, threads, switches.

Cumulative over all its threads, ended ones included, but for the switches, which /proc/PID/status gives of the main
thread. Fields: proc_pid_stat(5), proc_pid_status(5).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from gpuaudit.capture.cgroup_files import read_text
from gpuaudit.capture.processes import with_memory

NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_MINOR_FAULTS, _MAJOR_FAULTS, _USER, _SYSTEM, _THREADS, _RESIDENT = 10, 12, 14, 15, 20, 24
"""Fields of /proc/PID/stat, counted from 1."""

_SWITCHES = re.compile(r"^(voluntary|nonvoluntary)_ctxt_switches:\s+([0-9]{1,19})$", re.MULTILINE)


def sample(pid: int, now_ns: int, proc: Path | str = "/proc") -> dict[str, object] | None:
    """One row of ``process_samples``; None when the process is gone, or only its exit status is left."""
    fields = _fields(f"{proc}/{pid}/stat")
    if len(fields) > _RESIDENT and fields[2] == "Z" and fields[_THREADS - 1] not in ("0", "1"):
        fields = _fields(f"{proc}/{with_memory(pid)}/stat")  # the first thread has ended: another one tells for all
    if len(fields) <= _RESIDENT or fields[2] in ("Z", "X"):
        return None
    try:
        count = {n: int(fields[n - 1]) for n in (_MINOR_FAULTS, _MAJOR_FAULTS, _USER, _SYSTEM, _THREADS, _RESIDENT)}
    except ValueError:
        return None
    switches = {kind: int(n) for kind, n in _SWITCHES.findall(read_text(f"{proc}/{pid}/status") or "")}
    return {
        "start_ns": now_ns, "pid": pid, "user_ns": count[_USER] * NS_PER_TICK,
        "system_ns": count[_SYSTEM] * NS_PER_TICK, "major_faults": count[_MAJOR_FAULTS],
        "minor_faults": count[_MINOR_FAULTS], "resident_bytes": count[_RESIDENT] * PAGE_BYTES,
        "threads": count[_THREADS], "voluntary_switches": switches.get("voluntary"),
        "involuntary_switches": switches.get("nonvoluntary"),
    }  # fmt: skip


def _fields(path: str) -> list[str]:
    """Two empty ones for number and name, which may hold blanks and brackets, and those after them."""
    return ["", "", *(read_text(path) or "").rpartition(")")[2].split()]
