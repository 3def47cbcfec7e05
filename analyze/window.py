"""The time that a capture covers, and how its clock reads as wall-clock time.

The window reaches from the first to the last moment that any sampled or traced table tells of. Process start times
and probe lists are left out: a process may be years older than the capture.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from gpuaudit.analyze import intervals
from gpuaudit.analyze.finding import Json
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.store import Store
from gpuaudit.bundle.errors import InputUnusable

WINDOW_TABLES = (
    "clock", "nvml_samples", "nvml_processes", "cuda_calls", "nccl_calls", "nccl_comms", "off_cpu", "gaps",
    "nvml_health", "nvml_links", "nvml_events", "gpm_samples", "engine_scrapes", "call_totals", "ioctls", "socket_io",
    "page_allocations", "reclaims", "block_io", "gpu_activities", "user_ranges", "os_calls", "period_totals",
)  # fmt: skip
"""Tables whose rows tell of time that the capture saw, or says it could not see."""

MAX_SLEW = Fraction(500, 1_000_000)
"""Fastest rate at which Linux slews CLOCK_REALTIME (500 ppm, MAXFREQ in include/linux/timex.h); faster is a step."""


@dataclass(frozen=True)
class ClockStep:
    """The wall clock moved against CLOCK_BOOTTIME by ``step_ns`` between two pairs of readings."""

    start_ns: int
    end_ns: int
    step_ns: int


@dataclass(frozen=True)
class Window:
    """Start and end in ns on CLOCK_BOOTTIME; UTC in ns since 1970 or None without a clock pair."""

    start_ns: int
    end_ns: int
    start_utc_ns: int | None
    end_utc_ns: int | None
    utc_uncertainty_ns: int | None
    steps: tuple[ClockStep, ...] = ()
    suspended_ns: int = 0
    sleeps: tuple[tuple[int, int], ...] = ()

    @property
    def asleep(self) -> Intervals:
        """Between pairs of readings within which the host slept: what stood still then is nobody's waste."""
        return intervals.from_bounds([s for s, _ in self.sleeps], [e for _, e in self.sleeps])

    @property
    def length_ns(self) -> int:
        """Length in ns, at least 0."""
        return self.end_ns - self.start_ns

    def to_json(self) -> Json:
        """Section ``window`` of the document."""
        return {
            "start_ns": str(self.start_ns), "end_ns": str(self.end_ns),
            "start_utc_ns": None if self.start_utc_ns is None else str(self.start_utc_ns),
            "end_utc_ns": None if self.end_utc_ns is None else str(self.end_utc_ns),
            "utc_uncertainty_ns": None if self.utc_uncertainty_ns is None else str(self.utc_uncertainty_ns),
        }  # fmt: skip


@dataclass(frozen=True)
class _Pair:
    start_ns: int
    width_ns: int
    realtime_ns: int
    monotonic_ns: int

    @property
    def middle_ns(self) -> int:
        return self.start_ns + self.width_ns // 2

    @property
    def utc_offset_ns(self) -> int:
        return self.realtime_ns - self.middle_ns

    @property
    def suspend_offset_ns(self) -> int:
        return self.middle_ns - self.monotonic_ns


def read_window(store: Store) -> Window:
    """The window of a capture; InputUnusable when no row tells a time."""
    parts = " UNION ALL ".join(
        f"SELECT start_ns::BIGINT AS a, (start_ns + coalesce(duration_ns, 0))::BIGINT AS b FROM {t}"
        for t in WINDOW_TABLES
        if store.row_count(t)
    )
    start, end = store.sql(f"SELECT min(a), max(b) FROM ({parts})")[0] if parts else (None, None)
    if start is None:
        raise InputUnusable(
            "the bundle holds no event and no sample, so there is no time to analyse",
            hint="see 'audit verify' for what it holds, and capture again for longer",
        )
    pairs = [
        _Pair(*(int(v) for v in row))
        for row in store.sql(
            "SELECT start_ns, duration_ns, realtime_ns, monotonic_ns FROM clock ORDER BY start_ns, leaf, row"
        )
    ]
    if not pairs:
        return Window(int(start), int(end), None, None, None)
    steps = tuple(s for a, b in pairwise(pairs) if (s := _step(a, b)) is not None)
    return Window(
        int(start),
        int(end),
        _utc(pairs, int(start)),
        _utc(pairs, int(end)),
        _uncertainty(pairs),
        steps,
        _suspended(pairs),
        tuple((a.start_ns, b.start_ns + b.width_ns) for a, b in pairwise(pairs) if _suspended([a, b])),
    )


def _utc(pairs: list[_Pair], at_ns: int) -> int:
    nearest = min(pairs, key=lambda p: (abs(p.middle_ns - at_ns), p.start_ns))
    return at_ns + nearest.utc_offset_ns


def _uncertainty(pairs: list[_Pair]) -> int:
    """Widest bracket, plus how far the two clocks drifted apart over the capture."""
    offsets = [p.utc_offset_ns for p in pairs]
    return max(p.width_ns for p in pairs) + max(offsets) - min(offsets)


def _step(a: _Pair, b: _Pair) -> ClockStep | None:
    moved = b.utc_offset_ns - a.utc_offset_ns
    allowed = a.width_ns + b.width_ns + int((b.middle_ns - a.middle_ns) * MAX_SLEW)
    return ClockStep(a.start_ns, b.start_ns, moved) if abs(moved) > allowed else None


def _suspended(pairs: list[_Pair]) -> int:
    """Time the host slept: CLOCK_BOOTTIME counts it, CLOCK_MONOTONIC does not."""
    grown = pairs[-1].suspend_offset_ns - pairs[0].suspend_offset_ns
    return grown if grown > pairs[0].width_ns + pairs[-1].width_ns else 0
