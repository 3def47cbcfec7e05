"""A launcher in a cgroup that may use 20 ms of every 100 ms: it is held back in its slow launches."""

from __future__ import annotations

from tests.scenes import MS, T0, US, S, Scene

CGROUP = "/kubepods/pod1"
PID = 100


def launches(pid: int = PID, *, slow: int = 5, slow_ns: int = 100 * MS, scene: Scene | None = None) -> Scene:
    """A thousand short launches and then some slow ones, one in every second from T0 + 10 s on."""
    scene = scene or Scene().clock()
    scene.process(pid)
    for i in range(995):
        scene.cuda(pid, "cudaLaunchKernel", T0 + S + i * MS, 10 * US)
    for i in range(slow):
        scene.cuda(pid, "cudaLaunchKernel", T0 + 10 * S + i * S, slow_ns)
    return scene


def readings(scene: Scene, throttled_ns: list[int], *, cgroup: str = CGROUP, pid: int = PID) -> Scene:
    """One reading a second from T0 + 9.5 s on, in which the cgroup was throttled for so long, once each."""
    total = periods = 0
    for i, ns in enumerate([0, *throttled_ns]):
        total, periods = total + ns, periods + (ns > 0)
        scene.add(
            "cgroup_cpu", start_ns=T0 + 9 * S + 500 * MS + i * S, cgroup=cgroup, version=1, usage_ns=None,
            periods=10 * i, throttled_periods=periods, throttled_ns=total, quota_ns=20 * MS, period_ns=100 * MS,
        )  # fmt: skip
    scene.add("process_samples", start_ns=T0 + 9 * S, pid=pid, cpu_cgroup=f"{cgroup}/box", cpu_cgroup_version=1)
    return scene


def off(scene: Scene, at: int, duration: int, *, instead: int = 0, pid: int = PID) -> Scene:
    """The thread is runnable and off its CPU."""
    return scene.add(
        "off_cpu", start_ns=at, duration_ns=duration, pid=pid, tid=pid, op="preempted", comm="python3", prev_state=0,
        next_pid=instead, next_tid=instead, next_comm="other" if instead else "swapper/0", cpu_out=0,
        runqueue_ns=duration,
    )  # fmt: skip


def scenes() -> list[Scene]:
    scene = launches()
    for i in range(5):
        off(scene, T0 + 10 * S + i * S + 10 * MS, 80 * MS)
    return [readings(scene, [80 * MS] * 5)]
