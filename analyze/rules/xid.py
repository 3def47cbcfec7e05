"""Rule: XID events that the driver reported, with the vendor's meaning and action.

One finding per GPU and XID number, from ``nvml_events``. Severity follows the vendor's immediate action: a reset or
reboot is critical, an application to restart a warning, nothing to do a notice; an unknown number is a warning. Unit of
the impact: count of events. Where the recorder did not listen to events, nothing is called clear.
"""

from __future__ import annotations

from gpuaudit.analyze import coverage, intervals
from gpuaudit.analyze.context import Context, NotEvaluated, Outcome
from gpuaudit.analyze.drafts import about_gpu, derived, worst
from gpuaudit.analyze.finding import Declaration, Finding, Fix, Quantity, Threshold
from gpuaudit.analyze.gpu_facts import NOT_NOTED, read_facts
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.nvml_values import Device, devices
from gpuaudit.analyze.xid import SOURCE, XIDS, xid

MIN_EVENTS = Threshold(
    "min_events", 1, "count", f"{SOURCE}: each event has a meaning and an action, so a single one is told", least=1
)

DECLARATION = Declaration(
    id="xid",
    kind="rule",
    title="XID events",
    question="Did the driver report an XID, what does it mean, and what does the vendor say to do?",
    inputs=(
        ("nvml_events", ("start_ns", "gpu_uuid", "op", "event_data")),
        ("nvml_health", ("start_ns", "gpu_uuid")),
        ("gaps", ("start_ns", "duration_ns", "source", "table_name", "reason")),
    ),
    thresholds=(MIN_EVENTS, coverage.JUDGED),
    texts={
        "xid": "GPU {gpu} reported XID {number}: {meaning}. Events: {events}. The vendor's action: {action}; to look "
        "into: {then}.",
        "unknown": "GPU {gpu} reported XID {number}, which the catalogue used here does not explain. Events: {events}.",
    },
    never_claims="Which process caused an event, or that the same cause will act again; the XID is where to begin to "
    "look, as its vendor says.",
    assumptions=(
        f"Meaning and action: {SOURCE}.",
        "On a GPU before Ampere a number may mean something else: the catalogue does not tell of those.",
    ),
)


XID_BIT = 0x8
"""nvmlEventTypeXidCriticalError of nvml.h."""

MAX_NUMBERS = 1_000
"""Pairs of GPU and number that are looked at; there are fewer than two hundred numbers."""


def evaluate(context: Context) -> Outcome:
    """One finding per GPU and number."""
    rows = context.store.sql(
        "SELECT gpu_uuid, min(gpu_index), event_data, count(*) FROM nvml_events WHERE op = 'xid' "
        "AND event_data IS NOT NULL GROUP BY 1, 3 ORDER BY 2, 1, 3"
    )
    least = context.policy.value(MIN_EVENTS, DECLARATION.id)
    items = worst(
        [_finding(context, Device(str(u), int(i)), int(x), int(n)) for u, i, x, n in rows[:MAX_NUMBERS] if n >= least]
    )
    gpus = devices(context.store, "nvml_health")
    if not items and not gpus:
        return NotEvaluated(
            f"this recording does not listen to events: {context.quality.source_reason('nvml') or 'no row of health'}"
        )
    blind = context.store.sql(
        "SELECT reason FROM gaps WHERE table_name = 'nvml_events' OR source IN ('nvml_events', 'xid') "
        "ORDER BY start_ns, reason LIMIT 1"
    )
    if not items and blind:
        return NotEvaluated(f"events could not be seen all the time: {blind[0][0]}")
    known = {g.uuid: _listened(context, g) for g in gpus}
    return coverage.outcome(context, items, known, "that events were listened to", DECLARATION.id)


def _listened(context: Context, gpu: Device) -> Intervals:
    """From the first to the last reading of the GPU's health: the recorder listens to events as long.

    No time where the GPU's fact ``event_types`` says that it has no such events.
    """
    types = read_facts(context.store).get(gpu.uuid, {}).get("event_types", NOT_NOTED)
    if types != NOT_NOTED and not (isinstance(types.value, int) and types.value & XID_BIT):
        return intervals.EMPTY
    ((first, last),) = context.store.sql(
        f"SELECT min(start_ns)::BIGINT, max(coalesce(end_ns, start_ns))::BIGINT FROM nvml_health WHERE {gpu.where}"
    )
    return intervals.single(int(first), int(last))


def _finding(context: Context, gpu: Device, number: int, count: int) -> Finding:
    told = xid(number)
    rows = (context.book.where("nvml_events", f"{gpu.where} AND op = 'xid' AND event_data = {number}"),)
    events = derived(count, "count", rows, "rows of the event")
    known = number in XIDS
    values: dict[str, Quantity | str] = {"number": str(number), "events": events}
    if known:
        values |= {"meaning": told.meaning, "action": told.action, "then": told.then}
    return about_gpu(
        context, DECLARATION, gpu, text="xid" if known else "unknown", severity=told.severity, values=values,
        impact=events, fixes=(Fix(f"{told.action[0].upper()}{told.action[1:]} ({SOURCE})"),),
    )  # fmt: skip
