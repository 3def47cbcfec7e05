"""The version 2 hierarchy of control groups: where it is mounted, and the kernel's ids of its groups."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@cache
def cgroup_mount() -> str | None:
    """Where the version 2 hierarchy is mounted: the whole host's where it is, else a hybrid one; None for neither."""
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    for line in lines:
        fields, _, rest = line.partition(" - ")
        if rest.startswith("cgroup2 ") and len(parts := fields.split(" ")) > 4:
            return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), parts[4])
    return None


def cgroup_id(path: str) -> int | None:
    """The kernel's id of a version 2 cgroup (path as in /proc/PID/cgroup): its inode; None when it is gone.

    None too for one that is not below the root of our own cgroup namespace: its path begins with ``/..``.
    """
    mount = cgroup_mount()
    if f"{path}/".startswith("/../"):  # it leads out of the hierarchy, to a folder of another file system
        return None
    try:
        return os.stat(f"{mount}{path}").st_ino if mount and path.startswith("/") else None  # noqa: PTH116 - hot
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class Properties:
    """What rules look at."""

    uid: int | None
    comm: str
    cgroup: str | None
    """Path in the version 2 hierarchy."""
