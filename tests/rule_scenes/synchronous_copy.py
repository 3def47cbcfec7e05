"""A thread that copies 4 KiB to the GPU and 8 MiB back, blocking, in every step: pinned, pageable, or nobody knows."""

from tests.scenes import MS, T0, US, S, Scene

HOST, DEVICE = 0x7F00_0000_0000, 0x7E00_0000_0000


def steps(*, pinned: bool = False, began: int = T0 + S // 2, count: int = 50) -> Scene:
    """50 steps of 20 ms: 10 µs to the device, 2 ms back. A process that began before the capture was not seen whole."""
    scene = Scene().clock().process(7, start_ns=began)
    if pinned:
        scene.cuda(7, "cudaHostAlloc", T0 + S, 100 * US, size_bytes=16 << 20, device_pointer=HOST)
    scene.cuda(7, "cudaMalloc", T0 + S + MS, US, size_bytes=16 << 20, device_pointer=DEVICE)
    for i in range(count):
        at = T0 + S + 2 * MS + i * 20 * MS
        scene.cuda(7, "cudaMemcpy", at, 10 * US, size_bytes=4_096, direction=1, source_pointer=HOST,
                   device_pointer=DEVICE)  # fmt: skip
        scene.cuda(7, "cudaMemcpy", at + MS, 2 * MS, size_bytes=8 << 20, direction=2, source_pointer=DEVICE,
                   device_pointer=HOST + 4_096)  # fmt: skip
    return scene.cuda(7, "cudaDeviceSynchronize", T0 + S + 2 * MS + count * 20 * MS, US)


def recorded(kernel: int = MS, pageable: int | None = 1) -> Scene:
    """The same with the GPU's own record: a kernel runs for the first part of every copy back."""
    scene = steps(began=T0 - 100 * S)
    for row in [r for r in scene.rows["cuda_calls"] if r.get("direction") == 2]:
        scene.add(
            "gpu_activities", start_ns=row["start_ns"], duration_ns=kernel, pid=7, op="kernel", name="k", stream=0
        )
        scene.add(
            "gpu_activities", start_ns=row["start_ns"] + kernel, duration_ns=row["duration_ns"] - kernel, pid=7,
            op="memcpy", name="Memcpy DtoH (Device -> Pageable)", stream=0, size_bytes=8 << 20, direction=2,
            pageable=pageable,
        )  # fmt: skip
    return scene


def scenes() -> list[Scene]:
    return [steps(), steps(pinned=True), steps(began=T0 - 100 * S)]
