"""Device memory a process was seen to allocate: each allocation with its size, life and what was copied into it.

Sizes in bytes as they were asked for (the driver rounds them up), times in ns on CLOCK_BOOTTIME. An allocation lives
from the call that made it until the next call that frees its address, or that gets the same address. Managed and
pinned host memory are not device memory for sure, and are left out. What was allocated before the probes were attached
is not seen; memory that ``cuMemMap`` maps counts from there to its ``cuMemUnmap``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.call_meanings import ALLOCATE, COPY, FIRST, FREE, MAP, any_of
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
    exactly once while what held it first existed, and more often or later. ``leaf`` and ``row`` name the call;
    ``mapped`` is 1 where it mapped memory at an address that was reserved before (``cuMemMap``).
    """

    address: Array
    size: Array
    begin: Array
    end: Array
    once: Array
    again: Array
    leaf: Array
    row: Array
    mapped: Array

    def alive(self, at_ns: int) -> npt.NDArray[np.bool_]:
        """Which exist at a moment."""
        out: npt.NDArray[np.bool_] = (self.begin <= at_ns) & (self.end > at_ns)
        return out

    def only(self, chosen: npt.NDArray[np.bool_]) -> Allocations:
        """Some of them, in the same order."""
        return Allocations(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def holders(self, address: Array, at_ns: Array) -> Array:
        """Per address and moment the allocation that holds it then, -1 where none does.

        Live allocations do not overlap, so that only the nearest live one at or below an address can hold it.
        """
        out = np.full(len(address), -1, dtype=np.int64)
        order = np.lexsort((self.begin, self.address))
        at = np.searchsorted(self.address[order], address, side="right") - 1
        open_ = np.arange(len(address))
        for _ in range(MAX_LOOK):
            open_ = open_[at[open_] >= 0]
            if not len(open_):
                break
            near = order[at[open_]]
            live = (self.begin[near] <= at_ns[open_]) & (at_ns[open_] < self.end[near])
            inside = live & (address[open_] - self.address[near] < self.size[near])
            out[open_[inside]] = near[inside]
            open_ = open_[~live]
            at[open_] -= 1
        return out

    def __len__(self) -> int:
        return len(self.size)


@dataclass(frozen=True)
class Destinations:
    """Copies from the host by destination address: how many, their bytes, first start and last end.

    Copies to an address after what held it first was freed stand by themselves, and as more than one: memory that is
    made and filled again, as by a server that slept, is not loaded a second time.
    """

    address: Array
    count: Array
    bytes: Array
    first: Array
    last: Array


def read_allocations(store: Store, pid: int, end_ns: int) -> tuple[Allocations, Destinations]:
    """Device memory of a process, and every address that it copied to from the host, by the time of the first copy.

    A call that failed, or whose address is not known, allocated nothing; a copy that has not ended does so at
    ``end_ns``.
    """
    a = store.arrays(
        "SELECT address, size, begin, end_, leaf::BIGINT AS leaf, row::BIGINT AS row, mapped "
        "FROM (SELECT device_pointer::BIGINT AS address, "
        f"least(coalesce(size_bytes, 0), {MAX_SIZE})::BIGINT AS size, end_ns::BIGINT AS begin, "
        f"coalesce(lead(start_ns) OVER w, {ALIVE})::BIGINT AS end_, size_bytes IS NOT NULL AND "
        f"{store.means(ALLOCATE)} AS made, ({store.means(MAP)})::BIGINT AS mapped, "
        "leaf, row FROM cuda_calls "
        f"WHERE pid = {int(pid)} AND {store.means(any_of(ALLOCATE, FREE))} AND {FIRST} AND return_code = 0 "
        "AND device_pointer > 0 "
        f"AND device_pointer < {MAX_ADDRESS} AND end_ns IS NOT NULL "
        "WINDOW w AS (PARTITION BY device_pointer ORDER BY start_ns, leaf, row)) WHERE made ORDER BY begin, leaf, row"
    )
    out = Allocations(
        a["address"], a["size"], a["begin"], np.maximum(a["end_"], a["begin"]),
        np.zeros(len(a["size"]), dtype=np.int64), np.zeros(len(a["size"]), dtype=np.int64),
        a["leaf"], a["row"], a["mapped"],
    )  # fmt: skip
    copied = _destinations(store, pid, end_ns, out)
    _place(out, copied)
    return out, copied


def _destinations(store: Store, pid: int, end_ns: int, made: Allocations) -> Destinations:
    columns = (
        "device_pointer::BIGINT AS address, count(*)::BIGINT AS n, "
        f"least(sum(size_bytes), {MAX_SIZE})::BIGINT AS bytes, min(start_ns)::BIGINT AS first, "
        f"max(coalesce(end_ns, {int(end_ns)}))::BIGINT AS last"
    )
    where = (
        f"pid = {int(pid)} AND {store.means(COPY)} AND {FIRST} AND direction = {HOST_TO_DEVICE} AND size_bytes > 0 "
        f"AND device_pointer < {MAX_ADDRESS} AND coalesce(return_code, 0) = 0"
    )
    a = store.arrays(f"SELECT {columns} FROM cuda_calls WHERE {where} GROUP BY 1 ORDER BY first, address")
    at = made.holders(a["address"], a["first"])
    until = np.where(at >= 0, made.end[at], ALIVE) if len(made) else np.full(len(at), ALIVE)
    again = (a["n"] > 1) & (until < a["last"])
    if again.any():
        with store.relation("remade", {"remade": a["address"][again], "until": until[again]}):
            split = store.arrays(
                f"SELECT {columns}, (start_ns >= until)::BIGINT AS later FROM cuda_calls "
                f"JOIN remade ON device_pointer = remade WHERE {where} GROUP BY 1, later ORDER BY first, address"
            )
        split["n"] = np.where(split["later"] == 1, np.maximum(split["n"], 2), split["n"])
        a = {name: np.concatenate([values[~again], split[name]]) for name, values in a.items()}
        order = np.lexsort((a["address"], a["first"]))
        a = {name: values[order] for name, values in a.items()}
    return Destinations(a["address"], a["n"], a["bytes"], a["first"], a["last"])


def _place(made: Allocations, copied: Destinations) -> None:
    """Add the bytes of each destination to the allocation that held its address at the first copy."""
    at = made.holders(copied.address, copied.first)
    once = copied.count == 1
    for target, chosen in ((made.once, (at >= 0) & once), (made.again, (at >= 0) & ~once)):
        np.add.at(target, at[chosen], copied.bytes[chosen])
