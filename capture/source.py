"""What a source of evidence is, and what it says of itself before and after a capture.

A source never raises out of :meth:`Source.probe`: it says that it is available, or why not. A source that fails while
it runs becomes a row of the ``gaps`` table. "Not recorded" is a value with a reason, never an absence.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from gpuaudit.bundle.columns import Rows

BPF_SOURCES = ("cuda", "nccl", "off_cpu", "memory", "block_io", "tcp", "ioctl", "sockets", "stacks", "lifecycle")
"""Sources that need BPF, and with it privileges."""

SELECTABLE_SOURCES = (*BPF_SOURCES, "nvml", "engines")
"""What ``--sources`` may name. The clock pairs are always recorded: without them no row can be dated."""

TABLES_OF_SOURCE: dict[str, tuple[str, ...]] = {
    "cuda": ("cuda_calls", "call_totals"),
    "nccl": ("nccl_calls", "nccl_comms"),
    "off_cpu": ("off_cpu", "migrations", "cpu_occupants"),
    "memory": ("page_allocations", "reclaims", "oom_kills", "pressure", "process_samples", "cgroup_cpu"),
    "block_io": ("block_io", "mounts"),
    "tcp": ("tcp_retransmits",),
    "stacks": ("stack_frames",),
    "ioctl": ("ioctls",),
    "sockets": ("socket_io",),
    "lifecycle": ("lifecycle",),
    "nvml": (
        "nvml_samples",
        "nvml_processes",
        "nvml_health",
        "nvml_links",
        "nvml_accounting",
        "nvml_events",
        "gpm_samples",
    ),
    "engines": ("engines", "engine_config", "engine_scrapes", "engine_series", "engine_samples"),
    "clock": ("clock",),
}
"""Tables that lack rows for the time in which a source could not see."""

READ_FROM_FILES = "memory"
"""The source of which tables are worth having without its programs: they are read from files."""

SourceState = Literal["recorded", "partly recorded", "not recorded"]


@dataclass(frozen=True)
class Capability:
    """Whether a source can be recorded on this host; ``reason`` says why not, ``hint`` what to do about it."""

    source: str
    available: bool
    reason: str = ""
    hint: str = ""

    def to_json(self) -> dict[str, str]:
        """The row of the ``open`` leaf's ``sources``."""
        return {
            "source": self.source,
            "state": "available" if self.available else "not available",
            "reason": self.reason,
        }


class Sink(Protocol):
    """Where a source hands its rows: the recorder, and nothing else."""

    def add(self, table: str, rows: Rows) -> None:
        """Columns of one table, as :func:`gpuaudit.bundle.columns.check_rows` demands them."""

    def add_records(self, table: str, records: Sequence[Mapping[str, object]]) -> None:
        """The same as one mapping per row; for sources with few rows."""

    def add_critical(self, table: str, records: Sequence[Mapping[str, object]]) -> None:
        """The same for what must survive whatever comes next: sealed at once, as a leaf of kind ``event``."""

    def artefact(self, name: str, body: Mapping[str, object]) -> None:
        """A named piece of evidence that is not rows, sealed as canonical JSON."""

    def gap(
        self, source: str, reason: str, start_ns: int, end_ns: int | None, *, table: str | None = None,
        pid: int | None = None,
    ) -> None:  # fmt: skip
        """Time (CLOCK_BOOTTIME) in which ``source`` could not see; ``end_ns`` None: until the end of the capture."""


class RingSink(Sink, Protocol):
    """The recorder as a source sees it that drains rings: rows whose counting is the kernel's."""

    def add_drained(self, table: str, rows: Rows) -> None:
        """Rows drained from the table's ring."""

    def ring_counters(self, table: str, seen: Mapping[int, int], lost: Mapping[int, int]) -> None:
        """The kernel's counters of that ring, cumulative, CPU → count; read after the drain."""


class Source(Protocol):
    """One kind of evidence. The recorder's loop calls :meth:`poll`; none of the methods may block for long."""

    name: str

    def probe(self) -> Capability:
        """Whether it can be recorded here. Never raises."""

    def start(self, sink: RingSink) -> None:
        """Begin; a failure is told to ``sink`` as a gap."""

    def poll(self, sink: RingSink) -> int:
        """Hand over what has come since the last call; returns the number of rows."""

    def stop(self, sink: RingSink) -> None:
        """End, and hand over the rest."""


def boottime_ns() -> int:
    """CLOCK_BOOTTIME now, in ns: the clock of every ``*_ns`` column, which goes on while the host is suspended."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
