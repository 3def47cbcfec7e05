"""Who had the CPU while a thread waited for it, turn by turn (``cpu_occupants``): rows of ``off_cpu`` are cut by it.

Of a wait for a CPU that was recorded so, every part becomes a row of its own that says who ran then; what no turn has
becomes one that names nobody. A wait shorter than :data:`OCCUPANTS_FROM_NS` stays as it is, and so do all of them where
the table has no row: there who ran at the switch is all that is known. Units: ns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals
from gpuaudit.analyze.causal.during import THREAD, Columns, During, rows_during, thread_key
from gpuaudit.bundle.tables_host import OCCUPANTS_FROM_NS

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

Times = npt.NDArray[np.int64]

UNKNOWN = -1
"""Null in the integer columns, as in ``states.py``."""

TURN_LEAF, TURN_ROW = "turn_leaf", "turn_row"
"""Columns that :func:`cut` adds: the row of ``cpu_occupants``, :data:`UNKNOWN` where there is none."""

INPUT = ("cpu_occupants", ("start_ns", "duration_ns", "pid", "tid", "comm", "cpu"))
"""What a detector reads that says who ran instead."""

ASSUMED = (
    f"Who had the CPU is recorded turn by turn in waits of {OCCUPANTS_FROM_NS // 1000} µs and longer. In shorter ones, "
    "and where cpu_occupants has no row, who ran at the switch ran for the whole interval."
)
"""What such a detector takes for granted."""

_TURN = {"pid": "next_pid", "tid": "next_tid", "priority": "next_priority", "cgroup_id": "next_cgroup_id"}
"""Columns of a turn, and what they become in a row of ``off_cpu``."""

_TURNS = During(
    "cpu_occupants", "cpu::UBIGINT",
    {**{c: f"coalesce(try_cast({c} AS BIGINT), {UNKNOWN})" for c in _TURN}, "comm": "coalesce(comm, '')"},
    condition="cpu IS NOT NULL",
)  # fmt: skip

_MOVES = During("migrations", THREAD, {"to_cpu": "to_cpu::BIGINT"}, end="start_ns + 1")


def cut(
    context: Context, found: Mapping[str, Columns], waits_from: Mapping[str, Times]
) -> dict[str, tuple[Columns, Columns]]:
    """Rows of ``off_cpu`` by name, cut at the turns, and as they were; ``waits_from`` says since when each row's thread
    was ready to run.

    A thread that was moved while it waited has waited for its last CPU since then: of the time before nobody says who
    had the other one.
    """
    rows = {name: _with_no_turn(a) for name, a in found.items()}
    out = {name: (a, a) for name, a in rows.items()}
    if not context.store.row_count("cpu_occupants"):
        return out
    long = {name: _long(a, waits_from[name]) for name, a in found.items()}
    waits = {name: _bounds(waits_from[name], a["end_ns"], long[name]) for name, a in found.items() if long[name].any()}
    moves = rows_during(context, _MOVES, {
        name: (thread_key(int(found[name]["pid"][0]), int(found[name]["tid"][0])), time) for name, time in waits.items()
    })  # fmt: skip
    since = {name: _since(found[name], waits_from[name], moves.get(name)) for name in waits}
    wanted: dict[str, tuple[int, Times]] = {}
    for name in waits:
        a, mine = found[name], long[name] & (since[name] < found[name]["end_ns"])
        for cpu in sorted(set(a["cpu"][mine].tolist())):
            wanted[f"{cpu}:{name}"] = (cpu, _bounds(since[name], a["end_ns"], mine & (a["cpu"] == cpu)))
    turns = rows_during(context, _TURNS, wanted)
    for name in waits:
        of_cpu = {int(key.partition(":")[0]): t for key, t in turns.items() if key.partition(":")[2] == name}
        out[name] = (_cut(rows[name], waits_from[name], since[name], long[name], of_cpu), rows[name])
    return out


def _long(a: Columns, since: Times) -> npt.NDArray[np.bool_]:
    """Rows whose wait for a CPU is one that turns were recorded for."""
    out: npt.NDArray[np.bool_] = (a["end_ns"] - since >= OCCUPANTS_FROM_NS) & (a["cpu"] != UNKNOWN)
    return out


def _bounds(starts: Times, ends: Times, chosen: npt.NDArray[np.bool_]) -> Times:
    """A set of time: the intervals of one thread are apart from each other."""
    return intervals.from_bounds(starts[chosen], ends[chosen])


def _since(a: Columns, since: Times, moves: Columns | None) -> Times:
    """Since when each wait was one for the CPU that it ended on; its end where that is not known."""
    none = np.empty(0, dtype=np.int64)
    when, where = (moves["start_ns"], moves["to_cpu"]) if moves is not None else (none, none)
    last = np.searchsorted(when, a["end_ns"]) - 1
    moved = (last >= 0) & (np.append(when, 0)[last] >= since)
    there = np.where(moved, np.append(where, 0)[last], a["cpu_out"]) == a["cpu"]
    out: Times = np.where(there, np.where(moved, np.append(when, 0)[last], since), a["end_ns"])
    return out


def _with_no_turn(a: Columns) -> Columns:
    none = np.full(len(a["start_ns"]), UNKNOWN, dtype=np.int64)
    return {**a, TURN_LEAF: none, TURN_ROW: none}


def _cut(a: Columns, ready: Times, since: Times, long: npt.NDArray[np.bool_], turns: Mapping[int, Columns]) -> Columns:
    """The rows of one thread, in order of time."""
    parts = [_asleep(a, ready, long)]
    covered: list[tuple[Times, Times, Times]] = []
    for cpu, t in turns.items():
        mine = np.flatnonzero(long & (since < a["end_ns"]) & (a["cpu"] == cpu))
        of, which, start, end = _shared(since[mine], a["end_ns"][mine], t)
        of = mine[of]
        covered.append((of, start, end))
        piece = _piece(a, of, start, end)
        piece |= {to: t[column][which] for column, to in _TURN.items()} | {"next_comm": t["comm"][which]}
        piece |= {TURN_LEAF: t["leaf"][which].astype(np.int64), TURN_ROW: t["row"][which].astype(np.int64)}
        parts.append(piece)
    nobody = _piece(a, *_uncovered(ready, a["end_ns"], np.flatnonzero(long), covered))
    nobody |= {to: np.full(len(nobody["start_ns"]), UNKNOWN, dtype=a[to].dtype) for to in _TURN.values()}
    parts.append({**nobody, "next_comm": np.full(len(nobody["start_ns"]), "", dtype=object)})
    joined: Columns = {c: np.concatenate([p[c] for p in parts]) for c in a}
    order = np.lexsort((joined["row"], joined["leaf"], joined["end_ns"], joined["start_ns"]))
    return {c: v[order] for c, v in joined.items()}


def _asleep(a: Columns, ready: Times, long: npt.NDArray[np.bool_]) -> Columns:
    """Rows whose waits are not cut as they are, and of the others the sleep before the wait."""
    stays = ~long | (ready > a["start_ns"])
    out = {c: v[stays] for c, v in a.items()}
    shorter = long[stays]
    out["end_ns"] = np.where(shorter, ready[stays], out["end_ns"])
    out["runqueue_ns"] = np.where(shorter, 0, out["runqueue_ns"])
    return out


def _piece(a: Columns, of: Times, start: Times, end: Times) -> Columns:
    """Parts of waits, as rows of a thread that was ready to run and kept from the CPU that it came back to."""
    out: dict[str, npt.NDArray[Any]] = {c: v[of] for c, v in a.items()}
    n = len(of)
    unknown = {c: np.full(n, UNKNOWN, dtype=np.int64) for c in ("wake_ns", "waker_pid", "waker_tid")}
    return out | unknown | {
        "start_ns": start, "end_ns": end, "runqueue_ns": end - start, "cpu_out": out["cpu"],
        "op": np.full(n, "preempted", dtype=object), "waker_comm": np.full(n, "", dtype=object),
        "prev_state": np.zeros(n, dtype=np.int64),
    }  # fmt: skip


def _shared(low: Times, high: Times, t: Columns) -> tuple[Times, Times, Times, Times]:
    """Of waits for one CPU and its turns, each in order of time, every pair that shares a moment: the indices of the
    two, and the bounds of what they share. A CPU has one turn at a time; where a stranger's bundle says otherwise, one
    ends when the next begins."""
    begin = t["start_ns"]
    end = np.minimum(t["end_ns"], np.append(begin[1:], np.iinfo(np.int64).max))
    end = np.maximum(end, begin)
    first, last = np.searchsorted(end, low, side="right"), np.searchsorted(begin, high, side="left")
    count = np.maximum(last - first, 0)
    of = np.repeat(np.arange(len(low)), count)
    which = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    start, stop = np.maximum(begin[which], low[of]), np.minimum(end[which], high[of])
    some = start < stop
    return of[some], which[some], start[some], stop[some]


def _uncovered(
    ready: Times, ends: Times, waits: Times, covered: list[tuple[Times, Times, Times]]
) -> tuple[Times, Times, Times]:
    """Of the waits, what no turn covers: the index of the wait, start and end."""
    of = np.concatenate([c[0] for c in covered] + [waits, waits])
    low = np.concatenate([c[1] for c in covered] + [ready[waits], ends[waits]])
    high = np.concatenate([c[2] for c in covered] + [ready[waits], ends[waits]])
    order = np.lexsort((high, low, of))  # a wait's pieces are apart, between an empty one at each end
    of, low, high = of[order], low[order], high[order]
    hole = (of[1:] == of[:-1]) & (low[1:] > high[:-1])
    return of[1:][hole], high[:-1][hole], low[1:][hole]
