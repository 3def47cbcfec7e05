"""Calls of an effect that are collectives, or in which the host waits for one: whose they are, and when all had come.

For detectors that look for what went wrong inside a collective. A call is joined by its row (``barriers.py``), its
ranks by the communicator's identity. Units: ns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.barriers import Barriers
from gpuaudit.analyze.causal.model import Effect

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context


@dataclass(frozen=True)
class CollectiveCall:
    """One call: its bounds, the observed processes of its communicators (``ranks``), and those that may be its peers
    (``peers``: the same, and of a communicator without identity all that have such a one).

    ``entered`` is when the last observed rank had entered the last collective it carries; 0 where that is not known.
    ``carried`` are (position of the communicator in ``context.aligned``, index of the collective).
    """

    start: int
    end: int
    ranks: frozenset[int]
    peers: frozenset[int]
    entered: int
    carried: tuple[tuple[int, int], ...]


def of_effect(context: Context, effect: Effect) -> Iterator[CollectiveCall]:
    """Those of the effect's calls that are a collective or carry the wait for one, in order of time."""
    b = context.barriers.get(effect.pid)
    if b is None:
        return
    for start, end in effect.parts[b.carries(effect.parts)].tolist():
        mine = (b.calls == [start, end]).all(axis=1) | (b.syncs == [start, end]).all(axis=1)
        yield _call(context, b, (start, end), mine)


def _call(context: Context, b: Barriers, bounds: tuple[int, int], mine: npt.NDArray[np.bool_]) -> CollectiveCall:
    pid, begun, ids = b.pid, b.calls[mine, 0], set(b.comm_id[mine].tolist())
    ranks, entered, carried = {pid}, 0, list[tuple[int, int]]()
    for position, c in enumerate(context.aligned):
        if str(c.comm_id) in ids:
            ranks |= set(c.pids)
        if str(c.comm_id) in ids and c.count and pid in c.pids:
            at = np.flatnonzero(np.isin(c.arrival[c.pids.index(pid)], begun))
            entered = max([entered, *c.last_arrival[at].tolist()])
            carried += [(position, i) for i in at.tolist()]
    nameless = {x.pid for x in context.barriers.values() if "" in x.comm_id.tolist()} if "" in ids else set()
    return CollectiveCall(*bounds, frozenset(ranks), frozenset(ranks | nameless), entered, tuple(carried))
