"""A thread that launches kernels of 5 µs every 20 µs, and then pauses for 10 ms."""

from tests.scenes import MS, T0, US, S, Scene


def stream(kernel: int = 5 * US, pace: int = 20 * US, count: int = 400, pause: int = 10 * MS) -> Scene:
    """Two rounds of ``count`` launches of 4 µs; a kernel begins 3 µs after its call, or after the one before it."""
    scene = Scene().clock().process(7)
    free = 0
    for i in range(2 * count):
        at = T0 + S + i * pace + (pause if i >= count else 0)
        begin = max(at + 7 * US, free)
        free = begin + kernel
        scene.cuda(7, "cudaLaunchKernel", at, 4 * US, correlation=i + 1)
        scene.add(
            "gpu_activities", start_ns=begin, duration_ns=kernel, pid=7, op="kernel", name="k", device=0, stream=7,
            correlation=i + 1,
        )  # fmt: skip
    return scene


def scenes() -> list[Scene]:
    return [stream()]
