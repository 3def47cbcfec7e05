"""Cgroups with a limit of memory, of either version, for tests that make memory short."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpuaudit.capture.cgroup_files import hierarchies
from tests.integration.recording import DEADLINE_S


@contextmanager
def memory_cgroup(limit_bytes: int | None = None) -> Iterator[Path]:
    """An empty memory cgroup of its own, in whichever version the controller is; skips where none can be used."""
    for h in hierarchies():
        usable = "memory" in h.controllers
        if h.version == 2:
            usable = "memory" in (h.mount / "cgroup.subtree_control").read_text("ascii").split()
        if usable:
            folder = h.mount / f"gpuaudit-test-{uuid.uuid4().hex[:8]}"
            break
    else:
        pytest.skip("no hierarchy of cgroups with the controller memory can be used")
    folder.mkdir()
    try:
        if limit_bytes is not None:
            limit(folder, limit_bytes)
        yield folder
    finally:
        remove(folder)


def limit(cgroup: Path, size_bytes: int) -> None:
    """The most memory that the processes in it may have together."""
    name = "memory.max" if (cgroup / "memory.max").exists() else "memory.limit_in_bytes"
    (cgroup / name).write_text(str(size_bytes), "ascii")


def inside(cgroup: Path) -> tuple[str, ...]:
    """What to put before a command that is to run in a cgroup."""
    return ("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(cgroup))


def remove(cgroup: Path) -> None:
    """Remove it once its processes have left it: one that was killed leaves a moment later."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            cgroup.rmdir()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return
