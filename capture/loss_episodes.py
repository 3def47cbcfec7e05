"""From counters of losses to gaps: from when to when records found a ring full, and how many.

The programs count per table and CPU, and say when the last episode of losses began and when something was lost last;
an episode ends when nothing was lost for 100 ms. What the gaps of a table name adds up to the counter exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

EPISODE_NS = 100_000_000
"""``LOSS_EPISODE_NS`` of capture/bpf/shared.h."""

LONGEST_NS = 10_000_000_000
"""Losses that go on for longer are told in pieces: a recorder that is killed has told of all but the last one. ours"""


@dataclass(frozen=True)
class LossCount:
    """Counters of one table on one CPU since the programs were loaded; times are CLOCK_BOOTTIME, 0 before any loss."""

    seen: int
    """Records the probes tried to write."""
    lost: int
    """Of those, the ones that found the ring full."""
    first_lost_ns: int = 0
    """When the last episode of losses began."""
    last_lost_ns: int = 0
    episodes: int = 0
    lost_before: int = 0
    """What was lost before the last episode."""


@dataclass(frozen=True)
class LostRecords:
    """Records of a table that a CPU could not write: ``count`` of them, from ``start_ns`` to before ``end_ns``."""

    table: str
    cpu: int
    count: int
    start_ns: int
    end_ns: int

    @property
    def reason(self) -> str:
        """What the gap says."""
        return f"the ring of {self.table} was full on CPU {self.cpu}: {self.count} records were lost"


@dataclass
class _Told:
    until_ns: int
    """Nothing that is not told of was lost before this."""
    lost: int = 0
    episodes: int = 0


class LossEpisodes:
    """Follows the counters; each loss is told of once."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, int], _Told] = {}
        self._looked_ns = 0

    def follow(
        self, counts: Mapping[tuple[str, int], LossCount], now_ns: int, *, ended: bool = False
    ) -> Iterator[LostRecords]:
        """What can be told now: episodes that are over, long ones in pieces, and everything once the capture has
        ``ended``. ``counts``: those that ever lost something; ``now_ns``: a time before they were read."""
        for (table, cpu), count in counts.items():
            told = self._told.setdefault((table, cpu), _Told(self._looked_ns))
            earlier = min(count.lost_before, count.lost) - told.lost
            if earlier > 0:  # of the episodes before the last nothing is known but that they were
                yield LostRecords(table, cpu, earlier, told.until_ns, count.first_lost_ns)
                told.lost, told.until_ns = told.lost + earlier, count.first_lost_ns
            if count.lost == told.lost:
                told.until_ns = now_ns
                continue
            start = max(count.first_lost_ns, told.until_ns if count.episodes == told.episodes else 0)
            over = now_ns - count.last_lost_ns > EPISODE_NS or count.last_lost_ns - start > LONGEST_NS
            if over or ended:
                end = max(count.last_lost_ns, start) + 1
                yield LostRecords(table, cpu, count.lost - told.lost, start, end)
                told.lost, told.episodes, told.until_ns = count.lost, count.episodes, end
        self._looked_ns = now_ns
