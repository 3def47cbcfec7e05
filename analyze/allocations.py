"""Device memory a process was seen to allocate: each allocation with its size, life and what was copied into it.

Sizes in bytes as they were asked for (the driver rounds them up), times in ns on CLOCK_BOOTTIME. An allocation lives
from the call that made it until the next call that frees its address, or that gets the same address. Managed and
pinned host memory are not device memory for sure, and are left out. What was allocated before the probes were attached
is not seen; memory that ``cuMemMap`` maps counts from there to its ``cuMemUnmap``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.call_meanings import ALLOCATE, COPY, FIRST, FREE, any_of
from gpuaudit.analyze.store import Store

ALLOCATES = ALLOCATE.first
"""SQL condition of calls that allocate device memory."""

ALIVE = np.iinfo(np.int64).max
"""End of an allocation that was never seen to be freed."""

MAX_ADDRESS = 1 << 62
MAX_SIZE = 1 << 40
"""Larger is not evidence: no GPU has a tebibyte. Sums of four million of them stay within int64."""

HOST_TO_DEVICE = 1
"""cudaMemcpyHostToDevice (driver_types.h)."""

MAX_LOOK = 64
"""Allocations below an address that are looked at: earlier ones at the same addresses, freed since."""

Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Allocations:
    """One entry per allocation, in order of time. ``begin`` is when the call returned, ``end`` :data:`ALIVE` if never.

    ``once`` and ``again`` are bytes copied into it from the host by copies whose destination address was copied to
    exactly once in the capture, and more than once.
    """

    address: Array
    size: Array
    begin: Array
    end: Array
    once: Array
    again: Array

    def alive(self, at_ns: int) -> npt.NDArray[np.bool_]:
        """Which exist at a moment."""
        out: npt.NDArray[np.bool_] = (self.begin <= at_ns) & (self.end > at_ns)
        return out

    def __len__(self) -> int:
        return len(self.size)


@dataclass(frozen=True)
class Destinations:
    """Copies from the host by destination address: how many, their bytes, first start and last end."""

    address: Array
    count: Array
    bytes: Array
    first: Array
    last: Array


def read_destinations(store: Store, pid: int, end_ns: int) -> Destinations:
    """Every address that a process copied to from the host, by the time of the first copy."""
    a = store.arrays(
        "SELECT device_pointer::BIGINT AS address, count(*)::BIGINT AS n, "
        f"least(sum(size_bytes), {MAX_SIZE})::BIGINT AS bytes, min(start_ns)::BIGINT AS first, "
        f"max(coalesce(end_ns, {int(end_ns)}))::BIGINT AS last FROM cuda_calls "
        f"WHERE pid = {int(pid)} AND {store.means(COPY)} AND {FIRST} AND direction = {HOST_TO_DEVICE} "
        "AND size_bytes > 0 "
        f"AND device_pointer < {MAX_ADDRESS} AND coalesce(return_code, 0) = 0 GROUP BY 1 ORDER BY first, address"
    )
    return Destinations(a["address"], a["n"], a["bytes"], a["first"], a["last"])


def read_allocations(store: Store, pid: int, copied: Destinations) -> Allocations:
    """Device memory of a process; a call that failed, or whose address is not known, allocated nothing."""
    a = store.arrays(
        "SELECT address, size, begin, end_ FROM (SELECT device_pointer::BIGINT AS address, "
        f"least(coalesce(size_bytes, 0), {MAX_SIZE})::BIGINT AS size, end_ns::BIGINT AS begin, "
        f"coalesce(lead(start_ns) OVER w, {ALIVE})::BIGINT AS end_, size_bytes IS NOT NULL AND "
        f"{store.means(ALLOCATE)} AS made, "
        "leaf, row FROM cuda_calls "
        f"WHERE pid = {int(pid)} AND {store.means(any_of(ALLOCATE, FREE))} AND {FIRST} AND return_code = 0 "
        "AND device_pointer > 0 "
        f"AND device_pointer < {MAX_ADDRESS} AND end_ns IS NOT NULL "
        "WINDOW w AS (PARTITION BY device_pointer ORDER BY start_ns, leaf, row)) WHERE made ORDER BY begin, leaf, row"
    )
    out = Allocations(
        a["address"], a["size"], a["begin"], np.maximum(a["end_"], a["begin"]),
        np.zeros(len(a["size"]), dtype=np.int64), np.zeros(len(a["size"]), dtype=np.int64),
    )  # fmt: skip
    _place(out, copied)
    return out


def _place(made: Allocations, copied: Destinations) -> None:
    """Add the bytes of each destination to the allocation that held its address at the first copy.

    Live allocations do not overlap, so that only the nearest live one at or below an address can hold it.
    """
    order = np.lexsort((made.begin, made.address))
    at = np.searchsorted(made.address[order], copied.address, side="right") - 1
    open_ = np.arange(len(copied.address))
    for _ in range(MAX_LOOK):
        open_ = open_[at[open_] >= 0]
        if not len(open_):
            break
        near, first = order[at[open_]], copied.first[open_]
        live = (made.begin[near] <= first) & (first < made.end[near])
        inside = live & (copied.address[open_] - made.address[near] < made.size[near])
        once = copied.count[open_] == 1
        for target, chosen in ((made.once, inside & once), (made.again, inside & ~once)):
            np.add.at(target, near[chosen], copied.bytes[open_[chosen]])
        open_ = open_[~live]
        at[open_] -= 1
