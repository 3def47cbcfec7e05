"""A sleep whose end the kernel did not tell ends with the wake-up: nothing is told of the thread until its next row."""

from __future__ import annotations

from typing import Any

from gpuaudit.analyze import intervals
from gpuaudit.analyze.causal import neighbours
from gpuaudit.analyze.finding import Quantity
from gpuaudit.analyze.sections import causes, host
from tests.rule_scenes.slow import AT, launches, off
from tests.scenes import MS, Scene

SLEPT: dict[str, Any] = {
    "op": "blocked", "prev_state": 1, "next_pid": 0, "next_tid": 0, "next_comm": "swapper/1", "syscall": 202,
    "waker_pid": 7, "waker_tid": 9, "waker_comm": "loader",
}  # fmt: skip


def cut(scene: Scene, start: int, length: int, **more: Any) -> Scene:
    """Asleep until it was woken ``length`` later; when it was on a CPU again was not seen."""
    return off(scene, start, length, **{**SLEPT, "wake_ns": start + length, **more})


def slow() -> Scene:
    """40 ms: 10 ms asleep until a wake-up, 20 of which nobody knows, 4 asleep, 6 after which it left the CPU."""
    scene = cut(launches(), AT, 10 * MS)
    off(scene, AT + 30 * MS, 4 * MS, **SLEPT, wake_ns=AT + 34 * MS, runqueue_ns=0)
    return off(scene, AT + 40 * MS, MS)


def test_the_wait_for_a_lock_ends_with_the_wake_up() -> None:
    (chain,) = slow().context().causal.chains
    assert (chain.detector, chain.impact.value) == ("lock_wait", 14 * MS)


def test_one_that_was_woken_and_not_back_when_the_capture_ended_had_no_lock_to_wait_for_any_more() -> None:
    scene = cut(launches(), AT, 10 * MS)
    scene.rows["off_cpu"][0]["duration_ns"] = None
    (chain,) = scene.context().causal.chains
    assert chain.impact.value == 10 * MS


def test_nobody_is_told_to_be_on_a_cpu_after_such_a_wake_up() -> None:
    section = causes.evaluate(slow().context())
    (table,) = [t for t in section.tables if t.id == "unexplained"]
    (row,) = [r for r in table.rows if "slow call" in str(r[0])]
    assert [c.value for c in row[1:5] if isinstance(c, Quantity)] == [26 * MS, 6 * MS, 0, 0]
    scene = cut(off(Scene().clock(), AT, MS), AT + 2 * MS, MS)
    off(scene, AT + 10 * MS, MS)
    off(scene, AT + 13 * MS, MS)
    ran = neighbours.on_cpu(scene.context(), 7, [7])
    assert ran.tolist() == intervals.from_bounds([AT + MS, AT + 11 * MS], [AT + 2 * MS, AT + 13 * MS]).tolist()


def test_its_wake_up_was_seen() -> None:
    section = host.evaluate(cut(launches(), AT, 10 * MS).context())
    (table,) = [t for t in section.tables if t.id == "off_cpu"]
    told = dict(zip((c[0] for c in table.columns), table.rows[0], strict=True))
    assert isinstance(told["asleep"], Quantity)
    assert isinstance(told["unknown"], Quantity)
    assert (told["asleep"].value, told["unknown"].value) == (10 * MS, None)
