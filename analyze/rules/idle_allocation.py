"""Rule: a GPU whose memory a process holds, and on which nothing ran for long.

For each GPU: stretches of consecutive NVML samples with a utilisation of 0 while NVML listed at least one process on
it, at least ``idle_ns`` long. Unit of the impact: GPU-nanoseconds, of the observed time of that GPU.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import coverage, intervals, severity
from gpuaudit.analyze.context import UNNUMBERED, Context, NotEvaluated, Outcome
from gpuaudit.analyze.finding import Declaration, Finding, Quantity, Threshold
from gpuaudit.analyze.gpu_time import UNKNOWN, GpuTime
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.words import duration

IDLE = Threshold(
    "idle_ns", 5_000_000_000, "ns",
    "chosen: five times the longest period over which NVML averages utilisation (1 s, nvmlUtilization_t in nvml.h), "
    "so that a pause between steps or an evaluation is not called idle",
)  # fmt: skip

DECLARATION = Declaration(
    id="idle_allocation",
    kind="rule",
    title="GPU allocated but idle",
    question="Did a process hold GPU memory while no kernel ran on that GPU for a long time?",
    inputs=(
        (
            "nvml_samples",
            ("start_ns", "duration_ns", "gpu_index", "gpu_uuid", "gpu_utilization_percent", "unavailable"),
        ),
        ("nvml_processes", ("start_ns", "gpu_uuid", "pid")),
    ),
    thresholds=(IDLE, coverage.JUDGED, *severity.THRESHOLDS),
    texts={
        "idle_allocation": "GPU {gpu} was held by {processes} and ran nothing for {idle} of {observed} observed "
        "({share}; stretches of at least {threshold}: {stretches}, the longest {longest})."
    },
    never_claims="That the process could have released the memory, or why it ran nothing.",
    assumptions=("The utilisation that NVML tells at a sample holds until the next one.",),
)


def evaluate(context: Context) -> Outcome:
    """One finding per GPU."""
    if not context.gpus:
        reason = context.quality.source_reason("nvml") or "no sample in the bundle"
        return NotEvaluated(f"no NVML sample of any GPU: {reason}")
    known = {g.uuid: g.time(_known(g)) for g in context.gpus}
    longest = max(intervals.measure(t) for t in known.values())
    if not longest:
        return NotEvaluated("NVML told no utilisation, or no list of processes, for any interval between two samples")
    idle_ns = int(context.policy.value(IDLE, DECLARATION.id))
    if longest < idle_ns:
        return NotEvaluated(
            f"samples cover at most {duration(longest)} of a GPU, less than the {duration(idle_ns)} it takes"
        )
    items = [f for g in context.gpus if len(known[g.uuid]) and (f := _of_gpu(context, g, idle_ns)) is not None]
    return coverage.outcome(context, items, known, "utilisation and processes", DECLARATION.id)


def _known(gpu: GpuTime) -> npt.NDArray[np.bool_]:
    known: npt.NDArray[np.bool_] = (gpu.utilization != UNKNOWN) & gpu.listed
    return known


def _of_gpu(context: Context, gpu: GpuTime, idle_ns: int) -> Finding | None:
    known = _known(gpu)
    chosen = known & gpu.held & (gpu.utilization == 0)
    stretches = gpu.time(chosen)
    stretches = stretches[stretches[:, 1] - stretches[:, 0] >= idle_ns]
    if not len(stretches):
        return None
    idle, observed = intervals.measure(stretches), intervals.measure(gpu.time(known))
    pids = sorted({p for i in np.flatnonzero(chosen & _within(gpu, stretches)).tolist() for p in gpu.holders[i]})
    low, high = int(stretches[0, 0]), int(stretches[-1, 1])
    span = f"{gpu.where} AND start_ns BETWEEN {low} AND {high}"
    evidence = (
        context.book.where("nvml_samples", span),
        context.book.where("nvml_processes", f"{span} AND pid IN ({', '.join(map(str, pids))})"),
    )
    formula = "sum of duration_ns of the samples with utilisation 0 and a process listed"

    def derived(value: int | Fraction, unit: str, how: str) -> Quantity:
        return Quantity(value, unit, "derived", evidence, how)

    return Finding(
        id=UNNUMBERED,
        rule=DECLARATION.id,
        severity=severity.of_share(idle, observed, context.policy, DECLARATION.id),
        text="idle_allocation",
        values={
            "gpu": f"{gpu.index} ({gpu.uuid})",
            "processes": ", ".join(f"{p} ({context.process_name(p)})" for p in pids),
            "idle": derived(idle, "gpu_ns", formula),
            "observed": Quantity(
                observed,
                "gpu_ns",
                "derived",
                (context.book.where("nvml_samples", gpu.where),),
                "time covered by samples that tell utilisation and the list of processes",
            ),
            "share": derived(Fraction(idle, observed), "share", "idle / observed"),
            "stretches": derived(len(stretches), "count", "maximal stretches of such samples, at least threshold long"),
            "longest": derived(_longest(stretches), "ns", "length of the longest stretch"),
            "threshold": Quantity(idle_ns, "ns", "assumed"),
        },
        subject={"gpu": gpu.uuid, "gpu_index": str(gpu.index), "pid": ",".join(map(str, pids))},
        impact=derived(idle, "gpu_ns", formula),
        grade=context.quality.grade_of(("nvml_samples", "nvml_processes")),
        evidence=evidence,
    )


def _within(gpu: GpuTime, stretches: Intervals) -> npt.NDArray[np.bool_]:
    """Samples that stand for time inside one of ``stretches``."""
    at = np.searchsorted(stretches[:, 0], gpu.spans[:, 1]) - 1
    inside: npt.NDArray[np.bool_] = (at >= 0) & (stretches[np.maximum(at, 0), 1] > gpu.spans[:, 0])
    return inside


def _longest(stretches: Intervals) -> int:
    return int((stretches[:, 1] - stretches[:, 0]).max())
