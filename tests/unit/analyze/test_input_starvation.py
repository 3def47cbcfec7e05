"""Input starvation: a silent process, what its workers did then, and the twins in which they did something else."""

from __future__ import annotations

from fractions import Fraction

from tests.rule_scenes import input_starvation as made
from tests.scenes import MS, T0, S, Scene
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


def test_a_worker_that_has_work_and_no_cpu_explains_as_long_as_it_has_none() -> None:
    assert only(made.crowded()) == ("no_cpu", Fraction(3, 4))
    assert chains(made.crowded(of=9), "input_starvation") == []


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


def waits(scene: Scene) -> list[tuple[Fraction, Fraction]]:
    """Share and effect time of the chains about waits that a worker ended."""
    found = [c for c in chains(scene, "input_starvation") if "waits of" in c.links[0].effect]
    return [(number(c, "share"), number(c, "effect_time")) for c in found]


def test_waits_that_a_busy_worker_ends_are_counted_however_short_each_is() -> None:
    """Nineteen of 600 ms lie between the first and the last call; the last begins after it."""
    assert waits(made.in_every_step()) == [(Fraction(1), Fraction(19 * 600 * MS))]


def test_a_sleep_that_no_worker_ended_is_no_wait_for_one() -> None:
    for waker in (None, 7, 99):
        assert waits(made.in_every_step(waker=waker)) == []


def test_a_worker_that_had_been_idle_explains_no_wait() -> None:
    assert waits(made.in_every_step(busy=False)) == []


def test_waits_for_less_than_the_set_share_of_its_time_are_no_effect() -> None:
    assert waits(made.in_every_step(wait=45 * MS)) == []


def test_once_woken_it_waits_for_a_cpu_and_for_no_worker() -> None:
    scene = made.in_every_step()
    for row in scene.rows["off_cpu"]:
        row |= {"runqueue_ns": 200 * MS, "wake_ns": row["wake_ns"] - 200 * MS}
    assert waits(scene) == [(Fraction(1), Fraction(19 * 400 * MS))]


def test_what_was_inside_a_call_or_is_an_api_silence_is_not_in_it() -> None:
    scene = made.in_every_step()
    scene.cuda(7, "cudaStreamSynchronize", T0 + S + 200 * MS, 500 * MS)
    assert waits(scene) == [(Fraction(1), Fraction((18 * 600 + 200) * MS))]
    silent = made.off(made.busy(), 7, made.QUIET - 50 * MS, made.QUIET - 20 * MS, waker_pid=8)
    for row in silent.rows["off_cpu"]:
        row["waker_pid"] = 8
    assert waits(silent) == []


def test_work_of_the_gpu_in_that_time_is_told_against_it() -> None:
    scene = made.in_every_step()
    scene.samples(T0, T0 + 30 * S, pids=[7], gpu_utilization_percent=4)
    (chain,) = chains(scene, "input_starvation")
    assert any("its GPU did some work" in text for text in chain.against)
