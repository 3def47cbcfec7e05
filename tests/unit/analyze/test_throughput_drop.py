"""Throughput drops: what is one, what is not, and what explains them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from gpuaudit.analyze.causal.model import Effect
from gpuaudit.analyze.effects.throughput_drop import below
from tests.rule_scenes.slow import block, off
from tests.rule_scenes.throttled import hot
from tests.scenes import MS, T0, US, S, Scene
from tests.unit.analyze.test_causes_of_calls import chains, number


def launching(rates: list[int], pid: int = 7) -> Scene:
    """So many launches in each second, the last of which ends with one more."""
    scene = Scene().clock().process(pid)
    for second, rate in enumerate(rates):
        for i in range(rate):
            scene.cuda(pid, "cudaLaunchKernel", T0 + second * S + i * (S // rate), 5 * US)
    return scene.cuda(pid, "cudaLaunchKernel", T0 + len(rates) * S, 5 * US)


def drops(scene: Scene) -> list[Effect]:
    return [e for e in scene.context().causal.effects if e.kind == "throughput_drop"]


def test_seconds_below_six_tenths_of_the_sustained_peak() -> None:
    (drop,) = drops(launching([20] * 10 + [11] * 3 + [20] * 5))
    assert drop.time.tolist() == [[T0 + 10 * S, T0 + 13 * S]]
    assert drop.tid == 7
    assert drop.of_ns == 18 * S


def test_api_silence_is_its_own_effect() -> None:
    scene = launching([20] * 10 + [20] * 9 + [20] * 10)
    calls = scene.rows["cuda_calls"]
    scene.rows["cuda_calls"] = [r for r in calls if not T0 + 10 * S <= r["start_ns"] < T0 + 19 * S]
    (silence,) = [e for e in scene.context().causal.effects if e.kind == "api_silence" and e.parts[0, 0] < T0 + 12 * S]
    assert silence.length_ns > 8 * S
    assert sum(e.length_ns for e in drops(scene)) < S // 10


def test_what_took_the_launching_thread_s_cpu_or_disk_explains_its_drop() -> None:
    """Three seconds: half of each goes to a neighbour, and a quarter of the second one to a disk."""
    scene = launching([20] * 10 + [2] * 3 + [20] * 5)
    for i in range(3):
        off(scene, T0 + (10 + i) * S + 5 * US, S // 2 - 10 * US)
    start = T0 + 11 * S + S // 2 + 5 * US
    block(scene, start, S // 4)
    off(scene, start, S // 4, op="blocked", prev_state=2, syscall=74)
    (hog,), (disk,) = chains(scene, "preempted"), chains(scene, "blocking_io")
    assert number(hog, "explained") == 3 * (S // 2 - 10 * US)
    assert number(disk, "explained") == S // 4
    assert number(disk, "effect_time") == 3 * S
    beside = scene.mapped(lambda t, rows: [{**r, "tid": 8} for r in rows] if t == "off_cpu" else rows)
    assert (chains(beside, "preempted"), chains(beside, "blocking_io")) == ([], [])


@pytest.mark.parametrize(
    "rates",
    [
        [20] * 10 + [12] * 3 + [20] * 5,  # at 0.6
        [20] * 10 + [5] + [20] * 5,  # one second
        [2] * 6 + [20] * 10,  # start-up
        [20] * 10 + [2] * 6,  # the end
        [200] * 2 + [20] * 14,  # a burst is no sustained peak
        [20, 1, 1, 20, 20, 20],  # too short to have one
    ],
)
def test_what_is_no_drop(rates: list[int]) -> None:
    assert drops(launching(rates)) == []


def test_a_second_that_was_not_seen_ends_a_run() -> None:
    counts = np.array([20] * 8 + [1, 1, 1] + [20], dtype=np.int64)
    seen = np.ones(12, dtype=bool)
    seen[9] = False
    low = below(counts, seen, Fraction(3, 5), Fraction(1, 4))
    assert low is not None
    assert np.flatnonzero(low).tolist() == [8, 10]


def test_launches_counted_in_the_kernel_count_in_their_second() -> None:
    rates = [20] * 10 + [1] * 3 + [20] * 5
    scene = launching(rates)
    for second in (10, 11, 12):
        scene.add(
            "call_totals", start_ns=T0 + second * S + 100 * MS, duration_ns=800 * MS, pid=7, tid=7,
            op="cudaLaunchKernel", low_ns=1, high_ns=1024, count=19, sum_ns=1_000, min_ns=1, max_ns=900, size_bytes=0,
            errors=0, nested=0,
        )  # fmt: skip
    assert drops(scene) == []


def test_a_gpu_that_is_throttled_in_the_drop_and_not_else_explains_it() -> None:
    scene = launching([20] * 20 + [8] * 10 + [20] * 29)
    (chain,) = chains(hot(scene), "throttled")
    assert number(chain, "share") == 1
    assert chain.values["contrast"] == (
        "it is 10.0 s of the 10.0 s of that state, and 0 ns of the 50.0 s without it"
    )  # fmt: skip
    assert chains(hot(launching([20] * 30 + [8] * 10 + [20] * 19)), "throttled") == []
