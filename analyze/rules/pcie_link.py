"""Rule: a PCIe link that is narrower or slower than GPU and slot can do, while the GPU works; and replays on it.

GPUs lower the link's generation to save power when they are idle, which is no fault: looked at is only the time of NVML
samples with a utilisation of at least ``busy_percent`` in the P-states up to ``working_state``. Impact: that time × the
missing share of the link's bandwidth. Unit: GPU-nanoseconds; replays are counted.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import coverage, intervals, severity
from gpuaudit.analyze.context import Context, NotEvaluated, Outcome
from gpuaudit.analyze.drafts import about_gpu, derived
from gpuaudit.analyze.finding import Declaration, Finding, Fix, Quantity, Severity, Threshold
from gpuaudit.analyze.gpu_time import UNKNOWN, GpuTime
from gpuaudit.analyze.nvml_values import Device, growth, last_told, of_samples, refusal, series
from gpuaudit.analyze.words import duration

BUSY = Threshold(
    "busy_percent", 50, "count",
    "chosen: a GPU that ran kernels in half of NVML's period (percent) is not in an idle power state", most=100,
)  # fmt: skip
STATE = Threshold(
    "working_state", 2, "count", "nvml.h, nvmlPstates_t: P0 is the highest performance; P0 to P2 are states of work"
)
MIN_SHARE = Threshold(
    "degraded_share", Fraction(1, 2), "share",
    "chosen: of the time under load, half; less may be the moments in which the link changes its speed",
)  # fmt: skip
USED = Threshold(
    "used_share", Fraction(1, 2), "share",
    "chosen: a link that never carried half of what it can now is told as a notice: nothing shows that it mattered",
)  # fmt: skip
REPLAYS = Threshold(
    "replays_per_s", 1, "1/s",
    "chosen: the link layer repeats a packet now and then; once in every second points at its signal",
)  # fmt: skip

DECLARATION = Declaration(
    id="pcie_link",
    kind="rule",
    title="PCIe link below its width or generation",
    question="Did a GPU under load use fewer PCIe lanes or a lower generation than it can, or repeat packets?",
    inputs=(
        ("nvml_samples", ("start_ns", "duration_ns", "gpu_uuid", "gpu_utilization_percent", "performance_state",
                          "pcie_generation", "pcie_width", "pcie_tx_kib_per_s", "pcie_rx_kib_per_s", "pcie_replays")),
        ("nvml_health", ("start_ns", "gpu_uuid", "pcie_generation_max", "pcie_width_max")),
    ),
    thresholds=(BUSY, STATE, MIN_SHARE, USED, REPLAYS, coverage.JUDGED, *severity.THRESHOLDS),
    texts={
        "degraded": "The PCIe link of GPU {gpu} was at generation {generation}, lanes: {width}, for {degraded} of the "
        "{loaded} under load ({share}); GPU and slot can do generation {generation_max}, lanes: {width_max}. The most "
        "it carried in one direction was {busiest} of what the link could do then.",
        "replays": "PCIe packets that GPU {gpu} repeated within the capture: {replays} ({rate}).",
    },
    never_claims="That the work was slower for it: only copies use the link; nor which part (slot, riser, cable, "
    "switch, firmware setting) is the cause. The missing bandwidth is an upper bound.",
    assumptions=(
        "What NVML tells at a sample holds until the next one.",
        "A link that NVML calls the widest GPU and slot can do, can be had.",
    ),
)  # fmt: skip

LANE_BYTES_PER_S: dict[int, Fraction] = {
    1: Fraction(2_500_000_000 * 8, 10 * 8), 2: Fraction(5_000_000_000 * 8, 10 * 8),
    3: Fraction(8_000_000_000 * 128, 130 * 8), 4: Fraction(16_000_000_000 * 128, 130 * 8),
    5: Fraction(32_000_000_000 * 128, 130 * 8), 6: Fraction(64_000_000_000 * 242, 256 * 8),
}  # fmt: skip
"""Bytes per second of one lane and direction: the rate of each PCI Express generation times its line code (8b/10b up to
2, 128b/130b from 3 on, 242 of 256 bytes of a flit in 6)."""

KIB = 1024
NS_PER_S = 10**9
COLUMNS = (
    "performance_state",
    "pcie_generation",
    "pcie_width",
    "pcie_tx_kib_per_s",
    "pcie_rx_kib_per_s",
    "pcie_replays",
)


def evaluate(context: Context) -> Outcome:
    """At most two findings per GPU: the link's width and speed, and replays."""
    if not context.gpus:
        return NotEvaluated(f"no NVML sample of any GPU: {context.quality.source_reason('nvml') or 'none recorded'}")
    items: list[Finding] = []
    known = {}
    loaded = 0
    for gpu in context.gpus:
        link = Link(context, gpu)
        known[gpu.uuid] = gpu.time(link.known)
        loaded += intervals.measure(gpu.time(link.loaded(context)))
        items += [f for f in (_degraded(context, link), _replays(context, link)) if f is not None]
    if not items and not any(len(t) for t in known.values()):
        why = refusal(context.store, "nvml_health", context.gpus[0].where, "pcie_width_max")
        return NotEvaluated(f"NVML did not tell both the PCIe link and what it can do: {why}")
    if not items and not loaded:
        return NotEvaluated("no GPU whose link NVML told was under load, and without load a link may rest")
    return coverage.outcome(context, items, known, f"the PCIe link (under load: {duration(loaded)})", DECLARATION.id)


class Link:
    """The link of one GPU: its samples, and the widest and fastest that it can be (None where not told)."""

    def __init__(self, context: Context, gpu: GpuTime) -> None:
        self.gpu = gpu
        self.samples = of_samples(context.store, gpu, COLUMNS)
        told = series(context.store, "nvml_health", gpu.where, ("pcie_generation_max", "pcie_width_max"))
        self.generation_max = last_told(told["pcie_generation_max"])
        self.width_max = last_told(told["pcie_width_max"])
        self.generation, self.width = self.samples["pcie_generation"], self.samples["pcie_width"]
        full = self.generation_max in LANE_BYTES_PER_S and bool(self.width_max)
        at_rates = np.isin(self.generation, list(LANE_BYTES_PER_S))
        self.known: npt.NDArray[np.bool_] = at_rates & (self.width > 0) & (gpu.utilization != UNKNOWN) & full

    def loaded(self, context: Context) -> npt.NDArray[np.bool_]:
        """Samples in which the GPU worked, of those that tell the link."""
        state = self.samples["performance_state"]
        working = (state == UNKNOWN) | (state <= int(context.policy.value(STATE, DECLARATION.id)))
        busy = self.gpu.utilization >= int(context.policy.value(BUSY, DECLARATION.id))
        out: npt.NDArray[np.bool_] = self.known & working & busy
        return out

    @property
    def below(self) -> npt.NDArray[np.bool_]:
        """Samples in which the link was slower or narrower than it can be; none where that was not told."""
        if self.generation_max is None or self.width_max is None:
            return np.zeros(len(self.generation), dtype=bool)
        out: npt.NDArray[np.bool_] = (self.generation < self.generation_max) | (self.width < self.width_max)
        return out


def bandwidth(generation: int, width: int) -> Fraction:
    """Bytes per second in one direction."""
    return LANE_BYTES_PER_S[generation] * width


def _degraded(context: Context, link: Link) -> Finding | None:
    if link.generation_max is None or link.width_max is None:
        return None
    gpu, loaded = link.gpu, link.loaded(context)
    chosen = loaded & link.below
    degraded, under = intervals.measure(gpu.time(chosen)), intervals.measure(gpu.time(loaded))
    if not degraded or Fraction(degraded, under) < context.policy.value(MIN_SHARE, DECLARATION.id):
        return None
    low = f"(pcie_generation < {link.generation_max} OR pcie_width < {link.width_max})"
    rows = (context.book.where("nvml_samples", f"{gpu.where} AND {low}"),)
    told = (context.book.where("nvml_samples", f"{gpu.where} AND pcie_width IS NOT NULL"),)
    most = (context.book.where("nvml_health", f"{gpu.where} AND pcie_width_max IS NOT NULL"),)
    missing = _missing(link, chosen)
    busiest = _busiest(link, chosen)
    impact = derived(int(missing), "gpu_ns", (*rows, *most), "sum of time × (1 − bandwidth / most), rounded down")
    values: dict[str, Quantity | str] = {
        "generation": derived(int(link.generation[chosen].min()), "count", rows, "lowest generation of those samples"),
        "width": derived(int(link.width[chosen].min()), "count", rows, "fewest lanes of those samples"),
        "generation_max": derived(link.generation_max, "count", most, "last reading"),
        "width_max": derived(link.width_max, "count", most, "last reading"),
        "degraded": derived(degraded, "gpu_ns", rows, "time of samples under load below either"),
        "loaded": derived(under, "gpu_ns", told, "time of samples under load that tell the link"),
        "share": derived(Fraction(degraded, under), "share", (*rows, *told), "degraded / loaded"),
        "busiest": derived(
            busiest, "share", rows, "largest of received and sent bytes per second / bandwidth of the link then",
            "NVML told no throughput",
        ),
        "bandwidth_missing": impact,
    }  # fmt: skip
    grave: Severity = severity.of_share(int(missing), under, context.policy, DECLARATION.id)
    if busiest is None or busiest < context.policy.value(USED, DECLARATION.id):
        grave = "notice"
    fix = Fix(
        "Look at slot, riser and firmware settings, and seat the board again", "PCIe link", "",
        f"generation {link.generation_max}, lanes: {link.width_max}", "the node has to be taken down",
    )  # fmt: skip
    return about_gpu(
        context, DECLARATION, Device(gpu.uuid, gpu.index), text="degraded", severity=grave, values=values,
        impact=impact, fixes=(fix,),
    )  # fmt: skip


def _missing(link: Link, chosen: npt.NDArray[np.bool_]) -> Fraction:
    most = bandwidth(link.generation_max or 1, link.width_max or 1)
    total = Fraction(0)
    pairs = np.stack([link.generation, link.width], axis=1)
    for generation, width in np.unique(pairs[chosen], axis=0).tolist():
        time = intervals.measure(link.gpu.time(chosen & (pairs == (generation, width)).all(axis=1)))
        total += time * max(Fraction(0), 1 - bandwidth(generation, width) / most)
    return total


def _busiest(link: Link, chosen: npt.NDArray[np.bool_]) -> Fraction | None:
    carried = np.maximum(link.samples["pcie_tx_kib_per_s"], link.samples["pcie_rx_kib_per_s"])
    told = chosen & (carried != UNKNOWN)
    pairs = np.stack([link.generation, link.width], axis=1)
    shares = [
        int(carried[told & (pairs == (generation, width)).all(axis=1)].max()) * KIB / bandwidth(generation, width)
        for generation, width in np.unique(pairs[told], axis=0).tolist()
    ]
    return max(shares, default=None)


def _replays(context: Context, link: Link) -> Finding | None:
    values, gpu = link.samples["pcie_replays"], link.gpu
    grew, at = growth(values), gpu.starts[values != UNKNOWN]
    length = int(at[-1] - at[0]) if len(at) else 0
    if not grew or not length:
        return None
    rate = Fraction(grew * NS_PER_S, length)
    if rate < context.policy.value(REPLAYS, DECLARATION.id):
        return None
    rows = (context.book.where("nvml_samples", f"{gpu.where} AND pcie_replays IS NOT NULL"),)
    replays = derived(grew, "count", rows, "growth of the counter, reading by reading")
    per_s = derived(rate, "1/s", rows, "replays / time from the first reading to the last")
    return about_gpu(
        context, DECLARATION, Device(gpu.uuid, gpu.index), text="replays", severity="notice",
        values={"replays": replays, "rate": per_s}, impact=replays,
        fixes=(Fix("Look at slot, riser and cables of the PCIe link"),),
    )  # fmt: skip
