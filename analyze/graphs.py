"""CUDA graphs as their calls tell: when a thread captured and made them, and which were ever launched.

*Making* is the time from the start of cudaStreamBeginCapture to the end of the cudaStreamEndCapture that follows on the
same stream and thread, and the time inside calls that instantiate, clone or update a graph. Units: ns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals
from gpuaudit.analyze.call_meanings import FIRST, GRAPH_LAUNCH, GRAPH_MAKE, Meaning, any_of
from gpuaudit.analyze.call_rows import Rows, pids_of
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.store import NOT_OWN

BEGIN = Meaning("begin to capture a stream", "(cuda|cu|hip)StreamBeginCapture(ToGraph|ToCig)?")
END = Meaning("end the capture of a stream", "(cuda|cu|hip)StreamEndCapture(ToCig)?")
INSTANTIATE = Meaning("instantiate a graph", "(cuda|cu|hip)GraphInstantiate.*")

UNKNOWN = -1

REPLAYED = 10
"""Launches in a row, with nothing made between them, from which on a process replays graphs: a warm-up makes one after
the other and launches each a few times at most."""

MAX_HANDLE = 1 << 63
"""Handles are addresses of host memory: a larger one is none."""


@dataclass(frozen=True)
class Graphs:
    """``calls`` are those that capture or make, ``reach`` the end of each one's making (of a begin: of its capture).

    ``first_launch`` is per process the start of its first graph launch, ``replays`` that of the first of
    :data:`REPLAYED` in a row where there are such, ``launched`` the executable graphs launched by (process, handle),
    ``handles_told`` the processes whose launches all tell the handle.
    """

    calls: Rows
    reach: npt.NDArray[np.int64]
    first_launch: dict[int, int]
    replays: dict[int, int]
    launched: frozenset[tuple[int, int]]
    handles_told: frozenset[int]

    def time(self, chosen: npt.NDArray[np.bool_]) -> Intervals:
        """Making of the chosen calls."""
        return intervals.from_bounds(self.calls.a["start_ns"][chosen], self.reach[chosen])

    def of_thread(self, pid: int, tid: int) -> npt.NDArray[np.bool_]:
        """The calls of one thread."""
        out: npt.NDArray[np.bool_] = (self.calls.a["pid"] == pid) & (self.calls.a["tid"] == tid)
        return out


def read_graphs(context: Context, pids: Iterable[int]) -> Graphs:
    """Every call about graphs of these processes."""
    named = pids_of(pids)
    where = f"{named} AND {context.means(any_of(BEGIN, END, GRAPH_MAKE))} AND {FIRST} AND {NOT_OWN}"
    exec_made = f"CASE WHEN {INSTANTIATE.condition} AND other_handle < {MAX_HANDLE} THEN other_handle END"
    columns = (
        "pid::BIGINT AS pid", "tid::BIGINT AS tid", "coalesce(stream::VARCHAR, '') AS stream",
        f"({BEGIN.condition})::BIGINT - ({END.condition})::BIGINT AS edge",
        f"coalesce({exec_made}, 0)::BIGINT AS made", "coalesce(return_code, 0)::BIGINT AS code",
    )  # fmt: skip
    calls = Rows.read(context, "cuda_calls", where, columns)
    launches = context.store.sql(
        f"SELECT pid, CASE WHEN handle < {MAX_HANDLE} THEN handle END, min(start_ns) FROM cuda_calls "
        f"WHERE {named} AND {context.means(GRAPH_LAUNCH)} AND {NOT_OWN} GROUP BY 1, 2 ORDER BY 1, 2"
    )
    counted = context.store.sql(
        f"SELECT pid, min(start_ns) FROM call_totals WHERE {named} AND {context.means(GRAPH_LAUNCH)} AND count > 0 "
        "GROUP BY 1 ORDER BY 1"
    )
    first: dict[int, int] = {}
    for pid, at in [*((p, at) for p, _, at in launches), *counted]:
        first[int(pid)] = min(first.get(int(pid), int(at)), int(at))
    untold = {int(p) for p, handle, _ in launches if handle is None} | {int(p) for p, _ in counted}
    return Graphs(
        calls, _reach(calls), first, _replays(context, calls),
        frozenset((int(p), int(h)) for p, h, _ in launches if h is not None),
        frozenset(set(calls.a["pid"].tolist()) - untold),
    )  # fmt: skip


def _replays(context: Context, calls: Rows) -> dict[int, int]:
    """Per process that makes graphs: the first launch of the first :data:`REPLAYED` between two makings. Launches are
    counted a batch at a time: a server has more of them than memory ought to hold."""
    out = {}
    for pid in sorted(set(calls.a["pid"].tolist())):
        made = np.sort(calls.a["start_ns"][(calls.a["pid"] == pid) & (calls.a["edge"] >= 0)])
        counts = np.zeros(len(made) + 1, dtype=np.int64)
        first = np.full(len(made) + 1, intervals.FAR, dtype=np.int64)
        for a in context.store.batches(
            f"SELECT start_ns::BIGINT AS start_ns FROM cuda_calls WHERE pid = {pid} AND {context.means(GRAPH_LAUNCH)} "
            f"AND {NOT_OWN}"
        ):
            after = np.searchsorted(made, a["start_ns"], side="right")
            np.add.at(counts, after, 1)
            np.minimum.at(first, after, a["start_ns"])
        if (counts >= REPLAYED).any():
            out[pid] = int(first[counts >= REPLAYED].min())
    return out


def _reach(calls: Rows) -> npt.NDArray[np.int64]:
    """End of each call, of a begin the end of the capture it began; a begin without an end ends with its call."""
    out: npt.NDArray[np.int64] = calls.a["end_ns"].copy()
    begun: dict[tuple[int, int, str], int] = {}
    places = zip(calls.a["pid"].tolist(), calls.a["tid"].tolist(), calls.a["stream"].tolist(), strict=True)
    for i, (place, edge) in enumerate(zip(places, calls.a["edge"].tolist(), strict=True)):
        if edge > 0:
            begun[place] = i
        elif edge < 0 and place in begun:
            out[begun.pop(place)] = calls.a["end_ns"][i]
    return out
