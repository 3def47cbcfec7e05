"""A process whose last synchronisation takes 20 s, in which its GPU falls off the bus, or counts memory errors."""

from typing import Any

from tests.rule_scenes.power_cap import health
from tests.rule_scenes.xid import event
from tests.scenes import MS, T0, S, Scene

HANG, BACK = T0 + 20 * S, T0 + 40 * S


def hanging(**more: Any) -> Scene:
    """A hundred waits of 1 ms, and one of 20 s; readings of the GPU's health every 5 s."""
    scene = Scene().clock().process(7).samples(T0, T0 + 60 * S, pids=[7])
    for i in range(100):
        scene.cuda(7, "cudaStreamSynchronize", T0 + i * 150 * MS, MS, stream=1)
    scene.cuda(7, "cudaStreamSynchronize", HANG, BACK - HANG, stream=1)
    scene.cuda(7, "cudaStreamSynchronize", T0 + 59 * S, MS, stream=1)
    return health(scene, **more)


def errors(at: int) -> int:
    """One more at 28 s, which the readings at 25 s and 30 s have between them."""
    return int(at >= T0 + 28 * S)


def scenes() -> list[Scene]:
    return [event(hanging(), 79, HANG + 5 * S), hanging(ecc_uncorrected_volatile=errors)]
