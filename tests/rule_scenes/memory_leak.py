"""A process that allocates 3 MiB in every half second and frees 1 MiB of it."""

from tests.scenes import MS, T0, US, S, Scene

MIB = 1 << 20


def leaking(seconds: int = 60, keep: int = 2 * MIB, pid: int = 7) -> Scene:
    """``keep`` bytes stay behind in every half second; a workspace of 1 MiB comes and goes."""
    scene = Scene().clock().process(pid)
    for i, at in enumerate(range(T0, T0 + seconds * S, 500 * MS)):
        scene.cuda(pid, "cudaMalloc", at, 10 * US, size_bytes=keep, device_pointer=(i + 1) << 32)
        scene.cuda(pid, "cudaMallocAsync", at + MS, 10 * US, size_bytes=MIB, device_pointer=64)
        scene.cuda(pid, "cudaFreeAsync", at + 200 * MS, 10 * US, device_pointer=64)
    return scene


def scenes() -> list[Scene]:
    return [leaking()]
