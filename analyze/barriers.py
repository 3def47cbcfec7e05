"""The barrier correlator: for each collective call of a process, the call in which its host waits for it, and how.

Told of every process that made collectives, also where the communicator has no identity, or too few of its ranks were
observed to say who was late. How a wait was found (:data:`HOW`): a synchronisation of the same stream, of the device,
of an event recorded after it, of another stream that had been made to wait for such an event, a blocking copy on the
same stream, the host's own polling of the stream or the event, or none. Units: ns on CLOCK_BOOTTIME.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.call_meanings import BLOCKING_COPY, DEVICE_SYNC, EVENT_QUERY, EVENT_SYNC, STREAM_QUERY, any_of
from gpuaudit.analyze.collectives import COLLECTIVE
from gpuaudit.analyze.evidence import RowKeys
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.store import NOT_OWN, Store
from gpuaudit.analyze.syncs import CARRIERS, NONE, Array, Syncs

HOW = ("same stream", "device", "event", "stream that waited for an event", "blocking copy", "polling", "none found")
"""How the wait for a collective was found; in this order in tables."""

_SAME, _DEVICE, _EVENT, _OTHER, _COPY, _POLLING, _NONE_FOUND = range(len(HOW))

_ROWS = 1 << 31
"""More than a leaf has rows."""


@dataclass(frozen=True)
class Barriers:
    """Collectives of one process in order of time.

    ``calls`` and ``syncs`` are (n, 2) bounds, :data:`NONE` where open or without; ``how`` are positions in :data:`HOW`;
    ``comm`` is the handle and ``comm_id`` the identity, in digits: empty where it was not recorded; ``tid`` the thread
    that made the collective.
    """

    pid: int
    tid: Array
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
        return np.array([bool(len(self.at(a, b))) for a, b in parts.tolist()], dtype=bool)

    def at(self, start: int, end: int) -> npt.NDArray[np.intp]:
        """The collectives of which this is the call, or the wait."""
        by_wait = self._by_wait
        low, high = np.searchsorted(self.calls[:, 0], [start, start + 1])
        first, last = np.searchsorted(self.syncs[by_wait, 0], [start, start + 1])
        mine = np.arange(low, high)[self.calls[low:high, 1] == end]
        waited = by_wait[first:last][self.syncs[by_wait[first:last], 1] == end]
        return np.union1d(mine, waited).astype(np.intp)

    def within(self, steps: Intervals, tid: int | None) -> Intervals:
        """Calls and waits of a thread's collectives that lie in one of its ``steps``, each once, in order of time."""
        mine = self.tid == tid
        both = np.concatenate([self.calls[mine], self.syncs[mine]])
        both = np.unique(both[(both != NONE).all(axis=1)], axis=0)
        at = np.searchsorted(steps[:, 0], both[:, 0], side="right") - 1
        ends = steps[np.maximum(at, 0), 1]
        out: Intervals = both[(at >= 0) & (both[:, 0] < ends) & (both[:, 1] <= ends)]
        return out

    @cached_property
    def _by_wait(self) -> npt.NDArray[np.intp]:
        """Collectives in the order in which their waits began."""
        return np.argsort(self.syncs[:, 0], kind="stable")

    @property
    def waited(self) -> Array:
        """Per collective, ns from its call to the end of the wait; :data:`NONE` where neither end was seen."""
        through = np.where(self.syncs[:, 1] == NONE, self.calls[:, 1], self.syncs[:, 1])
        out: Array = np.where(through == NONE, NONE, through - self.calls[:, 0])
        return out


def same_rows(a: Intervals, b: Intervals) -> npt.NDArray[np.bool_]:
    """Which rows of ``a`` (start, end) are rows of ``b`` too: the same call, not just the same time."""
    both = np.concatenate([a, b])
    number = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
    out: npt.NDArray[np.bool_] = np.isin(number[: len(a)], number[len(a) :])
    return out


def read_barriers(store: Store, syncs: Syncs) -> dict[int, Barriers]:
    """Every process with a collective, by process id."""
    if not store.row_count("nccl_calls"):
        return {}
    a = store.arrays(
        "SELECT pid::BIGINT AS pid, tid::BIGINT AS tid, op, start_ns::BIGINT AS start_ns, "
        f"coalesce(end_ns, {NONE})::BIGINT AS end_ns, coalesce(stream::VARCHAR, '') AS stream, "
        f"comm_handle::VARCHAR AS comm, coalesce(comm_id::VARCHAR, '') AS comm_id, leaf::BIGINT AS leaf, "
        f"row::BIGINT AS row FROM nccl_calls WHERE {COLLECTIVE} AND {NOT_OWN} ORDER BY pid, start_ns, leaf, row"
    )
    return {int(p): _of(store, syncs, int(p), {k: v[a["pid"] == p] for k, v in a.items()}) for p in np.unique(a["pid"])}


def _of(store: Store, syncs: Syncs, pid: int, a: dict[str, npt.NDArray[Any]]) -> Barriers:
    start, end, keys = syncs.following(pid, a)
    return Barriers(
        pid=pid, tid=a["tid"],
        calls=np.stack([a["start_ns"], a["end_ns"]], axis=1), syncs=np.stack([start, end], axis=1),
        call_keys=np.stack([a["leaf"], a["row"]], axis=1), sync_keys=keys,
        how=_how(store, pid, a["stream"], keys), comm=a["comm"], comm_id=a["comm_id"], op=a["op"],
    )  # fmt: skip


def _how(store: Store, pid: int, streams: npt.NDArray[Any], keys: RowKeys) -> Array:
    """By what the call is that waits, and whose stream it names."""
    a = store.arrays(
        f"SELECT leaf::BIGINT AS leaf, row::BIGINT AS row, CASE WHEN {store.means(DEVICE_SYNC)} THEN {_DEVICE} "
        f"WHEN {store.means(EVENT_SYNC)} THEN {_EVENT} WHEN {store.means(any_of(STREAM_QUERY, EVENT_QUERY))} "
        f"THEN {_POLLING} WHEN {store.means(BLOCKING_COPY)} THEN {_COPY} ELSE {_SAME} END::BIGINT AS how, "
        f"coalesce(stream::VARCHAR, '') AS stream FROM cuda_calls WHERE pid = {pid} AND {store.means(CARRIERS)} "
        "ORDER BY leaf, row"
    )
    out = np.full(len(keys), _NONE_FOUND, dtype=np.int64)
    found = np.flatnonzero(keys[:, 0] != NONE)
    if len(found):
        at = np.searchsorted(a["leaf"] * _ROWS + a["row"], keys[found, 0] * _ROWS + keys[found, 1])
        how = a["how"][at]
        out[found] = np.where((how == _SAME) & (a["stream"][at] != streams[found]), _OTHER, how)
    return out
