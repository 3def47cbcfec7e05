"""Skew of ranks: how far apart they enter their collectives, which of them is a straggler, and what its peers paid.

For one communicator. *Skew* of a collective: arrival of the last observed rank minus that of the first. *Lateness* of a
rank in a collective: its arrival minus the median arrival of the others, negative where it was early. A rank's *usual
lateness* is the median of that over all collectives (value at rank ceil(n/2), exact). A rank is a *straggler* if its
usual lateness is beyond that of the other ranks' (median) by more than the floor and by more than k times their spread,
1.4826 times their median absolute deviation; where the communicator has fewer ranks than the cohort wants, or fewer of
them were observed than the quorum, nothing is said. *Wait imposed* is the time in which the other ranks were inside the
collective or the synchronisation after it, from the median arrival to that of a rank that came last and late, summed
over them. Its *cost* is the time in which a GPU of theirs was so held, each GPU's time once, at that GPU's price.
Units: ns on CLOCK_BOOTTIME.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from gpuaudit.analyze import imposed, intervals, lateness
from gpuaudit.analyze.collectives import Collectives
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.lateness import MAD_SCALE, Limits
from gpuaudit.analyze.syncs import Array


@dataclass(frozen=True)
class RankSkew:
    """One rank. ``deviation_ns`` is its usual lateness less the median of the others' usual latenesses, ``limit_ns``
    what makes that a straggler's; ``last`` and ``late`` count collectives. ``gpu_waits`` has, by UUID, the time in
    which a GPU of a peer was held for it, and ``without_gpu`` the peers of which no GPU is known.
    """

    rank: int
    pid: int
    last: int
    late: int
    usual_ns: int
    max_ns: int
    deviation_ns: int
    limit_ns: int
    wait_ns: int
    gpu_waits: Mapping[str, Intervals]
    without_gpu: tuple[int, ...]

    @property
    def straggler(self) -> bool:
        """Beyond the other ranks by habit."""
        return self.deviation_ns > self.limit_ns


@dataclass(frozen=True)
class Skew:
    """One communicator: exact order statistics of its collectives' skews, and its ranks."""

    c: Collectives
    median_ns: int
    p99_ns: int
    max_ns: int
    ranks: tuple[RankSkew, ...]


def read_skews(context: Context) -> list[Skew]:
    """Every communicator whose ranks can be compared, by identity."""
    return [of(context, c) for c in context.collectives if not c.not_evaluated]


def of(context: Context, c: Collectives) -> Skew:
    """One of them."""
    skews = np.sort(c.arrival.max(axis=0) - c.arrival.min(axis=0))
    judged = lateness.judge(c.arrival, context.late_limits)
    late_by = lateness.of_every_rank(c.arrival)
    ranks = tuple(_rank(context, c, judged, late_by, r) for r in range(len(c.ranks)))
    return Skew(c, at_share(skews, Fraction(1, 2)), at_share(skews, Fraction(99, 100)), int(skews[-1]), ranks)


def at_share(ordered: Array, share: Fraction) -> int:
    """Exact order statistic: the value at rank ceil(share · n), counted from one."""
    n = len(ordered)
    return int(ordered[max(1, -(-share.numerator * n // share.denominator)) - 1])


def limit(others: Array, limits: Limits) -> int:
    """How far beyond the median of ``others`` a value is none of theirs: the floor, or k spreads, rounded down."""
    ordered = np.sort(others)
    middle = int(lateness.middle(ordered[:, None])[0])
    spread = int(lateness.middle(np.sort(np.abs(ordered - middle))[:, None])[0])
    return max(limits.floor_ns, int(limits.k * Fraction(MAD_SCALE.value) * spread))


def _rank(context: Context, c: Collectives, judged: lateness.Lateness, late_by: Array, r: int) -> RankSkew:
    usual = np.array([at_share(np.sort(row), Fraction(1, 2)) for row in late_by], dtype=np.int64)
    at = np.flatnonzero(judged.late & (judged.last == r))
    waits = imposed.by_peer(c, judged, r, at, context.window.end_ns) if len(at) else {}
    others = np.delete(usual, r)
    held: dict[str, Intervals] = {}
    without = []
    for peer, time in sorted(waits.items()):
        gpus = context.gpus_by_pid.get(c.pids[peer], [])
        if not gpus:
            without.append(c.pids[peer])
        for gpu in gpus:
            held[gpu.uuid] = intervals.union(held.get(gpu.uuid, intervals.EMPTY), time)
    return RankSkew(
        rank=c.ranks[r], pid=c.pids[r], last=int((judged.last == r).sum()), late=len(at),
        usual_ns=int(usual[r]), max_ns=int(late_by[r].max()),
        deviation_ns=int(usual[r]) - int(lateness.middle(np.sort(others)[:, None])[0]),
        limit_ns=limit(others, context.late_limits),
        wait_ns=sum(intervals.measure(t) for t in waits.values()), gpu_waits=held, without_gpu=tuple(without),
    )  # fmt: skip
