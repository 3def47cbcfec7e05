"""A trainer that gives 40 blocks of memory back in one go, one of them slowly; and one that asks for 40."""

from tests.scenes import MS, T0, US, S, Scene

BURST = T0 + 30 * S


def burst(op: str = "cudaFree", count: int = 40, every: int = 500 * US, slow: int = 1_900 * US, tid: int = 7) -> Scene:
    """Launches throughout; at 30 s ``count`` calls of 400 µs in a row, the tenth of which takes ``slow``."""
    scene = Scene().clock().process(7, start_ns=T0 - 100 * S)
    for i in range(200):
        scene.cuda(7, "cudaLaunchKernel", T0 + 100 * MS + i * 250 * MS, 10 * US)
    for i in range(2 if tid != 7 else 0):  # the other thread is there all the time
        scene.cuda(7, "cudaLaunchKernel", T0 + 50 * MS + i * 50 * S, 10 * US, tid=tid)
    at = BURST
    for i in range(count):
        took = slow if i == 9 else 400 * US
        scene.cuda(7, op, at, took, tid=tid, size_bytes=(1 << 20) if "Malloc" in op else None, device_pointer=4096 + i)
        at += max(every, took + 10 * US)
    return scene


def scenes() -> list[Scene]:
    return [burst(), burst("cudaMalloc")]
