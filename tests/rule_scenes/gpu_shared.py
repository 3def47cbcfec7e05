"""A process that waits for its GPU a thousand times, and another that runs kernels there for ten of sixty seconds."""

from typing import Any

from tests.scenes import MS, T0, S, Scene

BEGIN, END = T0 + 20 * S, T0 + 30 * S


def waits(slow_in: tuple[int, int] = (BEGIN, END), every: int = 60 * MS) -> Scene:
    """Synchronisations of 1 ms; of those within ``slow_in`` each tenth takes 10 ms."""
    scene = Scene().clock().process(7).process(8, comm="notebook")
    for i in range(60 * S // every):
        at = T0 + i * every
        slow = slow_in[0] <= at < slow_in[1] and i % 10 == 0
        scene.cuda(7, "cudaStreamSynchronize", at, 10 * MS if slow else MS, stream=1)
    return scene


def shared(scene: Scene, other: dict[str, Any] | None = None, mine: dict[str, Any] | None = None) -> Scene:
    """Process 8 is listed throughout, and used the GPU from 20 s to 30 s."""
    scene.samples(T0, T0 + 60 * S, pids=[7])
    for row in scene.rows["nvml_processes"]:
        row.update(mine or {"sm_utilization_percent": 60})
    for at in range(T0, T0 + 60 * S, 250 * MS):
        used = {"sm_utilization_percent": 40 if BEGIN <= at < END else 0, **(other or {})}
        scene.add("nvml_processes", start_ns=at, duration_ns=250 * MS, gpu_index=0, gpu_uuid="GPU-0", pid=8,
                  op="compute", **used)  # fmt: skip
    return scene


def scenes() -> list[Scene]:
    return [shared(waits())]
