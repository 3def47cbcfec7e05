"""The barrier correlator: for each collective call of a process, the call in which its host waits for it, and how.

Told of every process that made collectives, also where the communicator has no identity, or too few of its ranks were
observed to say who was late. How a wait was found (:data:`HOW`): a synchronisation of the same stream, of the device,
of an event recorded after it, of another stream that had been made to wait for such an event, a blocking copy on the
same stream, the host's own polling of the stream or the event, or none. Units: ns on CLOCK_BOOTTIME.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.call_meanings import BLOCKING_COPY, DEVICE_SYNC, EVENT_QUERY, EVENT_SYNC, STREAM_QUERY
from gpuaudit.analyze.collectives import COLLECTIVE
from gpuaudit.analyze.evidence import RowKeys
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.store import NOT_OWN, Store
from gpuaudit.analyze.syncs import CARRIERS, NONE, Array, Syncs

HOW = ("same stream", "device", "event", "stream that waited for an event", "blocking copy", "polling", "none found")
"""How the wait for a collective was found; in this order in tables."""


@dataclass(frozen=True)
class Barriers:
    """Collectives of one process in order of time.

    ``calls`` and ``syncs`` are (n, 2) bounds, :data:`NONE` where open or without; ``how`` are positions in :data:`HOW`;
    ``comm`` is the handle and ``comm_id`` the identity, in digits: empty where it was not recorded.
    """

    pid: int
    calls: Intervals
    syncs: Intervals
    call_keys: RowKeys
    sync_keys: RowKeys
    how: Array
    comm: npt.NDArray[Any]
    comm_id: npt.NDArray[Any]
    op: npt.NDArray[Any]

    def carries(self, parts: Intervals) -> npt.NDArray[np.bool_]:
        """Which of ``parts`` (start, end) are one of these calls, or the wait for one."""
        own = {(a, b) for bounds in (self.calls, self.syncs) for a, b in bounds.tolist()}
        return np.array([(a, b) in own for a, b in parts.tolist()], dtype=bool)

    @property
    def waited(self) -> Array:
        """Per collective, ns from its call to the end of the wait; :data:`NONE` where neither end was seen."""
        through = np.where(self.syncs[:, 1] == NONE, self.calls[:, 1], self.syncs[:, 1])
        out: Array = np.where(through == NONE, NONE, through - self.calls[:, 0])
        return out


def read_barriers(store: Store) -> dict[int, Barriers]:
    """Every process with a collective, by process id."""
    if not store.row_count("nccl_calls"):
        return {}
    a = store.arrays(
        "SELECT pid::BIGINT AS pid, tid::BIGINT AS tid, op, start_ns::BIGINT AS start_ns, "
        f"coalesce(end_ns, {NONE})::BIGINT AS end_ns, coalesce(stream::VARCHAR, '') AS stream, "
        f"comm_handle::VARCHAR AS comm, coalesce(comm_id::VARCHAR, '') AS comm_id, leaf::BIGINT AS leaf, "
        f"row::BIGINT AS row FROM nccl_calls WHERE {COLLECTIVE} AND {NOT_OWN} ORDER BY pid, start_ns, leaf, row"
    )
    syncs = Syncs(store)
    return {int(p): _of(store, syncs, int(p), {k: v[a["pid"] == p] for k, v in a.items()}) for p in np.unique(a["pid"])}


def _of(store: Store, syncs: Syncs, pid: int, a: dict[str, npt.NDArray[Any]]) -> Barriers:
    start, end, keys = syncs.following(pid, a)
    return Barriers(
        pid=pid,
        calls=np.stack([a["start_ns"], a["end_ns"]], axis=1), syncs=np.stack([start, end], axis=1),
        call_keys=np.stack([a["leaf"], a["row"]], axis=1), sync_keys=keys,
        how=_how(store, pid, a["stream"], keys), comm=a["comm"], comm_id=a["comm_id"], op=a["op"],
    )  # fmt: skip


def _how(store: Store, pid: int, streams: npt.NDArray[Any], keys: RowKeys) -> Array:
    """By what the call is that waits, and whose stream it names."""
    rows = store.sql(
        f"SELECT leaf, row, CASE WHEN {DEVICE_SYNC.condition} THEN 'device' WHEN {EVENT_SYNC.condition} THEN 'event' "
        f"WHEN {STREAM_QUERY.condition} OR {EVENT_QUERY.condition} THEN 'polling' WHEN {BLOCKING_COPY.condition} "
        f"THEN 'blocking copy' ELSE '' END, coalesce(stream::VARCHAR, '') FROM cuda_calls WHERE pid = {pid} AND "
        f"{CARRIERS.condition}"
    )
    kinds = {(leaf, row): (kind, stream) for leaf, row, kind, stream in rows}
    out = np.full(len(keys), HOW.index("none found"), dtype=np.int64)
    for i, (leaf, row) in enumerate(keys.tolist()):
        if leaf != NONE:
            kind, stream = kinds[leaf, row]
            out[i] = HOW.index(kind or ("same stream" if stream == streams[i] else "stream that waited for an event"))
    return out
