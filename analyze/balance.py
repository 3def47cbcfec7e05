"""Memory that a process holds, by the balance of its recorded allocations and frees.

An allocation counts from the end of its call, a free from the start of its own, matched by address within the process.
A free of an address whose allocation was not recorded, and an allocation at an address that is still held, show that
calls are missing: they are counted, because then the balance is not the truth. Units: bytes and ns.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.call_meanings import ALLOCATE, ALLOCATE_MANAGED, FIRST, FREE, Meaning, any_of
from gpuaudit.analyze.store import NOT_OWN, Store

EITHER = any_of(ALLOCATE, ALLOCATE_MANAGED)
"""Memory that the same calls free."""
HOLDING = any_of(EITHER, FREE)
"""Every call that changes what is held."""

MOST_BYTES = 1 << 62
"""A size or a balance beyond it is not evidence; sums of two stay within int64."""

Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Balance:
    """One process. ``live`` is what it holds after each of its events, at ``times``; both have one entry per event.

    ``allocations`` and ``frees`` count the events; ``unmatched`` those that show that calls are missing.
    """

    pid: int
    times: Array
    live: Array
    allocations: int
    frees: int
    unmatched: int

    def low_water(self, edges: Array) -> Array:
        """Least bytes held in each of the windows between consecutive ``edges``."""
        held = np.concatenate([[0], self.live])
        at = np.searchsorted(self.times, edges, side="right")
        return np.array([int(held[a : b + 1].min()) for a, b in pairwise(at.tolist())], dtype=np.int64)

    @property
    def peak(self) -> int:
        """Most bytes held at once."""
        return int(self.live.max()) if len(self.live) else 0


def read_balances(store: Store, counted: Meaning) -> list[Balance]:
    """Every process that made a successful allocation of the kinds ``counted``, by process id.

    Allocations of the other kinds hold no bytes in it, but their addresses are known, so that a free finds them.
    """
    rows = store.sql(
        f"SELECT DISTINCT pid FROM cuda_calls WHERE {NOT_OWN} AND {store.means(counted)} AND {FIRST} "
        "AND return_code = 0 ORDER BY pid"
    )
    return [_read(store, int(pid), counted) for (pid,) in rows]


def _read(store: Store, pid: int, counted: Meaning) -> Balance:
    making = store.means(EITHER)
    order = "moment, made, leaf, row"
    change = "CASE WHEN made THEN size ELSE 0 END - CASE WHEN held THEN held_size ELSE 0 END"
    a = store.arrays(
        f"WITH e AS (SELECT device_pointer AS p, {making} AS made, leaf, row, CASE WHEN {making} THEN "
        f"end_ns ELSE start_ns END::BIGINT AS moment, CASE WHEN {store.means(counted)} THEN "
        f"least(coalesce(size_bytes, 0), "
        f"{MOST_BYTES}) ELSE 0 END::HUGEINT AS size FROM cuda_calls WHERE pid = {pid} AND {store.means(HOLDING)} "
        f"AND {FIRST} AND return_code = 0 AND device_pointer IS NOT NULL AND device_pointer <> 0), "
        "m AS (SELECT *, coalesce(lag(made) OVER w, false) AS held, coalesce(lag(size) OVER w, 0) AS held_size FROM e "
        f"WINDOW w AS (PARTITION BY p ORDER BY {order})) "
        f"SELECT moment, made, held, least(sum({change}) OVER (ORDER BY {order} ROWS UNBOUNDED PRECEDING), "
        f"{MOST_BYTES})::BIGINT AS live FROM m ORDER BY {order}"
    )
    made, held = a["made"].astype(bool), a["held"].astype(bool)
    return Balance(pid, a["moment"], a["live"], int(made.sum()), int((~made).sum()), int((made == held).sum()))
