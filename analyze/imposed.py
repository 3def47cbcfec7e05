"""The wait that a late rank imposes on its peers, measured exactly.

Cause: for each collective that the rank entered late, the time from the median arrival of the others to its own.
Effect: the peers' calls or synchronisations in those collectives. Each peer's time counts once, also where one
synchronisation follows several collectives. Units: ns, summed over peers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals, waits
from gpuaudit.analyze.collectives import Collectives
from gpuaudit.analyze.finding import Threshold
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.lateness import Lateness
from gpuaudit.analyze.syncs import NONE

COMPARED = Threshold(
    "min_compared", 3, "count", "chosen: the median of one or two collectives is no usual time", least=1
)


@dataclass(frozen=True)
class ImposedWait:
    """``rank_at`` and ``peers`` are positions among the observed ranks, ``at`` the collectives entered late.

    ``cause_ns`` is the length of the cause; ``peer_time_ns`` what there was: peers × the time from the communicator's
    first arrival to the end of its last wait. ``alone_ns`` is the part of the overlap after every other rank had come:
    what would go if only this rank had been in time. ``longer_ns`` is what the lateness cost by comparison: by how much
    the peers took longer than their median in ``compared`` collectives of the same kind that no rank entered late, at
    most the overlap; None where fewer than ``min_compared`` such collectives were through. ``in_sync`` has shape
    (ranks, collectives): where the wait lay.
    """

    rank_at: int
    at: npt.NDArray[np.intp]
    peers: tuple[int, ...]
    effect_ns: int
    overlap_ns: int
    cause_ns: int
    peer_time_ns: int
    alone_ns: int
    longer_ns: int | None
    compared: int
    cause: Intervals
    in_sync: npt.NDArray[np.bool_]


def measure(
    c: Collectives, judged: Lateness, rank_at: int, at: npt.NDArray[np.intp], window_end_ns: int, *, min_compared: int
) -> ImposedWait:
    """The wait for the rank at position ``rank_at`` in the collectives ``at``.

    ``min_compared``: collectives of a kind that nobody entered late, below which their median is no usual time.
    """
    held, in_sync = waits.carriers(c, window_end_ns)
    late_at = c.arrival[rank_at, at]
    cause = intervals.from_bounds(judged.median[at], late_at)
    peers = tuple(r for r in range(len(c.ranks)) if r != rank_at)
    last_of_others = np.delete(c.arrival, rank_at, axis=0).max(axis=0)[at]
    last_part = intervals.from_bounds(last_of_others, late_at)
    effect_ns = overlap_ns = alone_ns = 0
    for peer in peers:
        effect = intervals.from_bounds(held[peer, at, 0], held[peer, at, 1])
        effect_ns += intervals.measure(effect)
        overlap_ns += intervals.measure(intervals.intersect(effect, cause))
        alone_ns += intervals.measure(intervals.intersect(effect, last_part))
    life = int(max(held[:, :, 1].max(), c.arrival.max()) - c.arrival.min())
    longer_ns, compared = _longer(c, judged, peers, at, min_compared)
    return ImposedWait(
        rank_at, at, peers, effect_ns, overlap_ns, intervals.measure(cause), life * len(peers), alone_ns,
        None if longer_ns is None else min(longer_ns, overlap_ns), compared, cause, in_sync,
    )  # fmt: skip


def _longer(
    c: Collectives, judged: Lateness, peers: tuple[int, ...], at: npt.NDArray[np.intp], min_compared: int
) -> tuple[int | None, int]:
    """By how much the peers took longer, and with how many collectives that was compared."""
    through = np.where(c.sync_end == NONE, c.call_end, c.sync_end)
    took = through - c.arrival
    usual = ~judged.late & (through != NONE).all(axis=0)
    total = compared = 0
    for kind in np.unique(c.kind[at]).tolist():
        control = np.flatnonzero(usual & (c.kind == kind))
        if len(control) < min_compared:
            return None, 0
        compared += len(control)
        for peer in peers:
            mine = at[(c.kind[at] == kind) & (through[peer, at] != NONE)]
            usually = int(np.sort(took[peer, control])[(len(control) - 1) // 2])
            total += sum(
                min(max(0, int(x)), int(y))
                for x, y in zip(took[peer, mine] - usually, judged.lateness[mine], strict=True)
            )
    return total, compared


def by_peer(
    c: Collectives, judged: Lateness, rank_at: int, at: npt.NDArray[np.intp], window_end_ns: int
) -> dict[int, Intervals]:
    """By position of each other rank, when it waited for the late one: what :func:`measure` adds up as the overlap."""
    held, _ = waits.carriers(c, window_end_ns)
    cause = intervals.from_bounds(judged.median[at], c.arrival[rank_at, at])
    return {
        peer: intervals.intersect(intervals.from_bounds(held[peer, at, 0], held[peer, at, 1]), cause)
        for peer in range(len(c.ranks))
        if peer != rank_at
    }
