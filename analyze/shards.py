"""Subjects of what is told per process: which GPU, which process, which shard of a model, and since when it was seen.

A shard is the rank of a process in its communicator, where that was recorded: of several communicators the one with
most collectives of the process, then the largest, then the smallest identity. Otherwise the process is its own shard.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpuaudit.analyze import family, intervals
from gpuaudit.analyze.call_meanings import LIBRARIES
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.gpu_time import GpuTime
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.store import NOT_OWN

PROBED = ("attached", "shared")
"""``libraries.op`` of a library whose calls are recorded."""


@dataclass(frozen=True)
class Shard:
    """One rank of a communicator, in one process."""

    pid: int
    comm_id: int
    rank: int
    nranks: int

    @property
    def name(self) -> str:
        """For people and labels."""
        return f"rank {self.rank} of {self.nranks} ({self.comm_id:016x})"


def shard_of(context: Context, pid: int) -> Shard | None:
    """The shard of a process; None where it called no collective, or more than one rank of the same communicator."""
    rows = context.store.sql(
        "SELECT comm_id, min(rank), max(rank), max(nranks), count(*) FROM nccl_calls "
        f"WHERE pid = {int(pid)} AND comm_id IS NOT NULL AND rank IS NOT NULL AND nranks IS NOT NULL AND {NOT_OWN} "
        "GROUP BY comm_id ORDER BY 5 DESC, 4 DESC, 1 LIMIT 1"
    )
    if not rows or rows[0][1] != rows[0][2]:
        return None
    comm_id, rank, _, nranks, _ = (int(v) for v in rows[0])
    return Shard(pid, comm_id, rank, nranks)


def holders(context: Context, gpu: GpuTime) -> list[int]:
    """Processes that NVML listed on a GPU at any time."""
    return [pid for pid, gpus in sorted(context.gpus_by_pid.items()) if any(g is gpu for g in gpus)]


def gpus_of(context: Context, pid: int) -> list[GpuTime]:
    """GPUs on which NVML listed a process at any time."""
    return context.gpus_by_pid.get(pid, [])


def held(gpu: GpuTime, pid: int) -> Intervals:
    """Time in which NVML listed a process on a GPU."""
    return gpu.time(np.array([pid in who for who in gpu.holders], dtype=bool))


def calls_seen(context: Context, pid: int) -> tuple[Intervals, str]:
    """When calls of a process into the CUDA runtime were recorded; if never, why.

    From the moment its library was probed (without one, from its first recorded call) to the end of the capture, less
    the gaps of that source.
    """
    store, window = context.store, context.window
    libraries = store.sql(
        "SELECT op, (start_ns + coalesce(duration_ns, 0))::BIGINT, coalesce(reason, '') FROM libraries "
        f"WHERE pid = {int(pid)} AND library IN {LIBRARIES} ORDER BY 2, 1, 3"
    )
    first = store.sql(f"SELECT min(start_ns)::BIGINT FROM cuda_calls WHERE pid = {int(pid)}")[0][0]
    probed = [int(at) for op, at, _ in libraries if op in PROBED]
    if not probed and first is None:
        refused = [str(reason) for op, _, reason in libraries if op not in PROBED]
        why = f"its CUDA runtime was not observable: {refused[0]}" if refused else "no call of it was recorded"
        return intervals.EMPTY, f"process {pid}: {why}"
    begin = min([*probed, *([] if first is None else [int(first)])])
    gaps = store.arrays(
        f"SELECT start_ns::BIGINT AS a, coalesce(end_ns, {window.end_ns})::BIGINT AS b FROM gaps "
        f"WHERE (table_name = 'cuda_calls' OR source = 'cuda' OR source IN {LIBRARIES}) "
        f"AND (pid IS NULL OR pid = {int(pid)})"
    )
    blind = intervals.from_bounds(gaps["a"], gaps["b"])
    return intervals.subtract(intervals.single(begin, window.end_ns), blind), ""


def descendants(context: Context, pid: int) -> frozenset[int]:
    """A process and all that descend from it, as far as processes were recorded: servers start their workers."""
    return frozenset({pid, *family.descendants(context, pid)})
