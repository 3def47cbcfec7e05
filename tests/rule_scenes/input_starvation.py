"""A trainer (7) that calls for ten seconds, starts a worker (8), and is silent for twenty; and one whose every step
waits for its worker."""

from typing import Any

from tests.scenes import MS, T0, US, S, Scene

QUIET, BACK = T0 + 10 * S, T0 + 30 * S


def silent(worker: bool = True) -> Scene:
    """Calls, silence from 10 s to 30 s, one call."""
    scene = Scene().clock().process(7)
    for i in range(100):
        scene.cuda(7, "cudaLaunchKernel", T0 + S + i * 90 * MS - 10 * US, 10 * US)
    scene.cuda(7, "cudaLaunchKernel", QUIET - 10 * US, 10 * US).cuda(7, "cudaLaunchKernel", BACK, 10 * US)
    for i in range(1, 300):
        scene.cuda(7, "cudaLaunchKernel", BACK + i * 100 * MS, 10 * US)
    if worker:
        scene.add("lifecycle", start_ns=QUIET, pid=7, tid=7, op="fork", event=0, comm="python3", other_pid=8)
    return scene


def off(scene: Scene, pid: int, start: int, end: int, **more: Any) -> Scene:
    """A thread that sleeps: ``prev_state`` 1 is TASK_INTERRUPTIBLE, 2 TASK_UNINTERRUPTIBLE."""
    row = {"op": "blocked", "comm": "python3", "prev_state": 1, "cpu_out": 0, "runqueue_ns": 0, "wake_ns": end, **more}
    return scene.add("off_cpu", start_ns=start, duration_ns=end - start, pid=pid, tid=pid, **row)


def waiting(state: int = 2, of: int = 8) -> Scene:
    """The trainer sleeps all the time, its worker for ten of the twenty seconds in the given state."""
    scene = off(silent(), 7, QUIET, BACK)
    return off(scene, of, QUIET + 2 * S, QUIET + 12 * S, prev_state=state)


def crowded(of: int = 8) -> Scene:
    """The trainer sleeps all the time; its worker is ready to run for fifteen of the twenty seconds."""
    scene = off(silent(), 7, QUIET, BACK)
    start, end = QUIET + 2 * S, QUIET + 17 * S
    return off(scene, of, start, end, op="preempted", prev_state=0, next_pid=99, next_tid=99, next_comm="worker",
               runqueue_ns=15 * S, wake_ns=None)  # fmt: skip


def busy(share_percent: int = 100, of: int = 8) -> Scene:
    """The worker is read every second, and computes for so much of each."""
    scene = off(silent(), 7, QUIET, BACK)
    for i in range(21):
        scene.add("process_samples", start_ns=QUIET + i * S, pid=of, user_ns=i * S * share_percent // 100, system_ns=0)
    return scene


def saturated(cpu: float = 98.5, theirs: int = 900) -> Scene:
    """Every second of the silence the host's CPUs are full; of 1,000 switches so many are the worker's."""
    scene = silent()
    for i in range(1, 21):
        scene.add("host_samples", start_ns=QUIET + i * S, cpu_percent=cpu)
    for pid, count in ((8, theirs), (99, 1_000 - theirs)):
        scene.add(
            "period_totals", start_ns=QUIET, duration_ns=20 * S, pid=pid, op="off_cpu", count=count, kept=0,
            sum_ns=S, min_ns=1, max_ns=MS,
        )  # fmt: skip
    return scene


def in_every_step(busy: bool = True, wait: int = 600 * MS, waker: int | None = 8) -> Scene:
    """Twenty steps of a second that end with a call of 100 ms; before it the trainer sleeps, from 300 ms on, until
    ``waker`` wakes it. The worker computes all the time, or never."""
    scene = Scene().clock().process(7).process(8, "worker", parent_pid=7)
    for i in range(20):
        at = T0 + S + i * S
        scene.cuda(7, "cudaLaunchKernel", at, 100 * MS)
        off(scene, 7, at + 300 * MS, at + 300 * MS + wait, waker_pid=waker, waker_tid=waker)
    for i in range(22):
        scene.add("process_samples", start_ns=T0 + i * S, pid=8, user_ns=i * S * busy, system_ns=0)
    return scene


def scenes() -> list[Scene]:
    return [waiting(), crowded(), busy(), saturated(), in_every_step()]
