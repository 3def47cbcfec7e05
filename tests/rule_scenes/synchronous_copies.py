"""A thread that copies 4 KiB to the GPU and 8 MiB back, blocking, in every step."""

from tests.scenes import MS, T0, US, S, Scene


def steps(count: int = 50, every: int = 20 * MS, back: int = 2 * MS, direction: int | None = 2) -> Scene:
    """Each step: a copy of 4 KiB in 10 µs, then one of 8 MiB in ``back``."""
    scene = Scene().clock().process(7).cuda(7, "cudaMalloc", T0, US)
    for i in range(count):
        at = T0 + MS + i * every
        scene.cuda(7, "cudaMemcpy", at, 10 * US, size_bytes=4_096, direction=1)
        scene.cuda(7, "cudaMemcpy_ptds", at + MS, back, size_bytes=8 << 20, direction=direction)
    return scene.cuda(7, "cudaDeviceSynchronize", T0 + S, US)


def scenes() -> list[Scene]:
    return [steps()]
