"""Chain: one rank enters collectives late, and its peers wait for it.

Effect: the peers' time inside the collective (its call where it blocks, the synchronisation that follows where it
returns at once). Cause: the time from the median arrival of the others to the arrival of the late rank, same
communicator, same collective. What is explained is their exact overlap, each peer's time counted once. Units: ns.
Only the lateness of the host's call is seen; a rank whose GPU is slow is not late by this measure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Literal

import numpy as np

from gpuaudit.analyze import collectives, imposed, intervals, lateness, severity
from gpuaudit.analyze.causal.detect import with_causes
from gpuaudit.analyze.collectives import Collectives
from gpuaudit.analyze.context import UNNUMBERED, Context, Found, NotEvaluated, Outcome
from gpuaudit.analyze.effects import late_arrivals
from gpuaudit.analyze.finding import Chain, Declaration, Gain, Grade, Link, Quantity, Threshold
from gpuaudit.analyze.imposed import ImposedWait
from gpuaudit.analyze.lateness import Lateness
from gpuaudit.analyze.syncs import CARRIERS
from gpuaudit.analyze.words import duration

SYSTEMATIC_SHARE = Threshold(
    "systematic_share",
    Fraction(1, 4),
    "share",
    "chosen: a rank that is late in a quarter of the collectives is late by habit, whatever it costs",
)  # fmt: skip
SYSTEMATIC_MIN = Threshold("systematic_min", 3, "count", "chosen: one or two late arrivals are not a habit")
COSTLY_SHARE = Threshold(
    "costly_share",
    severity.WARNING_SHARE.value,
    "share",
    "the share from which a finding is a warning: a rank that is late less often is told if the wait reaches it",
)  # fmt: skip
STALL = Threshold(
    "stall_ns", 1_000_000_000, "ns",
    "chosen: a single lateness of a second is reported even if it never happens again; no scheduler slice is that long",
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
SHOWN = Threshold(
    "shown_share", Fraction(1, 4), "share",
    "chosen: peers that took longer by less than a quarter of the time they were inside waited mostly for other things",
)  # fmt: skip

REFUTED_BY = (
    "GPU timing of the collective kernels that shows the peers' kernels busy, not waiting, before this rank's began"
)
EXPERIMENT = (
    "Run the rank's process alone on its cores (taskset or a cpuset cgroup) with its input read beforehand: a rank "
    "that is late for its host is then in time, one whose GPU is slow is not."
)
NEXT_STEP = (
    "See what the host thread of this rank did before it made the call: off_cpu rows of its thread id (preempted, "
    "blocked), its data loading, its other calls."
)
DEVICE_SIDE = (
    "device-side lateness: not evaluated from calls; it takes a record of the GPUs' own work (section What the GPUs "
    "did)"
)

THRESHOLDS = (
    *lateness.THRESHOLDS, collectives.COHORT, collectives.QUORUM, SYSTEMATIC_SHARE, SYSTEMATIC_MIN, COSTLY_SHARE, STALL,
    SEEN, SHOWN, imposed.COMPARED,
    HIGH, MEDIUM, *severity.THRESHOLDS,
)  # fmt: skip

DECLARATION = Declaration(
    id="late_rank",
    kind="chain",
    title="Late rank",
    question="Does one rank of a communicator enter collectives late, and how long do its peers wait for it?",
    inputs=(
        ("nccl_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "comm_id", "rank", "nranks", "count",
        "size_bytes",
                        "datatype", "root", "stream", "return_code")),
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "stream", "handle", "return_code", "parent_ns")),
        ("gaps", ("start_ns", "duration_ns", "source", "table_name", "pid", "reason")),
    ),
    thresholds=THRESHOLDS,
    texts={
        "late_rank": "Rank {rank} (process {process}) of communicator {communicator} was the last to enter "
        "{occurrences} of {evaluated} collectives, late by {lateness_p50} (median) and at most {lateness_max}; until "
        "it came, its {peers} peers were inside the collective or the synchronisation after it for {wait} in all, "
        "{wait_share} of their {peer_time} from the communicator's first arrival to its last end. Longer than in "
        "collectives that nobody entered late: {longer}."
    },
    never_claims="Why the rank was late, or anything about the time its GPU took: only when its host thread made the "
    "call; nor that the peers' GPUs had nothing of their own to do before it came.",
    assumptions=(
        "The n-th collective of one rank is the n-th of every other (NCCL's own requirement).",
        "The synchronisation that follows on the same thread and stream, or that the order of streams and events "
        "leads to, waits for the collective, and for all work "
        "given to the stream before it.",
        "Between ncclGroupStart and ncclGroupEnd a collective arrives with its own call.",
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
    scattered, spread = 0, list[str]()
    for c in whole:
        if not c.not_evaluated:
            found, left, reason = _of_communicator(context, c)
            items += [_with_causes(context, x) for x in found]
            scattered += left
            spread += [] if found else _spread(context, c)
            reasons += [reason] if reason else []
    done = sum(1 for c in whole if not c.not_evaluated)
    looked = f"{done} of {len(whole) + len(nameless)} communicators evaluated; {DEVICE_SIDE}"
    if scattered:
        looked += f"; {scattered} late arrivals are neither systematic nor a stall"
    if not whole and not nameless:
        why = context.quality.source_reason("nccl") or "no NCCL collective was recorded"
        return NotEvaluated(why)
    text = "; ".join([looked, *spread, *reasons])
    return Found(items, text) if items or not reasons else NotEvaluated(text)


def _with_causes(context: Context, chain: Chain) -> Chain:
    """What the thread of the late rank did while it was late, as further links."""
    for e in context.causal.effects:
        if e.kind == late_arrivals.KIND and (e.subject["comm"], e.subject["rank"]) == (
            chain.subject["comm"], chain.subject["rank"],
        ):  # fmt: skip
            chain = with_causes(context, context.causal, chain, e.key)
    return chain


def _limit(context: Context, threshold: Threshold) -> int | Fraction:
    return context.policy.value(threshold, DECLARATION.id)


def _spread(context: Context, c: Collectives) -> list[str]:
    """That ranks wait for each other at a cost, though no single one is late: "clear" is not "no wait"."""
    waited = sum(
        intervals.measure(t)
        for pid in sorted(set(c.pids))
        for name, t in context.waiting.get(pid, [])
        if name == c.name
    )
    life = len(c.ranks) * int(max(c.sync_end.max(), c.call_end.max(), c.arrival.max()) - c.arrival.min())
    if not life or Fraction(waited, life) < _limit(context, COSTLY_SHARE):
        return []
    limit = duration(lateness.judge(c.arrival, context.late_limits).usual_threshold_ns)
    return [
        f"communicator {c.name}: its ranks were inside collectives for {duration(waited)} of their {duration(life)} "
        f"before the last had entered, but no single rank is late beyond their usual scatter ({limit})"
    ]


def _of_communicator(context: Context, c: Collectives) -> tuple[list[Chain], int, str]:
    """Chains, late arrivals that make none, and why a late rank could not be judged."""
    judged = lateness.judge(c.arrival, context.late_limits)
    chains, left, unseen = [], 0, []
    for rank_at in range(len(c.ranks)):
        at = np.flatnonzero(judged.late & (judged.last == rank_at))
        if not len(at):
            continue
        late = imposed.measure(
            c, judged, rank_at, at, context.window.end_ns, min_compared=int(_limit(context, imposed.COMPARED))
        )
        if not _worth_telling(context, c, judged, late):
            left += len(at)
        elif not late.overlap_ns or Fraction(late.overlap_ns, late.cause_ns * len(late.peers)) < _limit(context, SEEN):
            unseen.append(c.ranks[rank_at])
        else:
            chains.append(_chain(context, c, judged, late))
    reason = ""
    if unseen:
        reason = (
            f"communicator {c.name}: ranks {unseen} came late, but no wait of their peers was seen in the calls or in "
            "a synchronisation that waits for them, so what it cost is not evaluated"
        )
    return chains, left, reason


def _worth_telling(context: Context, c: Collectives, judged: Lateness, late: ImposedWait) -> bool:
    """Late by habit, or often enough and at a cost, or once by a second."""
    often = len(late.at) >= _limit(context, SYSTEMATIC_MIN)
    habit = often and Fraction(len(late.at), c.count) >= _limit(context, SYSTEMATIC_SHARE)
    costly = often and Fraction(late.overlap_ns, late.peer_time_ns) >= _limit(context, COSTLY_SHARE)
    return habit or costly or int(judged.lateness[late.at].max()) >= _limit(context, STALL)


def _chain(context: Context, c: Collectives, judged: Lateness, late: ImposedWait) -> Chain:
    arrivals, own, sync = _evidence(context, c, late)
    evidence = tuple(dict.fromkeys((arrivals, own, *sync)))
    share = Fraction(late.overlap_ns, late.effect_ns)
    grade = context.quality.grade_of(("nccl_calls", "nccl_comms", "cuda_calls"))
    pid = c.pids[late.rank_at]
    values = _values(c, judged, late, arrivals, evidence)
    wait = values["wait"]
    behind = _behind(context, c, pid, late)
    cost = values["longer"] if values["longer"].value is not None else wait
    spent = "the peers' calls or synchronisations in those collectives"
    link = Link(
        effect="the other ranks are inside the collective, in its call or in the synchronisation that follows it",
        cause="this rank has not entered the collective, though half of the others have",
        effect_ns=Quantity(late.effect_ns, "ns", "derived", evidence, spent),
        overlap_ns=wait,
        explained=Quantity(share, "share", "derived", evidence, "overlap / effect"),
        evidence=evidence,
    )
    return Chain(
        id=UNNUMBERED,
        detector=DECLARATION.id,
        severity=severity.of_share(int(cost.value or 0), late.peer_time_ns, context.policy, DECLARATION.id),
        text="late_rank",
        values={
            "rank": str(c.ranks[late.rank_at]),
            "process": f"{pid} ({context.process_name(pid)})",
            "communicator": c.name,
            **values,
        },
        subject={"comm": c.name, "rank": str(c.ranks[late.rank_at]), "pid": str(pid)},
        links=(link,),
        impact=cost,
        confidence=_confidence(context, share, grade, late, behind),
        grade=grade,
        against=(*_against(c, judged, late), *_counter(context, late, behind)),
        refuted_by=REFUTED_BY,
        next_step=NEXT_STEP,
        evidence=evidence,
        experiment=EXPERIMENT,
        gain=Gain(
            Quantity(
                late.alone_ns if late.longer_ns is not None and not _refuted(context, late) else 0,
                "ns",
                "derived",
                evidence,
                "the part of wait after every other observed rank had entered, where a comparison shows it",
            ),
            Quantity(late.overlap_ns, "ns", "derived", evidence, "wait: had this rank come with the others"),
        ),
    )


def _values(
    c: Collectives, judged: Lateness, late: ImposedWait, arrivals: str, evidence: tuple[str, ...]
) -> dict[str, Quantity]:
    """The numbers of a chain, each with what it was made from."""
    ordered = np.sort(judged.lateness[late.at])
    peers = len(late.peers)
    told: dict[str, tuple[int | Fraction, str, str]] = {
        "nranks": (c.nranks, "count", "nranks of the communicator"),
        "occurrences": (len(late.at), "count", "collectives in which it was last and beyond the threshold"),
        "evaluated": (c.count, "count", "collectives that every observed rank entered"),
        "lateness_p50": (
            int(ordered[(len(ordered) + 1) // 2 - 1]),
            "ns",
            "arrival of the rank − median arrival of the others, at rank ceil(n/2) of the n late ones",
        ),
        "lateness_max": (int(ordered[-1]), "ns", "arrival of the rank − median arrival of the others, largest"),
        "threshold": (judged.usual_threshold_ns, "ns", "max(lateness_floor_ns, k × mad_scale × MAD of all arrivals)"),
        "peers": (peers, "count", "other observed ranks"),
    }
    waited: dict[str, tuple[int | Fraction, str, str]] = {
        "wait": (
            late.overlap_ns,
            "ns",
            "overlap of the peers' calls or synchronisations with median arrival … late arrival, summed over peers",
        ),
        "covered": (
            Fraction(late.overlap_ns, late.cause_ns * peers),
            "share",
            "wait / (peers × time from median arrival to late arrival)",
        ),
        "wait_alone": (late.alone_ns, "ns", "the part of wait after every other observed rank had entered"),
        "peer_time": (late.peer_time_ns, "ns", "peers × time from the communicator's first arrival to its last end"),
        "wait_share": (Fraction(late.overlap_ns, late.peer_time_ns), "share", "wait / peer_time"),
    }
    compared = (
        f"time from arrival to the end of the wait, less its median in {late.compared} collectives of the same kind "
    )
    longer = Quantity(
        late.longer_ns, "ns", "derived", evidence,
        compared + "that nobody entered late; at most the lateness, summed over peers",
        "" if late.longer_ns is not None else "too few collectives of that kind that nobody entered late",
    )  # fmt: skip
    return {
        "longer": longer,
        **{k: Quantity(v, unit, "derived", (arrivals,), how) for k, (v, unit, how) in told.items()},
        **{k: Quantity(v, unit, "derived", evidence, how) for k, (v, unit, how) in waited.items()},
    }


def _evidence(context: Context, c: Collectives, late: ImposedWait) -> tuple[str, str, tuple[str, ...]]:
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
    wide = f"{CARRIERS.condition} AND pid IN ({pids}) AND start_ns BETWEEN {low} AND {max(low, high)}"
    return arrivals, own, (book.listed("cuda_calls", keys, wide),)


def _confidence(
    context: Context, share: Fraction, grade: Grade, late: ImposedWait, behind: Sequence[tuple[str, int]]
) -> Literal["high", "medium", "low"]:
    """High only where a comparison shows the difference; low where the data itself speaks against it."""
    if _refuted(context, late) or any(ns * 2 >= late.cause_ns for _, ns in behind):
        return "low"
    if share >= _limit(context, HIGH) and grade <= "B" and late.longer_ns is not None:
        return "high"
    return "medium" if share >= _limit(context, MEDIUM) and grade <= "C" else "low"


def _refuted(context: Context, late: ImposedWait) -> bool:
    """The peers were hardly longer inside than in collectives that nobody entered late."""
    return late.longer_ns is not None and Fraction(late.longer_ns, late.overlap_ns) < _limit(context, SHOWN)


def _behind(context: Context, c: Collectives, pid: int, late: ImposedWait) -> list[tuple[str, int]]:
    """(communicator, ns) of the lateness in which the late rank was itself waiting for a peer somewhere else."""
    others = [(name, time) for name, time in context.waiting.get(pid, []) if name != c.name]
    measured = [(name, intervals.measure(intervals.intersect(time, late.cause))) for name, time in others]
    return [(name, ns) for name, ns in measured if ns]


def _counter(context: Context, late: ImposedWait, behind: Sequence[tuple[str, int]]) -> Iterator[str]:
    """What the recorded data itself says against the chain."""
    wait = duration(late.overlap_ns)
    if late.longer_ns is None:
        yield (
            "no comparison: what the peers' GPUs had to do before this rank came cannot be told from the wait for it, "
            f"so {wait} is the most that the wait can be"
        )
    elif _refuted(context, late):
        yield (
            f"in {late.compared} collectives of the same kind that nobody entered late the peers took nearly as long: "
            f"{duration(late.longer_ns)} longer of {wait}, so they had mostly other things to wait for"
        )
    if late.alone_ns * 2 < late.overlap_ns:
        yield (
            f"another rank came nearly as late: had only this one been in time, at most {duration(late.alone_ns)} of "
            f"{wait} would have been saved"
        )
    for name, ns in behind:
        yield (
            f"for {duration(ns)} of the {duration(late.cause_ns)} by which it was late it was itself waiting for a "
            f"peer in communicator {name}: the delay may have begun there"
        )


def _against(c: Collectives, judged: Lateness, late: ImposedWait) -> tuple[str, ...]:
    out = [DEVICE_SIDE]
    if late.overlap_ns < late.effect_ns:
        out.append(
            "part of the peers' time in these collectives is not covered: transfer, their own GPU work, or "
            "another cause"
        )
    others = int(judged.late.sum()) - len(late.at)
    if others:
        out.append(f"{others} of {c.count} collectives were entered late by another rank")
    if len(c.ranks) < c.nranks:
        out.append(f"{len(c.ranks)} of {c.nranks} ranks were observed; one that was not may have come later still")
    if c.unmatched:
        out.append(f"{c.unmatched} collectives at the end were not compared, because not every rank had reached them")
    return tuple(out)
