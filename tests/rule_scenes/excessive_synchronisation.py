"""A thread that launches a kernel and waits for it, a thousand times a second."""

from tests.scenes import MS, T0, US, S, Scene


def loop(every: int = MS, wait: int = 400 * US, seconds: int = 2, op: str = "cudaStreamSynchronize") -> Scene:
    """A launch of 5 µs and a synchronisation of ``wait`` in every period."""
    scene = Scene().clock().process(7)
    for at in range(T0, T0 + seconds * S, every):
        scene.cuda(7, "cudaLaunchKernel", at, 5 * US)
        scene.cuda(7, op, at + 10 * US, wait)
    return scene


def scenes() -> list[Scene]:
    return [loop()]
