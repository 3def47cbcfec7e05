"""Two processes that the kernel chose: one ended by its signal, one had ended by itself."""

from __future__ import annotations

from tests.scenes import T0, S, Scene


def killed(
    scene: Scene, pid: int, *, status: int | None = -9, end: int | None = T0 + 30 * S, at: int = T0 + 29 * S
) -> Scene:
    """A process from before the capture, chosen, and ended a second later."""
    scene.process(pid)
    scene.process(
        pid, op="exited", duration_ns=None if end is None else end - (T0 - S), exit_status=status, seen_ns=T0 + 31 * S
    )
    return scene.add(
        "oom_kills", start_ns=at, pid=pid, comm="python3", uid=0, resident_bytes=8 << 30, killer_pid=77,
        killer_comm="loader", cgroup_id=9,
    )  # fmt: skip


def scenes() -> list[Scene]:
    return [killed(killed(Scene().clock(), 100), 101, status=3)]
