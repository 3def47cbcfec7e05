"""A cgroup with a CPU quota, for tests that plant one."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gpuaudit.capture.cgroup_files import Hierarchy, hierarchies, read_counters
from tests.integration.recording import DEADLINE_S

PERIOD_US, QUOTA_US, LIFTED = 100_000, 20_000, -1


class Group:
    """A cgroup of the controller cpu, of either version, whose threads nobody else keeps from a CPU for long."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        self.name = f"gpuaudit-test-{uuid.uuid4().hex[:8]}"
        self.folder = hierarchy.mount / self.name
        self.version = hierarchy.version
        self.folder.mkdir()
        weight = ("cpu.weight", 10_000) if self.version == 2 else ("cpu.shares", 262_144)
        (self.folder / weight[0]).write_text(str(weight[1]), "ascii")

    def limit(self, quota_us: int) -> None:
        if self.version == 2:
            allowed = "max" if quota_us == LIFTED else quota_us
            (self.folder / "cpu.max").write_text(f"{allowed} {PERIOD_US}", "ascii")
        else:
            (self.folder / "cpu.cfs_period_us").write_text(str(PERIOD_US), "ascii")
            (self.folder / "cpu.cfs_quota_us").write_text(str(quota_us), "ascii")

    def throttled(self) -> int:
        return read_counters(self.folder / "cpu.stat")["nr_throttled"]

    def inside(self) -> tuple[str, ...]:
        """What to put before a command that is to run in it."""
        return ("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(self.folder))

    def remove(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while (self.folder / "cgroup.procs").read_text("ascii"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self.folder.rmdir()


@contextmanager
def group() -> Iterator[Group]:
    for h in hierarchies():
        enabled = h.mount / "cgroup.subtree_control"
        if "cpu" in h.controllers or (enabled.exists() and "cpu" in enabled.read_text("ascii").split()):
            made = Group(h)
            break
    else:
        pytest.skip("no hierarchy of cgroups with the controller cpu can be used")
    try:
        yield made
    finally:
        made.remove()
