"""Chain: the driver reported an XID, or memory errors were counted, inside a slow call or a silence.

Effect: slow calls that wait for a GPU, or the API silence of a process. Cause, on a GPU that NVML listed the process
on: from an XID event (other than those of NVLink, which ``fabric_error`` tells) to the end of the call or stretch in
which it fell; or the time between two readings of the volatile ECC counters that both lie in one call or stretch and
between which uncorrected errors were counted. Units: ns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze import gpu_state, intervals
from gpuaudit.analyze.causal import model
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.finding import Declaration, Threshold
from gpuaudit.analyze.gpu_time import UNKNOWN, GpuTime
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.nvml_values import series
from gpuaudit.analyze.xid import SOURCE, XIDS, xid

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

ERRORS = Threshold(
    "uncorrected_errors", 1, "count",
    "NVIDIA, XID Errors, XID 48: one uncorrectable error already calls for a reset of the GPU", least=1,
)  # fmt: skip

DECLARATION = Declaration(
    id="gpu_error",
    kind="chain",
    title="Error of the GPU",
    question="Did the driver report an error of the GPU inside a slow call, or before a process fell silent?",
    inputs=(
        ("nvml_events", ("start_ns", "gpu_uuid", "op", "event_data")),
        ("nvml_health", ("start_ns", "gpu_uuid", "ecc_uncorrected_volatile")),
        ("nvml_processes", ("start_ns", "gpu_uuid", "pid")),
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op")),
    ),
    thresholds=(*model.THRESHOLDS, ERRORS),
    texts={
        "xid": "For {explained} of {effect_time} ({share}) of {effect} it went on after GPU {gpu} had reported "
        "{culprit}: {meaning}. The vendor's action: {action}.",
        "ecc": "For {explained} of {effect_time} ({share}) of {effect} the count of uncorrectable memory errors of GPU "
        "{gpu} was growing.",
    },
    never_claims="That the process caused the error, or that the call would have ended without it.",
    assumptions=(f"Meaning and action of an XID: {SOURCE}.",),
)  # fmt: skip

COUNTER = "ecc_uncorrected_volatile"

MAX_EVENTS = 10_000
"""Events of one GPU that are looked at, the first ones."""


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Errors of the GPUs of each effect's process."""
    from gpuaudit.analyze.context import NotEvaluated  # noqa: PLC0415 - it imports what imports this

    if not context.store.row_count("nvml_health") and not context.store.row_count("nvml_events"):
        return NotEvaluated(context.quality.source_reason("nvml") or "neither events nor health of a GPU were recorded")
    events, readings = cache(partial(_xids, context)), cache(partial(_uncorrected, context))
    out: dict[str, list[Cause]] = {}
    for e in effects:
        if e.kind == gpu_state.SLOW_CALL and not gpu_state.WAITS_FOR_GPU.means(e.op):
            continue
        for gpu in context.gpus_by_pid.get(e.pid, []):
            found = [*_events(context, e, gpu, events(gpu.where)), *_ecc(context, e, gpu, readings(gpu.where))]
            if found:
                out.setdefault(e.key, []).extend(found)
    return out


def _xids(context: Context, where: str) -> dict[int, list[int]]:
    """When each XID of a GPU was reported, in order."""
    from gpuaudit.analyze.chains.fabric_error import NVLINK_XIDS  # noqa: PLC0415 - told there

    rows = context.store.sql(
        f"SELECT start_ns::BIGINT, event_data FROM nvml_events WHERE {where} AND op = 'xid' AND event_data IS NOT "
        f"NULL ORDER BY start_ns, leaf, row LIMIT {MAX_EVENTS}"
    )
    out: dict[int, list[int]] = {}
    for at, number in rows:
        out.setdefault(int(number), []).append(int(at))
    return {number: out[number] for number in sorted(out) if number not in NVLINK_XIDS}


def _events(context: Context, e: Effect, gpu: GpuTime, events: Mapping[int, Sequence[int]]) -> Iterator[Cause]:
    for number, reported in events.items():
        time = _from(e.parts, reported)
        if not len(time):
            continue
        told = xid(number)
        known = number in XIDS
        yield Cause(
            culprit=f"XID {number}", time=time, text="xid", what=f"the GPU had reported XID {number}",
            evidence=gpu_state.all_of(
                context, ("nvml_events", f"{gpu.where} AND op = 'xid' AND event_data = {number}")
            ),
            values={
                "gpu": f"{gpu.index} ({gpu.uuid})",
                "meaning": told.meaning if known else "the catalogue used here does not explain it",
                "action": told.action if known else "not known",
            },
            subject={"gpu": gpu.uuid, "xid": str(number)},
        )  # fmt: skip


def _from(parts: Intervals, events: Sequence[int]) -> Intervals:
    """From the first event within each part to the part's end."""
    at = np.array(sorted(events), dtype=np.int64)
    place = np.searchsorted(at, parts[:, 0])
    first = at[np.minimum(place, len(at) - 1)]
    hit = (place < len(at)) & (first < parts[:, 1])
    return intervals.from_bounds(first[hit], parts[hit, 1])


def _uncorrected(context: Context, where: str) -> list[tuple[int, int]]:
    """Consecutive readings of a GPU between which uncorrected errors were counted."""
    a = series(context.store, "nvml_health", where, (COUNTER,))
    told = a[COUNTER] != UNKNOWN
    at, errors = a["start_ns"][told], a[COUNTER][told]
    grew = np.flatnonzero(np.diff(errors) >= int(context.policy.value(ERRORS, DECLARATION.id)))
    return list(zip(at[grew].tolist(), at[grew + 1].tolist(), strict=True))


def _ecc(context: Context, e: Effect, gpu: GpuTime, grew: Sequence[tuple[int, int]]) -> Iterator[Cause]:
    whole = [(low, high) for low, high in grew if ((e.parts[:, 0] <= low) & (high <= e.parts[:, 1])).any()]
    if not whole:
        return
    yield Cause(
        culprit=f"uncorrectable memory errors of GPU {gpu.index}", text="ecc",
        time=intervals.from_bounds([low for low, _ in whole], [high for _, high in whole]),
        what="the GPU counted uncorrectable memory errors", values={"gpu": f"{gpu.index} ({gpu.uuid})"},
        evidence=gpu_state.all_of(context, ("nvml_health", f"{gpu.where} AND {COUNTER} IS NOT NULL")),
        subject={"gpu": gpu.uuid},
    )  # fmt: skip


DETECTOR = Detector(
    precedence=90,
    kinds=frozenset({"slow_call", "api_silence", "slow_step"}),
    scope="same GPU, within the very call or stretch of silence",
    find=find,
    refuted_by="The same call or silence as long without an error of the GPU.",
    experiment="Do what the vendor says for this error (reset, restart, or take the board out), and run the job again.",
    next_step="Read what the kernel log says around the event, and whether the process got an error back.",
)
