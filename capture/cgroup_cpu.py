"""CPU accounting of cgroups: how much they used, and how often they had to stop because their quota was used up.

Cumulative since the cgroup was made. Version 2 counts in µs, version 1 in ns (Documentation/admin-guide/cgroup-v2.rst,
Documentation/scheduler/sched-bwc.rst); quota and period are µs in both.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gpuaudit.capture.cgroup_files import Hierarchy, read_counters, read_number, read_text

NS_PER_US = 1000


def _ns(count_us: int | None) -> int | None:
    return None if count_us is None else count_us * NS_PER_US


def _version_2(directory: Path) -> dict[str, object] | None:
    """None when the cgroup is gone; what its controller does not account for is null."""
    stat = read_counters(directory / "cpu.stat")
    if not stat:
        return None
    quota, _, period = (read_text(directory / "cpu.max") or "").strip().partition(" ")
    return {
        "usage_ns": _ns(stat.get("usage_usec")), "periods": stat.get("nr_periods"),
        "throttled_periods": stat.get("nr_throttled"), "throttled_ns": _ns(stat.get("throttled_usec")),
        "quota_ns": _ns(int(quota)) if quota.isdecimal() else None,
        "period_ns": _ns(int(period)) if period.isdecimal() else None,
    }  # fmt: skip


def _version_1(cpu: Path, accounting: Path | None) -> dict[str, object] | None:
    stat = read_counters(cpu / "cpu.stat")
    quota_us, period_us = read_number(cpu / "cpu.cfs_quota_us"), read_number(cpu / "cpu.cfs_period_us")
    if not stat and period_us is None:
        return None
    return {
        "usage_ns": read_number(accounting / "cpuacct.usage") if accounting else None,
        "periods": stat.get("nr_periods"), "throttled_periods": stat.get("nr_throttled"),
        "throttled_ns": stat.get("throttled_time"),
        "quota_ns": _ns(quota_us) if quota_us is not None and quota_us >= 0 else None, "period_ns": _ns(period_us),
    }  # fmt: skip


class CgroupCpu:
    """Reads the files of both versions, where they are mounted."""

    def __init__(self, hierarchies: Iterable[Hierarchy]) -> None:
        known = list(hierarchies)
        self._unified = next((h for h in known if h.version == 2), None)
        self._cpu = next((h for h in known if "cpu" in h.controllers), None)
        self._accounting = next((h for h in known if "cpuacct" in h.controllers), None)

    @property
    def reason(self) -> str:
        """Why nothing can be recorded; empty when something can."""
        return "" if self._unified or self._cpu else "no hierarchy of cgroups with the controller cpu is mounted"

    def rows(self, now_ns: int, unified: Iterable[str], cpu: Iterable[str]) -> list[dict[str, object]]:
        """Rows of ``cgroup_cpu``, of cgroups in version 2 and in the hierarchy of version 1's controller cpu."""
        rows: list[dict[str, object]] = []
        for cgroup in sorted(unified):
            directory = self._unified.directory(cgroup) if self._unified else None
            if directory is not None and (found := _version_2(directory)):
                rows.append({"start_ns": now_ns, "cgroup": cgroup, "version": 2, **found})
        for cgroup in sorted(cpu):
            directory = self._cpu.directory(cgroup) if self._cpu else None
            accounting = self._accounting.directory(cgroup) if self._accounting else None
            if directory is not None and (found := _version_1(directory, accounting)):
                rows.append({"start_ns": now_ns, "cgroup": cgroup, "version": 1, **found})
        return rows
