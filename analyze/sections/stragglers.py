"""Section: skew of the ranks of each communicator, stragglers, the wait they impose and its cost; how waits were found.

Definitions: ``skew.py`` and ``barriers.py``. Units: ns, and the currency of the prices given.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from gpuaudit.analyze import collectives, intervals, lateness
from gpuaudit.analyze.aggregates import process, text
from gpuaudit.analyze.barriers import HOW, Barriers
from gpuaudit.analyze.chains.late_rank import DEVICE_SIDE
from gpuaudit.analyze.collectives import COLLECTIVE
from gpuaudit.analyze.context import LATE_RANK, Context
from gpuaudit.analyze.drafts import derived
from gpuaudit.analyze.finding import Quantity, Section, SectionTable, Statement
from gpuaudit.analyze.skew import RankSkew, Skew, at_share, read_skews
from gpuaudit.analyze.store import NOT_OWN
from gpuaudit.analyze.syncs import CARRIERS, NONE
from gpuaudit.analyze.waste import Money

ORDER = 33

ID = "stragglers"
TITLE = "Ranks that wait for each other"
QUESTION = "How far apart do the ranks enter their collectives, who makes the others wait, and what does that cost?"

MAX_ROWS = 64
"""Ranks of the table, those for which others waited longest; the rest are counted."""

HALF = Fraction(1, 2)

COMMUNICATORS = (
    ("communicator", "communicator"), ("ranks", "ranks observed"), ("nranks", "of"),
    ("compared", "collectives compared"), ("skew_p50", "skew p50"), ("skew_p99", "skew p99"),
    ("skew_max", "largest skew"), ("threshold", "late beyond"), ("state", "state"),
)  # fmt: skip
RANKS = (
    ("communicator", "communicator"), ("rank", "rank"), ("process", "process"), ("last", "last in"),
    ("late", "of them late in"), ("usual", "usual lateness"), ("max", "largest lateness"),
    ("deviation", "beyond the other ranks"), ("limit", "a straggler beyond"), ("verdict", "verdict"),
)  # fmt: skip
WAITS = (
    ("communicator", "communicator"), ("rank", "rank"), ("process", "process"), ("wait", "wait imposed on peers"),
    ("gpu_wait", "time of the peers' GPUs"), ("cost", "cost"),
)  # fmt: skip
PAIRING = (
    ("process", "process"), ("how", "waited for by"), ("collectives", "collectives"),
    ("median", "call to end of wait, p50"), ("longest", "longest"),
)  # fmt: skip
LIMITS = (("name", "limit"), ("value", "value"), ("source", "where it comes from"))

DEFINITIONS = (
    ("skew", "Of a collective: when its last observed rank entered it, less when its first one did."),
    ("lateness", "Of a rank in a collective: its arrival less the median arrival of the others; usual lateness is the "
     "median over all collectives."),
    ("straggler", "A rank whose usual lateness is beyond the median of the other ranks' by more than the floor, and by "
     "more than k times their spread (1.4826 × median absolute deviation)."),
    ("wait imposed", "Time in which the other ranks were inside the collective, or the synchronisation after it, "
     "between the median arrival and that of the rank that came last and late; summed over them."),
    ("cost", "Time in which GPUs of the other ranks' processes were held by that wait, each GPU's time once, at its "
     "price."),
    ("p50, p99", "Exact order statistics: the value at rank ceil(q × n)."),
)  # fmt: skip


def evaluate(context: Context) -> Section:
    """Communicators, their ranks, how waits were found, and the limits that hold."""
    if not context.barriers:
        why = context.quality.source_reason("nccl") or "no NCCL collective was recorded"
        return Section(ID, TITLE, QUESTION, "not evaluated", why, definitions=DEFINITIONS)
    skews = read_skews(context)
    money = Money.of_context(context)
    tables = [_communicators(context, skews), *_ranks(context, money, skews), _pairing(context), _limits(context)]
    nameless = len(context.without_identity)
    reason = f"{len(skews)} of {len(context.collectives) + nameless} communicators can be compared; {DEVICE_SIDE}"
    statements = tuple(_statement(context, money, s, r) for s in skews for r in s.ranks if r.straggler)
    notes = tuple(money_labels(money))
    return Section(
        ID, TITLE, QUESTION, "evaluated" if skews else "not evaluated", reason, statements[:MAX_ROWS],
        tuple(t for t in tables if t is not None), (), DEFINITIONS, notes,
    )  # fmt: skip


def money_labels(money: Money) -> list[str]:
    """Whose prices the costs are at."""
    return sorted({f"Cost: {p.label}." for p in money.prices.values()})


def _communicators(context: Context, skews: list[Skew]) -> SectionTable | None:
    rows: list[tuple[Quantity | str | None, ...]] = []
    by_id = {s.c.comm_id: s for s in skews}
    for c in context.collectives:
        ids = (context.book.where("nccl_calls", c.where),)
        s = by_id.get(c.comm_id)
        counts = (
            derived(len(c.ranks), "count", ids, "ranks with a call"),
            derived(c.nranks, "count", ids, "nranks"),
            derived(c.count if s else None, "count", ids, "collectives that all of them entered", "not compared"),
        )  # fmt: skip
        if s is None:
            rows.append((c.name, *counts, None, None, None, None, text(f"not evaluated: {c.not_evaluated}")))
            continue
        usual = lateness.judge(c.arrival, context.late_limits).usual_threshold_ns
        rows.append((
            c.name, *counts,
            derived(s.median_ns, "ns", ids, "last arrival − first, at rank ceil(n/2)"),
            derived(s.p99_ns, "ns", ids, "last arrival − first, at rank ceil(0.99·n)"),
            derived(s.max_ns, "ns", ids, "last arrival − first, largest"),
            derived(usual, "ns", ids, "max(lateness_floor_ns, k × 1.4826 × MAD of all arrivals)"), "compared",
        ))  # fmt: skip
    for pid, handle, n in context.without_identity:
        ids = (context.book.where("nccl_calls", f"pid = {pid} AND comm_handle = {handle} AND comm_id IS NULL"),)
        unknown = derived(None, "count", ids, "", "identity not recorded")
        rows.append((
            f"{handle:#x} of process {pid}", unknown, unknown, unknown, None, None, None, None,
            f"not evaluated: identity not recorded ({n} calls), it was made before the probes were attached",
        ))  # fmt: skip
    return _table("communicators", "Communicators", COMMUNICATORS, rows)


def _ranks(context: Context, money: Money, skews: list[Skew]) -> list[SectionTable | None]:
    """How the ranks arrive, and what those that came late made the others wait; the largest wait first."""
    found = [(s, r) for s in skews for r in s.ranks]
    found.sort(key=lambda x: (-x[1].wait_ns, x[0].c.comm_id, x[1].rank))
    names = process(context)
    waits = [(s.c.name, str(r.rank), names(r.pid), *_wait(context, money, s, r)) for s, r in found if r.late]
    return [
        _table("ranks", "Arrival of the ranks", RANKS, [_row(context, s, r) for s, r in found]),
        _table("waits", "What late ranks made the others wait", WAITS, list(waits)),
    ]


def _row(context: Context, s: Skew, r: RankSkew) -> tuple[Quantity | str | None, ...]:
    ids = (context.book.where("nccl_calls", s.c.where),)
    return (
        s.c.name, str(r.rank), process(context)(r.pid),
        derived(r.last, "count", ids, "collectives that no observed rank entered later"),
        derived(r.late, "count", ids, "of them, late beyond the threshold"),
        derived(r.usual_ns, "ns", ids, "arrival − median arrival of the others, at rank ceil(n/2)"),
        derived(r.max_ns, "ns", ids, "arrival − median arrival of the others, largest"),
        derived(r.deviation_ns, "ns", ids, "usual lateness − median of the other ranks' usual latenesses"),
        derived(r.limit_ns, "ns", ids, "max(lateness_floor_ns, k × 1.4826 × MAD of the other ranks' usual latenesses)"),
        "straggler" if r.straggler else "with the others",
    )  # fmt: skip


def _wait(context: Context, money: Money, s: Skew, r: RankSkew) -> tuple[Quantity, Quantity, Quantity]:
    """Wait imposed, the time of GPUs in it, and what that cost: null, with the reason, where a peer's GPU or its price
    is not known."""
    pids = ", ".join(str(p) for p in sorted(set(s.c.pids)))
    calls = context.book.where("nccl_calls", s.c.where)
    syncs = context.book.where("cuda_calls", f"{CARRIERS.condition} AND pid IN ({pids})")
    wait = derived(r.wait_ns, "ns", (calls, syncs), "Σ over peers of call or synchronisation within its lateness")
    why = f"no GPU is known of process {r.without_gpu[0]}" if r.without_gpu else ""
    gpus = (context.book.where("nvml_processes", f"pid IN ({pids})"),)
    ids = (calls, syncs, *gpus)
    total = sum(intervals.measure(t) for t in r.gpu_waits.values())
    held = derived(None if why else total, "gpu_ns", ids, "Σ over GPUs of the peers of the time held, each once", why)
    unpriced = [u for u in sorted(r.gpu_waits) if u not in money.prices]
    if not why and unpriced:
        why = f"no price is known of {text(unpriced[0])}"
    if not why and not money.currency:
        why = "no price is known"
    amount = sum(
        (money.of(u, Fraction(intervals.measure(t))) or Fraction(0) for u, t in sorted(r.gpu_waits.items())),
        Fraction(0),
    )
    made = "estimated" if any(p.provenance == "estimated" for p in money.prices.values()) else "assumed"
    cost = Quantity(
        None if why else amount, money.currency or "USD", "estimated" if made == "estimated" else "assumed", ids,
        "Σ over GPUs of time held / 3.6e12 × price per GPU-hour", why,
    )  # fmt: skip
    return wait, held, cost


def _statement(context: Context, money: Money, s: Skew, r: RankSkew) -> Statement:
    ids = (context.book.where("nccl_calls", s.c.where),)
    wait, held, cost = _wait(context, money, s, r)
    return Statement(
        "Rank {rank} (process {process}) of communicator {communicator} is a straggler: it enters collectives {usual} "
        "after the others' median, {deviation} beyond the other ranks (limit {limit}); in the {late} collectives that "
        "it entered last and late, its peers waited {wait} in all: {held} of their GPUs, cost {cost}.",
        {
            "rank": str(r.rank), "process": process(context)(r.pid), "communicator": s.c.name,
            "usual": derived(r.usual_ns, "ns", ids, "arrival − median arrival of the others, at rank ceil(n/2)"),
            "deviation": derived(r.deviation_ns, "ns", ids, "usual lateness − median of the other ranks'"),
            "limit": derived(r.limit_ns, "ns", ids, "max(lateness_floor_ns, k × 1.4826 × MAD)"),
            "late": derived(r.late, "count", ids, "collectives entered last and late"),
            "wait": wait, "held": held, "cost": cost,
        },
    )  # fmt: skip


def _pairing(context: Context) -> SectionTable | None:
    rows = [row for b in context.barriers.values() for row in _pairs(context, b)]
    return _table("pairing", "How the wait for each collective was found", PAIRING, rows)


def _pairs(context: Context, b: Barriers) -> list[tuple[Quantity | str | None, ...]]:
    ids = (context.book.where("nccl_calls", f"pid = {b.pid} AND {COLLECTIVE} AND {NOT_OWN}"),)
    waits = (*ids, context.book.where("cuda_calls", f"pid = {b.pid} AND {CARRIERS.condition}"))
    out: list[tuple[Quantity | str | None, ...]] = []
    for number, how in enumerate(HOW):
        mine = b.how == number
        if not mine.any():
            continue
        took = np.sort(b.waited[mine & (b.waited != NONE)])
        seen = bool(len(took))
        out.append((
            process(context)(b.pid), how, derived(int(mine.sum()), "count", waits, "collectives so waited for"),
            derived(at_share(took, HALF) if seen else None, "ns", waits, "end of wait − call, at rank ceil(n/2)",
                    "none was seen to end"),
            derived(int(took[-1]) if seen else None, "ns", waits, "end of wait − call, largest",
                    "none was seen to end"),
        ))  # fmt: skip
    return out


def _limits(context: Context) -> SectionTable:
    """Every limit that the tables above rest on, as the policy has it."""
    limits = (lateness.FLOOR, lateness.K, lateness.MAD_SCALE, collectives.COHORT, collectives.QUORUM)
    rows = [
        (t.name, Quantity(t.value if t.fixed else context.policy.value(t, LATE_RANK), t.unit, "assumed"), t.source)
        for t in limits
    ]
    return SectionTable("limits", "Limits", LIMITS, tuple(rows))


def _table(
    name: str, title: str, columns: tuple[tuple[str, str], ...], rows: list[tuple[Quantity | str | None, ...]]
) -> SectionTable | None:
    shown = tuple(rows[:MAX_ROWS])
    return SectionTable(name, title, columns, shown, (), max(0, len(rows) - MAX_ROWS)) if rows else None
