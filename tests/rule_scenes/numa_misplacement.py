"""A process whose GPU is near CPUs 0 to 3, and whose launches run on CPU 9."""

from __future__ import annotations

import json

from tests.scenes import MS, T0, US, S, Scene


def placed(cpus: list[int], near: str | None = "0-3", pid: int = 100) -> Scene:
    """200 launches of 1 ms, by turns on these CPUs."""
    scene = Scene().clock().process(pid).samples(T0, T0 + 20 * S, 0, [pid])
    for i in range(200):
        scene.cuda(pid, "cudaLaunchKernel", T0 + S + i * 50 * MS, 1000 * US, cpu=cpus[i % len(cpus)])
    if near is not None:
        facts = {"cpu_affinity": {"value": near}}
        scene.artefacts.append(("gpus", json.dumps({"gpus": [{"uuid": "GPU-0", "facts": facts}]}).encode()))
    return scene


def scenes() -> list[Scene]:
    return [placed([9])]
