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

from gpuaudit.analyze.causal.model import Effect
from gpuaudit.analyze.collectives import Collectives
from gpuaudit.analyze.effects import slow_steps

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
    """Those of the effect's calls, or of the calls in its steps, that are a collective or carry the wait for one, in
    order of time."""
    b = context.barriers.get(effect.pid)
    if b is None:
        return
    positions = {str(c.comm_id): i for i, c in enumerate(context.aligned)}
    nameless = {x.pid for x in context.barriers.values() if (x.comm_id == "").any()}
    calls = b.within(effect.parts, effect.tid) if effect.kind == slow_steps.KIND else effect.parts
    for start, end in calls.tolist():
        mine = b.at(start, end)
        if len(mine):
            ids = set(b.comm_id[mine].tolist())
            known = sorted(positions[i] for i in ids if i in positions)
            ranks = frozenset({b.pid, *(p for i in known for p in context.aligned[i].pids)})
            carried = tuple((i, at) for i in known for at in _indices(context.aligned[i], b.pid, b.calls[mine, 0]))
            entered = max((int(context.aligned[i].last_arrival[at]) for i, at in carried), default=0)
            yield CollectiveCall(start, end, ranks, ranks | nameless if "" in ids else ranks, entered, carried)


def _indices(c: Collectives, pid: int, begun: npt.NDArray[np.int64]) -> list[int]:
    """Of the collectives of one communicator those that the process entered at one of these moments."""
    if not c.count or pid not in c.pids:
        return []
    own = c.arrival[c.pids.index(pid)]
    at = np.minimum(np.searchsorted(own, begun), c.count - 1)
    return sorted(set(at[own[at] == begun].tolist()))
