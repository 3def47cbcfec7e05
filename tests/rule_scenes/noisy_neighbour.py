"""Slow launches in which two processes of another pod took the thread's CPU by turns."""

from __future__ import annotations

from tests.rule_scenes.cpu_quota import launches
from tests.rule_scenes.irq_load import taken
from tests.scenes import MS, T0, S, Scene

OWN, OTHER = 4_001, 4_002
NEIGHBOURS = {201: "tokenizer", 202: "logger"}


def scenes(known: bool = True) -> list[Scene]:
    scene = launches()
    for pid, name in NEIGHBOURS.items():
        scene.process(pid, name, cgroup="/kubepods/pod2" if known else None, cgroup_id=OTHER)
    for i in range(5):
        for n, (pid, name) in enumerate(NEIGHBOURS.items()):
            at = T0 + 10 * S + i * S + (10 + 45 * n) * MS
            taken(scene, at, 40 * MS, name, instead=pid, cgroup_id=OWN, next_cgroup_id=OTHER)
    return [scene]
