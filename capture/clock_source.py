"""Pairs of clock readings, so that CLOCK_BOOTTIME can be read as wall-clock time.

Each pair is bracketed by two readings of CLOCK_BOOTTIME: the wall-clock reading was taken between them, so the pair is
uncertain by no more than their distance. Steps of the wall clock are not judged here; analysis sees them as pairs
whose difference changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gpuaudit.capture.source import Capability, Sink, boottime_ns

PAIR_INTERVAL_NS = 5_000_000_000
"""One pair every 5 s: a clock step is placed to within one interval, at 32 bytes each."""

ATTEMPTS = 5
"""Readings of which the narrowest bracket is kept: one preemption must not widen the pair."""


def read_pair() -> dict[str, object]:
    """One row of the ``clock`` table: the narrowest of :data:`ATTEMPTS` brackets."""
    best: dict[str, object] | None = None
    narrowest = 1 << 63
    for _ in range(ATTEMPTS):
        before = boottime_ns()
        realtime = time.clock_gettime_ns(time.CLOCK_REALTIME)
        monotonic = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        width = boottime_ns() - before
        if width < narrowest:
            narrowest = width
            best = {"start_ns": before, "duration_ns": width, "realtime_ns": realtime, "monotonic_ns": monotonic}
    assert best is not None  # noqa: S101 - the loop runs at least once
    return best


class ClockSource:
    """A pair at the start, every :data:`PAIR_INTERVAL_NS`, and at the end."""

    name = "clock"

    def __init__(
        self, read: Callable[[], dict[str, object]] = read_pair, now_ns: Callable[[], int] = boottime_ns
    ) -> None:
        self._read = read
        self._now_ns = now_ns
        self._next_ns = 0

    def probe(self) -> Capability:
        """Always available: Linux has had CLOCK_BOOTTIME since 2.6.39."""
        return Capability("clock", True)

    def start(self, sink: Sink) -> None:
        """The first pair."""
        self._pair(sink)

    def poll(self, sink: Sink) -> int:
        """A pair when one is due."""
        if self._now_ns() < self._next_ns:
            return 0
        self._pair(sink)
        return 1

    def stop(self, sink: Sink) -> None:
        """The last pair."""
        self._pair(sink)

    def _pair(self, sink: Sink) -> None:
        sink.add_records("clock", [self._read()])
        self._next_ns = self._now_ns() + PAIR_INTERVAL_NS
