"""Steps of a server: phases, slow steps with their causes, and the lineage of the KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from gpuaudit.analyze.finding import Quantity, Section, SectionTable
from gpuaudit.analyze.sections import steps as section
from gpuaudit.analyze.steps import outliers, read_steps
from tests.scenes import MS, T0, US, S, Scene
from tests.server_steps import DECODE, PREFILL, server

Cell = Quantity | str | None


def table(made: Section, name: str) -> SectionTable:
    return next(t for t in made.tables if t.id == name)


def numbers(cells: Sequence[Cell]) -> list[object]:
    return [c.value if isinstance(c, Quantity) else c for c in cells]


@pytest.fixture(scope="module")
def told() -> Section:
    """The section of a server whose 156th step takes 60 ms, while its thread is preempted for 50 of them."""
    scene = server()
    at = T0 + S + 155 * 50 * MS
    scene.add(
        "off_cpu", start_ns=at + 5 * MS, duration_ns=50 * MS, pid=7, tid=7, op="preempted", comm="python3",
        prev_state=0, next_pid=99, next_tid=99, next_comm="stress-ng", cpu_out=0, runqueue_ns=50 * MS,
    )  # fmt: skip
    return section.evaluate(scene.context())


def test_the_repeating_step_of_a_server_is_decode_and_others_are_prefill(told: Section) -> None:
    decode, prefill = table(told, "steps").rows
    assert numbers(decode[1:5]) == ["decode", "1 graph and 0 kernels", 270, DECODE]
    assert numbers(prefill[1:5]) == ["prefill or mixed", "0 graphs and 40 kernels", 30, PREFILL]
    assert numbers(prefill[5:7]) == [None, PREFILL], "of thirty steps there is no p99"


def test_a_slow_step_has_its_cause(told: Section) -> None:
    decode, prefill = table(told, "steps").rows
    assert numbers(decode[8:9]) == [1]
    assert decode[10] == "Preempted"
    share = decode[9]
    assert isinstance(share, Quantity)
    assert share.value is not None
    assert share.value * 60 == 50
    assert numbers(prefill[8:]) == [None, None, ""]


def test_the_lineage_of_the_kv_cache(told: Section) -> None:
    (row,) = table(told, "kv_cache").rows
    assert numbers(row[1:9]) == [
        "1 of 1", 201 * MS, 111 * MS, 60 * S + US - 201 * MS, "alive at the end", 512 << 20, 1, "cudaMalloc",
    ]  # fmt: skip
    assert [numbers(r[2:6]) for r in table(told, "kv_moves").rows] == [
        ["from the host", "no step", 1 << 20, 1], ["to the host", "no step", 2 << 20, 1],
    ]  # fmt: skip


def test_without_a_server_steps_are_only_repeating() -> None:
    made = section.evaluate(server(count=60, engine=False).context())
    assert [r[1] for r in table(made, "steps").rows] == ["repeating", "step"]


def test_steps_in_time_in_which_calls_were_counted_are_left_out() -> None:
    scene = server(count=60)
    scene.add(
        "call_totals", start_ns=T0 + S, duration_ns=500 * MS, pid=7, tid=7, op="cudaLaunchKernel", low_ns=1,
        high_ns=1024, count=5, sum_ns=1_000, min_ns=100, max_ns=300, size_bytes=0, errors=0, nested=0,
    )  # fmt: skip
    (steps,) = read_steps(scene.context())
    assert len(steps) == 50


def test_a_process_that_never_waits_has_no_steps() -> None:
    scene = Scene().clock().process(7)
    for i in range(50):
        scene.cuda(7, "cudaLaunchKernel", T0 + i * MS, 5 * US)
    assert section.evaluate(scene.context()).state == "not evaluated"


def test_outliers_are_by_median_and_rank() -> None:
    durations = np.array([10] * 198 + [31, 29], dtype=np.int64)
    chosen, median = outliers(durations, Fraction(3), Fraction(1, 100), 10)
    assert (median, np.flatnonzero(chosen).tolist()) == (10, [198])
    assert not outliers(durations[-9:], Fraction(3), Fraction(1, 100), 10)[0].any()
