"""A link of four lanes where there could be sixteen, under load and much used; and one that repeats packets."""

from typing import Any

from tests.rule_scenes.power_cap import health
from tests.scenes import MS, T0, S, Scene


def link(generation: int = 5, width: int = 4, **more: Any) -> Scene:
    """One busy GPU in a slot of generation 5 with 16 lanes."""
    values: dict[str, Any] = {"pcie_generation": generation, "pcie_width": width, "performance_state": 0, **more}
    scene = Scene().clock().samples(T0, T0 + 60 * S, **values)
    return health(scene, pcie_generation_max=5, pcie_width_max=16)


def replaying(per_sample: int) -> Scene:
    """The full link, with so many more replays at every sample."""
    scene = link(5, 16)
    for row in scene.rows["nvml_samples"]:
        row["pcie_replays"] = 5 + per_sample * (row["start_ns"] - T0) // (250 * MS)
    return scene


def scenes() -> list[Scene]:
    return [link(pcie_rx_kib_per_s=12_000_000, pcie_tx_kib_per_s=1_000), replaying(1)]
