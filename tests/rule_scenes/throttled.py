"""A process that waits for its GPU a thousand times, which is too hot for ten of sixty seconds."""

from tests.rule_scenes.gpu_shared import BEGIN, END, waits
from tests.scenes import T0, S, Scene

HOT = {"event_reasons": 0x40, "clock_sm_mhz": 990, "clock_sm_max_mhz": 1980}
COOL = {"event_reasons": 0, "clock_sm_mhz": 1980, "clock_sm_max_mhz": 1980}


def hot(scene: Scene, start: int = BEGIN, end: int = END) -> Scene:
    """Hot from ``start`` to ``end``, on the GPU that process 7 holds."""
    scene.samples(T0, start, pids=[7], **COOL)
    scene.samples(start, end, pids=[7], **HOT)
    return scene.samples(end, T0 + 60 * S, pids=[7], **COOL)


def scenes() -> list[Scene]:
    return [hot(waits())]
