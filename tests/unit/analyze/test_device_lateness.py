"""Whose GPU entered collectives last: by the length of their kernels, and only where these are of the same ones."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.device_lateness import read_device_lateness
from gpuaudit.analyze.evidence import EvidenceBook
from gpuaudit.analyze.finding import Quantity
from gpuaudit.analyze.quality import read_quality
from gpuaudit.analyze.sections import gpu_activity
from gpuaudit.analyze.store import Store
from gpuaudit.analyze.window import read_window
from tests.kineto_traces import RecordedTraces
from tests.scenes import MS, T0, Scene

STEPS = 10


def context_of(store: Store) -> Context:
    window = read_window(store)
    return Context(store, window, read_quality(store, window, "SEALED"), EvidenceBook(store))


def ranks(count: int = 3, late: int = 2, by: int = 5 * MS, skew: int = 0, **more: Any) -> Scene:
    """Every rank's kernel ends with the collective; the late one's begins ``by`` after the others', which scatter.

    ``skew``: how far the clock of rank 1 is ahead, which changes nothing about lengths.
    """
    scene = Scene().clock()
    for rank in range(count):
        scene.process(100 + rank, rank=rank)
        for step in range(STEPS):
            at = T0 + step * 50 * MS
            begin = at + (by if rank == late else rank * 1000) + (skew if rank == 1 else 0)
            end = at + by + MS + (skew if rank == 1 else 0)
            row = {
                "start_ns": begin, "duration_ns": end - begin, "pid": 100 + rank, "op": "kernel", "device": rank,
                "name": "ncclDevKernel_AllReduce_Sum_f32_RING_LL", "stream": 20, **more,
            }  # fmt: skip
            scene.add("gpu_activities", **row)
    return scene


@pytest.mark.parametrize("skew", [0, 300_000, -MS // 2])
def test_the_late_rank_has_the_shortest_kernels(skew: int) -> None:
    found, reasons = read_device_lateness(ranks(skew=skew).store())
    assert reasons == []
    by_pid = {x.member[0]: x for x in found}
    longer = {100: 5 * MS, 101: 5 * MS - 1000}
    assert [by_pid[p].last for p in (100, 101, 102)] == [0, 0, STEPS]
    assert {p: by_pid[p].longer_ns for p in longer} == {p: n * STEPS for p, n in longer.items()}
    assert (by_pid[102].longer_ns, by_pid[102].imposed_ns) == (0, sum(longer.values()) * STEPS)
    assert by_pid[102].kernel_ns == MS * STEPS


def test_nobody_is_last_where_all_are_equal() -> None:
    scene = ranks(count=2, late=1, by=0)
    for row in scene.rows["gpu_activities"]:
        row["duration_ns"] = MS
    found, _ = read_device_lateness(scene.store())
    assert [(x.last, x.longer_ns, x.imposed_ns) for x in found] == [(0, 0, 0)] * 2


def test_a_rank_that_lacks_one_is_not_compared() -> None:
    scene = ranks()
    scene.rows["gpu_activities"].pop()
    found, (reason,) = read_device_lateness(scene.store())
    assert found == []
    assert reason.endswith("ranks recorded between 9 and 10 of them")


def test_kernels_that_were_never_going_on_at_once_are_not_of_one_collective() -> None:
    found, (reason,) = read_device_lateness(ranks(skew=20 * MS).store())
    assert found == []
    assert "number 1 of one rank was over before that of another began" in reason


def test_groups_are_told_apart() -> None:
    """The same kernel in two process groups: each is compared within its own."""
    scene = ranks(group_name="0", collective="allreduce")
    other = ranks(late=0, group_name="1", collective="allreduce")
    scene.rows["gpu_activities"] += other.rows["gpu_activities"]
    found, _ = read_device_lateness(scene.store())
    assert {x.group: x.member[0] for x in found if x.last} == {"0": 102, "1": 100}


def test_sends_and_receives_are_no_collective_of_a_group(recorded_traces: RecordedTraces) -> None:
    """The two recorded ranks exchanged by SendRecv: nothing is said of who came last."""
    store, _ = recorded_traces.of("train128-rank0", "train128-rank1")
    assert read_device_lateness(store) == ([], [])
    section = gpu_activity.evaluate(context_of(store))
    assert "lateness" not in {t.id for t in section.tables}
    assert section.notes[0].startswith("Device-side lateness not evaluated: no kernel of a collective of a whole group")


def test_one_rank_alone_is_not_compared(recorded_traces: RecordedTraces) -> None:
    found, reasons = read_device_lateness(recorded_traces.of("a100-world2-rank0-collectives")[0])
    assert found == []
    assert len(reasons) == 2
    assert all("one rank alone was recorded" in r for r in reasons)
    notes = gpu_activity.evaluate(context_of(recorded_traces.of("a100-world2-rank0-collectives")[0])).notes
    assert [n.startswith("Device-side lateness not compared: ") for n in notes] == [True, True]


def test_the_section_prints_them() -> None:
    section = gpu_activity.evaluate(ranks().context())
    table = next(t for t in section.tables if t.id == "lateness")
    names = [n for n, _ in table.columns]
    rows = [dict(zip(names, r, strict=True)) for r in table.rows]
    assert [r["process"] for r in rows] == [f"rank {n}: {100 + n} (python3)" for n in range(3)]
    imposed = rows[2]["imposed"]
    assert isinstance(imposed, Quantity)
    assert imposed.value == Fraction((10 * MS - 1000) * STEPS)
