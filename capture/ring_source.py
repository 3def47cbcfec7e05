"""The BPF rings as a source: drained with numpy, counted by the kernel's own counters."""

from __future__ import annotations

from collections.abc import Sequence

from gpuaudit.capture.ring import LossCounters, RingDescription, RingReader, to_rows
from gpuaudit.capture.source import Capability, RingSink

DRAIN_LIMIT_RECORDS = 65_536
"""One turn takes at most this many records of a ring, so that the other rings wait no longer than a few ms."""

LAST_TURNS = 64
"""Many times what full rings hold, so that at an ordinary end, with the probes detached, nothing is left."""


class RingSource:
    """All rings of a capture. Its file descriptors were opened by the attacher and inherited."""

    name = "rings"

    def __init__(self, rings: Sequence[RingDescription], counters_fd: int) -> None:
        self._readers = [RingReader(r.fd, r.size_bytes, r.table) for r in rings]
        self._counters = LossCounters(counters_fd)

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
                return

    def _drain(self, sink: RingSink) -> int:
        taken = 0
        for reader in self._readers:
            records = reader.drain(DRAIN_LIMIT_RECORDS)
            if len(records):
                sink.add_drained(reader.table, to_rows(reader.table, records))
                taken += len(records)
        seen: dict[str, dict[int, int]] = {}
        lost: dict[str, dict[int, int]] = {}
        for (table, cpu), count in self._counters.read().items():
            if count.seen:
                seen.setdefault(table, {})[cpu] = count.seen
                lost.setdefault(table, {})[cpu] = count.lost
        for table, per_cpu in seen.items():
            sink.ring_counters(table, per_cpu, lost[table])
        return taken
