"""What may change without changing what caused what, in scenarios of the corpus and in drawn disturbances of one call.

The properties of every detector stand in ``tests/unit/analyze/test_chains_conform.py``. The drawn call takes 40 ms,
cut into slots; in each its thread may be preempted by somebody or by interrupts, wait for a sibling's lock or a disk,
free memory, or sleep for reasons of its own, which is no cause. Its sibling is disturbed too.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuaudit.analyze.causal import detect
from gpuaudit.analyze.finding import Chain
from tests.corpus.distractors import USUAL
from tests.corpus.model import Scenario, play
from tests.corpus.scenarios import NOISY, PREEMPTED
from tests.corpus.training import Trainer
from tests.rule_scenes import gpu_shared, input_starvation
from tests.rule_scenes.slow import AT, block, launches, off
from tests.scenes import MS, Row, Scene
from tests.side_by_side import copied, number, together
from tests.unit.analyze.test_conformance import made as found_in
from tests.unit.bench.test_causes import PLAYED
from tests.worlds import World, add_up, put_together, served_in_order

Kind = Literal["preempted", "irq_load", "lock_wait", "blocking_io", "memory_reclaim", "asleep"]
Slots = dict[int, tuple[Kind, int]]

SLOTS, SLOT = 8, 5 * MS
NAMES = {"hog": "zz-hog", "python3": "aa-trainer", "loader": "0-loader"}
"""Others, which sort differently."""

ONCE, MORE = range(2)
"""Copies: a duplicate that stands by, and one with more of one disturbance."""

CULPRIT = {
    "preempted": "hog", "irq_load": "interrupt work of ksoftirqd/1", "lock_wait": "loader", "blocking_io": "disk 259:0",
    "memory_reclaim": "",
}  # fmt: skip
"""What the culprit's name begins with, by detector."""

kinds = st.sampled_from([*CULPRIT, "asleep"])
slots = st.dictionaries(st.integers(0, SLOTS - 1), st.tuples(kinds, st.integers(MS, SLOT)), min_size=2)


def disturb(scene: Scene, slot: int, kind: Kind, length: int, pid: int = 7) -> Scene:
    """One disturbance of the main thread of ``pid``, from the beginning of a slot."""
    at = AT + slot * SLOT
    asleep: dict[str, Any] = {
        "op": "blocked",
        "next_pid": 0,
        "next_tid": 0,
        "next_comm": "swapper/1",
        "runqueue_ns": 0,
        "pid": pid,
    }
    if kind == "preempted":
        return off(scene, at, length, pid=pid)
    if kind == "irq_load":
        return off(scene, at, length, pid=pid, next_pid=15, next_tid=15, next_comm="ksoftirqd/1")
    if kind == "memory_reclaim":
        return scene.add(
            "reclaims", start_ns=at, duration_ns=length, pid=pid, tid=pid, op="host", cgroup_limit=0, comm="python3",
            order=0, reclaimed_pages=32,
        )  # fmt: skip
    if kind == "lock_wait":
        woken: dict[str, Any] = {"wake_ns": at + length, "waker_pid": pid, "waker_tid": pid + 1, "waker_comm": "loader"}
        off(scene, at, length // 2, pid=pid, tid=pid + 1)
        return off(scene, at, length, prev_state=1, syscall=202, **asleep, **woken)
    if kind == "blocking_io":
        block(scene, at, length, pid=pid, queue_ns=0)
        return off(scene, at, length, prev_state=2, syscall=17, **asleep)
    return off(scene, at, length, prev_state=1, syscall=230, **asleep)


def made(disturbed: Slots) -> Scene:
    scene = launches(slow=SLOTS * SLOT, count=150)
    for slot, (kind, length) in disturbed.items():
        disturb(scene, slot, kind, length)
    return scene


@settings(max_examples=2, deadline=None)
@given(slots, st.integers(0, SLOTS - 1), st.sampled_from(list(CULPRIT)), st.integers(2 * MS, SLOT))
def test_nothing_changes_but_by_more_of_a_disturbance(disturbed: Slots, slot: int, kind: Kind, length: int) -> None:
    scene = made({n: d for n, d in disturbed.items() if n != slot})
    more = disturb(scene.mapped(lambda _, rows: rows), slot, kind, length)
    alone = World("", scene.context(), {None: scene}, {})
    world = put_together("", {None: scene, ONCE: scene, MORE: more}, NAMES)
    told = alone.everything(None)
    assert world.everything(None) == told
    assert world.everything(ONCE) == told
    add_up(world.context, world.context.causal.effects)
    served_in_order(world, world.context.causal.effects)
    assert allotted(world, MORE, kind) == allotted(alone, None, kind) + length


def allotted(world: World, k: int | None, kind: str) -> int:
    """ns of the slow call of process 7 that were allotted to the disturbance."""
    (effect,) = [e for e in world.effects(k).values() if e.kind == "slow_call"]
    return sum(
        p.allotted_ns
        for p in world.parts(effect)
        if p.who[0].declaration.id == kind and world.plain(p.who[1].culprit, k).startswith(CULPRIT[kind])
    )


AT_ONCE = 9
"""Scenarios of the corpus that are analysed side by side, each on processes, GPUs and in cgroups of its own."""


@pytest.mark.parametrize("first", range(0, len(PLAYED), AT_ONCE))
def test_shares_sum_to_one_in_every_scenario_of_the_corpus(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every effect, whether or not a chain is told of it; none is told here."""
    monkeypatch.setattr(detect, "tell", lambda *_: [])
    played = [PLAYED[name] for name in list(PLAYED)[first : first + AT_ONCE]]
    host = Scene()
    host.rows["clock"] = max((p.scene.rows["clock"] for p in played), key=lambda rows: rows[-1]["start_ns"])
    context = together([host, *(copied(p.scene, k) for k, p in enumerate(played))]).context()
    effects = context.causal.effects
    add_up(context, effects)
    looked_at = {e.pid for e in effects}
    for k, p in enumerate(played):
        assert {number(pid, k) for pid, _ in p.lengthened} <= looked_at, p.scenario.name


def test_literal_duplicates_of_the_distractors_of_a_scenario() -> None:
    """Of every process of the corpus that stands by (a service, the recorder, another tool, a copy of files) and of a
    trainer of another cgroup that has a cause of its own: on the same GPU, disk, CPUs and connections."""
    scenario = Scenario(
        "a container next door, and another trainer", "compound",
        lambda: (Trainer((NOISY,)), Trainer((PREEMPTED,), pid=4_200, gpu=1), *USUAL),
    )  # fmt: skip
    scene = play(scenario).scene.mapped(_of_another_cgroup)
    duplicated = together([scene, copied(scene, 0, only=(4_200, *STANDING_BY))])
    here, there = (World("", s.context(), {None: scene, 0: scene}, {}) for s in (scene, duplicated))
    assert {"noisy_neighbour", "preempted"} <= {c.detector for c in here.context.causal.chains}
    assert there.everything(None) == here.everything(None)
    of_trainer = [e for e in here.everything(None) if e["about"] == "4200"]
    assert of_trainer
    assert [e for e in there.everything(0) if e["about"] == "4200"] == of_trainer


STANDING_BY = tuple(d.pid for d in USUAL)


def _of_another_cgroup(_: str, rows: list[Row]) -> list[Row]:
    other = {"cgroup_id": 88, "cgroup": "/batch", "cpu_cgroup": "/batch"}
    return [{k: other.get(k, v) if r.get("pid") == 4_200 else v for k, v in r.items()} for r in rows]


def test_two_suspects_of_the_same_share() -> None:
    """A process that used the GPU, and its duplicate on the same GPU: no more is explained of anything, in as many
    chains; of two that cover the same time one is served, and the table of shares names both."""
    (scene,) = gpu_shared.scenes()
    (alone,) = [c for c in found_in("gpu_shared") if isinstance(c, Chain)]
    context = together([scene, copied(scene, 1, only={8})]).context()
    (chain,) = [c for c in context.causal.chains if c.detector == "gpu_shared" and c.subject["pid"] == "7"]
    for name in ("effect", "effect_time", "explained", "share", "gpu", "contrast"):
        assert figure(chain.values[name]) == figure(alone.values[name]), name
    assert (chain.severity, chain.confidence) == (alone.severity, alone.confidence)
    times = [[s.time.value for s in c.shares] for c in (alone, chain)]
    assert times[1] == [times[0][0], 0, *times[0][1:]]
    assert {re.sub(r"\d+", "", s.label) for s in chain.shares[:2]} == {"GPU shared with another process: notebook ()"}


def test_a_duplicate_of_who_also_used_the_cpus_only_lowers_the_share_of_switches() -> None:
    """Which is of the whole host's, and is told as what it is."""
    scene = input_starvation.saturated()
    (alone,) = [c for c in scene.context().causal.chains if c.detector == "input_starvation"]
    context = together([scene, copied(scene, 0, only=(99,))]).context()
    (chain,) = [c for c in context.causal.chains if c.detector == "input_starvation"]
    lowered = {n for n, v in alone.values.items() if figure(v) != figure(chain.values[n])}
    assert lowered == {"switches_share"}
    assert (figure(alone.values["switches_share"]), figure(chain.values["switches_share"])) == (
        Fraction(9, 10), Fraction(9, 11),
    )  # fmt: skip
    assert [s.to_json()["time"]["value"] for s in chain.shares] == [s.to_json()["time"]["value"] for s in alone.shares]


def figure(value: Any) -> Any:
    return value if isinstance(value, str) else value.value
