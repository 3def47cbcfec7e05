"""A process that holds 100 GiB of managed memory on a GPU of 80 GiB."""

from tests.scenes import T0, US, S, Scene

GIB = 1 << 30


def managed(*sizes: int, gpus: int = 1, total: int | None = 80 * GIB) -> Scene:
    """Allocations of managed memory, a second apart, never freed; the process is listed on ``gpus`` GPUs."""
    scene = Scene().clock().process(7)
    for gpu in range(gpus):
        scene.samples(T0, T0 + 5 * S, gpu, [7], memory_total_bytes=total)
    for i, size in enumerate(sizes):
        scene.cuda(7, "cudaMallocManaged", T0 + i * S, 10 * US, size_bytes=size, device_pointer=(i + 1) << 40)
    return scene


def scenes() -> list[Scene]:
    return [managed(60 * GIB, 40 * GIB)]
