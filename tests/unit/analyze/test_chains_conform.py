"""Every detector of causes, by being in its folder: what its chains print, add up to, and do not depend on.

For the last, each detector's scenes are put on one host: as they are, copied whole (other processes, GPUs, groups of
ranks and cgroups, the same times and names: processes that have nothing to do with the others), copied again, with more
of the disturbance, and with another cause beside it; then all clocks are shifted, rows shuffled, processes renamed, and
every table is cut into segments. One analysis of that is held against those of the scenes alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import pytest

from gpuaudit.analyze import intervals
from gpuaudit.analyze.causal.detect import detectors
from gpuaudit.analyze.finding import Chain
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.registry import Plugin, plugins
from tests.disturbances import CASES, FILLS_CPUS, NOT_OF_TIME
from tests.rule_scenes import scenes_of
from tests.scenes import Scene
from tests.side_by_side import of_host
from tests.unit.analyze.test_conformance import everything, made
from tests.worlds import DOUBTS, World, add_up, doubt, put_together, served_in_order, told

DETECTORS = [p for p in plugins() if p.declaration.kind == "chain"]
NO_EFFECT = ("numa_misplacement", "oom_kill")
"""Told of a process as a whole: there is no effect of which a rest could be unexplained."""

IDS = [p.declaration.id for p in DETECTORS]
PRECEDENCE = {k.declaration.id: k.detector.precedence for k in detectors()}
"""Of detectors whose time is allotted; the others tell of a whole that has one cause."""

ONCE, TWICE, BASE, MORE, BESIDE = range(5)
"""Copies of the first scene (a process that stands by, and its duplicate, which the base of a case may be as well), and
of the scenes of a case."""
OTHERS = 5
"""From this copy on: the further scenes of the detector."""

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


@cache
def own_scenes(name: str) -> list[Scene]:
    return scenes_of(name) or [everything()]


@pytest.fixture(scope="module", params=IDS)
def world(request: pytest.FixtureRequest) -> World:
    """Of the first scene of a detector, of its case, and of its further scenes on the same kind of host."""
    name = str(request.param)
    first, *others = own_scenes(name)
    scenes: dict[int | None, Scene] = {None: first, ONCE: first}
    case = CASES.get(name)
    if case is not None:
        scenes |= {BASE: case.base(), MORE: case.more()}
        if case.beside is not None:
            scenes[BESIDE] = case.beside()
    if BASE not in scenes or scenes[BASE].rows != first.rows:
        scenes[TWICE] = first
    scenes |= {OTHERS + i: s for i, s in enumerate(others) if of_host(s) == of_host(first)}
    return put_together(name, scenes)


def test_nothing_changes(world: World) -> None:
    """In what is told of each scene, and of the duplicates of the first one."""
    mine = world.told(None)
    assert mine
    assert world.told(ONCE) == mine
    assert world.told(TWICE if TWICE in world.scenes else BASE) == mine
    assert any(doubt(a) for c in world.chains(None) for a in c.against) == (world.name in DOUBTS)
    for i, scene in enumerate(own_scenes(world.name)[1:], OTHERS):
        found = world.told(i) if i in world.scenes else on_its_own_host(world.name, scene)
        assert found
        mine += found
    assert mine == told(chains(next(p for p in DETECTORS if p.declaration.id == world.name)))


def on_its_own_host(name: str, scene: Scene) -> list[Any]:
    """What is told of a scene whose host is another than that of the first one."""
    both: dict[int | None, Scene] = {None: scene} if name in FILLS_CPUS else {None: scene, ONCE: scene}
    there = put_together(name, both)
    found = [there.told(k) for k in both]
    assert found[0] == found[-1]
    return found[0]


def test_every_detector_has_a_case() -> None:
    assert sorted({*CASES, *NOT_OF_TIME}) == IDS
    assert not CASES.keys() & NOT_OF_TIME.keys()
    for name, case in CASES.items():
        alone = name not in PRECEDENCE or not others_of(name)
        assert (case.beside is None) == alone, name


def others_of(name: str) -> set[str]:
    """Detectors that look at effects of the same kinds."""
    kinds = {k.declaration.id: k.detector.kinds for k in detectors()}
    return {other for other, theirs in kinds.items() if other != name and theirs & kinds[name]}


@dataclass(frozen=True)
class Share:
    """What a detector has of one effect: its own overlap, and what it was allotted. Units: ns."""

    effect_ns: int
    own: Intervals
    allotted_ns: int

    @property
    def own_ns(self) -> int:
        return intervals.measure(self.own)


def of_detector(world: World, k: int, name: str) -> dict[str, Share]:
    """By effect, of one copy."""
    out = {}
    for key, e in world.effects(k).items():
        mine = [p for p in world.parts(e) if p.who[0].declaration.id == name]
        if mine:
            own = intervals.union(*(p.covered for p in mine))
            out[key] = Share(e.length_ns, own, sum(p.allotted_ns for p in mine))
    return out


def of_whole(world: World, k: int) -> dict[str, Share]:
    """Of a detector that tells of a whole: what its chains explain of what they are about."""
    out = {}
    for c in world.chains(k):
        effect = sum(whole(x.effect_ns.value) for x in c.links)
        explained = sum(whole(x.overlap_ns.value) for x in c.links)
        out[world.plain(json.dumps(c.subject), k)] = Share(effect, intervals.single(0, explained), explained)
    return out


def whole(value: int | Fraction | None) -> int:
    assert isinstance(value, int)
    return value


def test_more_of_a_disturbance_never_lowers_its_share(world: World) -> None:
    """Of the same cause: its own overlap grows, and neither what it is allotted nor its share of any effect sinks."""
    if world.name in NOT_OF_TIME:
        rows = [s for c in world.chains(None) for s in c.shares]
        assert {s.share.value for s in rows} == {1}
        return
    before, after = (
        of_detector(world, k, world.name) if world.name in PRECEDENCE else of_whole(world, k) for k in (BASE, MORE)
    )
    assert before
    for key, was in before.items():
        now = after[key]
        assert now.own_ns >= was.own_ns, key
        assert now.allotted_ns >= was.allotted_ns, key
        assert Fraction(now.allotted_ns, now.effect_ns) >= Fraction(was.allotted_ns, was.effect_ns), key
    assert sum(s.own_ns for s in after.values()) > sum(s.own_ns for s in before.values())


def test_another_cause_beside_takes_what_is_declared_and_no_more(world: World) -> None:
    """The own overlap of every cause stays; each is allotted that, less what those of lower precedence cover."""
    if BESIDE not in world.scenes:
        assert world.name in NOT_OF_TIME or CASES[world.name].beside is None
        return
    other = CASES[world.name].other
    before, after = of_detector(world, BASE, world.name), of_detector(world, BESIDE, world.name)
    added = of_detector(world, BESIDE, other)
    assert before
    for key, was in before.items():
        assert intervals.measure(intervals.subtract(was.own, after[key].own)) == 0, key
        if PRECEDENCE[other] > PRECEDENCE[world.name]:
            assert after[key].allotted_ns >= was.allotted_ns, key
    shared = sum(
        intervals.measure(intervals.intersect(after[key].own, a.own)) for key, a in added.items() if key in after
    )
    assert shared > 0, "both cover some of the time"
    served_in_order(world, world.effects(BESIDE).values())


def test_shares_sum_to_one(world: World) -> None:
    add_up(world.context, world.context.causal.effects)
