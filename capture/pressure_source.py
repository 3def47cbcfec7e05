"""Pressure stall information: how long tasks of the host, and of cgroups, waited for CPU, memory or disks.

The kernel gives cumulative µs (Documentation/accounting/psi.rst); a row holds them in ns, to the µs. ``some``: at least
one task waited. ``full``: all tasks that were not idle did; the kernel has none for the CPU of the whole host before
5.13 and gives 0 since, and has only ``full`` for irq.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from pathlib import Path

from gpuaudit.capture.cgroup_files import Hierarchy

RESOURCES = ("cpu", "memory", "io", "irq")
NS_PER_US = 1000

_LINE = re.compile(r"^(some|full) avg10=[0-9.]+ avg60=[0-9.]+ avg300=[0-9.]+ total=([0-9]{1,17})$", re.MULTILINE)
MAX_FILE_BYTES = 4096

_WHY = {
    errno.ENOENT: "this kernel has no {path}",
    errno.EOPNOTSUPP: "pressure stall information is off; boot with psi=1",
}


class NoPressure(Exception):
    """A file gives no pressure; the message says why."""


def read_pressure(path: Path) -> dict[str, int]:
    """``some`` and ``full`` in ns, as far as the file has them; NoPressure when it cannot be read or understood."""
    try:
        with path.open("rb") as f:
            text = f.read(MAX_FILE_BYTES).decode("ascii", "replace")
    except OSError as e:
        why = _WHY.get(e.errno or 0, "{path}: {error}")
        raise NoPressure(why.format(path=path, error=e.strerror)) from None
    found = {kind: int(total) * NS_PER_US for kind, total in _LINE.findall(text)}
    if not found:
        raise NoPressure(f"{path} is not as the kernel's documentation has it: {text[:60]!r}")
    return found


class Pressure:
    """Reads the whole host's files, and those of version 2 cgroups. ``root``: where the host's lie."""

    def __init__(self, hierarchy: Hierarchy | None, root: Path = Path("/proc/pressure")) -> None:
        self._hierarchy = hierarchy
        self._root = root
        self.missing: dict[str, str] = {}
        """Resource → why the host gives none."""
        for resource in RESOURCES:
            try:
                read_pressure(root / resource)
            except NoPressure as e:
                self.missing[resource] = str(e)

    @property
    def reason(self) -> str:
        """Why nothing at all can be recorded; empty when something can."""
        return "; ".join(dict.fromkeys(self.missing.values())) if len(self.missing) == len(RESOURCES) else ""

    def rows(self, now_ns: int, cgroups: Iterable[str]) -> list[dict[str, object]]:
        """Rows of the ``pressure`` table, of the host first; cgroups are paths in the version 2 hierarchy."""
        places: list[tuple[str | None, Path, str]] = [(None, self._root, "{}")]
        for cgroup in sorted(cgroups):
            directory = self._hierarchy.directory(cgroup) if self._hierarchy else None
            if directory is not None:
                places.append((cgroup, directory, "{}.pressure"))
        rows: list[dict[str, object]] = []
        for place, directory, name in places:
            for resource in RESOURCES:
                if resource in self.missing:
                    continue
                try:
                    waited = read_pressure(directory / name.format(resource))
                except NoPressure:
                    continue  # the cgroup is gone, or its accounting is off (cgroup.pressure)
                row = {"start_ns": now_ns, "resource": resource, "cgroup": place}
                rows.append({**row, "some_ns": waited.get("some"), "full_ns": waited.get("full")})
        return rows
