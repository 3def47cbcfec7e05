"""Synchronisation calls: where the host waits for a collective that returned at once.

Without events, the first synchronisation after it on its thread and stream, or of the device, or the first blocking
copy to or from the host where the stream is the default one, on which such copies are made. In a process that makes
streams wait for events, or waits for events itself, the order of its streams tells (``stream_order.py``), whichever
thread waits. A collective that none of these waits for is waited for by the host's own polling where the same thread
asks for its stream, or for an event recorded on it, until that is done: from the first question to the last answer.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import stream_order
from gpuaudit.analyze.call_meanings import (
    BLOCKING_COPY,
    DEVICE_SYNC,
    EVENT_QUERY,
    EVENT_RECORD,
    EVENT_SYNC,
    FIRST,
    OUTERMOST,
    STREAM_QUERY,
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

CARRIERS = any_of(WAITS, BLOCKING_COPY, STREAM_QUERY, EVENT_QUERY)
"""Every call in which a wait may be found to lie."""

_DEFAULT_STREAM_COPY = (
    "({copy} AND direction IN (1, 2) AND coalesce(stream, 0) = 0 AND NOT "
    "regexp_matches(op, '_pt[ds]s?z?$') AND pid IN (SELECT pid FROM nccl_calls WHERE stream = 0))"
)
"""Copies between host and device on the legacy default stream, which wait for what was given to it before (CUDA Runtime
API, API synchronisation behaviour); of processes that give it collectives."""

NOT_READY = 600
"""cudaErrorNotReady, CUDA_ERROR_NOT_READY and hipErrorNotReady."""

_POLLS = f"""
WITH q AS (
  SELECT tid::BIGINT AS tid, {STREAM_QUERY.condition} AS of_stream, coalesce(stream::VARCHAR, '') AS stream,
    coalesce(handle::VARCHAR, '') AS event, return_code = 0 AS done, start_ns::BIGINT AS start_ns,
    end_ns::BIGINT AS end_ns, leaf::BIGINT AS leaf, row::BIGINT AS row
  FROM cuda_calls WHERE pid = {{pid}} AND {any_of(STREAM_QUERY, EVENT_QUERY).condition} AND {FIRST}
    AND return_code IN (0, {NOT_READY}) AND duration_ns IS NOT NULL
), runs AS (
  SELECT *, coalesce(sum(done::BIGINT) OVER (PARTITION BY tid, of_stream, stream, event
    ORDER BY start_ns, leaf, row ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS run FROM q
)
SELECT tid, CASE WHEN of_stream THEN {stream_order.STREAM_SYNC} ELSE {stream_order.EVENT_SYNC} END::BIGINT AS kind,
  stream, event, min(start_ns) AS began, max(start_ns) AS start_ns, max(end_ns) AS end_ns,
  arg_max(leaf, start_ns) AS leaf, arg_max(row, start_ns) AS row
FROM runs GROUP BY tid, of_stream, stream, event, run HAVING bool_or(done) ORDER BY start_ns, leaf, row
"""
"""Questions asked again and again until the answer was yes: each run of them is one wait."""

_SUCCEEDED = "(return_code IS NULL OR return_code = 0)"

_STEP = (
    f"CASE WHEN {EVENT_RECORD.condition} THEN {stream_order.RECORD} WHEN {STREAM_WAIT.condition} "
    f"THEN {stream_order.WAIT} WHEN {STREAM_SYNC.condition} OR {BLOCKING_COPY.condition} "
    f"THEN {stream_order.STREAM_SYNC} "
    f"WHEN {EVENT_SYNC.condition} THEN {stream_order.EVENT_SYNC} ELSE {stream_order.DEVICE_SYNC} END"
)


class Syncs:
    """Synchronisation calls by process, to find the one that waits for a collective."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @cached_property
    def _copy(self) -> str:
        """SQL condition of a copy that waits for what was given to the default stream before."""
        return _DEFAULT_STREAM_COPY.format(copy=self._store.means(BLOCKING_COPY))

    @cached_property
    def _all(self) -> dict[str, npt.NDArray[Any]]:
        means = self._store.means
        return self._store.arrays(
            f"SELECT pid::BIGINT AS pid, tid::BIGINT AS tid, {means(DEVICE_SYNC)} AS device, "
            f"CASE WHEN {self._copy} THEN '0' ELSE coalesce(stream::VARCHAR, '') END AS stream, "
            f"start_ns::BIGINT AS start_ns, coalesce(end_ns, {NONE})::BIGINT AS end_ns, "
            f"leaf::BIGINT AS leaf, row::BIGINT AS row FROM cuda_calls WHERE {FIRST} "
            f"AND ({means(any_of(STREAM_SYNC, DEVICE_SYNC))} OR {self._copy}) "
            f"AND {NOT_OWN} AND {_SUCCEEDED} ORDER BY pid, tid, start_ns, leaf, row"
        )

    @cached_property
    def _ordering(self) -> frozenset[int]:
        """Processes whose streams wait for events, or that wait for events themselves."""
        rows = self._store.sql(
            f"SELECT DISTINCT pid FROM cuda_calls WHERE {self._store.means(any_of(STREAM_WAIT, EVENT_SYNC))} "
            f"AND {OUTERMOST} AND handle IS NOT NULL AND {NOT_OWN}"
        )
        return frozenset(int(pid) for (pid,) in rows)

    def following(self, pid: int, calls: dict[str, npt.NDArray[Any]]) -> tuple[Array, Array, RowKeys]:
        """Start, end and key of the synchronisation that waits for each call, :data:`NONE` where none does."""
        if pid in self._ordering:
            return self._with_polls(pid, calls, *self._by_order(pid, calls))
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
        return self._with_polls(pid, calls, start, end, keys)

    def _with_polls(
        self, pid: int, calls: dict[str, npt.NDArray[Any]], start: Array, end: Array, keys: RowKeys
    ) -> tuple[Array, Array, RowKeys]:
        """The same, and polling of the same thread for each call that nothing else waits for."""
        without = (start == NONE) & (calls["end_ns"] != NONE)
        if not without.any():
            return start, end, keys
        polls = self._store.arrays(_POLLS.format(pid=int(pid)))
        for tid in np.unique(calls["tid"][without]).tolist():
            asked = {k: v[polls["tid"] == tid] for k, v in polls.items()}
            if not len(asked["tid"]):
                continue
            mine = np.flatnonzero(without & (calls["tid"] == tid))
            hit = self._first_of(pid, {k: v[mine] for k, v in calls.items()}, asked)
            at, found = mine[hit != NONE], hit[hit != NONE]
            start[at] = np.maximum(asked["began"][found], calls["end_ns"][at])
            end[at] = asked["end_ns"][found]
            keys[at] = np.stack([asked["leaf"][found], asked["row"][found]], axis=1)
        return start, end, keys

    def _first_of(self, pid: int, calls: dict[str, npt.NDArray[Any]], waits: dict[str, npt.NDArray[Any]]) -> Array:
        """For each call the first of ``waits`` that is for it, by the order of streams and events."""
        marks = self._store.arrays(
            f"SELECT CASE WHEN {EVENT_RECORD.condition} THEN {stream_order.RECORD} ELSE {stream_order.WAIT} "
            "END::BIGINT AS kind, coalesce(stream::VARCHAR, '') AS stream, coalesce(handle::VARCHAR, '') AS event, "
            f"start_ns::BIGINT AS start_ns FROM cuda_calls WHERE pid = {int(pid)} AND {OUTERMOST} AND {_SUCCEEDED} "
            f"AND {any_of(EVENT_RECORD, STREAM_WAIT).condition} ORDER BY start_ns, leaf, row"
        )
        n = len(calls["end_ns"])
        steps = [
            (int(t), stream_order.COLLECTIVE, i, s, "") for i, (t, s) in enumerate(_pairs(calls, "end_ns", "stream"))
        ]
        for group in (marks, waits):
            steps += [
                (int(t), int(k), i, str(s), str(e))
                for i, (t, k, s, e) in enumerate(_pairs(group, "start_ns", "kind", "stream", "event"))
            ]
        steps.sort(key=lambda x: x[0])
        found = stream_order.synchronisations(((k, i, s, e) for _, k, i, s, e in steps), n)
        return np.array(found, dtype=np.int64)

    def _by_order(self, pid: int, calls: dict[str, npt.NDArray[Any]]) -> tuple[Array, Array, RowKeys]:
        """The same by what streams and events say; a call takes effect when it returned, a wait when it began."""
        steps = self._store.arrays(
            f"SELECT ({_STEP})::BIGINT AS kind, CASE WHEN {self._copy} THEN '0' ELSE "
            "coalesce(stream::VARCHAR, '') END AS stream, coalesce(handle::VARCHAR, '') "
            f"AS event, start_ns::BIGINT AS start_ns, coalesce(end_ns, {NONE})::BIGINT AS end_ns, "
            f"leaf::BIGINT AS leaf, row::BIGINT AS row FROM cuda_calls WHERE pid = {int(pid)} "
            f"AND {OUTERMOST} AND {_SUCCEEDED} AND ({any_of(WAITS, EVENT_RECORD, STREAM_WAIT).condition} OR "
            f"{self._copy}) "
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


def _pairs(columns: dict[str, npt.NDArray[Any]], *names: str) -> list[tuple[Any, ...]]:
    """Rows of the named columns."""
    return list(zip(*(columns[n].tolist() for n in names), strict=True))
