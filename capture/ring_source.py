"""The BPF rings as a source: drained with numpy, counted by the kernel's own counters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpuaudit.bundle.tables import RING_TABLES
from gpuaudit.capture.loss_episodes import EPISODE_NS, LossEpisodes
from gpuaudit.capture.ring import LossCounters, RingDescription, RingReader, loss_counts, to_rows
from gpuaudit.capture.source import TABLES_OF_SOURCE, Capability, RingSink, boottime_ns

DRAIN_LIMIT_RECORDS = 65_536
"""One turn takes at most this many records of a ring, so that the other rings wait no longer than a few ms."""

RELIEVED_SHARE, HELD_BYTES = 0.25, 256 << 20
"""A ring is emptied ahead of its turn once it is so full, and up to so much is held in memory. ours"""

LAST_TURNS = 64
"""Many times what full rings hold, so that at an ordinary end, with the probes detached, nothing is left."""


class RingSource:
    """All rings of a capture. Its file descriptors were opened by the attacher and inherited."""

    name = "rings"

    def __init__(self, rings: Sequence[RingDescription], counters_fd: int) -> None:
        self._readers = [RingReader(r.fd, r.size_bytes, r.table) for r in rings]
        self._counters = LossCounters(counters_fd)
        self._losses = LossEpisodes()
        self._looked_ns = 0
        self._held: list[tuple[str, np.ndarray]] = []
        """What :meth:`relieve` took: table, and records."""

    def probe(self) -> Capability:
        """Available: the attacher has loaded and attached what fills the rings."""
        return Capability(self.name, True)

    def start(self, sink: RingSink) -> None:
        """Nothing to prepare."""

    def poll(self, sink: RingSink) -> int:
        """Drain each ring once."""
        return self._drain(sink)

    def stop(self, sink: RingSink) -> None:
        """Drain until nothing is left. Where the disk is full probes may still be attached: then not for ever."""
        for _ in range(LAST_TURNS):
            if not self._drain(sink):
                break
        self._count(sink, set(RING_TABLES), ended=True)

    def relieve(self) -> None:
        """Empty rings that fill into memory, until the next :meth:`poll`: for a recorder that is busy sealing."""
        if sum(records.nbytes for _, records in self._held) < HELD_BYTES:
            self._held += [(r.table, r.drain()) for r in self._readers if r.filled > RELIEVED_SHARE]

    def _drain(self, sink: RingSink) -> int:
        held, self._held = self._held, []
        taken: dict[str, int] = {}
        for table, records in held + [(r.table, r.drain(DRAIN_LIMIT_RECORDS)) for r in self._readers]:
            if len(records):
                sink.add_drained(table, to_rows(table, records))
                taken[table] = taken.get(table, 0) + len(records)
        due = boottime_ns() - self._looked_ns > EPISODE_NS
        if due or taken:
            self._count(sink, set(RING_TABLES) if due else set(taken))
        return sum(taken.values())

    def _count(self, sink: RingSink, tables: set[str], *, ended: bool = False) -> None:
        """Tell the counters of these tables; losses are looked for where it is all tables, ten times a second."""
        now = boottime_ns()
        counters = self._counters.snapshot()
        for i, table in enumerate(RING_TABLES):
            if table in tables and (cpus := np.flatnonzero(counters[:, i, 0])).size:
                keys = cpus.tolist()
                seen, lost = counters[cpus, i, 0].tolist(), counters[cpus, i, 1].tolist()
                sink.ring_counters(table, dict(zip(keys, seen, strict=True)), dict(zip(keys, lost, strict=True)))
        if len(tables) < len(RING_TABLES):
            return
        self._looked_ns = now
        for gone in self._losses.follow(loss_counts(counters, 1), now, ended=ended):
            sink.gap(_source_of(gone.table), gone.reason, gone.start_ns, gone.end_ns, table=gone.table)


def _source_of(table: str) -> str:
    return next((source for source, tables in TABLES_OF_SOURCE.items() if table in tables), table)
