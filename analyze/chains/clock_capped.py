"""Chain: calls that wait for a GPU were slow while a setting kept its clock below the highest.

Effect: slow synchronisations and blocking copies, blocking copies of a thread, or a drop of throughput. Cause: the time
of NVML samples that the rule ``clock_caps`` counts, of a GPU that the process held. Claimed only where such calls are
slow more often then than without the cap: a clock that is capped all the time slows every call, which is that rule's
matter. Units: ns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze import gpu_state
from gpuaudit.analyze.causal import model
from gpuaudit.analyze.causal.model import Causes, Detector, Effect
from gpuaudit.analyze.finding import Declaration, Quantity
from gpuaudit.analyze.gpu_state import State
from gpuaudit.analyze.gpu_time import UNKNOWN, GpuTime
from gpuaudit.analyze.nvml_values import of_samples

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

DECLARATION = Declaration(
    id="clock_capped",
    kind="chain",
    title="Clock kept low by a setting",
    question="Did calls wait longer for a GPU while a setting kept its clock below the highest?",
    inputs=(
        ("nvml_samples", ("start_ns", "duration_ns", "gpu_uuid", "gpu_utilization_percent", "event_reasons",
                          "clock_sm_mhz", "clock_sm_max_mhz", "clock_sm_cap_mhz")),
        ("nvml_processes", ("start_ns", "gpu_uuid", "pid")),
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op")),
    ),
    thresholds=(*model.THRESHOLDS, *gpu_state.THRESHOLDS),
    texts={
        "clock_capped": "For {explained} of {effect_time} ({share}) of {effect} a setting kept the clock of GPU {gpu} "
        "at {clock} (median) of {clock_max}: {contrast}. That is consistent with less clock.",
    },
    never_claims="That all of the time was lost: work at a lower clock goes on; nor who set the clock or why.",
    assumptions=("What NVML tells at a sample holds until the next one.",),
)  # fmt: skip


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Capped clocks of the GPUs of each effect's process."""
    from gpuaudit.analyze.context import NotEvaluated  # noqa: PLC0415 - it imports what imports this

    if not any((g.clock_sm_mhz != UNKNOWN).any() for g in context.gpus):
        return NotEvaluated(context.quality.source_reason("nvml") or "NVML told no SM clock")
    return gpu_state.causes(context, effects, DECLARATION.id, _capped)


def _capped(context: Context, _: int, gpu: GpuTime) -> list[State]:
    from gpuaudit.analyze.rules import clock_caps  # noqa: PLC0415 - rules import the context

    cap = of_samples(context.store, gpu, (clock_caps.COLUMN,))[clock_caps.COLUMN]
    busy, bound = clock_caps.by_applications_clock(context, gpu, cap)
    also_busy, named = clock_caps.by_named_setting(context, gpu, cap)
    chosen, known = bound | named, busy | also_busy
    if not chosen.any():
        return []
    time = gpu.time(chosen)
    evidence = gpu_state.all_of(context, ("nvml_samples", f"{gpu.where} AND clock_sm_mhz < clock_sm_max_mhz"))
    rows = evidence(time)
    clocks = np.sort(gpu.clock_sm_mhz[chosen])
    return [State(
        culprit=f"setting of the clocks of GPU {gpu.index}", text="clock_capped",
        what="a setting kept the GPU's clock below the highest",
        time=time, known=gpu.time(known), evidence=evidence, subject={"gpu": gpu.uuid},
        values={
            "gpu": f"{gpu.index} ({gpu.uuid})",
            "clock": Quantity(int(clocks[(len(clocks) + 1) // 2 - 1]), "MHz", "derived", rows, "median SM clock then"),
            "clock_max": Quantity(int(gpu.clock_sm_max_mhz[chosen].max()), "MHz", "derived", rows, "highest SM clock"),
        },
    )]  # fmt: skip


DETECTOR = Detector(
    precedence=170,
    kinds=gpu_state.KINDS,
    scope="same GPU",
    find=find,
    refuted_by="The same calls as slow at the highest clock.",
    experiment="Reset the applications clock and locked clocks (nvidia-smi -rac, -rgc) and capture again.",
    next_step="Ask who set the clock, and whether it was meant for this job.",
)
