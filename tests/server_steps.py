"""An inference server (7): it loads weights, reserves its KV cache, and then decodes with one graph a step; every
tenth step is a prefill of 40 kernels."""

from tests.scenes import MS, T0, US, S, Scene

WEIGHTS, KV = 0x7E00_0000_0000, 0x7D00_0000_0000
DECODE, PREFILL = 5 * MS, 20 * MS


def server(count: int = 300, slow: tuple[int, int] = (155, 60 * MS), engine: bool = True) -> Scene:
    """``count`` steps 50 ms apart; of ``slow`` the step and how long it takes."""
    scene = Scene().clock().process(7, start_ns=T0 + MS)
    if engine:
        scene.add(
            "engines", start_ns=T0, duration_ns=S, engine=0, op="vllm", url="http://127.0.0.1:8000/metrics", pid=7,
            found_by="listening socket of a traced process", remote=0, state="scraped",
        )  # fmt: skip
    scene.cuda(7, "cudaMalloc", T0 + 10 * MS, MS, size_bytes=256 << 20, device_pointer=WEIGHTS)
    for i in range(4):
        scene.cuda(7, "cudaMemcpy", T0 + (20 + 20 * i) * MS, 10 * MS, size_bytes=64 << 20, direction=1,
                   device_pointer=WEIGHTS + i * (64 << 20), source_pointer=4_096)  # fmt: skip
    scene.cuda(7, "cudaMalloc", T0 + 200 * MS, MS, size_bytes=512 << 20, device_pointer=KV)
    for i in range(count):
        at, prefill = T0 + S + i * 50 * MS, i % 10 == 0
        took = slow[1] if i == slow[0] else PREFILL if prefill else DECODE
        if prefill:
            for k in range(40):
                scene.cuda(7, "cudaLaunchKernel", at + k * 10 * US, 5 * US, stream=1)
        else:
            scene.cuda(7, "cudaGraphLaunch", at, 20 * US, handle=9, stream=1)
        scene.cuda(7, "cudaStreamSynchronize", at + MS, took - MS, stream=1)
    # One block is moved out of the cache to the host, and back.
    at = T0 + S + count * 50 * MS
    scene.cuda(7, "cudaMemcpyAsync", at, 10 * US, size_bytes=2 << 20, direction=2, source_pointer=KV + (8 << 20),
               device_pointer=4_096)  # fmt: skip
    return scene.cuda(7, "cudaMemcpyAsync", at + MS, 10 * US, size_bytes=1 << 20, direction=1,
                      device_pointer=KV + (8 << 20), source_pointer=4_096)  # fmt: skip
