"""Process 7 exits after 10 s and stays listed; process 8 is listed throughout and never runs a kernel."""

from tests.scenes import MS, T0, S, Scene

GIB = 1 << 30


def listed(scene: Scene, pid: int, start: int, end: int, *, sm: int | None = 0, memory: int | None = 8 * GIB) -> Scene:
    """NVML lists the process with every poll of 250 ms."""
    for at in range(start, end, 250 * MS):
        scene.add(
            "nvml_processes", start_ns=at, duration_ns=250 * MS, gpu_index=0, gpu_uuid="GPU-0", pid=pid, op="compute",
            memory_used_bytes=memory, sm_utilization_percent=sm,
        )  # fmt: skip
    return scene


def polled() -> Scene:
    """One GPU of 80 GiB, busy throughout."""
    return Scene().clock().samples(T0, T0 + 60 * S, memory_total_bytes=80 * GIB)


def scenes() -> list[Scene]:
    scene = polled().process(7).process(7, op="exited", duration_ns=11 * S, seen_ns=T0 + 10 * S).process(8)
    return [listed(listed(scene, 7, T0, T0 + 40 * S, sm=50), 8, T0, T0 + 60 * S)]
