"""An applications clock of 990 MHz on GPUs that reach 1,980 MHz, and clocks locked there where no cap is told."""

from typing import Any

from tests.scenes import T0, S, Scene


def capped(seconds: int = 60, **more: Any) -> Scene:
    """One GPU, busy throughout, at half its clock by a setting."""
    values: dict[str, Any] = {
        "clock_sm_mhz": 990,
        "clock_sm_cap_mhz": 990,
        "clock_sm_max_mhz": 1980,
        "event_reasons": 0x2,
        **more,
    }
    return Scene().clock().samples(T0, T0 + seconds * S, **values)


def scenes() -> list[Scene]:
    return [capped(), capped(clock_sm_cap_mhz=None)]
