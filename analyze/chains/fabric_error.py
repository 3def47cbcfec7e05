"""Chain: the fabric between GPUs had an error inside a slow collective.

Effect: slow calls that are a collective, or in which the host waits for one. Join: on a GPU that NVML lists with a rank
of the same communicator, within the very call. Cause: from an XID event of NVLink to the end of the call; or, between
two readings of the link counters that both lie in the call, the time in which recoveries, replays or errors were
counted. Readings are seconds apart: where only a part of the time between two of them lies in the call, nobody knows
whether the errors did, and nothing is claimed. Counters of InfiniBand and RoCE are not recorded. Units: ns.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze import intervals
from gpuaudit.analyze.causal import collective_calls, model
from gpuaudit.analyze.causal.collective_calls import CollectiveCall
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.effects import slow_steps
from gpuaudit.analyze.finding import Declaration, Quantity, Threshold
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.store import quoted
from gpuaudit.analyze.xid import SOURCE, xid

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

NVLINK_XIDS = (74, 136, *range(144, 151), 155)
"""XIDs that report a fault of an NVLink itself, and not of the application that used it (``analyze/xid.py``)."""

COUNTERS = (
    "crc_flit_errors", "crc_data_errors", "replay_errors", "recovery_errors", "receive_errors", "link_recoveries",
)  # fmt: skip

LEAST_ERRORS = Threshold(
    "least_errors", 1, "count",
    "chosen: a recovery or replay stops a link's traffic for a moment; in a sound link there is none", least=1,
)  # fmt: skip

MAX_UUID = 96
"""Characters of a UUID; NVML's have 40 (NVML_DEVICE_UUID_V2_BUFFER_SIZE is 96), a stranger's bundle any number."""

MOST_ERRORS = 1 << 40
"""A counter that grew by more is not evidence; sums of a few stay within int64."""

DECLARATION = Declaration(
    id="fabric_error",
    kind="chain",
    title="Error of the fabric",
    question="Did an NVLink of one of the ranks' GPUs have errors while a collective was slow?",
    inputs=(
        ("nvml_events", ("start_ns", "gpu_uuid", "op", "event_data")),
        ("nvml_links", ("start_ns", "gpu_uuid", "link", *COUNTERS)),
        ("nvml_processes", ("start_ns", "duration_ns", "gpu_uuid", "pid")),
        ("nccl_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "comm_handle", "comm_id", "stream")),
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "stream", "handle")),
    ),
    thresholds=(LEAST_ERRORS, *model.THRESHOLDS),
    texts={
        "fabric_event": "For {explained} of {effect_time} ({share}) of {effect} the driver had reported {what}: "
        "events {events}.",
        "fabric_counters": "For {explained} of {effect_time} ({share}) of {effect} {culprit} was counting errors: "
        "{errors} more between readings that lie within the calls.",
    },
    never_claims="That the error made the call slow: a link repairs most errors by itself in far less time; nor which "
    "end of the link, or what between them, is at fault.",
    assumptions=(f"What an XID means: {SOURCE}.", "A GPU is a rank's where NVML lists the rank's process on it."),
)  # fmt: skip

NOT_SHOWN = "that the collective used this link is not recorded"


@dataclass
class _Found:
    """Of one culprit: the time in each call, the rows, how many errors or events, and what they are."""

    text: str
    pieces: list[tuple[int, int]] = field(default_factory=list)
    rows: set[tuple[int, int]] = field(default_factory=set)
    count: int = 0
    subject: dict[str, str] = field(default_factory=dict)
    what: str = ""


@dataclass(frozen=True)
class _Event:
    at: int
    gpu: str
    index: int
    number: int
    key: tuple[int, int]


@dataclass(frozen=True)
class _Growth:
    """Errors that a link counted between two readings."""

    low: int
    high: int
    gpu: str
    index: int
    link: int
    errors: int
    keys: tuple[tuple[int, int], tuple[int, int]]


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Events and counted errors within the effects that are collectives, on the GPUs of their ranks."""
    from gpuaudit.analyze.context import NotEvaluated  # noqa: PLC0415 - it imports what imports this

    if not any(context.store.row_count(t) for t in ("nvml_events", "nvml_links", "nvml_health")):
        return NotEvaluated(context.quality.source_reason("nvml") or "neither events nor links of a GPU were recorded")
    events, growths = _events(context), _growths(context)
    if not events and not growths:
        return {}
    if not any(context.gpus_by_pid.get(pid) for pid in context.barriers):
        return NotEvaluated("NVML listed no process of a rank on a GPU, so whose GPU had errors is not known")
    out = {e.key: list(_causes(context, e, events, growths)) for e in effects}
    return {key: causes for key, causes in out.items() if causes}


def _events(context: Context) -> list[_Event]:
    rows = context.store.sql(
        "SELECT start_ns, gpu_uuid, gpu_index, event_data, leaf, row FROM nvml_events WHERE op = 'xid' AND event_data "
        f"IN ({', '.join(map(str, NVLINK_XIDS))}) ORDER BY start_ns, leaf, row"
    )
    return [_Event(int(t), str(u)[:MAX_UUID], int(i), int(n), (int(leaf), int(row))) for t, u, i, n, leaf, row in rows]


def _growths(context: Context) -> list[_Growth]:
    """Pairs of consecutive readings of a link between which a counter grew; one that fell began anew."""
    over = "OVER (PARTITION BY gpu_uuid, link ORDER BY start_ns, leaf, row)"
    grew = " + ".join(
        f"CASE WHEN {c} > lag({c}) {over} THEN least({c} - lag({c}) {over}, {MOST_ERRORS}) ELSE 0 END" for c in COUNTERS
    )
    rows = context.store.sql(
        f"WITH g AS (SELECT lag(start_ns) {over} AS low, start_ns AS high, gpu_uuid, gpu_index, link, "
        f"{grew} AS errors, lag(leaf) {over} AS leaf_before, lag(row) {over} AS row_before, leaf, row FROM nvml_links) "
        "SELECT low, high, gpu_uuid, gpu_index, link, errors, leaf_before, row_before, leaf, row FROM g "
        f"WHERE errors >= {int(context.policy.value(LEAST_ERRORS, DECLARATION.id))} AND low IS NOT NULL "
        "ORDER BY low, gpu_uuid, link"
    )
    return [
        _Growth(int(a), int(b), str(u)[:MAX_UUID], int(i), int(n), int(e), ((int(la), int(ra)), (int(lb), int(rb))))
        for a, b, u, i, n, e, la, ra, lb, rb in rows
    ]


def _causes(
    context: Context, effect: Effect, events: Sequence[_Event], growths: Sequence[_Growth]
) -> Iterator[Cause]:  # fmt: skip
    found: dict[str, _Found] = {}
    for call in collective_calls.of_effect(context, effect):
        gpus = {g.uuid[:MAX_UUID] for pid in call.ranks for g in context.gpus_by_pid.get(pid, [])}
        for e in events[_first(events, call.start) : _first(events, call.end)]:
            if e.gpu in gpus:
                _add_event(found, call, e)
        for g in growths[_first(growths, call.start) : _first(growths, call.end)]:
            if g.gpu in gpus and g.high <= call.end:
                _add_growth(found, g)
    for culprit in sorted(found):
        yield _cause(context, culprit, found[culprit])


def _first(in_order: Sequence[_Event] | Sequence[_Growth], at: int) -> int:
    """Position of the first that is at, or begins at, ``at`` or later."""
    return bisect_left(in_order, at, key=lambda x: x.at if isinstance(x, _Event) else x.low)


def _add_event(found: dict[str, _Found], call: CollectiveCall, e: _Event) -> None:
    culprit = f"XID {e.number} of GPU {e.index} ({e.gpu})"
    mine = found.setdefault(culprit, _Found("fabric_event", subject={"gpu": e.gpu, "gpu_index": str(e.index)}))
    mine.what = f"XID {e.number} of GPU {e.index} ({e.gpu}), {xid(e.number).meaning}"
    mine.pieces.append((e.at, call.end))
    mine.count += e.key not in mine.rows
    mine.rows.add(e.key)


def _add_growth(found: dict[str, _Found], g: _Growth) -> None:
    culprit = f"NVLink {g.link} of GPU {g.index} ({g.gpu})"
    subject = {"gpu": g.gpu, "gpu_index": str(g.index), "link": str(g.link)}
    mine = found.setdefault(culprit, _Found("fabric_counters", subject=subject))
    mine.what = f"{culprit} was counting errors"
    mine.pieces.append((g.low, g.high))
    mine.count += 0 if g.keys[1] in mine.rows and g.keys[0] in mine.rows else g.errors
    mine.rows |= set(g.keys)


def _cause(context: Context, culprit: str, found: _Found) -> Cause:
    pieces = np.array(found.pieces, dtype=np.int64)
    event = found.text == "fabric_event"
    table = "nvml_events" if event else "nvml_links"
    wide = f"left(gpu_uuid, {MAX_UUID}) = {quoted(found.subject['gpu'])}"
    book = context.book.listed(table, np.array(sorted(found.rows), dtype=np.int64), wide)
    told = Quantity(
        found.count, "count", "measured" if event else "derived", (book,),
        "rows of the event" if event else "growth of the link's error counters, reading by reading",
    )  # fmt: skip
    values: dict[str, Quantity | str] = {"events" if event else "errors": told}
    if event:
        values["what"] = found.what
    return Cause(
        culprit=culprit, time=intervals.from_bounds(pieces[:, 0], pieces[:, 1]), evidence=_rows(book), text=found.text,
        what=found.what, values=values, subject=found.subject, against=(NOT_SHOWN,),
    )  # fmt: skip


def _rows(book: str) -> Callable[[Intervals], tuple[str, ...]]:
    return lambda _: (book,)


DETECTOR = Detector(
    precedence=190,
    kinds=frozenset({"slow_call", slow_steps.KIND}),
    scope="a GPU of a rank of the same communicator, within the very call that is the collective or carries its wait",
    find=find,
    refuted_by="Collectives as slow without an error on any link of the ranks' GPUs, or errors without a slow one.",
    experiment="Keep NCCL off the link (NCCL_P2P_DISABLE=1, or other GPUs), and capture again.",
    next_step="nvidia-smi nvlink -e on that GPU and the one at the other end; then act as the vendor says for the XID.",
)
