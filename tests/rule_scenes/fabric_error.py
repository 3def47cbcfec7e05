"""Two ranks, each on a GPU of its own. An XID of NVLink 100 ms into a slow all-reduce of 400 ms; and link counters that
grow between two readings that lie in one of 12 s."""

from tests.rule_scenes.tcp_retransmits import PIDS, SLOW_STEP, begin, ranks
from tests.scenes import MS, T0, S, Scene

LONG = 12 * S


def on_gpus(scene: Scene) -> Scene:
    """Rank n on GPU n, as NVML lists it."""
    for gpu, pid in enumerate(PIDS):
        scene.samples(T0, T0 + 60 * S, gpu, [pid])
        scene.add("nvml_health", start_ns=T0, duration_ns=0, gpu_index=gpu, gpu_uuid=f"GPU-{gpu}", unavailable="")
    return scene


def event(scene: Scene, at: int, *, gpu: int = 0, number: int = 74) -> Scene:
    """An XID."""
    return scene.add(
        "nvml_events", start_ns=at, duration_ns=0, gpu_index=gpu, gpu_uuid=f"GPU-{gpu}", op="xid", event_type=8,
        event_data=number,
    )  # fmt: skip


def readings(scene: Scene, told: dict[int, int], *, gpu: int = 1, link: int = 3) -> Scene:
    """Recoveries of a link by time."""
    for at, value in told.items():
        scene.add(
            "nvml_links", start_ns=at, duration_ns=0, gpu_index=gpu, gpu_uuid=f"GPU-{gpu}", link=link, active=1,
            recovery_errors=value, unavailable="",
        )  # fmt: skip
    return scene


def with_event() -> Scene:
    return event(on_gpus(ranks(slow=400 * MS)), begin(SLOW_STEP) + 100 * MS)


def with_counters() -> Scene:
    """Readings at 1, 6 and 11 s of the slow call's 12: two recoveries between the second and the third."""
    slow = begin(SLOW_STEP)
    return readings(on_gpus(ranks(steps=SLOW_STEP + 1, slow=LONG)), {slow + S: 4, slow + 6 * S: 4, slow + 11 * S: 6})


def scenes() -> list[Scene]:
    return [with_event(), with_counters()]
