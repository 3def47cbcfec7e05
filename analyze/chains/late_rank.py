"""Chain: one rank enters collectives late, and its peers wait for it.

Effect: the peers' time inside the collective (its call where it blocks, the synchronisation that follows where it
returns at once). Cause: the time from the median arrival of the others to the arrival of the late rank, same
communicator, same collective. What is explained is their exact overlap, each peer's time counted once. Units: ns.
Only the lateness of the host's call is seen; a rank whose GPU is slow is not late by this measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import collectives, intervals, lateness, severity, waits
from gpuaudit.analyze.collectives import Collectives
from gpuaudit.analyze.context import UNNUMBERED, Context, Found, NotEvaluated, Outcome
from gpuaudit.analyze.finding import Chain, Declaration, Grade, Link, Quantity, Threshold
from gpuaudit.analyze.syncs import SYNC_OPS

SYSTEMATIC_SHARE = Threshold(
    "systematic_share", Fraction(1, 10), "share",
    "chosen: a rank that is late in a tenth of the collectives is late by habit; scattered late arrivals fall "
    "on all ranks",
)  # fmt: skip
SYSTEMATIC_MIN = Threshold("systematic_min", 3, "count", "chosen: one or two late arrivals are not a habit")
STALL = Threshold(
    "stall_ns", 1_000_000_000, "ns",
    "chosen: a single lateness of a second is reported even if it never happens again; no scheduler slice is that long",
)  # fmt: skip
COHORT = Threshold(
    "min_cohort", collectives.MIN_COHORT, "count", "with two ranks nobody can say which was early and which late"
)
QUORUM = Threshold(
    "quorum", Fraction(collectives.QUORUM_NUM, collectives.QUORUM_DEN), "share",
    "chosen: unless half of the ranks were observed, their median is not the communicator's",
)  # fmt: skip
SEEN = Threshold(
    "seen_share",
    Fraction(1, 20),
    "share",
    "chosen: a wait that covers less than a twentieth of the lateness is the ordinary length of calls",
)  # fmt: skip
HIGH = Threshold(
    "high_confidence_share", Fraction(4, 5), "share", "chosen: four fifths of the effect explained leave little"
)
MEDIUM = Threshold(
    "medium_confidence_share", Fraction(1, 4), "share",
    "chosen: a step's own GPU work is often three quarters of what a synchronisation waits for",
)  # fmt: skip

DEVICE_SIDE = "device-side lateness: not evaluated, because no GPU timing was recorded"

DECLARATION = Declaration(
    id="late_rank",
    kind="chain",
    title="Late rank",
    question="Does one rank of a communicator enter collectives late, and how long do its peers wait for it?",
    inputs=(
        ("nccl_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "comm_id", "rank", "nranks", "count",
        "size_bytes",
                        "datatype", "root", "stream", "return_code")),
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "stream", "return_code")),
        ("gaps", ("start_ns", "duration_ns", "source", "table_name", "pid", "reason")),
    ),
    thresholds=(*lateness.THRESHOLDS, COHORT, QUORUM, SYSTEMATIC_SHARE, SYSTEMATIC_MIN, STALL, SEEN, HIGH, MEDIUM,
    *severity.THRESHOLDS),
    texts={
        "late_rank": "Rank {rank} (process {process}) of communicator {communicator} entered {occurrences} of "
        "{evaluated} "
        "collectives late, by {lateness_p50} (median) and at most {lateness_max}; its {peers} peers waited "
        "{wait} for it, "
        "of {peer_time} of their time."
    },
    never_claims="Why the rank was late, or anything about the time its GPU took: only when its host thread "
    "made the call.",
    assumptions=(
        "The n-th collective of one rank is the n-th of every other (NCCL's own requirement).",
        "The synchronisation that follows on the same thread and stream waits for the collective.",
    ),
)  # fmt: skip


def evaluate(context: Context) -> Outcome:
    """One chain per communicator and rank that is late by habit or by a second."""
    whole = context.collectives
    nameless = context.without_identity
    reasons = [f"communicator {c.name}: {c.not_evaluated}" for c in whole if c.not_evaluated]
    reasons += [
        f"communicator {handle:#x} of process {pid} ({n} calls): identity not recorded, it was made before the probes "
        "were attached" for pid, handle, n in nameless
    ]  # fmt: skip
    items: list[Chain] = []
    scattered = 0
    for c in whole:
        if not c.not_evaluated:
            found, left, reason = _of_communicator(context, c)
            items += found
            scattered += left
            reasons += [reason] if reason else []
    done = sum(1 for c in whole if not c.not_evaluated)
    looked = f"{done} of {len(whole) + len(nameless)} communicators evaluated; {DEVICE_SIDE}"
    if scattered:
        looked += f"; {scattered} late arrivals are neither systematic nor a stall"
    if not whole and not nameless:
        why = context.quality.source_reason("nccl") or "no NCCL collective was recorded"
        return NotEvaluated(why)
    text = "; ".join([looked, *reasons])
    return Found(items, text) if items or not reasons else NotEvaluated(text)


@dataclass(frozen=True)
class _Late:
    """The collectives that one rank entered late: index arrays, and the peers' time in ns."""

    rank_at: int
    at: npt.NDArray[np.intp]
    effect_ns: int
    overlap_ns: int
    cause_ns: int
    in_sync: npt.NDArray[np.bool_]
    peers: tuple[int, ...]


def _of_communicator(context: Context, c: Collectives) -> tuple[list[Chain], int, str]:
    """Chains, late arrivals that make none, and why a late rank could not be judged."""
    j = lateness.judge(c.arrival)
    out, left, unseen = [], 0, []
    for rank_at in range(len(c.ranks)):
        at = np.flatnonzero(j.late & (j.last == rank_at))
        if not len(at):
            continue
        habit = len(at) >= int(SYSTEMATIC_MIN.value) and Fraction(len(at), c.count) >= SYSTEMATIC_SHARE.value
        if not habit and int(j.lateness[at].max()) < int(STALL.value):
            left += len(at)
            continue
        late = _measure(context, c, j, rank_at, at)
        if late.overlap_ns and Fraction(late.overlap_ns, late.cause_ns * len(late.peers)) >= SEEN.value:
            out.append(_chain(context, c, j, late))
        else:
            unseen.append(c.ranks[rank_at])
    reason = ""
    if unseen:
        reason = (
            f"communicator {c.name}: ranks {unseen} came late, but no wait of their peers was seen in the calls "
            f"or in a "
            "synchronisation on the same thread and stream, so what it cost is not evaluated"
        )
    return out, left, reason


def _measure(context: Context, c: Collectives, j: lateness.Lateness, rank_at: int, at: npt.NDArray[np.intp]) -> _Late:
    held, in_sync = waits.carriers(c, context.window.end_ns)
    cause = intervals.from_bounds(j.median[at], c.arrival[rank_at, at])
    peers = tuple(r for r in range(len(c.ranks)) if r != rank_at)
    effect_ns = overlap_ns = 0
    for peer in peers:
        effect = intervals.from_bounds(held[peer, at, 0], held[peer, at, 1])
        effect_ns += intervals.measure(effect)
        overlap_ns += intervals.measure(intervals.intersect(effect, cause))
    return _Late(rank_at, at, effect_ns, overlap_ns, intervals.measure(cause), in_sync, peers)


def _chain(context: Context, c: Collectives, j: lateness.Lateness, late: _Late) -> Chain:
    arrivals, own, sync = _evidence(context, c, late)
    evidence = tuple(dict.fromkeys((arrivals, own, *sync)))
    values = np.sort(j.lateness[late.at])
    life = int(max(c.last_arrival[-1], c.sync_end.max(), c.call_end.max()) - c.arrival.min())
    peer_time = life * len(late.peers)
    share = Fraction(late.overlap_ns, late.effect_ns)

    def derived(value: int | Fraction, unit: str, how: str, of: tuple[str, ...] = evidence) -> Quantity:
        return Quantity(value, unit, "derived", of, how)

    wait = derived(
        late.overlap_ns, "ns", "overlap of the peers' calls or synchronisations with median arrival … late arrival, "
        "summed over peers"
    )  # fmt: skip
    lateness_how = "arrival of the rank − median arrival of the others, "
    pid = c.pids[late.rank_at]
    grade = context.quality.grade_of(("nccl_calls", "nccl_comms", "cuda_calls"))
    return Chain(
        id=UNNUMBERED,
        detector=DECLARATION.id,
        severity=severity.of_share(late.overlap_ns, peer_time),
        text="late_rank",
        values={
            "rank": str(c.ranks[late.rank_at]),
            "process": f"{pid} ({context.process_name(pid)})",
            "communicator": c.name,
            "nranks": derived(c.nranks, "count", "nranks of the communicator", (arrivals,)),
            "occurrences": derived(len(late.at), "count", "collectives in which it was last and beyond the threshold"),
            "evaluated": derived(c.count, "count", "collectives that every observed rank entered", (arrivals,)),
            "lateness_p50": derived(
                int(values[(len(values) + 1) // 2 - 1]), "ns", lateness_how + "rank ceil(n/2) of n", (arrivals,)
            ),
            "lateness_max": derived(int(values[-1]), "ns", lateness_how + "largest", (arrivals,)),
            "threshold": derived(
                j.usual_threshold_ns, "ns", "max(lateness_floor_ns, k × 1.4826 × MAD of all arrivals)", (arrivals,)
            ),
            "peers": derived(len(late.peers), "count", "other observed ranks", (arrivals,)),
            "wait": wait,
            "covered": derived(
                Fraction(late.overlap_ns, late.cause_ns * len(late.peers)),
                "share",
                "wait / (peers × time from median arrival to late arrival)",
            ),
            "peer_time": derived(peer_time, "ns", "peers × time from the communicator's first arrival to its last end"),
            "wait_share": derived(Fraction(late.overlap_ns, peer_time), "share", "wait / peer_time"),
        },
        subject={"comm": c.name, "rank": str(c.ranks[late.rank_at]), "pid": str(pid)},
        links=(
            Link(
                effect="the other ranks are inside the collective, in its call or in the synchronisation that "
                "follows it",
                cause="this rank has not entered the collective, though half of the others have",
                effect_ns=derived(late.effect_ns, "ns", "the peers' calls or synchronisations in those collectives"),
                overlap_ns=wait,
                explained=derived(share, "share", "overlap / effect"),
                evidence=evidence,
            ),
        ),
        impact=wait,
        confidence=_confidence(share, grade),
        grade=grade,
        against=_against(c, j, late),
        refuted_by="GPU timing of the collective kernels that shows the peers' kernels busy, not waiting, before this "
        "rank's kernel began",
        next_step="See what the host thread of this rank did before it made the call: off_cpu rows of its thread id "
        "(preempted, blocked), its data loading, its other calls.",
        evidence=evidence,
    )


def _evidence(context: Context, c: Collectives, late: _Late) -> tuple[str, str, tuple[str, ...]]:
    """Entries for all arrivals of the communicator, the late ones of the rank, and the synchronisations waited in."""
    book = context.book
    rank = c.ranks[late.rank_at]
    arrivals = book.where("nccl_calls", c.where)
    own = book.listed("nccl_calls", c.call_keys[late.rank_at, late.at], f"{c.where} AND rank = {rank}")
    peers = list(late.peers)
    in_sync = late.in_sync[peers][:, late.at]
    keys = c.sync_keys[peers][:, late.at][in_sync]
    if not len(keys):
        return arrivals, own, ()
    pids = ", ".join(str(c.pids[p]) for p in peers)
    low, high = int(c.arrival[:, late.at].min()), int(c.sync_end[peers][:, late.at].max())
    ops = ", ".join(f"'{op}'" for op in SYNC_OPS)
    wide = f"op IN ({ops}) AND pid IN ({pids}) AND start_ns BETWEEN {low} AND {max(low, high)}"
    return arrivals, own, (book.listed("cuda_calls", keys, wide),)


def _confidence(share: Fraction, grade: Grade) -> Literal["high", "medium", "low"]:
    if share >= HIGH.value and grade <= "B":
        return "high"
    return "medium" if share >= MEDIUM.value and grade <= "C" else "low"


def _against(c: Collectives, j: lateness.Lateness, late: _Late) -> tuple[str, ...]:
    out = [DEVICE_SIDE]
    if late.overlap_ns < late.effect_ns:
        out.append(
            "part of the peers' time in these collectives is not covered: transfer, their own GPU work, or "
            "another cause"
        )
    others = int(j.late.sum()) - len(late.at)
    if others:
        out.append(f"{others} of {c.count} collectives were entered late by another rank")
    if len(c.ranks) < c.nranks:
        out.append(f"{len(c.ranks)} of {c.nranks} ranks were observed; one that was not may have come later still")
    if c.unmatched:
        out.append(f"{c.unmatched} collectives at the end were not compared, because not every rank had reached them")
    return tuple(out)
