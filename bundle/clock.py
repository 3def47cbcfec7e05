"""The clock that stands in every leaf header: boot id, CLOCK_BOOTTIME and wall-clock time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Clock(Protocol):
    """Where a writer takes the time from; tests put their own in its place."""

    def boot_id(self) -> str:
        """UUID that the kernel drew at boot."""

    def boot_ns(self) -> int:
        """CLOCK_BOOTTIME in nanoseconds."""

    def utc_ns(self) -> int:
        """CLOCK_REALTIME in nanoseconds since 1970-01-01 UTC."""


class HostClock:
    """The clocks of this host."""

    def __init__(self) -> None:
        self._boot_id = _BOOT_ID.read_text("ascii").strip()

    def boot_id(self) -> str:
        return self._boot_id

    def boot_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def utc_ns(self) -> int:
        return time.time_ns()
