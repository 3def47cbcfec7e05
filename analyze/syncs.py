"""Synchronisation calls: where the host waits for a collective that returned at once.

Without events, the first synchronisation after it on its thread and stream, or of the device. In a process that makes
streams wait for events, or waits for events itself, the order of its streams tells (``stream_order.py``), whichever
thread waits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import stream_order
from gpuaudit.analyze.call_meanings import (
    DEVICE_SYNC,
    EVENT_RECORD,
    EVENT_SYNC,
    OUTERMOST,
    STREAM_SYNC,
    STREAM_WAIT,
    any_of,
)
from gpuaudit.analyze.evidence import RowKeys
from gpuaudit.analyze.store import NOT_OWN, Store

Array = npt.NDArray[np.int64]

NONE = -1
"""Stands for "not there" in integer arrays: an open call has no end, a call may have no synchronisation after it."""

WAITS = any_of(STREAM_SYNC, DEVICE_SYNC, EVENT_SYNC)
"""What waits for the work of a stream, of all streams of the device, or before an event."""

_SUCCEEDED = "(return_code IS NULL OR return_code = 0)"

_STEP = (
    f"CASE WHEN {EVENT_RECORD.condition} THEN {stream_order.RECORD} WHEN {STREAM_WAIT.condition} "
    f"THEN {stream_order.WAIT} WHEN {STREAM_SYNC.condition} THEN {stream_order.STREAM_SYNC} "
    f"WHEN {EVENT_SYNC.condition} THEN {stream_order.EVENT_SYNC} ELSE {stream_order.DEVICE_SYNC} END"
)


class Syncs:
    """Synchronisation calls by process, to find the one that waits for a collective."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._all = store.arrays(
            f"SELECT pid::BIGINT AS pid, tid::BIGINT AS tid, {DEVICE_SYNC.condition} AS device, "
            f"coalesce(stream::VARCHAR, '') AS stream, start_ns::BIGINT AS start_ns, coalesce(end_ns, "
            f"{NONE})::BIGINT AS end_ns, "
            f"leaf::BIGINT AS leaf, row::BIGINT AS row FROM cuda_calls WHERE {any_of(STREAM_SYNC, DEVICE_SYNC).first} "
            f"AND {NOT_OWN} AND {_SUCCEEDED} ORDER BY pid, tid, start_ns, leaf, row"
        )
        ordering = store.sql(
            f"SELECT DISTINCT pid FROM cuda_calls WHERE {any_of(STREAM_WAIT, EVENT_SYNC).condition} AND {OUTERMOST} "
            f"AND handle IS NOT NULL AND {NOT_OWN}"
        )
        self._ordering = {int(pid) for (pid,) in ordering}
        """Processes whose streams wait for events, or that wait for events themselves."""

    def following(self, pid: int, calls: dict[str, npt.NDArray[Any]]) -> tuple[Array, Array, RowKeys]:
        """Start, end and key of the synchronisation that waits for each call, :data:`NONE` where none does."""
        if pid in self._ordering:
            return self._by_order(pid, calls)
        n = len(calls["start_ns"])
        start, end = np.full(n, NONE, dtype=np.int64), np.full(n, NONE, dtype=np.int64)
        keys = np.full((n, 2), NONE, dtype=np.int64)
        of_process = self._all["pid"] == pid
        for tid in np.unique(calls["tid"]).tolist():
            thread = of_process & (self._all["tid"] == tid)
            for stream in sorted(set(calls["stream"][calls["tid"] == tid].tolist())):
                syncs = np.flatnonzero(thread & (self._all["device"] | (self._all["stream"] == stream)))
                mine = np.flatnonzero((calls["tid"] == tid) & (calls["stream"] == stream) & (calls["end_ns"] != NONE))
                at = np.searchsorted(self._all["start_ns"][syncs], calls["end_ns"][mine])
                mine, hit = mine[at < len(syncs)], syncs[at[at < len(syncs)]]
                start[mine], end[mine] = self._all["start_ns"][hit], self._all["end_ns"][hit]
                keys[mine] = np.stack([self._all["leaf"][hit], self._all["row"][hit]], axis=1)
        return start, end, keys

    def _by_order(self, pid: int, calls: dict[str, npt.NDArray[Any]]) -> tuple[Array, Array, RowKeys]:
        """The same by what streams and events say; a call takes effect when it returned, a wait when it began."""
        steps = self._store.arrays(
            f"SELECT ({_STEP})::BIGINT AS kind, coalesce(stream::VARCHAR, '') AS stream, coalesce(handle::VARCHAR, '') "
            f"AS event, start_ns::BIGINT AS start_ns, coalesce(end_ns, {NONE})::BIGINT AS end_ns, "
            f"leaf::BIGINT AS leaf, row::BIGINT AS row FROM cuda_calls WHERE pid = {int(pid)} "
            f"AND {OUTERMOST} AND {_SUCCEEDED} AND {any_of(WAITS, EVENT_RECORD, STREAM_WAIT).condition} "
            "ORDER BY start_ns, leaf, row"
        )
        ended = np.flatnonzero(calls["end_ns"] != NONE)
        moments = np.concatenate([calls["end_ns"][ended], steps["start_ns"]])
        kinds = [*([stream_order.COLLECTIVE] * len(ended)), *steps["kind"].tolist()]
        streams = [*calls["stream"][ended].tolist(), *steps["stream"].tolist()]
        events = [*([""] * len(ended)), *steps["event"].tolist()]
        numbers = [*range(len(ended)), *range(len(steps["kind"]))]
        order = np.argsort(moments, kind="stable").tolist()
        found = stream_order.synchronisations(
            ((kinds[i], numbers[i], streams[i], events[i]) for i in order), len(ended)
        )
        hit = np.array(found, dtype=np.int64)
        out = np.full((len(calls["end_ns"]), 4), NONE, dtype=np.int64)
        columns = np.stack([steps[c] for c in ("start_ns", "end_ns", "leaf", "row")], axis=1).reshape(-1, 4)
        out[ended[hit != NONE]] = columns[hit[hit != NONE]]
        return out[:, 0], out[:, 1], out[:, 2:]
