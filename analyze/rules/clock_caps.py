"""Rule: a setting keeps a GPU below the SM clock that it could reach.

Looked at is the time of NVML samples in which something ran, the applications clock allowed less than the highest SM
clock, the SM clock was what it allows (or below it while NVML named the setting as the reason), and no power or thermal
reason was named (those are the rule ``throttling``'s). Impact: that time × (1 − allowed clock / highest clock). A
second finding is of samples whose applications clock is not to blame or not told, while NVML named a setting: there the
SM clock stands for the allowed one. Unit: GPU-nanoseconds.
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
from gpuaudit.analyze.nvml_values import Device, of_samples, refusal
from gpuaudit.analyze.rules.throttling import DEFICIT, MASK, missing_clock_ns

CAP = Threshold(
    "cap_share", Fraction(99, 100), "share",
    "chosen: an applications clock within a hundredth of the highest SM clock is the step below it, not a cap",
)  # fmt: skip
MIN_SHARE = Threshold(
    "capped_share", Fraction(1, 10), "share",
    "chosen: of the time in which something ran, a tenth; less is the moment before a setting was changed",
)  # fmt: skip

DECLARATION = Declaration(
    id="clock_caps",
    kind="rule",
    title="Clock kept below the highest by a setting",
    question="Did the applications clock or another setting keep a GPU below the SM clock that it can reach?",
    inputs=(
        ("nvml_samples", ("start_ns", "duration_ns", "gpu_uuid", "gpu_utilization_percent", "event_reasons",
                          "clock_sm_mhz", "clock_sm_max_mhz", "clock_sm_cap_mhz")),
    ),
    thresholds=(CAP, MIN_SHARE, coverage.JUDGED, *severity.THRESHOLDS),
    texts={
        "clock_caps": "GPU {gpu} ran for {capped} of the {busy} in which something ran ({share}) at or below the "
        "{clock_cap} that its applications clock allows, of {clock_max} that it can reach: it went without "
        "{clock_deficit} at the highest clock. NVML named the setting as the reason for {named} of it.",
        "named": "GPU {gpu} ran for {capped} of the {busy} in which something ran ({share}) below the {clock_max} that "
        "it can reach, at {clock} (median), and NVML named a setting of its clocks as the reason: it went without "
        "{clock_deficit} at the highest clock.",
    },
    never_claims="That the work would have run faster: the clock that it went without is an upper bound, for work that "
    "the SM clock limits; nor who set the clock or why.",
    assumptions=(
        "What NVML tells at a sample holds until the next one.",
        "An SM clock above the applications clock, or below it for no reason that NVML names, shows that the setting "
        "did not bind; such samples are left out.",
        "Locked clocks (nvidia-smi -lgc) are seen where NVML names them as the reason; their value cannot be read.",
    ),
)  # fmt: skip

SETTING = 0x2
"""nvmlClocksEventReasonApplicationsClocksSetting of nvml.h."""

COLUMN = "clock_sm_cap_mhz"


def evaluate(context: Context) -> Outcome:
    """One finding per GPU for the applications clock, and one for a setting that NVML only names."""
    if not context.gpus:
        return NotEvaluated(f"no NVML sample of any GPU: {context.quality.source_reason('nvml') or 'none recorded'}")
    caps = {g.uuid: of_samples(context.store, g, (COLUMN,))[COLUMN] for g in context.gpus}
    known = {g.uuid: g.time(_known(g, caps[g.uuid])) for g in context.gpus}
    judges = (_of_gpu, _named)
    items = [f for g in context.gpus for judge in judges if (f := judge(context, g, caps[g.uuid])) is not None]
    if not items and not any(len(t) for t in known.values()):
        why = refusal(context.store, "nvml_samples", context.gpus[0].where, COLUMN)
        return NotEvaluated(f"NVML told no applications clock together with utilisation and SM clocks: {why}")
    return coverage.outcome(context, items, known, "the applications clock", DECLARATION.id)


def _known(gpu: GpuTime, cap: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    told = (gpu.utilization != UNKNOWN) & (gpu.clock_sm_mhz != UNKNOWN)
    out: npt.NDArray[np.bool_] = told & (cap > 0) & (gpu.clock_sm_max_mhz > 0)
    return out


def by_applications_clock(
    context: Context, gpu: GpuTime, cap: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Samples in which something ran and the clocks were told, and of them those that the applications clock bound."""
    busy = _known(gpu, cap) & (gpu.utilization > 0)
    below = _below(gpu, cap, Fraction(context.policy.value(CAP, DECLARATION.id)))
    free = (gpu.event_reasons == UNKNOWN) | (gpu.event_reasons & MASK == 0)
    bound = (gpu.clock_sm_mhz == cap) | (_setting(gpu) & (gpu.clock_sm_mhz < cap))
    return busy, busy & below & free & bound


def by_named_setting(
    context: Context, gpu: GpuTime, cap: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Samples in which something ran and clocks and reasons were told, and of them those that another setting bound."""
    limit = Fraction(context.policy.value(CAP, DECLARATION.id))
    told = (gpu.utilization != UNKNOWN) & (gpu.clock_sm_mhz != UNKNOWN) & (gpu.clock_sm_max_mhz > 0)
    busy = told & (gpu.utilization > 0) & (gpu.event_reasons != UNKNOWN)
    by_cap = (cap > 0) & _below(gpu, cap, limit)
    free = gpu.event_reasons & MASK == 0
    return busy, busy & _setting(gpu) & free & ~by_cap & _below(gpu, gpu.clock_sm_mhz, limit)


def _of_gpu(context: Context, gpu: GpuTime, cap: npt.NDArray[np.int64]) -> Finding | None:
    busy, chosen = by_applications_clock(context, gpu, cap)
    named = _setting(gpu)
    capped, ran = intervals.measure(gpu.time(chosen)), intervals.measure(gpu.time(busy))
    if not capped or Fraction(capped, ran) < context.policy.value(MIN_SHARE, DECLARATION.id):
        return None
    deficit = _deficit(gpu, cap, chosen)
    lowest, highest = int(cap[chosen].min()), int(gpu.clock_sm_max_mhz[chosen].max())
    rows = (context.book.where("nvml_samples", f"{gpu.where} AND {COLUMN} < clock_sm_max_mhz"),)
    told = (context.book.where("nvml_samples", f"{gpu.where} AND {COLUMN} IS NOT NULL"),)
    missing = derived(deficit, "gpu_ns", rows, "sum of time × (1 − allowed clock / highest clock), rounded down")
    values: dict[str, Quantity | str] = {
        "capped": derived(capped, "gpu_ns", rows, "time of samples that the setting bound"),
        "busy": derived(ran, "gpu_ns", told, "time of samples with utilisation above 0 that tell the clocks"),
        "share": derived(Fraction(capped, ran), "share", (*rows, *told), "capped / busy"),
        "clock_cap": derived(lowest, "MHz", rows, "lowest applications clock of those samples"),
        "clock_max": derived(highest, "MHz", rows, "highest SM clock that NVML names"),
        "clock_deficit": missing,
        "named": derived(intervals.measure(gpu.time(chosen & named)), "gpu_ns", rows, "time of those with that reason"),
    }
    fix = Fix(
        "Reset the applications clock, unless it was lowered on purpose", "applications clock", f"{lowest} MHz",
        f"{highest} MHz", "more power and heat; a power or thermal limit may take its place",
    )  # fmt: skip
    grave = severity.of_share(deficit, ran, context.policy, DECLARATION.id)
    return about_gpu(
        context, DECLARATION, Device(gpu.uuid, gpu.index), text="clock_caps", severity=grave, values=values,
        impact=missing, fixes=(fix,),
    )  # fmt: skip


def _setting(gpu: GpuTime) -> npt.NDArray[np.bool_]:
    """Samples in which NVML names a setting as a reason for the clock."""
    out: npt.NDArray[np.bool_] = (gpu.event_reasons != UNKNOWN) & (gpu.event_reasons & SETTING != 0)
    return out


def _named(context: Context, gpu: GpuTime, cap: npt.NDArray[np.int64]) -> Finding | None:
    """Samples that a setting other than the applications clock bound, as NVML names it."""
    busy, chosen = by_named_setting(context, gpu, cap)
    capped, ran = intervals.measure(gpu.time(chosen)), intervals.measure(gpu.time(busy))
    if not capped or Fraction(capped, ran) < context.policy.value(MIN_SHARE, DECLARATION.id):
        return None
    rows = (context.book.where("nvml_samples", f"{gpu.where} AND event_reasons & {SETTING} <> 0"),)
    every = (context.book.where("nvml_samples", f"{gpu.where} AND event_reasons IS NOT NULL"),)
    clocks = np.sort(gpu.clock_sm_mhz[chosen])
    deficit = missing_clock_ns(gpu, chosen)
    missing = derived(deficit, "gpu_ns", rows, DEFICIT)
    values: dict[str, Quantity | str] = {
        "capped": derived(capped, "gpu_ns", rows, "time of samples that a named setting bound"),
        "busy": derived(ran, "gpu_ns", every, "time of samples with utilisation above 0 that tell clocks and reasons"),
        "share": derived(Fraction(capped, ran), "share", (*rows, *every), "capped / busy"),
        "clock": derived(int(clocks[(len(clocks) + 1) // 2 - 1]), "MHz", rows, "median SM clock of those samples"),
        "clock_max": derived(int(gpu.clock_sm_max_mhz[chosen].max()), "MHz", rows, "highest SM clock that NVML names"),
        "clock_deficit": missing,
    }
    fix = Fix(
        "Reset locked clocks (nvidia-smi -rgc), unless they were locked on purpose", "locked clocks", "", "",
        "more power and heat; a power or thermal limit may take its place",
    )  # fmt: skip
    grave = severity.of_share(deficit, ran, context.policy, DECLARATION.id)
    return about_gpu(
        context, DECLARATION, Device(gpu.uuid, gpu.index), text="named", severity=grave, values=values, impact=missing,
        fixes=(fix,),
    )  # fmt: skip


def _below(gpu: GpuTime, cap: npt.NDArray[np.int64], limit: Fraction) -> npt.NDArray[np.bool_]:
    """Samples for which a clock in ``cap`` is less than ``limit`` of the highest."""
    pairs, at = np.unique(np.stack([cap, gpu.clock_sm_max_mhz], axis=1), axis=0, return_inverse=True)
    return np.array([c < limit * m for c, m in pairs.tolist()], dtype=bool)[at.reshape(-1)]


def _deficit(gpu: GpuTime, cap: npt.NDArray[np.int64], chosen: npt.NDArray[np.bool_]) -> int:
    total = Fraction(0)
    pairs = np.stack([cap, gpu.clock_sm_max_mhz], axis=1)
    for allowed, highest in np.unique(pairs[chosen], axis=0).tolist():
        time = intervals.measure(gpu.time(chosen & (pairs == (allowed, highest)).all(axis=1)))
        total += time * Fraction(highest - allowed, highest)
    return int(total)
