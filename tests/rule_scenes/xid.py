"""Events of three kinds on two GPUs, one with a number that nobody explains."""

from tests.rule_scenes.power_cap import health
from tests.scenes import T0, S, Scene


def event(scene: Scene, number: int | None, at: int = T0 + 10 * S, gpu: int = 0, op: str = "xid") -> Scene:
    """One row of ``nvml_events``; 0x8 is nvmlEventTypeXidCriticalError."""
    return scene.add(
        "nvml_events", start_ns=at, duration_ns=0, gpu_index=gpu, gpu_uuid=f"GPU-{gpu}", op=op, event_type=8,
        event_data=number,
    )  # fmt: skip


def scenes() -> list[Scene]:
    scene = health(health(Scene().clock()), gpu=1)
    for at in (10, 20, 30):
        event(scene, 94, T0 + at * S)
    return [event(event(scene, 79, gpu=1), 4_242, gpu=1)]
