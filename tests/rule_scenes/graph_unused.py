"""A thread that makes ten graphs at start-up, and launches the first of them."""

from tests.rule_scenes.graph_recapture import EXECUTABLE, capture
from tests.scenes import MS, T0, US, S, Scene


def made(count: int = 10, launched: int = 1, told: bool = True) -> Scene:
    """``count`` graphs of 40 ms each, ``launched`` of them in turn for a second."""
    scene = Scene().clock().process(7)
    for i in range(count):
        capture(scene, T0 + S + i * 50 * MS, EXECUTABLE + i)
    for i in range(20 if launched else 0):
        handle = EXECUTABLE + i % launched if told else None
        scene.cuda(7, "cudaGraphLaunch", T0 + 2 * S + i * 50 * MS, 20 * US, handle=handle, stream=3)
    return scene


def scenes() -> list[Scene]:
    return [made()]
