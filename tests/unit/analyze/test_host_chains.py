"""Kills for want of memory and CPUs far from the GPU: what is told, what speaks against it, when nothing is said."""

from __future__ import annotations

from gpuaudit.analyze.chains.numa_misplacement import parse_cpus
from gpuaudit.analyze.context import Found, NotEvaluated, Outcome
from gpuaudit.analyze.finding import Chain
from gpuaudit.analyze.registry import plugins
from tests.rule_scenes.numa_misplacement import placed
from tests.rule_scenes.oom_kill import killed
from tests.scenes import MS, T0, S, Scene

END = T0 + 60 * S + 1_000
"""Of the capture: that of its last clock pair."""


def evaluated(name: str, scene: Scene) -> Outcome:
    return next(p for p in plugins() if p.declaration.id == name).evaluate(scene.context())


def chains(name: str, scene: Scene) -> list[Chain]:
    outcome = evaluated(name, scene)
    assert isinstance(outcome, Found), outcome
    return [c for c in outcome.items if isinstance(c, Chain)]


def test_a_process_that_the_kernel_killed_is_missed_until_the_end() -> None:
    (chain,) = chains("oom_kill", killed(Scene().clock(), 100))
    assert chain.impact.value == END - (T0 + 30 * S)
    assert (chain.text, chain.confidence, chain.against) == ("oom_kill", "high", ())
    assert chain.values["culprit"] == "loader (77)"


def test_an_exit_of_its_own_speaks_against_it() -> None:
    (chain,) = chains("oom_kill", killed(Scene().clock(), 100, status=3))
    assert (chain.text, chain.confidence) == ("oom_kill_refuted", "low")
    assert "status 3" in chain.against[0]


def test_an_end_that_was_not_seen_is_said() -> None:
    (chain,) = chains("oom_kill", killed(Scene().clock(), 100, status=None, end=None))
    assert chain.against == ("the end of the process was not seen",)
    assert chain.impact.value == END - (T0 + 29 * S)
    assert chain.confidence == "medium"


def test_victims_that_were_not_followed_or_lived_at_another_time_are_no_chain() -> None:
    stranger = Scene().clock().process(100)
    stranger.add("oom_kills", start_ns=T0 + 29 * S, pid=555, comm="other")
    assert chains("oom_kill", stranger) == []
    assert chains("oom_kill", killed(Scene().clock(), 100, end=T0 + 5 * S, at=T0 + 40 * S)) == []
    reborn = Scene().clock()
    reborn.process(100, op="exited", duration_ns=3 * S, exit_status=-9)
    reborn.add("oom_kills", start_ns=T0 + 29 * S, pid=100, comm="other")
    assert chains("oom_kill", reborn) == []
    own = Scene().clock().process(100, role="recorder")
    own.add("oom_kills", start_ns=T0 + 29 * S, pid=100, comm="audit")
    assert chains("oom_kill", own) == []


def test_a_victim_is_named_as_it_was_and_not_by_who_had_its_number_later() -> None:
    scene = killed(Scene().clock(), 100).process(100, "editor", start_ns=T0 + 32 * S, seen_ns=T0 + 33 * S)
    (chain,) = chains("oom_kill", scene)
    assert chain.values["process"] == "100 (python3)"


def test_without_the_source_kills_are_not_evaluated() -> None:
    assert isinstance(evaluated("oom_kill", Scene().clock().process(100)), NotEvaluated)


def test_far_cpus_are_told_with_their_share() -> None:
    (chain,) = chains("numa_misplacement", placed([9, 9, 9, 1]))
    assert chain.impact.value == 150 * MS
    assert (chain.values["cpus"], chain.values["near"]) == ("9", "0, 1, 2, 3")
    assert (chain.severity, chain.confidence) == ("notice", "low")
    assert sum(s.share.value or 0 for s in chain.shares) == 1


def test_near_cpus_and_a_visit_elsewhere_are_no_chain() -> None:
    assert chains("numa_misplacement", placed([0, 1, 2])) == []
    assert chains("numa_misplacement", placed([0, 1, 9])) == []


def test_without_near_cpus_or_without_a_gpu_it_is_not_evaluated() -> None:
    for scene in (placed([9], None), placed([9], "everywhere"), placed([9], "0-99999999")):
        assert isinstance(evaluated("numa_misplacement", scene), NotEvaluated)
    other = placed([9])
    other.rows["nvml_processes"] = [{**r, "pid": 999} for r in other.rows["nvml_processes"]]
    assert isinstance(evaluated("numa_misplacement", other), NotEvaluated)


def test_ranges_of_cpus() -> None:
    assert parse_cpus("0-2,9") == {0, 1, 2, 9}
    for text in ("", "3-1", "a", "1,", None, 7, "0-999999"):
        assert parse_cpus(text) == frozenset()
