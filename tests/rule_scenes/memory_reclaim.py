"""Slow launches in which the thread had to free memory: of its cgroup, and, in the second process, of the host."""

from __future__ import annotations

from tests.rule_scenes.cpu_quota import PID, launches
from tests.scenes import MS, T0, S, Scene


def reclaim(scene: Scene, at: int, duration: int | None, *, cgroup: bool = True, pid: int = PID) -> Scene:
    """One direct reclaim of the thread."""
    return scene.add(
        "reclaims", start_ns=at, duration_ns=duration, pid=pid, tid=pid, op="cgroup" if cgroup else "host",
        cgroup_limit=int(cgroup), comm="python3", order=0, reclaimed_pages=None if duration is None else 32,
    )  # fmt: skip


def scenes() -> list[Scene]:
    scene = launches()
    for i in range(5):
        reclaim(scene, T0 + 10 * S + i * S + 10 * MS, 60 * MS)
        reclaim(scene, T0 + 10 * S + i * S + 80 * MS, 10 * MS, cgroup=False)
    return [scene]
