"""A thread that allocates 8 MiB, works, and frees it, in every step of 10 ms."""

from tests.scenes import MS, T0, US, S, Scene


def steps(count: int = 100, every: int = 10 * MS, grow: int = 0) -> Scene:
    """Each step allocates and frees in 500 µs each; ``grow`` bytes more from step to step."""
    scene = Scene().clock().process(7)
    for i in range(count):
        at = T0 + S + i * every
        scene.cuda(7, "cudaMalloc", at, 500 * US, size_bytes=(8 << 20) + i * grow, device_pointer=0x7F0000000000)
        scene.cuda(7, "cudaLaunchKernel", at + MS, 5 * US)
        scene.cuda(7, "cudaFree", at + 5 * MS, 500 * US, device_pointer=0x7F0000000000)
    return scene


def scenes() -> list[Scene]:
    return [steps()]
