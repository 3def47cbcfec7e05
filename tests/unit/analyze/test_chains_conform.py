"""Every detector of causes, by being in its folder: what its chains print, add up to, and do not depend on."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

import pytest

from gpuaudit.analyze.context import Found
from gpuaudit.analyze.finding import Chain, Finding
from gpuaudit.analyze.registry import Plugin, plugins
from tests.rule_scenes import scenes_of
from tests.rule_scenes.slow import AT, launches, off
from tests.scenes import MS, Row, Scene
from tests.unit.analyze.test_conformance import everything, made

DETECTORS = [p for p in plugins() if p.declaration.kind == "chain"]
TIMES = ("start_ns", "wake_ns", "seen_ns", "monotonic_ns", "parent_ns")
KERNEL = ("swapper", "ksoftirqd", "kworker", "irq/", "jbd2", "migration")
"""Names that the kernel gives its own threads: they say what a thread is."""
BESIDE, SHIFT = 3_999_999, 7_777_777_777
NO_EFFECT = ("numa_misplacement", "oom_kill")
"""Told of a process as a whole: there is no effect of which a rest could be unexplained."""

each = pytest.mark.parametrize("plugin", DETECTORS, ids=lambda p: p.declaration.id)


def chains(plugin: Plugin) -> list[Chain]:
    return [c for c in made(plugin.declaration.id) if isinstance(c, Chain)]


@each
def test_every_chain_says_what_would_change_our_mind(plugin: Plugin) -> None:
    """What would refute it, what would test it, what to do next, and what that brings at least and at most."""
    for c in chains(plugin):
        told = (c.refuted_by, c.experiment, c.next_step)
        assert all(len(text.split()) > 4 for text in told), told
        assert len(set(told)) == 3, told
        assert c.gain is not None
        low, high = number(c.gain.low.value), number(c.gain.high.value)
        assert 0 <= low <= high <= number(c.impact.value)
        assert c.gain.high.unit == c.gain.low.unit == c.impact.unit


def number(value: int | Fraction | None) -> Fraction:
    assert value is not None
    return Fraction(value)


@each
def test_every_link_has_its_own_overlap_and_every_table_is_all_of_its_effect(plugin: Plugin) -> None:
    for c in chains(plugin):
        assert c.links
        for x in c.links:
            overlap, effect = number(x.overlap_ns.value), number(x.effect_ns.value)
            assert 0 < overlap <= effect
            assert number(x.explained.value) == overlap / effect
        if c.shares:
            assert sum(number(s.share.value) for s in c.shares) == 1
            assert c.shares[-1].label == "unexplained" or c.detector in NO_EFFECT
            whole = sum(number(s.time.value) for s in c.shares)
            assert all(number(s.share.value) * whole == number(s.time.value) for s in c.shares)
            assert c.shared_effect
        assert c.shares or c.detector in (*NO_EFFECT, "late_rank"), "a late rank has one where a cause of it is known"


def told(found: Iterable[Finding | Chain]) -> list[Any]:
    """Chains without ids of rows, what a bystander loses, and the grade, which is that of all that was recorded."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in ("evidence", "grade")}
        return [plain(v) for v in value] if isinstance(value, list) else value

    kept = [c for c in found if isinstance(c, Chain) and c.subject.get("pid") != str(BESIDE)]
    return [plain(c.to_json()) for c in kept]


def beside(scene: Scene) -> Scene:
    """A process with calls of its own, one of them slow, which loses its CPU to somebody else."""
    more = launches(slow=20 * MS, pid=BESIDE, count=150, scene=scene.mapped(lambda _, rows: rows))
    return off(more, AT, 15 * MS, pid=BESIDE, next_pid=98, next_tid=98, next_comm="other", cpu_out=63, cpu=63)


def new_names(scene: Scene) -> dict[str, str]:
    """Others for all that are not the kernel's own; what is sorted by name stays in its order."""
    old = {v for rows in scene.rows.values() for r in rows for k, v in r.items() if k.endswith("comm") and v}
    return {v: f"qx{i:02}v" for i, v in enumerate(sorted(old)) if not v.startswith(KERNEL)}


def changed(scene: Scene, names: Mapping[str, str]) -> Scene:
    """Clocks shifted, rows shuffled, processes renamed."""

    def change(table: str, rows: list[Row]) -> list[Row]:
        out = [
            {k: v + SHIFT if k in TIMES else names.get(v, v) if k.endswith("comm") else v for k, v in r.items()
             if v is not None}
            for r in rows
        ]  # fmt: skip
        random.Random(table).shuffle(out)
        return out

    return scene.mapped(change)


@each
def test_clocks_names_the_order_and_segments_of_rows_and_a_process_beside_it_change_nothing(plugin: Plugin) -> None:
    got: list[Any] = []
    for scene in scenes_of(plugin.declaration.id) or [everything()]:
        crowded = beside(scene)
        names = new_names(crowded)
        outcome = plugin.evaluate(changed(crowded, names).context(segments=3))
        assert isinstance(outcome, Found), outcome
        text = json.dumps(told(outcome.items))
        for old, new in names.items():
            text = text.replace(new, old)
        got += json.loads(text)
    assert got == told(chains(plugin))
