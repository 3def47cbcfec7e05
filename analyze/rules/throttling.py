"""Rule: a GPU that lowered its clocks for power or heat.

Each NVML sample stands for the time from its poll to the next one; the time of samples with one of the named reasons
set is added up. Impact and severity are not that time but what of the clock was missing in it: a GPU that stays a
step below its power limit at nearly full clock lost next to nothing. Unit: GPU-nanoseconds of the observed time.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import coverage, intervals, severity
from gpuaudit.analyze.context import UNNUMBERED, Context, NotEvaluated, Outcome
from gpuaudit.analyze.finding import Declaration, Finding, Quantity, Threshold
from gpuaudit.analyze.gpu_time import UNKNOWN, GpuTime
from gpuaudit.analyze.medians import median

REASONS: dict[str, int] = {
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
}
"""nvmlClocksEventReason* of nvml.h that stand for power or heat; idle, settings and sync boost are not among them."""

MASK = sum(REASONS.values())

MIN_SHARE = Threshold(
    "throttled_share", Fraction(1, 100), "share",
    "chosen: below a hundredth of the observed time lowered clocks cannot be told from noise in a step's duration",
)  # fmt: skip

DEFICIT = "sum over those samples of their time × (1 − SM clock / highest SM clock); all of it where NVML told no clock"

DECLARATION = Declaration(
    id="throttling",
    kind="rule",
    title="Power or thermal throttling",
    question="For how long did a GPU lower its clocks for power or heat, and for which named reason?",
    inputs=(
        ("nvml_samples", ("start_ns", "gpu_index", "gpu_uuid", "event_reasons", "clock_sm_mhz", "clock_sm_max_mhz")),
    ),
    thresholds=(MIN_SHARE, coverage.JUDGED, *severity.THRESHOLDS),
    texts={
        "throttling": "GPU {gpu} ran under {reasons} for {throttled} of {observed} observed ({share}); its SM "
        "clock was then {clock} (median), of at most {clock_max}: in all it went without {clock_deficit} at that clock."
    },
    never_claims="How much work was lost: the clock that it went without is an upper bound, for work that the SM clock "
    "limits.",
    assumptions=("A reason that NVML names at a sample holds until the next one.",),
)


def evaluate(context: Context) -> Outcome:
    """One finding per GPU, with the time of every reason."""
    if not context.gpus:
        reason = context.quality.source_reason("nvml") or "no sample in the bundle"
        return NotEvaluated(f"no NVML sample of any GPU: {reason}")
    known = {g.uuid: g.time(g.event_reasons != UNKNOWN) for g in context.gpus}
    if not any(len(t) for t in known.values()):
        return NotEvaluated("NVML told no clock event reasons for any interval between two samples")
    items = [f for g in context.gpus if len(known[g.uuid]) and (f := _of_gpu(context, g)) is not None]
    return coverage.outcome(context, items, known, "clock event reasons", DECLARATION.id)


def _of_gpu(context: Context, gpu: GpuTime) -> Finding | None:
    known = gpu.event_reasons != UNKNOWN
    chosen = known & (gpu.event_reasons & MASK != 0)
    throttled, observed = intervals.measure(gpu.time(chosen)), intervals.measure(gpu.time(known))
    if not throttled or Fraction(throttled, observed) < context.policy.value(MIN_SHARE, DECLARATION.id):
        return None
    evidence = (context.book.where("nvml_samples", f"{gpu.where} AND event_reasons & {MASK} <> 0"),)
    known_rows = (context.book.where("nvml_samples", f"{gpu.where} AND event_reasons IS NOT NULL"),)
    formula = "sum of duration_ns of the samples with the reason set"

    def derived(value: int | Fraction, unit: str, how: str) -> Quantity:
        return Quantity(value, unit, "derived", evidence, how)

    by_reason = {
        name: intervals.measure(gpu.time(known & (gpu.event_reasons & bit != 0))) for name, bit in REASONS.items()
    }
    deficit, clocks = missing_clock_ns(gpu, chosen), gpu.clock_sm_mhz[chosen]
    return Finding(
        id=UNNUMBERED,
        rule=DECLARATION.id,
        severity=severity.of_share(deficit, observed, context.policy, DECLARATION.id),
        text="throttling",
        values={
            "gpu": f"{gpu.index} ({gpu.uuid})",
            "reasons": ", ".join(n for n, t in by_reason.items() if t),
            "throttled": derived(throttled, "gpu_ns", formula),
            "observed": Quantity(
                observed, "gpu_ns", "derived", known_rows, "time covered by samples that name reasons"
            ),
            "share": derived(Fraction(throttled, observed), "share", "throttled / observed"),
            "clock": median(
                clocks[clocks != UNKNOWN], "MHz", evidence, "median SM clock of those samples", "NVML told no SM clock"
            ),
            "clock_max": _highest(gpu.clock_sm_max_mhz[chosen], evidence),
            "clock_deficit": derived(deficit, "gpu_ns", DEFICIT),
            **{n: derived(t, "gpu_ns", formula) for n, t in by_reason.items() if t},
        },
        subject={"gpu": gpu.uuid, "gpu_index": str(gpu.index)},
        impact=derived(deficit, "gpu_ns", DEFICIT),
        grade=context.quality.grade_of(("nvml_samples",)),
        evidence=evidence,
    )


def missing_clock_ns(gpu: GpuTime, chosen: npt.NDArray[np.bool_]) -> int:
    """ns at the highest SM clock that the chosen samples went without, rounded down."""
    total = Fraction(0)
    pairs = np.stack([gpu.clock_sm_mhz, gpu.clock_sm_max_mhz], axis=1)
    for clock, highest in np.unique(pairs[chosen], axis=0).tolist():
        time = intervals.measure(gpu.time(chosen & (pairs == (clock, highest)).all(axis=1)))
        told = clock != UNKNOWN and highest > 0
        total += time * (Fraction(max(0, highest - clock), highest) if told else 1)
    return int(total)


def _highest(values: npt.NDArray[np.int64], evidence: tuple[str, ...]) -> Quantity:
    told = values[values != UNKNOWN]
    formula = "highest SM clock that NVML names"
    if not len(told):
        return Quantity(None, "MHz", "derived", evidence, formula, "NVML told no highest SM clock")
    return Quantity(int(told.max()), "MHz", "derived", evidence, formula)
