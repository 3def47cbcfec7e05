"""Late arrivals: from the median arrival of the other ranks to the arrival of the late one, on the late one's thread.

What the late rank's thread did in that time is why it was late. Of every rank that was late once by the thresholds of
the detector of late ranks; whether that is worth a chain that detector decides. Units: ns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze import intervals, lateness
from gpuaudit.analyze.causal.model import Effect
from gpuaudit.analyze.collectives import Collectives, call_threads
from gpuaudit.analyze.evidence import RowKeys
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.syncs import Array

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

KIND = "late_arrival"


def effects(context: Context) -> Sequence[Effect]:
    """One per communicator, late rank and thread."""
    return [e for c in context.collectives if not c.not_evaluated for e in _of_communicator(context, c)]


def key(comm: str, rank: int | str, tid: int) -> str:
    """Name of the effect of one rank."""
    return f"{KIND}:{comm}:{rank}:{tid}"


def _of_communicator(context: Context, c: Collectives) -> list[Effect]:
    judged = lateness.judge(c.arrival, context.late_limits)
    if not judged.late.any():
        return []
    out: list[Effect] = []
    threads = call_threads(context.store, c)
    for r in range(len(c.ranks)):
        at = np.flatnonzero(judged.late & (judged.last == r))
        if len(at):
            parts = np.stack([judged.median[at], c.arrival[r, at]], axis=1)
            out += _of_rank(context, c, r, parts, (c.call_keys[r, at], threads[r, at]))
    return out


def _of_rank(
    context: Context, c: Collectives, r: int, parts: Intervals, made: tuple[RowKeys, Array]
) -> Iterator[Effect]:
    """``parts`` and ``made`` (calls, and their threads) have a row for each late arrival."""
    calls, threads = made
    pid, rank = c.pids[r], c.ranks[r]
    wide = f"{c.where} AND rank = {rank}"
    for tid in sorted(set(threads.tolist())):
        mine = parts[threads == tid]
        counted = "late arrival" if len(mine) == 1 else f"{len(mine)} late arrivals"
        yield Effect(
            kind=KIND, key=key(c.name, rank, tid),
            name=f"the {counted} of rank {rank} ({context.process_name(pid)} {pid}) in communicator "
            f"{c.name}",
            pid=pid, tid=tid, op="arrival", time=intervals.from_bounds(mine[:, 0], mine[:, 1]), parts=mine,
            of_ns=int(c.arrival[r].max() - c.arrival[r].min()) or 1,
            evidence=_evidence(context, c, wide, calls[threads == tid]),
            subject={"comm": c.name, "rank": str(rank), "pid": str(pid), "tid": str(tid)},
        )  # fmt: skip


def _evidence(context: Context, c: Collectives, wide: str, calls: RowKeys) -> Callable[[], tuple[str, ...]]:
    """Arrivals of all ranks, and the late calls of this one."""
    return cache(lambda: (context.book.where("nccl_calls", c.where), context.book.listed("nccl_calls", calls, wide)))
