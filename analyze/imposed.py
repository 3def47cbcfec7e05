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
from gpuaudit.analyze.lateness import Lateness


@dataclass(frozen=True)
class ImposedWait:
    """``rank_at`` and ``peers`` are positions among the observed ranks, ``at`` the collectives entered late.

    ``cause_ns`` is the length of the cause; ``peer_time_ns`` what there was: peers × the time from the communicator's
    first arrival to the end of its last wait. ``in_sync`` has shape (ranks, collectives): where the wait lay.
    """

    rank_at: int
    at: npt.NDArray[np.intp]
    peers: tuple[int, ...]
    effect_ns: int
    overlap_ns: int
    cause_ns: int
    peer_time_ns: int
    in_sync: npt.NDArray[np.bool_]


def measure(
    c: Collectives, judged: Lateness, rank_at: int, at: npt.NDArray[np.intp], window_end_ns: int
) -> ImposedWait:
    """The wait for the rank at position ``rank_at`` in the collectives ``at``."""
    held, in_sync = waits.carriers(c, window_end_ns)
    cause = intervals.from_bounds(judged.median[at], c.arrival[rank_at, at])
    peers = tuple(r for r in range(len(c.ranks)) if r != rank_at)
    effect_ns = overlap_ns = 0
    for peer in peers:
        effect = intervals.from_bounds(held[peer, at, 0], held[peer, at, 1])
        effect_ns += intervals.measure(effect)
        overlap_ns += intervals.measure(intervals.intersect(effect, cause))
    life = int(max(held[:, :, 1].max(), c.arrival.max()) - c.arrival.min())
    return ImposedWait(rank_at, at, peers, effect_ns, overlap_ns, intervals.measure(cause), life * len(peers), in_sync)
