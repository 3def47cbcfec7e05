"""A process that waits for its GPU a thousand times, whose clock somebody capped for ten of sixty seconds."""

from tests.rule_scenes.gpu_shared import BEGIN, END, waits
from tests.scenes import T0, S, Scene

CAPPED = {"event_reasons": 0x2, "clock_sm_mhz": 990, "clock_sm_max_mhz": 1980, "clock_sm_cap_mhz": 990}
FREE = {"event_reasons": 0, "clock_sm_mhz": 1980, "clock_sm_max_mhz": 1980, "clock_sm_cap_mhz": 1980}


def capped(scene: Scene, start: int = BEGIN, end: int = END) -> Scene:
    """Capped from ``start`` to ``end``, on the GPU that process 7 holds."""
    scene.samples(T0, start, pids=[7], **FREE)
    scene.samples(start, end, pids=[7], **CAPPED)
    return scene.samples(end, T0 + 60 * S, pids=[7], **FREE)


def scenes() -> list[Scene]:
    return [capped(waits())]
