"""A scene with two chains whose truth is known to the nanosecond: slow calls, and a late rank, both preempted."""

from __future__ import annotations

from tests.scenes import MS, T0, US, S, Scene, collectives

MALLOC_PID, HOG = 300, 812
SLOW_AT = tuple(T0 + 20 * S + i * 2 * S for i in range(4))
LATE_NS = 30 * MS
LATE_STEPS = tuple(range(20, 30))


def off_cpu(scene: Scene, pid: int, at: int, duration: int) -> Scene:
    """The main thread of ``pid`` preempted by the hog."""
    return scene.add(
        "off_cpu", start_ns=at, duration_ns=duration, pid=pid, tid=pid, op="preempted", comm="python3", prev_state=0,
        next_pid=HOG, next_tid=HOG, next_comm="stress-ng", cpu_out=3,
    )  # fmt: skip


def two_chains() -> Scene:
    """400 allocations of 10 µs; four of 20 ms, of which the thread is preempted for 15 ms, 5 ms in. Rank 2 of four is
    30 ms late in ten all-reduces of fifty, and preempted for all of it."""
    scene = collectives("asynchronous", late={2: LATE_NS}, late_steps=LATE_STEPS)
    for pid in (100, 101, 102, 103, MALLOC_PID):
        scene.process(pid)
    for i in range(400):
        scene.cuda(MALLOC_PID, "cudaMalloc", T0 + 10 * S + i * 10 * MS, 10 * US)
    for at in SLOW_AT:
        scene.cuda(MALLOC_PID, "cudaMalloc", at, 20 * MS)
        off_cpu(scene, MALLOC_PID, at + 5 * MS, 15 * MS)
    for step in LATE_STEPS:
        off_cpu(scene, 102, T0 + S + step * 50 * MS + 5 * US, LATE_NS)
    return scene
