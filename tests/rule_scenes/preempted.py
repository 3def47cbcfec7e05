"""A launch that is slow because a neighbour had its thread's CPU; and one that was woken and waited for one."""

from tests.rule_scenes.slow import AT, MS, launches, off
from tests.scenes import Scene


def scenes() -> list[Scene]:
    woken = off(
        launches(), AT, 30 * MS, op="blocked", prev_state=1, next_pid=0, next_tid=0, next_comm="swapper/1",
        wake_ns=AT + 2 * MS, runqueue_ns=28 * MS,
    )  # fmt: skip
    return [off(launches(), AT + MS, 20 * MS), woken]
