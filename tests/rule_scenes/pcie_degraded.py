"""A process that copies, blocking, a thousand times, over a link that has four lanes for ten of sixty seconds."""

from tests.rule_scenes.gpu_shared import BEGIN, END, waits
from tests.rule_scenes.power_cap import health
from tests.scenes import T0, S, Scene


def narrow(scene: Scene, start: int = BEGIN, end: int = END) -> Scene:
    """Four lanes of sixteen from ``start`` to ``end``; what waits is a copy of 1 MiB to the device."""
    for row in scene.rows["cuda_calls"]:
        row.update(op="cudaMemcpy", direction=1, size_bytes=1 << 20, stream=None)
    for a, b, lanes in ((T0, start, 16), (start, end, 4), (end, T0 + 60 * S, 16)):
        scene.samples(a, b, pids=[7], pcie_generation=5, pcie_width=lanes, performance_state=0)
    return health(scene, pcie_generation_max=5, pcie_width_max=16)


def scenes() -> list[Scene]:
    return [narrow(waits())]
