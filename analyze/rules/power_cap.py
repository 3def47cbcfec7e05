"""Rule: a power limit set below the board's default, and clocks lowered because of it.

Looked at is the time of NVML samples in which the enforced power limit was below the limit that the board ships with
and NVML named the software power cap as a reason for lower clocks. Impact, as for throttling: that time × the share of
the SM clock that was missing. A lowered limit that never bound is no finding. Unit: GPU-nanoseconds.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import coverage, intervals, severity
from gpuaudit.analyze.context import Context, NotEvaluated, Outcome
from gpuaudit.analyze.drafts import about_gpu, derived
from gpuaudit.analyze.finding import Declaration, Finding, Fix, Quantity, Threshold
from gpuaudit.analyze.gpu_time import UNKNOWN, GpuTime
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.nvml_values import Device, last_told, of_samples, refusal, series
from gpuaudit.analyze.rules.throttling import DEFICIT, REASONS, missing_clock_ns
from gpuaudit.analyze.words import amount

MIN_SHARE = Threshold(
    "bound_share", Fraction(1, 100), "share",
    "chosen, as for throttling: below a hundredth of the observed time lowered clocks cannot be told from noise",
)  # fmt: skip

DECLARATION = Declaration(
    id="power_cap",
    kind="rule",
    title="Power limit below the default",
    question="Did a power limit below the board's default lower a GPU's clocks, and for how long?",
    inputs=(
        ("nvml_samples", ("start_ns", "duration_ns", "gpu_uuid", "event_reasons", "power_limit_mw", "power_mw",
                          "clock_sm_mhz", "clock_sm_max_mhz")),
        ("nvml_health", ("start_ns", "gpu_uuid", "power_limit_default_mw")),
    ),
    thresholds=(MIN_SHARE, coverage.JUDGED, *severity.THRESHOLDS),
    texts={
        "power_cap": "GPU {gpu} is limited to {limit}, below the {limit_default} that the board ships with; the limit "
        "lowered its clocks for {bound} of {observed} observed ({share}), in which it went without {clock_deficit} at "
        "its highest clock. Power then: {power} (median)."
    },
    never_claims="That the limit is wrong: racks and rooms have limits too; nor a loss beside that of throttling: the "
    "time is part of what that rule tells. The clock that was missing is an upper bound for work it limits.",
    assumptions=("What NVML tells at a sample holds until the next one.",
                 "The default limit of a board does not change within a capture."),
)  # fmt: skip

BOUND = REASONS["sw_power_cap"]


def evaluate(context: Context) -> Outcome:
    """One finding per GPU."""
    if not context.gpus:
        return NotEvaluated(f"no NVML sample of any GPU: {context.quality.source_reason('nvml') or 'none recorded'}")
    items: list[Finding] = []
    known: dict[str, Intervals] = {}
    for gpu in context.gpus:
        default = last_told(
            series(context.store, "nvml_health", gpu.where, ("power_limit_default_mw",))["power_limit_default_mw"]
        )
        a = of_samples(context.store, gpu, ("power_limit_mw", "power_mw"))
        told = (a["power_limit_mw"] != UNKNOWN) & (gpu.event_reasons != UNKNOWN)
        known[gpu.uuid] = gpu.time(told & (default is not None))
        if default is not None:
            found = _of_gpu(context, gpu, told, a, default)
            items += [found] if found else []
    if not any(len(t) for t in known.values()):
        gpu = context.gpus[0]
        why = refusal(context.store, "nvml_health", gpu.where, "power_limit_default_mw")
        return NotEvaluated(f"default power limit, enforced limit and clock reasons were not told together: {why}")
    return coverage.outcome(context, items, known, "power limits and clock event reasons", DECLARATION.id)


def _of_gpu(
    context: Context, gpu: GpuTime, told: npt.NDArray[np.bool_], a: dict[str, npt.NDArray[np.int64]], default: int
) -> Finding | None:
    limit, power = a["power_limit_mw"], a["power_mw"]
    chosen = told & (limit < default) & (gpu.event_reasons & BOUND != 0)
    bound, observed = intervals.measure(gpu.time(chosen)), intervals.measure(gpu.time(told))
    if not bound or Fraction(bound, observed) < context.policy.value(MIN_SHARE, DECLARATION.id):
        return None
    span = f"{gpu.where} AND power_limit_mw < {default} AND event_reasons & {BOUND} <> 0"
    rows = (context.book.where("nvml_samples", span),)
    health = (context.book.where("nvml_health", f"{gpu.where} AND power_limit_default_mw IS NOT NULL"),)
    all_rows = (context.book.where("nvml_samples", f"{gpu.where} AND power_limit_mw IS NOT NULL"),)
    deficit = missing_clock_ns(gpu, chosen)
    missing = derived(deficit, "gpu_ns", rows, DEFICIT)
    drawn = np.sort(power[chosen & (power != UNKNOWN)])
    median = int(drawn[(len(drawn) + 1) // 2 - 1]) if len(drawn) else None
    lowest = int(limit[chosen].min())
    values: dict[str, Quantity | str] = {
        "limit": derived(lowest, "mW", rows, "lowest enforced power limit of those samples"),
        "limit_default": derived(default, "mW", health, "default power limit, last reading"),
        "bound": derived(bound, "gpu_ns", rows, "time of samples with a lowered limit and the software power cap"),
        "observed": derived(observed, "gpu_ns", all_rows, "time of samples that tell limit and reasons"),
        "share": derived(Fraction(bound, observed), "share", (*rows, *all_rows), "bound / observed"),
        "clock_deficit": missing,
        "power": derived(median, "mW", rows, "median board power of those samples", "NVML told no power"),
    }
    fix = Fix(
        "Raise the power limit to the default, if supply and cooling allow it", "power limit",
        amount(Quantity(lowest, "mW", "derived")), amount(Quantity(default, "mW", "derived")),
        "more power and heat for every job on this board",
    )  # fmt: skip
    grave = severity.of_share(deficit, observed, context.policy, DECLARATION.id)
    return about_gpu(
        context, DECLARATION, Device(gpu.uuid, gpu.index), text="power_cap", severity=grave, values=values,
        impact=missing, fixes=(fix,),
    )  # fmt: skip
