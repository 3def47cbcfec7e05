"""What the GPU itself did, where a recording has it: busy and idle time by kind of work, and whose turn it was.

Definitions, all in ns of the recording's axis, per process and device:

- *span*: from the start of the first kernel, copy, memory set or graph to the end of the last one.
- *busy*: time in which at least one of them ran; *idle*: the rest of the span.
- *communication*: time in which a kernel ran that is a collective (the recording names one, or the kernel's name has
  ``nccl`` or ``rccl``: NCCL's and RCCL's kernels are called ncclKernel…, ncclDevKernel… and rccl…).
- *compute*: time in which any other kernel ran; *memory*: time in which a copy or memory set ran.
- *graph*: time in which a CUDA graph ran that was recorded as a whole: what ran in it is not known.
- *overlap*: compute and communication at once; *exposed communication*: communication without compute.

They overlap, so they do not add up; busy and idle do. Waits that CUPTI records as activities are no work.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.store import NOT_OWN, Store

COMMUNICATION = (
    "(op = 'kernel' AND (collective IS NOT NULL OR contains(lower(name), 'nccl') OR contains(lower(name), 'rccl')))"
)
"""SQL condition of a row of ``gpu_activities``: its kernel is a collective."""

OF_GPU = "op IN ('kernel', 'memcpy', 'memset', 'graph')"
"""SQL condition: the row is work of the GPU."""

WORK = f"{OF_GPU} AND duration_ns IS NOT NULL"
"""SQL condition: the row is work of the GPU, and its end is known."""

CLASSES = ("compute", "communication", "memory", "graph")
MAX_DEVICES = 1024
"""Pairs of process and device that are told apart; a host has at most 16 GPUs."""


@dataclass(frozen=True)
class Device:
    """The work of one process on one device; either number is None where the recording does not say."""

    pid: int | None
    device: int | None
    count: int
    streams: int
    sets: dict[str, Intervals]
    """Class (see :data:`CLASSES`) → time in which work of it ran."""

    @property
    def where(self) -> str:
        """SQL condition of its rows of ``gpu_activities``."""
        return f"{WORK} AND {_is('pid', self.pid)} AND {_is('device', self.device)}"

    @cached_property
    def busy(self) -> Intervals:
        """Time in which any work ran."""
        return intervals.union(*self.sets.values())

    @property
    def start_ns(self) -> int:
        """Start of the first work."""
        return int(self.busy[0, 0])

    @property
    def end_ns(self) -> int:
        """End of the last work."""
        return int(self.busy[-1, 1])

    @property
    def span_ns(self) -> int:
        """From the start of the first work to the end of the last."""
        return self.end_ns - self.start_ns

    @cached_property
    def idle(self) -> Intervals:
        """Time of the span in which no work ran."""
        return intervals.subtract(intervals.single(self.start_ns, self.end_ns), self.busy)

    @cached_property
    def overlap(self) -> Intervals:
        """Time in which compute and communication ran at once."""
        return intervals.intersect(self.sets["compute"], self.sets["communication"])

    @cached_property
    def exposed(self) -> Intervals:
        """Time in which communication ran without compute."""
        return intervals.subtract(self.sets["communication"], self.sets["compute"])


def _is(column: str, value: int | None) -> str:
    return f"{column} IS NULL" if value is None else f"{column} = {int(value)}"


def read_devices(store: Store) -> list[Device]:
    """Every process and device with work of more than no time, by process and device."""
    if not store.row_count("gpu_activities"):
        return []
    groups = store.sql(
        f"SELECT pid, device, count(*), count(DISTINCT stream) FROM gpu_activities WHERE {WORK} AND "
        f"(pid IS NULL OR {NOT_OWN}) GROUP BY 1, 2 HAVING sum(duration_ns::HUGEINT) > 0 "
        f"ORDER BY 1 NULLS LAST, 2 NULLS LAST LIMIT {MAX_DEVICES}"
    )
    return [_device(store, *(None if v is None else int(v) for v in row)) for row in groups]  # type: ignore[arg-type]


def _device(store: Store, pid: int | None, device: int | None, count: int, streams: int) -> Device:
    a = store.arrays(
        "SELECT start_ns::BIGINT AS a, end_ns::BIGINT AS b, "
        f"CASE WHEN op = 'graph' THEN 3 WHEN op <> 'kernel' THEN 2 WHEN {COMMUNICATION} THEN 1 ELSE 0 END::TINYINT "
        "AS class "
        f"FROM gpu_activities WHERE {WORK} AND {_is('pid', pid)} AND {_is('device', device)} ORDER BY start_ns"
    )
    sets = {
        name: intervals.from_bounds(a["a"][a["class"] == i], a["b"][a["class"] == i]) for i, name in enumerate(CLASSES)
    }
    return Device(pid, device, count, streams, sets)


@dataclass(frozen=True)
class IdleTime:
    """Idle time of one device before each stretch of work, by what the call that gave that work was doing.

    ``before_call``: the call had not begun: the host was late. ``in_call``: it was going on. ``after_call``: it was
    over, and the work waited in the queue (launch latency, an event, another stream). ``unlinked``: the call is not
    in the recording. They add up to the idle time.
    """

    gaps: npt.NDArray[np.int64]
    """Length of each stretch of idle time, in ns, in order of time."""
    before_call: int
    in_call: int
    after_call: int
    unlinked: int


def idle_time(store: Store, device: Device) -> IdleTime:
    """Each stretch of idle time of the device, parted by the call that gave the work which ended it.

    Of several pieces of work that start at once the one whose call began first counts.
    """
    gaps = device.idle
    lengths = (gaps[:, 1] - gaps[:, 0]).astype(np.int64)
    if not len(gaps) or device.pid is None:
        return IdleTime(lengths, 0, 0, 0, int(lengths.sum()))
    work = store.arrays(
        "SELECT g.start_ns::BIGINT AS at, c.start_ns::BIGINT AS a, coalesce(c.end_ns, c.start_ns)::BIGINT AS b "
        f"FROM (SELECT start_ns, correlation FROM gpu_activities WHERE {device.where}) AS g JOIN (SELECT correlation, "
        "min(start_ns) AS start_ns, arg_min(end_ns, start_ns) AS end_ns FROM cuda_calls "
        f"WHERE pid = {device.pid} AND correlation IS NOT NULL GROUP BY correlation) AS c USING (correlation) "
        "ORDER BY 1, 2, 3"
    )
    if not len(work["at"]):
        return IdleTime(lengths, 0, 0, 0, int(lengths.sum()))
    place = np.minimum(np.searchsorted(work["at"], gaps[:, 1]), len(work["at"]) - 1)
    linked = work["at"][place] == gaps[:, 1]
    begin, end = gaps[linked, 0], gaps[linked, 1]
    called = np.clip(work["a"][place[linked]], begin, end)
    returned = np.clip(work["b"][place[linked]], called, end)
    return IdleTime(
        lengths, int((called - begin).sum()), int((returned - called).sum()), int((end - returned).sum()),
        int(lengths[~linked].sum()),
    )  # fmt: skip


def unlinked(store: Store, device: Device) -> int:
    """Work whose call is not in the recording: it has no number, or no call of its process has the same one."""
    calls = "SELECT correlation FROM cuda_calls WHERE correlation IS NOT NULL AND "
    calls += "false" if device.pid is None else f"pid = {device.pid}"
    found = store.sql(
        f"SELECT count(*) FROM gpu_activities WHERE {device.where} AND "
        f"(correlation IS NULL OR correlation NOT IN ({calls}))"
    )
    return int(found[0][0])
