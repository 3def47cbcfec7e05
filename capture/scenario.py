"""Synthetic scenarios: invented rows that pass through the same recorder and sealer as a real capture.

A scenario is a list of timed rows, made from a seed with integer arithmetic only, so that it is the same on every
machine. It runs on a clock of its own, faster than real time. Leaf 0 of such a bundle says ``"synthetic": true``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gpuaudit.bundle.columns import from_records
from gpuaudit.bundle.errors import UsageError
from gpuaudit.bundle.tables import TABLES
from gpuaudit.capture.source import Capability, RingSink, Sink

VIRTUAL_BOOT_ID = "00000000-0000-4000-8000-000000000001"
VIRTUAL_START_BOOT_NS = 1_000_000_000_000
VIRTUAL_START_UTC_NS = 1_767_603_600_000_000_000
"""2026-01-05 09:00:00 UTC: any fixed date would do; it makes two captures of one seed hold the same rows."""

POLL_STEP_NS = 500_000_000
"""How far the virtual clock moves with each poll."""

Row = Mapping[str, object]


@dataclass(frozen=True)
class TimedRow:
    """One row and the moment (virtual CLOCK_BOOTTIME) at which a recorder would have got it."""

    at_ns: int
    table: str
    row: Row


@dataclass(frozen=True)
class Scenario:
    """A scenario played from ``seed``: host and GPUs for leaf 0, rows, and how long it lasts."""

    name: str
    host: dict[str, object]
    gpus: list[dict[str, object]]
    duration_ns: int
    rows: Callable[[int], Sequence[TimedRow]]


class VirtualClock:
    """A clock that moves only when told; it stands in leaf headers and closes segments."""

    def __init__(self) -> None:
        self._elapsed_ns = 0

    def boot_id(self) -> str:
        """A fixed UUID."""
        return VIRTUAL_BOOT_ID

    def boot_ns(self) -> int:
        """Virtual CLOCK_BOOTTIME."""
        return VIRTUAL_START_BOOT_NS + self._elapsed_ns

    def utc_ns(self) -> int:
        """Virtual CLOCK_REALTIME."""
        return VIRTUAL_START_UTC_NS + self._elapsed_ns

    def advance(self, ns: int) -> None:
        """Move forward."""
        self._elapsed_ns += ns

    def pair(self) -> dict[str, object]:
        """One row of the ``clock`` table; virtual readings take no time."""
        boot = self.boot_ns()
        return {"start_ns": boot, "duration_ns": 0, "realtime_ns": self.utc_ns(), "monotonic_ns": boot}


class Draw:
    """Deterministic integers: splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014)."""

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((z ^ (z >> 31)) * n) >> 64 if n < 1 << 32 else (z ^ (z >> 31)) % n

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + self.below(high - low + 1)

    def skewed(self, low: int, high: int) -> int:
        """An integer in [low, high], mostly near ``low``, with a long tail: the shape of call durations."""
        u = self.below(1 << 16)
        return low + ((high - low) * u * u * u * u >> 64)


_MASK = (1 << 64) - 1


@dataclass
class ScenarioSource:
    """Plays a scenario into the recorder, ring tables with the counters that a ring would have."""

    scenario: Scenario
    seed: int
    clock: VirtualClock
    name: str = "scenario"
    _rows: Iterator[TimedRow] = field(init=False)
    _next: TimedRow | None = field(init=False)
    _seen: dict[str, Counter[int]] = field(init=False)

    def __post_init__(self) -> None:
        ordered = sorted(self.scenario.rows(self.seed), key=lambda r: r.at_ns)
        self._rows = iter(_numbered(ordered))
        self._next = next(self._rows, None)
        self._seen = {}

    @property
    def ended(self) -> bool:
        """Whether the virtual duration is over."""
        return self.clock.boot_ns() >= VIRTUAL_START_BOOT_NS + self.scenario.duration_ns

    def probe(self) -> Capability:
        """Always available."""
        return Capability(self.name, True)

    def start(self, sink: Sink) -> None:
        """Nothing to prepare."""

    def poll(self, sink: RingSink) -> int:
        """Move the clock by :data:`POLL_STEP_NS` and hand over what falls into the step."""
        left_ns = VIRTUAL_START_BOOT_NS + self.scenario.duration_ns - self.clock.boot_ns()
        self.clock.advance(min(POLL_STEP_NS, left_ns))
        return self._hand_over(sink, self.clock.boot_ns())

    def stop(self, sink: RingSink) -> None:
        """Hand over what is left: calls still open when the capture ended."""
        self._hand_over(sink, None)

    def _hand_over(self, sink: RingSink, until_ns: int | None) -> int:
        batch: dict[str, list[Row]] = {}
        while self._next is not None and (until_ns is None or self._next.at_ns <= until_ns):
            batch.setdefault(self._next.table, []).append(self._next.row)
            self._next = next(self._rows, None)
        for table, rows in batch.items():
            if not TABLES[table].ring:
                sink.add_records(table, rows)
                continue
            seen = self._seen.setdefault(table, Counter())
            seen.update(int(str(row["cpu"])) for row in rows)
            sink.ring_counters(table, seen, {})
            sink.add_drained(table, from_records(TABLES[table], rows))
        return sum(len(rows) for rows in batch.values())


def _numbered(rows: Sequence[TimedRow]) -> Iterator[TimedRow]:
    """Give ring rows the sequence number their CPU would have given them."""
    seq: dict[tuple[str, object], int] = {}
    for timed in rows:
        if not TABLES[timed.table].ring:
            yield timed
            continue
        key = (timed.table, timed.row["cpu"])
        n = seq.get(key, 0)
        seq[key] = n + 1
        yield TimedRow(timed.at_ns, timed.table, {**timed.row, "seq": n})


def load_scenario(name: str) -> Scenario:
    """The scenario called ``name``; UsageError with the names there are."""
    from gpuaudit.capture import scenario_late_rank  # noqa: PLC0415 - it imports this module

    known = {s.name: s for s in (scenario_late_rank.SCENARIO,)}
    if name not in known:
        raise UsageError(f"no synthetic scenario {name!r}", hint=f"there is: {', '.join(sorted(known))}")
    return known[name]
