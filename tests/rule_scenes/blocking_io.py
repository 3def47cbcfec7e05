"""A launch that is slow because its thread read a cold page of a file system that is known; and the same from an
import without states or mounts."""

from typing import Any

from tests.rule_scenes.slow import AT, MS, block, launches, off
from tests.scenes import T0, Scene

SLEPT: dict[str, Any] = {"op": "blocked", "prev_state": 2, "next_pid": 0, "next_tid": 0, "next_comm": "swapper/1"}


def scenes() -> list[Scene]:
    read = block(launches(), AT + MS, 30 * MS, queue_ns=0)
    known = off(read, AT + MS, 31 * MS, wake_ns=AT + 31 * MS, runqueue_ns=MS, syscall=17, **SLEPT)
    known.add(
        "mounts", start_ns=T0, op="mounted", mount_id=32, major=259, minor=0, type="ext4", root="/", path="/data",
        disk_major=259, disk_minor=0, first_sector=0, sectors=100_000,
    )  # fmt: skip
    unknown = off(block(launches(), AT + MS, 30 * MS), AT + MS, 31 * MS, op="off", prev_state=None, next_pid=None,
                  next_tid=None, next_comm=None)  # fmt: skip
    return [known, unknown]
