"""Chain: calls that wait for a GPU were slow while it had lowered its clocks for power, heat or hardware protection.

Effect: slow synchronisations and blocking copies, blocking copies of a thread, or a drop of throughput. Cause: the time
of NVML samples of a GPU that the process held with one of the reasons of the rule ``throttling`` set, told apart by the
reasons named together. Claimed only where such calls are slow more often then than at full clocks: a GPU that is
throttled all the time slows every call, which is that rule's matter. Units: ns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze import gpu_state, intervals
from gpuaudit.analyze.causal import model
from gpuaudit.analyze.causal.model import Causes, Detector, Effect
from gpuaudit.analyze.finding import Declaration
from gpuaudit.analyze.gpu_state import State
from gpuaudit.analyze.gpu_time import UNKNOWN, GpuTime
from gpuaudit.analyze.medians import median

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

DECLARATION = Declaration(
    id="throttled",
    kind="chain",
    title="GPU throttled",
    question="Did calls wait longer for a GPU while it had lowered its clocks for power, heat or hardware protection?",
    inputs=(
        ("nvml_samples", ("start_ns", "duration_ns", "gpu_uuid", "event_reasons", "clock_sm_mhz", "clock_sm_max_mhz")),
        ("nvml_processes", ("start_ns", "gpu_uuid", "pid")),
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op")),
    ),
    thresholds=(*model.THRESHOLDS, *gpu_state.THRESHOLDS),
    texts={
        "throttled": "For {explained} of {effect_time} ({share}) of {effect} GPU {gpu} had lowered its clocks "
        "({culprit}), to {clock} (median) from {clock_free} otherwise: {contrast}. That is consistent with less clock.",
    },
    never_claims="That all of the time was lost: work at a lower clock goes on, and at most the missing part of the "
    "clock is missing from it.",
    assumptions=("A reason that NVML names at a sample holds until the next one.",),
)  # fmt: skip


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Throttling of the GPUs of each effect's process."""
    from gpuaudit.analyze.context import NotEvaluated  # noqa: PLC0415 - it imports what imports this

    if not any((g.event_reasons != UNKNOWN).any() for g in context.gpus):
        return NotEvaluated(context.quality.source_reason("nvml") or "NVML told no clock event reasons")
    return gpu_state.causes(context, effects, DECLARATION.id, _throttled)


def _throttled(context: Context, _: int, gpu: GpuTime) -> list[State]:
    from gpuaudit.analyze.rules.throttling import MASK, REASONS  # noqa: PLC0415 - rules import the context

    told = gpu.event_reasons != UNKNOWN
    masked = np.where(told, gpu.event_reasons & MASK, 0)
    free = gpu.time(told & (masked == 0))
    clock_free = gpu.clock_sm_mhz[told & (masked == 0) & (gpu.clock_sm_mhz != UNKNOWN)]
    out = []
    for mask in sorted(set(masked[masked != 0].tolist())):
        names = ", ".join(n for n, bit in REASONS.items() if mask & bit)
        chosen = masked == mask
        time = gpu.time(chosen)
        named = f"{gpu.where} AND event_reasons & {MASK} = {mask}"
        evidence = gpu_state.all_of(context, ("nvml_samples", named))
        rows = evidence(time)
        clocks = gpu.clock_sm_mhz[chosen]
        how, none = "median SM clock of those samples", "NVML told no SM clock"
        out.append(State(
            culprit=names, text="throttled", what=f"the GPU had lowered its clocks ({names})", time=time,
            known=intervals.union(time, free), evidence=evidence, subject={"gpu": gpu.uuid},
            values={
                "gpu": f"{gpu.index} ({gpu.uuid})",
                "clock": median(clocks[clocks != UNKNOWN], "MHz", rows, how, none),
                "clock_free": median(clock_free, "MHz", rows, how, none),
            },
        ))  # fmt: skip
    return out


DETECTOR = Detector(
    precedence=160,
    kinds=gpu_state.KINDS,
    scope="same GPU",
    find=find,
    refuted_by="The same calls as slow with no such reason named and the clock at its usual value.",
    experiment="Take the reason away (raise the power limit to its default, improve the cooling, move the job to a "
    "cooler board), or cap the clock below the point at which it sets in (nvidia-smi -lgc), and capture again.",
    next_step="Look at power, temperature and their limits at that time (audit query, nvml_samples and nvml_health).",
)
