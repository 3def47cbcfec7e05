"""What the kernel counts by itself and only has to be read: pressure, processes, cgroups. Once a second.

The attacher reads it: it alone knows which processes are followed just now, and where /proc is mounted with hidepid
the recorder, an unprivileged user by then, sees none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from gpuaudit.capture.cgroup_cpu import CgroupCpu
from gpuaudit.capture.cgroup_files import cgroups_of, hierarchies, with_ancestors
from gpuaudit.capture.pressure_source import Pressure
from gpuaudit.capture.process_samples import sample
from gpuaudit.capture.source import boottime_ns

T = TypeVar("T", int, str)

Sink = Callable[[str, dict[str, object]], None]

MAX_PROCESSES, MAX_CGROUPS = 1024, 256
"""Read in one pass: 70 µs of CPU time a process and 100 µs a cgroup (measured in a virtual machine). ours"""

CGROUPS_EVERY_PASSES = 10
"""So often a process is asked again for its cgroup: few ever change it. ours"""


def _limited_by(groups: dict[str, str]) -> dict[str, object]:
    """Which cgroup limits a process's CPU time: in version 1, if the controller is there."""
    found = next(((groups[c], v) for c, v in (("cpu", 1), ("", 2)) if c in groups), (None, None))
    return dict(zip(("cpu_cgroup", "cpu_cgroup_version"), found, strict=True))


class HostSamples:
    """One pass per :meth:`poll`; what cannot be read at all is told once, as a gap. ``proc``: where /proc lies."""

    def __init__(self, sink: Sink, proc: Path = Path("/proc")) -> None:
        self._sink = sink
        self._proc = proc
        mounted = hierarchies(proc / "self/mountinfo")
        self._pressure = Pressure(next((h for h in mounted if h.version == 2), None), proc / "pressure")
        self._cpu = CgroupCpu(mounted)
        self._passes = 0
        self._groups: dict[int, dict[str, str]] = {}
        """Process → its cgroups, as :func:`cgroups_of` gave them."""
        self._told: set[str] = set()

    @property
    def note(self) -> str:
        """Which resources have no pressure on this host while others have, and why; empty if all have."""
        if self._pressure.reason:
            return ""
        return "; ".join(f"no pressure of {name}: {why}" for name, why in self._pressure.missing.items())

    def poll(self, pids: Iterable[int]) -> None:
        """Read everything once; ``pids`` are the processes that are followed."""
        now = boottime_ns()
        if not self._passes:
            for table, reason in self.missing.items():
                self._gap(table, reason, now)
        known = {} if self._passes % CGROUPS_EVERY_PASSES == 0 else self._groups
        self._groups = {}
        self._passes += 1
        chosen = sorted(set(pids))
        unified: set[str] = set()
        cpu: set[str] = set()
        for pid in self._bounded(chosen, MAX_PROCESSES, "process_samples", "processes", now):
            row = sample(pid, boottime_ns(), self._proc)
            if row is not None:
                groups = self._groups[pid] = known.get(pid) or cgroups_of(pid, self._proc)
                self._sink("process_samples", {**row, **_limited_by(groups)})
                unified |= with_ancestors([groups.get("", "/")])
                cpu |= with_ancestors([groups.get("cpu", "/")])
        groups_v2 = self._bounded(sorted(unified), MAX_CGROUPS, "pressure", "cgroups", now)
        groups_v1 = self._bounded(sorted(cpu), MAX_CGROUPS, "cgroup_cpu", "cgroups", now)
        if not self._pressure.reason:
            for row in self._pressure.rows(boottime_ns(), groups_v2):
                self._sink("pressure", row)
        for row in self._cpu.rows(boottime_ns(), groups_v2, groups_v1):
            self._sink("cgroup_cpu", row)

    @property
    def missing(self) -> dict[str, str]:
        """Table → why this host has no rows for it."""
        reasons = {"pressure": self._pressure.reason, "cgroup_cpu": self._cpu.reason}
        return {table: reason for table, reason in reasons.items() if reason}

    def _bounded(self, found: list[T], limit: int, table: str, what: str, now: int) -> list[T]:
        """The first ``limit`` of them; that others were left out is told once."""
        if len(found) > limit and table not in self._told:
            self._told.add(table)
            self._gap(table, f"more than {limit} {what} are followed: the others were not read", now)
        return found[:limit]

    def _gap(self, table: str, reason: str, now: int) -> None:
        row = {"start_ns": now, "duration_ns": None, "source": "memory", "reason": reason}
        self._sink("gaps", {**row, "table_name": table, "pid": None})
