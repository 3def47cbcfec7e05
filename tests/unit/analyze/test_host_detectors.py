"""Quotas, memory, interrupts and neighbours: what each claims of slow launches by hand, and when it claims nothing."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gpuaudit.analyze.context import Found, NotEvaluated, Outcome
from gpuaudit.analyze.finding import Chain
from gpuaudit.analyze.registry import plugins
from tests.rule_scenes.cpu_quota import CGROUP, PID, launches, off, readings
from tests.rule_scenes.irq_load import taken
from tests.rule_scenes.memory_reclaim import reclaim
from tests.rule_scenes.noisy_neighbour import scenes as neighbours
from tests.scenes import MS, T0, S, Scene

SLOW = 5
"""Slow launches of 100 ms, one a second from T0 + 10 s on."""


def evaluated(name: str, scene: Scene) -> Outcome:
    return next(p for p in plugins() if p.declaration.id == name).evaluate(scene.context())


def chains(name: str, scene: Scene) -> list[Chain]:
    outcome = evaluated(name, scene)
    assert isinstance(outcome, Found), outcome
    return [c for c in outcome.items if isinstance(c, Chain)]


def claimed(chain: Chain) -> int | Fraction | None:
    return chain.impact.value


def call(i: int, ms: int = 0) -> int:
    """A moment of the i-th slow launch."""
    return T0 + 10 * S + i * S + ms * MS


def throttled(ns: int, counted: int, *, instead: int = 0, pid: int = PID) -> Scene:
    """In every slow launch one interval of ``ns``, while the counter of its cgroup grows by ``counted``."""
    scene = launches()
    for i in range(SLOW):
        off(scene, call(i, 5), ns, instead=instead, pid=pid)
    return readings(scene, [counted] * SLOW)


def test_a_quota_is_claimed_for_as_long_as_its_counter_grew() -> None:
    """Where the CPU went idle all of it would have been saved; what is beyond the counter is a wait for a CPU."""
    (chain,) = chains("cpu_quota", throttled(80 * MS, 70 * MS))
    assert claimed(chain) == SLOW * 70 * MS
    assert chain.values["culprit"] == f"the CPU quota of cgroup {CGROUP}"
    assert chain.gain is not None
    assert (chain.gain.low.value, chain.gain.high.value) == (SLOW * 70 * MS, SLOW * 70 * MS)
    assert chain.subject["cgroup"] == CGROUP


def test_a_throttled_wait_in_which_the_cpu_had_many_users_is_one_wait() -> None:
    """One throttled period accounts for all of it, however many turns others had on the CPU meanwhile."""
    scene = throttled(80 * MS, 80 * MS)
    for i in range(SLOW):
        for n in range(8):
            scene.add(
                "cpu_occupants", start_ns=call(i, 5 + 10 * n), duration_ns=10 * MS, pid=n % 2, tid=n % 2, comm="x",
                priority=120, cgroup_id=1, cpu=0,
            )  # fmt: skip
    (chain,) = chains("cpu_quota", scene)
    assert claimed(chain) == SLOW * 80 * MS


def test_where_somebody_else_ran_meanwhile_it_is_said() -> None:
    (chain,) = chains("cpu_quota", throttled(60 * MS, 60 * MS, instead=999))
    assert claimed(chain) == SLOW * 60 * MS
    assert "cannot be told from the counters" in " ".join(chain.against)
    assert chain.gain is not None
    assert chain.gain.low.value == 0


@pytest.mark.parametrize(
    ("ns", "counted"), [(90 * MS, 0), (90 * MS, 20 * MS)], ids=["never throttled", "throttled for far less"]
)
def test_a_wait_that_the_counter_does_not_account_for_is_not_the_quota_s(ns: int, counted: int) -> None:
    assert chains("cpu_quota", throttled(ns, counted, instead=999)) == []


def test_a_sibling_on_the_cpu_shows_that_the_cgroup_was_not_throttled() -> None:
    scene = throttled(60 * MS, 60 * MS, instead=101)
    scene.add("process_samples", start_ns=T0 + 9 * S, pid=101, cpu_cgroup=CGROUP, cpu_cgroup_version=1)
    assert chains("cpu_quota", scene) == []


def test_a_counter_of_another_cgroup_or_another_time_is_no_chain() -> None:
    other = launches()
    for i in range(SLOW):
        off(other, call(i, 5), 80 * MS)
    readings(other, [80 * MS] * SLOW, cgroup="/elsewhere", pid=999)
    other.add("process_samples", start_ns=T0 + 9 * S, pid=PID, cpu_cgroup="/here", cpu_cgroup_version=1)
    assert chains("cpu_quota", other) == []
    late = launches()
    for i in range(SLOW):
        off(late, call(i, 5), 80 * MS)
    assert chains("cpu_quota", readings(late, [0] * (SLOW + 1) + [80 * MS] * SLOW)) == []


def test_without_counters_a_quota_is_not_evaluated() -> None:
    scene = launches()
    off(scene, call(0, 5), 80 * MS)
    assert isinstance(evaluated("cpu_quota", scene), NotEvaluated)
    scene.add("cgroup_cpu", start_ns=T0, cgroup=CGROUP, version=1, throttled_ns=0, throttled_periods=0)
    outcome = evaluated("cpu_quota", scene)
    assert isinstance(outcome, NotEvaluated)
    assert "which cgroup" in outcome.reason


def test_reclaim_is_claimed_of_the_same_thread_only() -> None:
    scene = launches()
    reclaim(scene, call(0, 60), 80 * MS)  # half of it after the launch
    reclaim(scene, call(1, 10), 30 * MS, pid=PID + 1)
    reclaim(scene, T0 + 30 * S, 30 * MS)
    (chain,) = chains("memory_reclaim", scene)
    assert claimed(chain) == 40 * MS
    assert "cgroup" in str(chain.values["culprit"])


def test_reclaims_that_had_not_ended_have_no_count_of_pages() -> None:
    scene = launches()
    reclaim(scene, call(SLOW - 1, 20), None)
    (chain,) = chains("memory_reclaim", scene)
    pages = chain.values["pages"]
    assert not isinstance(pages, str)
    assert (pages.value, bool(pages.reason)) == (None, True)


def test_without_its_source_reclaim_is_not_evaluated() -> None:
    assert isinstance(evaluated("memory_reclaim", launches()), NotEvaluated)


def test_interrupts_are_told_by_the_kernel_s_names_only() -> None:
    scene = launches()
    taken(scene, call(0, 10), 40 * MS, "ksoftirqd/3")
    taken(scene, call(1, 10), 40 * MS, "ksoftirqd/x")
    taken(scene, call(2, 10), 40 * MS, "ksoftirqd/3", tid=16)  # a thread beside others is not the kernel's
    taken(scene, call(3, 10), 40 * MS, "ksoftirqd/3", op="blocked", runqueue_ns=40 * MS)
    (chain,) = chains("irq_load", scene)
    assert claimed(chain) == 40 * MS
    assert chain.subject["cpu"] == "3"


def test_a_crowd_of_another_cgroup_is_one_chain_and_one_process_is_not() -> None:
    (chain,) = chains("noisy_neighbour", neighbours()[0])
    assert claimed(chain) == SLOW * 80 * MS
    assert chain.values["culprit"] == "cgroup /kubepods/pod2"
    assert chain.values["names"] == "logger, tokenizer"
    (unknown,) = chains("noisy_neighbour", neighbours(known=False)[0])
    assert "with id 4002" in str(unknown.values["culprit"])
    alone = launches()
    for i in range(SLOW):
        taken(alone, call(i, 10), 80 * MS, "tokenizer", instead=201, cgroup_id=1001, next_cgroup_id=1002)
    assert chains("noisy_neighbour", alone) == []
    assert [c.values["culprit"] for c in chains("preempted", alone)] == ["tokenizer (201)"]


def test_neighbours_of_the_same_or_of_no_cgroup_are_no_crowd() -> None:
    for own, other in ((1001, 1001), (1001, 1), (None, 1002)):
        scene = launches()
        for i in range(SLOW):
            taken(scene, call(i, 10), 40 * MS, "a", instead=201, cgroup_id=own, next_cgroup_id=other)
            taken(scene, call(i, 55), 40 * MS, "b", instead=202, cgroup_id=own, next_cgroup_id=other)
        assert chains("noisy_neighbour", scene) == []
