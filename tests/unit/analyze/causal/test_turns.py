"""Waits for a CPU, cut by who had it: every moment of a wait names who ran then, or nobody, and none is lost."""

from __future__ import annotations

from typing import Any

import pytest

from gpuaudit.bundle.tables_host import OCCUPANTS_FROM_NS
from tests.rule_scenes.slow import AT, launches, off
from tests.scenes import MS, T0, Scene

UNIT = OCCUPANTS_FROM_NS
INTERRUPTIBLE = 1
CPU, OTHER = 1, 0


def turn(scene: Scene, start: int, length: int, tid: int, cpu: int = CPU, **more: Any) -> Scene:
    """A turn of a process of its own, ``p<tid>``."""
    its = {"pid": tid, "tid": tid, "comm": f"p{tid}", "priority": 120, "cgroup_id": 1, "cpu": cpu}
    return scene.add("cpu_occupants", start_ns=start, duration_ns=length, **{**its, **more})


def told(scene: Scene) -> dict[tuple[str, str], int]:
    """ns explained, by detector and culprit."""
    return {(c.detector, str(c.values["culprit"])): int(c.impact.value or 0) for c in scene.context().causal.chains}


def test_each_is_blamed_for_its_own_turns_and_nobody_for_the_rest() -> None:
    """The switch went to the hog, which ran for 2 of 20 ms; of the last 6 ms no turn was recorded."""
    scene = off(launches(), AT, 20 * MS)
    turn(scene, AT, 2 * MS, 99)
    turn(scene, AT + 2 * MS, 12 * MS, 98)
    assert told(scene) == {
        ("preempted", "p98 (98)"): 12 * MS, ("preempted", "nobody that was seen"): 6 * MS,
        ("preempted", "p99 (99)"): 2 * MS,
    }  # fmt: skip


def test_who_had_the_cpu_while_a_woken_thread_waited_is_known_now() -> None:
    """It slept for 2 ms and waited for 28; a turn that began before the wake-up counts from there on."""
    scene = off(
        launches(), AT, 30 * MS, op="blocked", prev_state=INTERRUPTIBLE, wake_ns=AT + 2 * MS, runqueue_ns=28 * MS
    )
    turn(scene, AT + MS, 29 * MS, 98)
    assert told(scene) == {("preempted", "p98 (98)"): 28 * MS}


def test_a_crowd_is_told_by_all_its_turns_and_a_bystander_by_none() -> None:
    """The switch went to a bystander, which ran for a moment: the others have one cgroup in common."""
    own: dict[str, Any] = {
        "cgroup_id": 40,
        "next_pid": 5,
        "next_tid": 5,
        "next_comm": "bystander",
        "next_cgroup_id": 50,
    }
    scene = off(launches().process(7, cgroup="/own", cgroup_id=40), AT, 30 * MS, **own)
    turn(scene, AT, 10_000, 5, cgroup_id=50)
    for n in range(3):
        turn(scene, AT + 10_000 + n * 10 * MS, 10 * MS - 10_000 * (n == 2), 90 + n, cgroup_id=60)
    shares = told(scene)
    assert shares == {("noisy_neighbour", "the cgroup with id 60"): 30 * MS - 10_000}


def test_of_the_time_before_a_move_nobody_says_who_had_the_other_cpu() -> None:
    scene = off(launches(), AT, 20 * MS, cpu_out=OTHER)
    scene.add("migrations", start_ns=AT + 5 * MS, pid=7, tid=7, from_cpu=OTHER, to_cpu=CPU)
    turn(scene, AT - MS, 40 * MS, 98)
    turn(scene, AT - MS, 40 * MS, 97, cpu=OTHER)
    assert told(scene) == {("preempted", "p98 (98)"): 15 * MS, ("preempted", "nobody that was seen"): 5 * MS}
    unseen = off(launches(), AT, 20 * MS, cpu_out=OTHER)  # how it came to the CPU was lost
    turn(unseen, AT - MS, 40 * MS, 98)
    assert told(unseen) == {("preempted", "nobody that was seen"): 20 * MS}


def test_short_waits_and_captures_without_turns_keep_who_ran_at_the_switch() -> None:
    short = launches()
    for n in range(300):
        off(short, AT + n * UNIT, UNIT - 1)
    turn(short, T0, 1000, 98)  # of somebody else's wait
    assert told(short) == {("preempted", "hog (99)"): 300 * (UNIT - 1)}
    assert told(off(launches(), AT, 20 * MS)) == {("preempted", "hog (99)"): 20 * MS}


def test_turns_are_evidence() -> None:
    scene = off(launches(), AT, 20 * MS)
    turn(scene, AT - MS, 30 * MS, 98)
    context = scene.context()
    (chain,) = context.causal.chains
    tables = {e.table for e in context.book.entries() if e.id in chain.evidence}
    assert {"off_cpu", "cpu_occupants"} <= tables


@pytest.mark.parametrize("first", [0, 5])
def test_turns_of_a_stranger_that_overlap_are_cut(first: int) -> None:
    """A CPU has one turn at a time: one ends when the next begins."""
    scene = off(launches(), AT, 20 * MS)
    turn(scene, AT + first * MS, 40 * MS, 98)
    turn(scene, AT + 10 * MS, 40 * MS, 97)
    got = told(scene)
    assert got["preempted", "p98 (98)"] == (10 - first) * MS
    assert got["preempted", "p97 (97)"] == 10 * MS
