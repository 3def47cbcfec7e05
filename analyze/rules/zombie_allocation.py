"""Rule: GPU memory held by a process that is gone, or by one that never computed.

From the lists of processes that NVML gives with each poll. *Gone*: the list has the process although its exit was seen,
at least ``grace_ns`` before. *Never computed*: for at least ``held_ns`` it was listed, NVML told that no kernel of it
ran, or (where NVML does not tell) its CUDA library was probed, and no call of it was recorded. Impact: the time × the
share of the GPU's memory that it held. Unit: GPU-nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from gpuaudit.analyze import coverage, intervals, severity
from gpuaudit.analyze.call_meanings import LIBRARIES
from gpuaudit.analyze.context import Context, NotEvaluated, Outcome
from gpuaudit.analyze.drafts import about_process, derived, worst
from gpuaudit.analyze.finding import Declaration, Finding, Fix, Quantity, Severity, Threshold
from gpuaudit.analyze.gpu_time import UNKNOWN, GpuTime, bounded
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.lives import exit_ns
from gpuaudit.analyze.nvml_values import Array, Device, last_told, of_samples
from gpuaudit.analyze.store import NOT_OWN

GRACE = Threshold(
    "grace_ns", 2_000_000_000, "ns",
    "chosen: the driver tears a context down after the process's exit, and the list is as old as the poll; two seconds "
    "are eight polls",
)  # fmt: skip
HELD = Threshold(
    "held_ns", 30_000_000_000, "ns",
    "chosen: a program may load for that long before its first kernel; half of the default capture of 60 s",
)  # fmt: skip

DECLARATION = Declaration(
    id="zombie_allocation",
    kind="rule",
    title="Memory held by a process that is gone or never computes",
    question="Is GPU memory held by a process that has exited, or that never used the GPU?",
    inputs=(
        ("nvml_processes", ("start_ns", "duration_ns", "gpu_uuid", "pid", "memory_used_bytes",
                            "sm_utilization_percent")),
        ("nvml_samples", ("start_ns", "duration_ns", "gpu_uuid", "memory_total_bytes", "unavailable")),
        ("processes", ("start_ns", "duration_ns", "pid", "op", "role")),
        ("libraries", ("pid", "op", "library")),
        ("cuda_calls", ("pid",)),
        ("nccl_calls", ("pid",)),
    ),
    thresholds=(GRACE, HELD, coverage.JUDGED, *severity.THRESHOLDS),
    texts={
        "exited": "Process {process} exited, and NVML listed it on GPU {gpu} for {held} more, with {memory} ({share} "
        "of the GPU's memory).",
        "never_computed": "Process {process} was listed on GPU {gpu} for {held} with {memory} ({share} of the GPU's "
        "memory) and was not seen to compute: {proof}.",
    },
    never_claims="That the memory could be given to another process at once, or that a process without kernels is "
    "useless: it may wait for work.",
    assumptions=(
        "A list of processes holds until the next poll.",
        "NVML and the recording name processes alike; a recorder in a container with process ids of its own does not.",
        "A process id that was given to a new process names the new one from its start on.",
    ),
)  # fmt: skip

BY_NVML = "NVML told a utilisation of 0 for it at every poll"
END = "End the process, if it is not meant to wait for work"
FREE = (
    "Find what keeps the context alive: a child process, a daemon of the driver, a container that shares memory; else "
    "reset the GPU"
)
BY_PROBES = "its CUDA library was probed and no call was recorded"


@dataclass(frozen=True)
class _Listed:
    """One process on one GPU: the times NVML listed it, its memory and utilisation at each poll."""

    pid: int
    starts: Array
    ends: Array
    memory: Array
    busy: Array


def evaluate(context: Context) -> Outcome:
    """At most one finding per GPU and process."""
    if not context.gpus:
        return NotEvaluated(f"no NVML sample of any GPU: {context.quality.source_reason('nvml') or 'none recorded'}")
    known = {g.uuid: g.time(g.listed) for g in context.gpus}
    if not any(len(t) for t in known.values()):
        return NotEvaluated("NVML told no list of processes for any interval between two samples")
    items = [f for g in context.gpus for listed in _read(context, g) if (f := _judge(context, g, listed)) is not None]
    return coverage.outcome(context, worst(items), known, "processes", DECLARATION.id)


def _read(context: Context, gpu: GpuTime) -> list[_Listed]:
    a = context.store.arrays(
        "SELECT pid::BIGINT AS pid, start_ns::BIGINT AS start_ns, coalesce(end_ns, start_ns)::BIGINT AS end_ns, "
        f"{bounded('max(memory_used_bytes)')} AS memory, {bounded('max(sm_utilization_percent)')} AS busy "
        f"FROM nvml_processes WHERE {gpu.where} AND {NOT_OWN} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    )
    out = []
    for pid in np.unique(a["pid"]).tolist():
        mine = a["pid"] == pid
        columns = ("start_ns", "end_ns", "memory", "busy")
        out.append(_Listed(int(pid), *(a[c][mine] for c in columns)))
    return out


def _judge(context: Context, gpu: GpuTime, listed: _Listed) -> Finding | None:
    exited = exit_ns(context, listed.pid)
    time = intervals.subtract(intervals.from_bounds(listed.starts, listed.ends), gpu.asleep)
    if exited is not None:
        late = listed.starts >= exited + int(context.policy.value(GRACE, DECLARATION.id))
        held = intervals.clip(time, exited, int(listed.ends.max())) if late.any() else intervals.EMPTY
        return _finding(context, gpu, listed, held, "") if len(held) else None
    if intervals.measure(time) < context.policy.value(HELD, DECLARATION.id):
        return None
    proof = _never_computed(context, listed)
    return _finding(context, gpu, listed, time, proof) if proof else None


def _never_computed(context: Context, listed: _Listed) -> str:
    """What shows that the process never computed, or nothing."""
    pid = listed.pid
    called = context.store.sql(
        f"SELECT 1 FROM (SELECT pid FROM cuda_calls UNION ALL SELECT pid FROM nccl_calls) WHERE pid = {pid} LIMIT 1"
    )
    told = listed.busy[listed.busy != UNKNOWN]
    if called or (told > 0).any():
        return ""
    if len(told) == len(listed.busy):
        return BY_NVML
    probed = context.store.sql(
        f"SELECT 1 FROM libraries WHERE pid = {pid} AND op IN ('attached', 'shared') AND library IN {LIBRARIES} LIMIT 1"
    )
    return BY_PROBES if probed and not context.quality.lost("cuda_calls") else ""


def _finding(context: Context, gpu: GpuTime, listed: _Listed, held: Intervals, proof: str) -> Finding:
    span = f"{gpu.where} AND pid = {listed.pid}"
    rows = (context.book.where("nvml_processes", span),)
    life = context.book.present(("processes",), f"pid = {listed.pid}")
    told = (context.book.where("nvml_samples", f"{gpu.where} AND memory_total_bytes IS NOT NULL"),)
    total = last_told(of_samples(context.store, gpu, ("memory_total_bytes",))["memory_total_bytes"])
    memory, time = last_told(listed.memory), intervals.measure(held)
    share = Fraction(min(memory, total), total) if total and memory is not None else None
    lost = None if share is None else int(time * share)
    impact = derived(
        lost, "gpu_ns", (*rows, *told), "held × share of the GPU's memory, rounded down",
        "NVML told no memory of the process or the GPU",
    )  # fmt: skip
    values: dict[str, Quantity | str] = {
        "held": derived(time, "gpu_ns", (*rows, *life), "time of the lists that name it"
                        + ("" if proof else " after its exit")),
        "memory": derived(memory, "bytes", rows, "last reading of the process's memory", "NVML told none"),
        "share": derived(share, "share", (*rows, *told), "memory / memory of the GPU", "NVML told no memory"),
        "weighted": impact,
    }  # fmt: skip
    if proof:
        values["proof"] = proof
    observed = intervals.measure(gpu.covered)
    grave: Severity = "warning"
    if lost is not None:
        grave = severity.of_share(lost, observed, context.policy, DECLARATION.id)
    if proof:
        grave = severity.at_most(grave, "warning")  # it may be a server that waits for its first request
    return about_process(
        context, DECLARATION, listed.pid, text="never_computed" if proof else "exited", severity=grave, values=values,
        impact=impact, gpu=Device(gpu.uuid, gpu.index), fixes=(Fix(END if proof else FREE),),
    )  # fmt: skip
