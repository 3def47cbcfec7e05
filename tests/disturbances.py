"""Per detector of causes: a scene of it, the same with more of its disturbance, and with another cause beside it.

A detector of the registry that has no case here fails the properties of causes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpuaudit.analyze.graphs import REPLAYED
from tests.rule_scenes import (
    allocation_burst,
    allocator_thrash,
    blocking_io,
    clock_capped,
    cold_start,
    cpu_quota,
    fabric_error,
    gpu_error,
    gpu_shared,
    graph_recapture,
    graph_unused,
    input_starvation,
    irq_load,
    launch_bound,
    launch_paced,
    lock_wait,
    memory_reclaim,
    noisy_neighbour,
    numa_misplacement,
    pcie_degraded,
    preempted,
    slow_host,
    synchronous_copy,
    tcp_retransmits,
    throttled,
)  # fmt: skip
from tests.rule_scenes.slow import AT, block, off
from tests.rule_scenes.xid import event
from tests.scenes import MS, T0, US, S, Scene, collectives

Made = Callable[[], Scene]

GPU_BEGIN, GPU_HALF, GPU_END = gpu_shared.BEGIN, gpu_shared.BEGIN + 5 * S, gpu_shared.END
SLOW = T0 + 10 * S
"""When the first slow launch of the scenes of quotas, interrupts and reclaims begins."""
STEP = tcp_retransmits.begin(tcp_retransmits.SLOW_STEP)


@dataclass(frozen=True)
class Case:
    """``beside`` adds time of the detector ``other`` to the effect; empty where no other detector could have any."""

    base: Made
    more: Made
    other: str = ""
    beside: Made | None = None


def first(module: Any) -> Scene:
    """The first scene of a detector."""
    made: Scene = module.scenes()[0]
    return made


def freed(scene: Scene, at: int, ns: int, pid: int) -> Scene:
    """The main thread frees memory for the host."""
    return memory_reclaim.reclaim(scene, at, ns, cgroup=False, pid=pid)


def half_shared() -> Scene:
    scene = gpu_shared.shared(gpu_shared.waits())
    for row in scene.rows["nvml_processes"]:
        if row["pid"] == 8 and row["start_ns"] >= GPU_HALF:
            row["sm_utilization_percent"] = 0
    return scene


def asleep(scene: Scene, at: int, ns: int, **more: Any) -> Scene:
    return off(
        scene, at, ns, op="blocked", next_pid=0, next_tid=0, next_comm="swapper/1", wake_ns=at + ns, runqueue_ns=0,
        **more,
    )  # fmt: skip


def read_again() -> Scene:
    return asleep(block(first(blocking_io), AT + 33 * MS, 5 * MS), AT + 33 * MS, 5 * MS, prev_state=2, syscall=17)


def locked_again() -> Scene:
    return asleep(
        first(lock_wait), AT + 33 * MS, 5 * MS, prev_state=1, syscall=202, waker_pid=7, waker_tid=9,
        waker_comm="loader",
    )  # fmt: skip


def quota(used_up: int) -> Scene:
    scene = cpu_quota.launches()
    for i in range(used_up):
        cpu_quota.off(scene, SLOW + i * S + 10 * MS, 80 * MS)
    return cpu_quota.readings(scene, [80 * MS] * used_up + [0] * (5 - used_up))


def crowded_again() -> Scene:
    pid, name = next(iter(noisy_neighbour.NEIGHBOURS.items()))
    told: dict[str, Any] = {"cgroup_id": noisy_neighbour.OWN, "next_cgroup_id": noisy_neighbour.OTHER}
    return irq_load.taken(first(noisy_neighbour), SLOW + 96 * MS, 3 * MS, name, instead=pid, **told)


def late(steps: int, by: int = 30 * MS) -> Scene:
    scene = collectives("asynchronous", late={2: by}, late_steps=range(steps))
    for rank in range(4):
        scene.process(100 + rank)
    return scene


def once_late(by: int) -> Scene:
    scene = collectives("asynchronous", steps=200, late={2: by}, late_steps=[70])
    for rank in range(4):
        scene.process(100 + rank)
    return scene


def far_calls(more: int) -> Scene:
    scene = numa_misplacement.placed([9, 9, 1])
    for i in range(more):
        scene.cuda(100, "cudaLaunchKernel", T0 + 12 * S + i * 10 * MS, MS, cpu=9)
    return scene


def freed_slowly() -> Scene:
    scene = allocation_burst.burst()
    last = scene.rows["cuda_calls"][-1]
    at = last["start_ns"] + last["duration_ns"] + 10 * US
    return scene.cuda(7, "cudaFree", at, 1_900 * US, device_pointer=9)


def loaded_again() -> Scene:
    scene = cold_start.loading()
    slow = scene.rows["cuda_calls"][10]["start_ns"]
    return scene.cuda(
        7, "cuModuleLoadData", slow + 14 * MS, 900 * US, parent_ns=slow, parent_op="cudaLaunchKernel"
    )  # fmt: skip


def in_a_burst() -> Scene:
    """When its steps are over the thread frees and allocates pieces of the same size many times in a row."""
    scene = allocator_thrash.steps()
    for i in range(20):
        for n, op in enumerate(("cudaMalloc", "cudaFree")):
            at = T0 + 2 * S + 10 * MS + (2 * i + n) * 500 * US
            scene.cuda(7, op, at, 400 * US, size_bytes=None if n else 8 << 20, device_pointer=4096)
    return scene


def launched_early() -> Scene:
    """The first graph is replayed before the others are made."""
    scene = graph_unused.made()
    for i in range(REPLAYED):
        at = T0 + S + 45 * MS + i * 100 * US
        scene.cuda(7, "cudaGraphLaunch", at, 20 * US, handle=graph_recapture.EXECUTABLE, stream=3)
    return scene


def module_loaded() -> Scene:
    """One launch of many loads code."""
    launch = T0 + S + 100 * 20 * US
    return launch_bound.stream().cuda(
        7, "cuModuleLoadData", launch + 500, 3 * US, parent_ns=launch, parent_op="cudaLaunchKernel"
    )


def silent_gpu() -> Scene:
    scene = input_starvation.waiting().samples(T0, T0 + 60 * S, pids=[7], gpu_utilization_percent=0)
    return event(scene, 79, input_starvation.QUIET + 5 * S)


CASES: dict[str, Case] = {
    "allocation_burst": Case(
        allocation_burst.burst, freed_slowly, "memory_reclaim",
        lambda: freed(allocation_burst.burst(), allocation_burst.BURST + 5 * MS, MS, 7),
    ),
    "allocator_thrash": Case(
        allocator_thrash.steps, lambda: allocator_thrash.steps(120), "allocation_burst",
        in_a_burst,
    ),
    "blocking_io": Case(
        lambda: first(blocking_io), read_again, "memory_reclaim",
        lambda: freed(first(blocking_io), AT + 5 * MS, 9 * MS, 7),
    ),
    "clock_capped": Case(
        lambda: clock_capped.capped(gpu_shared.waits(), GPU_BEGIN, GPU_HALF),
        lambda: clock_capped.capped(gpu_shared.waits()), "memory_reclaim",
        lambda: freed(
            clock_capped.capped(gpu_shared.waits(), GPU_BEGIN, GPU_HALF), GPU_BEGIN + 401 * MS, 5 * MS, 7
        ),
    ),
    "cold_start": Case(
        cold_start.loading, loaded_again, "memory_reclaim",
        lambda: freed(cold_start.loading(), cold_start.BEGIN + 503 * MS, 5 * MS, 7),
    ),
    "cpu_quota": Case(
        lambda: quota(4), lambda: quota(5), "memory_reclaim", lambda: freed(quota(4), SLOW + 20 * MS, 9 * MS, 100)
    ),
    "fabric_error": Case(
        fabric_error.with_event, lambda: fabric_error.event(fabric_error.with_event(), STEP + 20 * MS),
        "memory_reclaim", lambda: freed(fabric_error.with_event(), STEP + 150 * MS, 9 * MS, 100),
    ),
    "gpu_error": Case(
        lambda: first(gpu_error), lambda: event(first(gpu_error), 79, gpu_error.HANG + 2 * S), "memory_reclaim",
        lambda: freed(first(gpu_error), gpu_error.HANG + 9 * S, 9 * MS, 7),
    ),
    "gpu_shared": Case(
        half_shared, lambda: first(gpu_shared), "memory_reclaim",
        lambda: freed(half_shared(), GPU_BEGIN + 401 * MS, 5 * MS, 7),
    ),
    "graph_recapture": Case(
        lambda: first(graph_recapture), lambda: graph_recapture.steps(count=120), "graph_unused",
        lambda: graph_recapture.capture(first(graph_recapture), T0 + 11 * S, graph_recapture.EXECUTABLE + 99),
    ),
    "graph_unused": Case(
        graph_unused.made, lambda: graph_unused.made(12), "graph_recapture",
        launched_early,
    ),
    "input_starvation": Case(
        input_starvation.waiting,
        lambda: input_starvation.off(
            input_starvation.waiting(), 8, input_starvation.QUIET + 14 * S, input_starvation.QUIET + 17 * S,
            prev_state=2,
        ),
        "gpu_error", silent_gpu,
    ),
    "irq_load": Case(
        lambda: first(irq_load), lambda: irq_load.taken(first(irq_load), SLOW + 92 * MS, 5 * MS, "ksoftirqd/3"),
        "memory_reclaim", lambda: freed(first(irq_load), SLOW + 20 * MS, 9 * MS, 100),
    ),
    "late_rank": Case(lambda: late(20), lambda: late(20, 40 * MS)),
    "launch_bound": Case(
        launch_bound.stream, lambda: launch_bound.stream(count=600), "cold_start", module_loaded,
    ),
    "launch_paced": Case(launch_paced.steps, lambda: launch_paced.steps(count=130)),
    "lock_wait": Case(
        lambda: first(lock_wait), locked_again, "memory_reclaim",
        lambda: freed(first(lock_wait), AT + 5 * MS, 9 * MS, 7),
    ),
    "memory_reclaim": Case(
        lambda: first(memory_reclaim), lambda: freed(first(memory_reclaim), SLOW + 92 * MS, 5 * MS, 100), "preempted",
        lambda: cpu_quota.off(first(memory_reclaim), SLOW + 60 * MS, 15 * MS, instead=99),
    ),
    "noisy_neighbour": Case(
        lambda: first(noisy_neighbour), crowded_again, "memory_reclaim",
        lambda: freed(first(noisy_neighbour), SLOW + 20 * MS, 9 * MS, 100),
    ),
    "numa_misplacement": Case(lambda: far_calls(0), lambda: far_calls(50)),
    "pcie_degraded": Case(
        lambda: pcie_degraded.narrow(gpu_shared.waits(), GPU_BEGIN, GPU_HALF),
        lambda: pcie_degraded.narrow(gpu_shared.waits()), "memory_reclaim",
        lambda: freed(pcie_degraded.narrow(gpu_shared.waits(), GPU_BEGIN, GPU_HALF), GPU_BEGIN + 401 * MS, 5 * MS, 7),
    ),
    "peer_late": Case(
        lambda: once_late(30 * MS), lambda: once_late(40 * MS), "memory_reclaim",
        lambda: freed(once_late(30 * MS), T0 + S + 70 * 50 * MS + 10 * MS, 9 * MS, 100),
    ),
    "preempted": Case(
        lambda: first(preempted), lambda: off(first(preempted), AT + 25 * MS, 10 * MS), "memory_reclaim",
        lambda: freed(first(preempted), AT + 5 * MS, 9 * MS, 7),
    ),
    "slow_host": Case(
        slow_host.scene, lambda: slow_host.scene(400 * MS), "memory_reclaim",
        lambda: freed(slow_host.scene(), STEP + 50 * MS, 9 * MS, 100),
    ),
    "synchronous_copy": Case(
        synchronous_copy.steps, lambda: synchronous_copy.steps(count=60), "memory_reclaim",
        lambda: freed(synchronous_copy.steps(), T0 + S + 3 * MS, MS, 7),
    ),
    "tcp_retransmits": Case(
        lambda: first(tcp_retransmits), lambda: tcp_retransmits.resent(first(tcp_retransmits), STEP + 300 * MS),
        "memory_reclaim", lambda: freed(first(tcp_retransmits), STEP + 50 * MS, 9 * MS, 100),
    ),
    "throttled": Case(
        lambda: throttled.hot(gpu_shared.waits(), GPU_BEGIN, GPU_HALF), lambda: throttled.hot(gpu_shared.waits()),
        "memory_reclaim",
        lambda: freed(throttled.hot(gpu_shared.waits(), GPU_BEGIN, GPU_HALF), GPU_BEGIN + 401 * MS, 5 * MS, 7),
    ),
}  # fmt: skip

FILLS_CPUS = {
    "input_starvation": "a duplicate that fills the host's CPUs as much is no bystander of who is said to fill them",
}
"""Detectors with a scene of which nothing is duplicated, and why."""

NOT_OF_TIME = {
    "oom_kill": "a process that was killed is gone from then on: its share is all of that time, or the kill was not",
}
"""Detectors whose share cannot grow by more of the disturbance, and why."""
