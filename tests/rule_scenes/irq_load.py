"""Slow launches in which the kernel served software interrupts, and a device's handler ran, on the thread's CPU."""

from __future__ import annotations

from tests.rule_scenes.cpu_quota import PID, launches
from tests.scenes import MS, T0, S, Scene


def taken(
    scene: Scene, at: int, duration: int, comm: str, *, instead: int = 15, tid: int | None = None, **more: object
) -> Scene:
    """The thread is runnable, and somebody else runs on its CPU."""
    return scene.add("off_cpu", **{
        "start_ns": at, "duration_ns": duration, "pid": PID, "tid": PID, "op": "preempted", "comm": "python3",
        "prev_state": 0, "next_pid": instead, "next_tid": tid or instead, "next_comm": comm, "cpu_out": 3,
        "runqueue_ns": duration, **more,
    })  # fmt: skip


def scenes() -> list[Scene]:
    scene = launches()
    for i in range(5):
        taken(scene, T0 + 10 * S + i * S + 10 * MS, 50 * MS, "ksoftirqd/3")
        taken(scene, T0 + 10 * S + i * S + 70 * MS, 20 * MS, "irq/77-eth0", instead=16)
    return [scene]
