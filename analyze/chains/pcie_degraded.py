"""Chain: blocking copies were slow while the GPU's PCIe link was slower or narrower than it can be.

Effect: slow blocking copies, blocking copies of a thread, or a drop of throughput. Cause: the time of NVML samples
under load in which the link was below its generation or width, as the rule ``pcie_link`` counts them, of a GPU that the
process held. Claimed only where such copies are slow more often then than over the whole link. Units: ns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpuaudit.analyze import gpu_state
from gpuaudit.analyze.call_meanings import BLOCKING_COPY
from gpuaudit.analyze.causal import model
from gpuaudit.analyze.causal.model import Causes, Detector, Effect
from gpuaudit.analyze.finding import Declaration, Quantity
from gpuaudit.analyze.gpu_state import State
from gpuaudit.analyze.gpu_time import GpuTime

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

DECLARATION = Declaration(
    id="pcie_degraded",
    kind="chain",
    title="PCIe link below what it can do",
    question="Were copies slow while the GPU's PCIe link was slower or narrower than it can be?",
    inputs=(
        ("nvml_samples", ("start_ns", "duration_ns", "gpu_uuid", "gpu_utilization_percent", "performance_state",
                          "pcie_generation", "pcie_width")),
        ("nvml_health", ("start_ns", "gpu_uuid", "pcie_generation_max", "pcie_width_max")),
        ("nvml_processes", ("start_ns", "gpu_uuid", "pid")),
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op")),
    ),
    thresholds=(*model.THRESHOLDS, *gpu_state.THRESHOLDS),
    texts={
        "pcie_degraded": "For {explained} of {effect_time} ({share}) of {effect} the PCIe link of GPU {gpu} was at "
        "generation {generation}, lanes: {width}, where generation {generation_max}, lanes: {width_max} can be had: "
        "{contrast}. That is consistent with a slower link.",
    },
    never_claims="That the link carried as much as it could: see the rule for what it carried; nor what lowered it.",
    assumptions=("What NVML tells at a sample holds until the next one.",),
)  # fmt: skip


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Degraded links of the GPUs of each effect's process."""
    from gpuaudit.analyze.context import NotEvaluated  # noqa: PLC0415 - it imports what imports this
    from gpuaudit.analyze.rules.pcie_link import Link  # noqa: PLC0415 - rules import the context

    if not any(Link(context, g).known.any() for g in context.gpus):
        return NotEvaluated(
            context.quality.source_reason("nvml") or "NVML did not tell both the PCIe link and what it can do"
        )
    return gpu_state.causes(context, effects, DECLARATION.id, _below, BLOCKING_COPY)


def _below(context: Context, _: int, gpu: GpuTime) -> list[State]:
    from gpuaudit.analyze.rules.pcie_link import Link  # noqa: PLC0415 - rules import the context

    link = Link(context, gpu)
    loaded = link.loaded(context)
    chosen = loaded & link.below
    if not chosen.any():
        return []
    time = gpu.time(chosen)
    evidence = gpu_state.all_of(
        context, ("nvml_samples", f"{gpu.where} AND pcie_width IS NOT NULL"),
        ("nvml_health", f"{gpu.where} AND pcie_width_max IS NOT NULL"),
    )  # fmt: skip
    rows = evidence(time)

    def told(value: int | None, how: str) -> Quantity:
        return Quantity(value, "count", "derived", rows, how)

    return [State(
        culprit=f"PCIe link of GPU {gpu.index}", text="pcie_degraded", what="the GPU's PCIe link was below what it can",
        time=time, known=gpu.time(loaded), evidence=evidence, subject={"gpu": gpu.uuid},
        values={
            "gpu": f"{gpu.index} ({gpu.uuid})",
            "generation": told(int(link.generation[chosen].min()), "lowest generation of those samples"),
            "width": told(int(link.width[chosen].min()), "fewest lanes of those samples"),
            "generation_max": told(link.generation_max, "last reading"),
            "width_max": told(link.width_max, "last reading"),
        },
    )]  # fmt: skip


DETECTOR = Detector(
    precedence=180,
    kinds=gpu_state.KINDS,
    scope="same GPU",
    find=find,
    refuted_by="The same copies as slow over the whole link.",
    experiment="Run the same copies on a GPU of the host whose link is whole, or after the board was seated again.",
    next_step="Look at slot, riser and firmware settings of this GPU; the rule pcie_link tells what it carried.",
)
