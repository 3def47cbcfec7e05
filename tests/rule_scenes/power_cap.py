"""A board limited to 400 of its 700 W, under the software power cap."""

from typing import Any

from tests.scenes import T0, S, Scene


def health(scene: Scene, start: int = T0, end: int = T0 + 60 * S, gpu: int = 0, **more: Any) -> Scene:
    """Rows of ``nvml_health`` every 5 s and at the end."""
    for at in range(start, end + 1, 5 * S):
        scene.add(
            "nvml_health", start_ns=at, duration_ns=0, gpu_index=gpu, gpu_uuid=f"GPU-{gpu}",
            **{"unavailable": "", **{k: v(at) if callable(v) else v for k, v in more.items()}},
        )  # fmt: skip
    return scene


def limited(limit_mw: int = 400_000, reasons: int = 0x4, clock: int = 1485) -> Scene:
    """One GPU, 30 s under the cap at three quarters of its clock and 30 s free."""
    scene = Scene().clock()
    values: dict[str, Any] = {"power_limit_mw": limit_mw, "power_mw": limit_mw - 1_000, "clock_sm_max_mhz": 1980}
    scene.samples(T0, T0 + 30 * S, event_reasons=reasons, clock_sm_mhz=clock, **values)
    scene.samples(T0 + 30 * S, T0 + 60 * S, event_reasons=0, clock_sm_mhz=1980, **values)
    return health(scene, power_limit_default_mw=700_000)


def scenes() -> list[Scene]:
    return [limited()]
