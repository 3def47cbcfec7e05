"""Links that are down, that went down, that are fewer than elsewhere, and whose errors grow."""

from collections.abc import Callable

from tests.scenes import T0, S, Scene

Value = int | None | Callable[[int], int | None]


def links(scene: Scene, gpu: int, count: int = 4, special: dict[int, dict[str, Value]] | None = None) -> Scene:
    """Readings every 5 s; ``special`` gives columns of single links, as values or by time."""
    for at in range(T0, T0 + 60 * S + 1, 5 * S):
        for n in range(count):
            more = {k: v(at) if callable(v) else v for k, v in (special or {}).get(n, {}).items()}
            scene.add(
                "nvml_links", start_ns=at, duration_ns=0, gpu_index=gpu, gpu_uuid=f"GPU-{gpu}", link=n,
                **{"active": 1, "crc_flit_errors": 0, "crc_data_errors": 0, "replay_errors": 0, "recovery_errors": 0,
                   "unavailable": "", **more},
            )  # fmt: skip
    return scene


def scenes() -> list[Scene]:
    scene = Scene().clock()
    links(scene, 0)
    links(scene, 1, special={1: {"active": 0}, 3: {"active": lambda at: int(at < T0 + 30 * S)}})
    links(scene, 2, count=2)
    links(scene, 3, special={2: {"recovery_errors": lambda at: (at - T0) // (20 * S), "replay_errors": 5}})
    return [scene]
