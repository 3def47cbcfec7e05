"""Chain: calls that wait for a GPU were slow while another process ran kernels on it.

Effect: slow synchronisations and blocking copies, blocking copies of a thread, or a drop of throughput. Cause: the time
of NVML samples that list the process on a GPU and tell a utilisation above 0 for another process on the same GPU (of a
MIG device: on the same GPU instance). Processes that do not use MPS take turns on a GPU (time slicing), so that the
work of one waits for the other's slice. Claimed only where such calls are slow more often then. Units: ns.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from gpuaudit.analyze import gpu_state, intervals
from gpuaudit.analyze.call_rows import Rows
from gpuaudit.analyze.causal import model
from gpuaudit.analyze.causal.model import Causes, Detector, Effect
from gpuaudit.analyze.finding import Declaration, Quantity
from gpuaudit.analyze.gpu_state import State
from gpuaudit.analyze.gpu_time import UNKNOWN, GpuTime
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.store import NOT_OWN

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

DECLARATION = Declaration(
    id="gpu_shared",
    kind="chain",
    title="GPU shared with another process",
    question="Did calls wait longer for a GPU while another process ran kernels on it?",
    inputs=(
        ("nvml_processes", ("start_ns", "duration_ns", "gpu_uuid", "pid", "sm_utilization_percent", "gpu_instance")),
        ("nvml_samples", ("start_ns", "duration_ns", "gpu_uuid")),
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op")),
    ),
    thresholds=(*model.THRESHOLDS, *gpu_state.THRESHOLDS),
    texts={
        "gpu_shared": "For {explained} of {effect_time} ({share}) of {effect} {culprit} ran kernels on the same GPU "
        "{gpu} (NVML: {utilisation} of the time at the median): {contrast}. That is consistent with turns on one GPU.",
    },
    never_claims="That the GPU ran the other process at that very moment: NVML tells a share of a sampling period; nor "
    "that the two took turns, which they do not under MPS.",
    assumptions=("The utilisation that NVML tells for a process at a sample holds until the next one.",),
)  # fmt: skip


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Others that ran kernels on the GPUs of each effect's process."""
    from gpuaudit.analyze.context import NotEvaluated  # noqa: PLC0415 - it imports what imports this

    told = context.store.sql("SELECT 1 FROM nvml_processes WHERE sm_utilization_percent IS NOT NULL LIMIT 1")
    if not told:
        return NotEvaluated(
            context.quality.source_reason("nvml")
            or "NVML told no utilisation of any process, so who used a GPU is not known"
        )
    return gpu_state.causes(context, effects, DECLARATION.id, _others)


def _others(context: Context, own: int, gpu: GpuTime) -> list[State]:
    rows = Rows.read(
        context, "nvml_processes", f"{gpu.where} AND sm_utilization_percent IS NOT NULL AND {NOT_OWN}",
        ("pid::BIGINT AS pid", "least(sm_utilization_percent, 100)::BIGINT AS percent",
         f"coalesce(gpu_instance::BIGINT, {UNKNOWN}) AS instance"),
    )  # fmt: skip
    listed = Rows.read(
        context, "nvml_processes", f"{gpu.where} AND pid = {int(own)}",
        (f"coalesce(gpu_instance::BIGINT, {UNKNOWN}) AS instance",),
    )  # fmt: skip
    out = []
    for pid in sorted(set(rows.a["pid"].tolist()) - {own}):
        for instance in sorted(set(listed.a["instance"].tolist())):
            known = intervals.intersect(listed.of(listed.a["instance"] == instance).time, gpu.covered)
            busy = rows.of((rows.a["pid"] == pid) & (rows.a["percent"] > 0) & (rows.a["instance"] == instance))
            if len(intervals.intersect(busy.time, known)):
                out.append(_state(context, gpu, pid, busy, known))
    return out


def _state(context: Context, gpu: GpuTime, pid: int, busy: Rows, known: Intervals) -> State:
    time = intervals.intersect(busy.time, known)
    evidence = busy.evidence(context)
    percent = sorted(busy.a["percent"].tolist())
    name = f"{context.process_name(pid)} ({pid})"
    return State(
        culprit=name, text="gpu_shared", what=f"{name} ran kernels on the same GPU", time=time, known=known,
        evidence=evidence, subject={"gpu": gpu.uuid, "culprit_pid": str(pid)},
        values={
            "gpu": f"{gpu.index} ({gpu.uuid})",
            "utilisation": Quantity(
                Fraction(percent[(len(percent) + 1) // 2 - 1], PER_CENT), "share", "derived", evidence(time),
                "median of sm_utilization_percent of the rows above 0",
            ),
        },
        against=("whether the processes share the GPU through MPS, side by side, was not recorded",),
    )  # fmt: skip


PER_CENT = 100

DETECTOR = Detector(
    precedence=150,
    kinds=gpu_state.KINDS,
    scope="same GPU",
    find=find,
    refuted_by="The same calls as slow while the process has the GPU to itself.",
    experiment="Move the other process to another GPU or to a MIG instance of its own, or run both under MPS, and "
    "capture again.",
    next_step="See whose process it is (audit query, nvml_processes and processes), and whether both are meant to be "
    "there.",
)
