"""A thread whose launches take 20 µs, except for one: the effect that scenes of causes start from."""

from __future__ import annotations

from typing import Any

from tests.scenes import MS, T0, US, S, Scene

AT = T0 + 5 * S
"""When the slow call begins."""

__all__ = ["AT", "MS", "block", "launches", "off"]


def launches(slow: int = 40 * MS, pid: int = 7, count: int = 400, at: int = AT, scene: Scene | None = None) -> Scene:
    """``count`` launches of 20 µs every 10 ms from :data:`T0` on, and one at ``at`` that takes ``slow``."""
    scene = scene or Scene().clock()
    scene.process(pid)
    for i in range(count):
        scene.cuda(pid, "cudaLaunchKernel", T0 + i * 10 * MS, 20 * US)
    return scene.cuda(pid, "cudaLaunchKernel", at, slow)


def off(scene: Scene, start: int, length: int, *, pid: int = 7, tid: int | None = None, **more: Any) -> Scene:
    """An interval off the CPU; preempted by a neighbour unless ``more`` says otherwise."""
    told = {
        "op": "preempted", "comm": "python3", "prev_state": 0, "next_pid": 99, "next_tid": 99, "next_comm": "hog",
        "cpu_out": 1, "cpu": 1,
    }  # fmt: skip
    if more.get("prev_state", 0) == 0:
        told["runqueue_ns"] = length
    return scene.add("off_cpu", start_ns=start, duration_ns=length, pid=pid, tid=tid or pid, **{**told, **more})


def block(scene: Scene, start: int, length: int, *, pid: int = 7, op: str = "read", **more: Any) -> Scene:
    """A request to disk 259:0."""
    told = {"tid": pid, "operation": 0, "comm": "python3", "major": 259, "minor": 0, "sector": 0, "size_bytes": 4096}
    return scene.add("block_io", start_ns=start, duration_ns=length, pid=pid, op=op, error=0, **{**told, **more})
