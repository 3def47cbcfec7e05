"""Host memory that a process was seen to pin: which addresses of copies lie in it. Addresses and sizes as asked for.

A piece is pinned from the return of the call that made or registered it to the call that frees its address.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.allocations import ALIVE, MAX_ADDRESS, MAX_LOOK, MAX_SIZE
from gpuaudit.analyze.call_meanings import ALLOCATE_HOST, FREE_HOST
from gpuaudit.analyze.store import Store

Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pinned:
    """One entry per piece, by address and time; ``end`` is :data:`~gpuaudit.analyze.allocations.ALIVE` if never."""

    address: Array
    size: Array
    begin: Array
    end: Array

    def holds(self, address: Array, at_ns: Array) -> npt.NDArray[np.bool_]:
        """Which addresses lay in a piece at their moment.

        Live pieces do not overlap, so that only the nearest live one at or below an address can hold it; at most
        :data:`~gpuaudit.analyze.allocations.MAX_LOOK` earlier ones at the same addresses are looked at.
        """
        out = np.zeros(len(address), dtype=bool)
        at = np.searchsorted(self.address, address, side="right") - 1
        todo = np.flatnonzero((at >= 0) & (address > 0))
        for _ in range(MAX_LOOK):
            todo = todo[at[todo] >= 0]
            if not len(todo):
                break
            near = at[todo]
            live = (self.begin[near] <= at_ns[todo]) & (at_ns[todo] < self.end[near])
            out[todo[live & (address[todo] - self.address[near] < self.size[near])]] = True
            todo = todo[~live]
            at[todo] -= 1
        return out


def read_pinned(store: Store, pid: int) -> Pinned:
    """What one process pinned; a call that failed, or whose address is not known, pinned nothing."""
    made, freed = ALLOCATE_HOST.first, FREE_HOST.first
    a = store.arrays(
        "SELECT address, size, begin, end_ FROM (SELECT device_pointer::BIGINT AS address, "
        f"least(coalesce(size_bytes, 0), {MAX_SIZE})::BIGINT AS size, end_ns::BIGINT AS begin, "
        f"coalesce(lead(start_ns) OVER w, {ALIVE})::BIGINT AS end_, size_bytes IS NOT NULL AND {made} AS made, "
        "leaf, row FROM cuda_calls "
        f"WHERE pid = {int(pid)} AND ({made} OR {freed}) AND coalesce(return_code, 0) = 0 AND device_pointer > 0 "
        f"AND device_pointer < {MAX_ADDRESS} AND end_ns IS NOT NULL "
        "WINDOW w AS (PARTITION BY device_pointer ORDER BY start_ns, leaf, row)) WHERE made "
        "ORDER BY address, begin, leaf, row"
    )
    return Pinned(a["address"], a["size"], a["begin"], np.maximum(a["end_"], a["begin"]))
