"""A thread whose steps are 12 launches of 6 µs, 10 µs apart, and 4 µs after the last a wait that finds the GPU done."""

from typing import Any

from tests.scenes import T0, US, S, Scene

LAUNCH, GAP, TAIL, REST = 6 * US, 10 * US, 4 * US, 30 * US
LAUNCHES, STEPS = 12, 110


def step_ns(gap: int = GAP) -> int:
    """From the start of the first launch to the return of the last."""
    return LAUNCHES * LAUNCH + (LAUNCHES - 1) * gap


def steps(
    *, count: int = STEPS, gap: int = GAP, tail: int = TAIL, wait: int = 8 * US, rest: int = REST,
    stream: int = 5, op: str = "cudaStreamSynchronize", of: dict[str, Any] | None = None,
) -> Scene:  # fmt: skip
    """``count`` steps of process 7: ``tail`` from the last launch on ``stream`` to the wait ``op``, which has the
    arguments ``of`` (that stream, unless told) and takes ``wait``; ``rest`` between steps."""
    scene, at = Scene().clock().process(7), T0 + S
    for _ in range(count):
        for i in range(LAUNCHES):
            scene.cuda(7, "cudaLaunchKernel", at + i * (LAUNCH + gap), LAUNCH, stream=stream)
        at += step_ns(gap) + tail
        scene.cuda(7, op, at, wait, **({"stream": stream} if of is None else of))
        at += wait + rest
    return scene


def scenes() -> list[Scene]:
    return [steps()]
