"""Synchronisation calls by thread: where the host waits for a collective that returned at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.evidence import RowKeys
from gpuaudit.analyze.store import NOT_OWN, Store

Array = npt.NDArray[np.int64]

NONE = -1
"""Stands for "not there" in integer arrays: an open call has no end, a call may have no synchronisation after it."""

SYNC_OPS = ("cudaStreamSynchronize", "cudaDeviceSynchronize")
"""What waits for the work of a stream, or of all streams of the device (CUDA Runtime API, stream management)."""


class Syncs:
    """Synchronisation calls by thread, to find the one that follows a collective."""

    def __init__(self, store: Store) -> None:
        ops = ", ".join(f"'{op}'" for op in SYNC_OPS)
        self._all = store.arrays(
            f"SELECT pid::BIGINT AS pid, tid::BIGINT AS tid, op = 'cudaDeviceSynchronize' AS device, "
            f"coalesce(stream::VARCHAR, '') AS stream, start_ns::BIGINT AS start_ns, coalesce(end_ns, "
            f"{NONE})::BIGINT AS end_ns, "
            f"leaf::BIGINT AS leaf, row::BIGINT AS row FROM cuda_calls WHERE op IN ({ops}) AND {NOT_OWN} "
            "AND (return_code IS NULL OR return_code = 0) ORDER BY pid, tid, start_ns, leaf, row"
        )

    def following(self, pid: int, calls: dict[str, npt.NDArray[Any]]) -> tuple[Array, Array, RowKeys]:
        """Start, end and key of the first synchronisation after each call, on its thread and stream."""
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
