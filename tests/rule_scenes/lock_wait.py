"""A launch that is slow because its thread slept on a futex until a sibling thread woke it."""

from typing import Any

from tests.rule_scenes.slow import AT, MS, launches, off
from tests.scenes import Scene

SLEPT: dict[str, Any] = {"op": "blocked", "prev_state": 1, "next_pid": 0, "next_tid": 0, "next_comm": "swapper/1"}


def scenes() -> list[Scene]:
    woken: dict[str, Any] = {
        "wake_ns": AT + 31 * MS,
        "waker_pid": 7,
        "waker_tid": 9,
        "waker_comm": "loader",
        "runqueue_ns": MS,
    }
    return [off(launches(), AT + MS, 31 * MS, syscall=202, **SLEPT, **woken)]
