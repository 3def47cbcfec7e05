"""Scenes and their copies on one host, analysed once, and what is told of each in the names of its scene.

All clocks of such a host are shifted, its rows shuffled, its processes renamed and its tables cut into segments.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from gpuaudit.analyze import intervals
from gpuaudit.analyze.causal.arbitration import Part
from gpuaudit.analyze.causal.detect import shares
from gpuaudit.analyze.causal.findings import Claimed
from gpuaudit.analyze.causal.model import Effect
from gpuaudit.analyze.context import Context, Found
from gpuaudit.analyze.finding import Chain
from gpuaudit.analyze.registry import plugins
from tests.scenes import Row, Scene
from tests.side_by_side import as_original, copied, together, which

TIMES = ("start_ns", "wake_ns", "seen_ns", "monotonic_ns", "parent_ns")
KERNEL = ("swapper", "ksoftirqd", "kworker", "irq/", "jbd2", "migration")
"""Names that the kernel gives its own threads: they say what a thread is."""
SHIFT = 7_777_777_777


DOUBTS = {"blocking_io": " were pending on the same disk too"}
"""What a chain says of others that did the same on the same device at the same time: the one thing that a duplicate
may add to what is told of somebody else."""


@dataclass(frozen=True)
class World:
    """The analysis of scenes and copies on one host; by copy (None: the original) the scene that it is of."""

    name: str
    context: Context
    scenes: Mapping[int | None, Scene]
    names: Mapping[str, str]

    def outcome(self) -> Found:
        """Of the detector."""
        plugin = next(p for p in plugins() if p.declaration.id == self.name)
        out = plugin.evaluate(self.context)
        assert isinstance(out, Found), out
        return out

    def chains(self, k: int | None) -> list[Chain]:
        """Those about processes of one copy."""
        items = [c for c in self.outcome().items if isinstance(c, Chain)]
        return [c for c in items if which(int(c.subject["pid"])) == k]

    def plain(self, text: str, k: int | None) -> str:
        """A text of one copy in the names of the scene."""
        for old, new in self.names.items():
            text = text.replace(new, old)
        return text if k is None else as_original(text, k, self.scenes[k])

    def told(self, k: int | None) -> list[Any]:
        """What is told of one copy, without ids of rows and the grade, in the names of the scene."""
        out: list[Any] = json.loads(self.plain(json.dumps(told(self.chains(k))), k))
        return out

    def everything(self, k: int | None) -> list[Any]:
        """All chains and tables of shares of one copy."""
        found = self.context.causal
        chains = [c for c in found.chains if which(int(c.subject["pid"])) == k]
        rows = [{"about": c.subject["pid"], "chain": t} for c, t in zip(chains, told(chains), strict=True)]
        for e in found.effects:
            if which(e.pid) == k:
                table = [x.to_json() for x in shares(e, found.allotments[e.key])]
                rows.append({"about": str(e.pid), "effect": e.key, "shares": without_ids(table)})
        out: list[Any] = json.loads(self.plain(json.dumps(rows), k))
        return out

    def effects(self, k: int | None) -> dict[str, Effect]:
        """Effects of one copy by their keys in the scene."""
        return {self.plain(e.key, k): e for e in self.context.causal.effects if which(e.pid) == k}

    def parts(self, e: Effect) -> Sequence[Part[Claimed]]:
        """What was allotted of an effect."""
        return self.context.causal.allotments[e.key].parts


def doubt(text: str) -> bool:
    return text.endswith(tuple(DOUBTS.values()))


def told(chains: Iterable[Chain]) -> list[Any]:
    """Chains without doubts that duplicates may add."""
    return [without_ids(replace(c, against=tuple(a for a in c.against if not doubt(a))).to_json()) for c in chains]


def without_ids(value: Any) -> Any:
    """Of rows, and without the grade, which is that of all that was recorded."""
    if isinstance(value, dict):
        return {k: without_ids(v) for k, v in value.items() if k not in ("evidence", "grade")}
    return [without_ids(v) for v in value] if isinstance(value, list) else value


def new_names(scene: Scene) -> dict[str, str]:
    """Others for all that are not the kernel's own; what is sorted by name stays in its order."""
    old = {v for rows in scene.rows.values() for r in rows for k, v in r.items() if k.endswith("comm") and v}
    return {v: f"qx{i:02}v" for i, v in enumerate(sorted(old)) if not v.startswith(KERNEL)}


def changed(names: Mapping[str, str]) -> Callable[[str, list[Row]], list[Row]]:
    """Clocks shifted, rows shuffled, processes renamed."""

    def change(table: str, rows: list[Row]) -> list[Row]:
        out = [
            {k: v + SHIFT if k in TIMES else names.get(v, v) if k.endswith("comm") else v for k, v in r.items()
             if v is not None}
            for r in rows
        ]  # fmt: skip
        random.Random(table).shuffle(out)
        return out

    return change


def put_together(
    name: str, scenes: Mapping[int | None, Scene], names: Mapping[str, str] | None = None
) -> World:  # fmt: skip
    """The scenes (None: as it is) beside each other, and changed; ``names`` by old name, others unless told."""
    whole = together([s if k is None else copied(s, k) for k, s in scenes.items()])
    names = new_names(whole) if names is None else names
    return World(name, whole.mapped(changed(names)).context(segments=3), scenes, names)


def add_up(context: Context, effects: Iterable[Effect]) -> None:
    """The shares of each effect are one, and their times are its own, exactly."""
    for e in effects:
        allotment = context.causal.allotments[e.key]
        times = [*(p.allotted_ns for p in allotment.parts), intervals.measure(allotment.unexplained)]
        assert sum(times) == e.length_ns, e.key
        assert sum(map(allotment.share, times)) == Fraction(1), e.key


def served_in_order(world: World, effects: Iterable[Effect]) -> None:
    """Causes are allotted all of the effect that they cover, less what those of lower precedence cover."""
    for e in effects:
        served = intervals.EMPTY
        for level in sorted({p.who[0].detector.precedence for p in world.parts(e)}):
            mine = [p for p in world.parts(e) if p.who[0].detector.precedence == level]
            own = intervals.union(*(p.covered for p in mine))
            assert sum(p.allotted_ns for p in mine) == intervals.measure(intervals.subtract(own, served)), e.key
            served = intervals.union(served, own)
