"""Input starvation: a silent process, what its workers did then, and the twins in which they did something else."""

from __future__ import annotations

from fractions import Fraction

from tests.rule_scenes import input_starvation as made
from tests.scenes import S, Scene
from tests.unit.analyze.test_causes_of_calls import chains, number, refused


def only(scene: Scene) -> tuple[str, Fraction]:
    """Text and share of the one chain."""
    (chain,) = chains(scene, "input_starvation")
    assert number(chain, "effect_time") == 20 * S
    assert sum(s.share.value or 0 for s in chain.shares) == 1
    return chain.text, number(chain, "share")


def test_a_worker_that_waits_for_a_disk_explains_as_long_as_it_waits() -> None:
    assert only(made.waiting()) == ("waiting", Fraction(1, 2))


def test_a_worker_that_waits_for_orders_explains_nothing() -> None:
    assert chains(made.waiting(state=1), "input_starvation") == []


def test_a_worker_that_computes_all_the_time_is_saturated_and_one_that_half_does_is_not() -> None:
    assert only(made.busy()) == ("busy", Fraction(1))
    assert chains(made.busy(80), "input_starvation") == []


def test_full_cpus_are_the_workers_only_where_the_switches_are_theirs() -> None:
    assert only(made.saturated()) == ("saturated", Fraction(1))
    assert chains(made.saturated(theirs=499), "input_starvation") == []
    assert chains(made.saturated(cpu=89.9), "input_starvation") == []


def test_a_sample_of_the_host_tells_of_a_second_at_most() -> None:
    scene = made.saturated()
    scene.rows["host_samples"] = scene.rows["host_samples"][::5]
    assert only(scene) == ("saturated", Fraction(4, 20))


def test_processes_that_it_did_not_start_are_not_its_workers() -> None:
    for scene in (made.waiting(of=9), made.busy(of=9)):
        assert chains(scene, "input_starvation") == []
    assert "started" in refused(made.silent(worker=False), "input_starvation")


def test_silence_with_a_busy_gpu_is_no_loss() -> None:
    scene = made.waiting()
    scene.samples(made.QUIET, made.BACK, pids=[7], gpu_utilization_percent=50)
    assert chains(scene, "input_starvation") == []
