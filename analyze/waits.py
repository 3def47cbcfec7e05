"""Where the ranks of a communicator wait for each other: the host's time inside a collective, per rank and index.

A rank's wait lies in its call (blocking) or in the synchronisation that follows (asynchronous): whichever covers more
of the time between its own arrival and the last one's. Time is counted once, also where one synchronisation follows
several collectives.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals
from gpuaudit.analyze.collectives import Collectives
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.syncs import NONE, Array


def carriers(c: Collectives, window_end_ns: int) -> tuple[Array, npt.NDArray[np.bool_]]:
    """The interval in which each rank waits, shape (ranks, collectives, 2), and whether it is the synchronisation.

    An interval that was still open when the capture ended reaches to ``window_end_ns``, or to the exit of its process.
    """
    last = c.last_arrival[None, :]
    end = np.minimum(c.last_moment, window_end_ns)[:, None]
    call = _bounds(c.arrival, c.call_end, end)
    sync = _bounds(c.sync_start, c.sync_end, end)
    in_sync = _overlap(sync, c.arrival, last) > _overlap(call, c.arrival, last)
    return np.where(in_sync[:, :, None], sync, call), in_sync


def waiting_for_peers(c: Collectives, window_end_ns: int) -> list[Intervals]:
    """Per observed rank: the time it spent inside a collective that not every observed rank had entered yet."""
    if not c.count:
        return []
    held, _ = carriers(c, window_end_ns)
    return [intervals.from_bounds(h[:, 0], np.minimum(h[:, 1], c.last_arrival)) for h in held]


def _bounds(start: Array, end: Array, if_open: Array) -> Array:
    """(…, 2) bounds; an empty interval where there is no start."""
    closed = np.where(end == NONE, np.maximum(start, if_open), end)
    closed = np.where(start == NONE, NONE, closed)
    return np.stack([start, closed], axis=-1)


def _overlap(bounds: Array, low: Array, high: Array) -> Array:
    out: Array = np.maximum(np.minimum(bounds[..., 1], high) - np.maximum(bounds[..., 0], low), 0)
    return out
