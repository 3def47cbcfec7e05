"""Chain: every observed rank had entered a collective, and they all waited on for ranks of another host.

Effect: slow calls that are a collective of a communicator of which not all ranks were observed, or in which the host
waits for one. Cause: of such a call, the time after the last observed rank had entered, less what the same rank usually
needs from there (the median in the collectives of the same kind), and only where the observed ranks' waits ended
together. What is left are ranks that nobody observed, and the way to them: they are inferred, never seen. A host that
is as slow in every collective makes none longer than usual, and is not told of. Units: ns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze import imposed, intervals, lateness
from gpuaudit.analyze.causal import collective_calls, model
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.collectives import Collectives
from gpuaudit.analyze.effects import slow_steps
from gpuaudit.analyze.finding import Declaration, Threshold
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.sockets import shown
from gpuaudit.analyze.store import NOT_OWN
from gpuaudit.analyze.syncs import CARRIERS, NONE, Array

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

TOGETHER = Threshold(
    "together_ns", int(lateness.FLOOR.value), "ns",
    "chosen: the floor of lateness; waits that end within one scheduling slice ended for one reason",
)  # fmt: skip

DECLARATION = Declaration(
    id="slow_host",
    kind="chain",
    title="Slow ranks of another host",
    question="Did the observed ranks of a communicator all wait on in a collective, for ranks that were not observed?",
    inputs=(
        ("nccl_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "comm_id", "rank", "nranks", "stream")),
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "stream", "handle")),
        ("socket_io", ("pid", "local_address", "remote_address")),
    ),
    thresholds=(TOGETHER, imposed.COMPARED, *model.THRESHOLDS),
    texts={
        "slow_host": "For {explained} of {effect_time} ({share}) of {effect} all observed ranks had entered the "
        "collective and waited on, longer than they usually do from there: consistent with {culprit} being late or "
        "slow to reach. Addresses of other hosts that the observed ranks exchange data with: {addresses}.",
    },
    never_claims="That a rank was late, that its host was slow or that the network was: neither they nor the GPUs' own "
    "work were observed; a GPU of an observed rank that was slow makes the same picture.",
    assumptions=("The n-th collective of one rank is the n-th of every other (NCCL's own requirement).",),
)  # fmt: skip

INFERRED = "no rank of the other host was observed: a capture of it in the same time would show whether it was late"
ONE_ONLY = "only one rank of the communicator was observed: its own GPU may have been slow"

MAX_ADDRESSES = 4
"""Addresses that are named, the first in order; who made them up is not known."""


@dataclass
class _Found:
    c: Collectives
    pieces: list[tuple[int, int]] = field(default_factory=list)
    at: list[int] = field(default_factory=list)


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """For each effect, the communicators with ranks elsewhere that its calls waited on for."""
    from gpuaudit.analyze.context import NotEvaluated  # noqa: PLC0415 - it imports what imports this

    if not context.aligned:
        why = (
            "no communicator's identity was recorded" if context.without_identity else "no NCCL collective was recorded"
        )
        return NotEvaluated(context.quality.source_reason("nccl") or why)
    usable = {i for i, c in enumerate(context.aligned) if c.count and len(c.ranks) < c.nranks}
    if not usable:
        return {}
    out: dict[str, list[Cause]] = {}
    usual: dict[tuple[int, int, int], int | None] = {}
    for e in effects:
        found: dict[int, _Found] = {}
        for call in collective_calls.of_effect(context, e):
            for position, at in call.carried:
                if position in usable:
                    c = context.aligned[position]
                    low = _since(context, c, c.pids.index(e.pid), at, usual)
                    mine = found.setdefault(position, _Found(c))
                    if low is not None:
                        mine.pieces.append((max(low, call.start), call.end))
                        mine.at.append(at)
        causes = [_cause(context, f) for _, f in sorted(found.items()) if f.pieces]
        if causes:
            out[e.key] = causes
    return out


def _since(
    context: Context, c: Collectives, r: int, at: int, usual: dict[tuple[int, int, int], int | None]
) -> int | None:
    """From when the rank waited longer than it usually does after the last observed rank had come; None where that
    cannot be told, or the observed ranks did not end together."""
    ends = _through(c)[:, at]
    if (ends == NONE).any() or int(ends.max() - ends.min()) > context.policy.value(TOGETHER, DECLARATION.id):
        return None
    key = (c.comm_id, r, int(c.kind[at]))
    if key not in usual:
        usual[key] = _usual(context, c, r, key[2])
    tail = usual[key]
    return None if tail is None else int(c.last_arrival[at]) + tail


def _through(c: Collectives) -> Array:
    return np.where(c.sync_end == NONE, c.call_end, c.sync_end)


def _usual(context: Context, c: Collectives, r: int, kind: int) -> int | None:
    """Median time from the last observed arrival to the end of the rank's wait, of one kind; None with too few."""
    through = _through(c)[r]
    alike = (c.kind == kind) & (through != NONE)
    if int(alike.sum()) <= context.policy.value(imposed.COMPARED, DECLARATION.id):
        return None
    tails: Array = np.sort((through - c.last_arrival)[alike])
    return max(0, int(tails[(len(tails) - 1) // 2]))


def _cause(context: Context, f: _Found) -> Cause:
    c, pieces = f.c, np.array(f.pieces, dtype=np.int64)
    culprit = f"{_unseen(c)} of communicator {c.name}, not observed"
    return Cause(
        culprit=culprit, time=intervals.from_bounds(pieces[:, 0], pieces[:, 1]), evidence=_evidence(context, f),
        text="slow_host",
        what=f"every observed rank had entered and waited on, longer than usual: consistent with {culprit}",
        values={"addresses": _addresses(context, c.pids)}, subject={"comm": c.name},
        against=(INFERRED, ONE_ONLY) if len(c.ranks) == 1 else (INFERRED,),
    )  # fmt: skip


def _unseen(c: Collectives) -> str:
    """The ranks that were not observed, as runs: "ranks 4–7, 9". How many a stranger's bundle says there are may be
    anything, so that none of them is written down singly."""
    edges = [-1, *sorted(c.ranks), c.nranks]
    runs = [(a + 1, b - 1) for a, b in pairwise(edges) if b - a > 1]
    told = ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs[:MAX_ADDRESSES])
    one = len(runs) == 1 and runs[0][0] == runs[0][1]
    return ("rank " if one else "ranks ") + told + (" …" if len(runs) > MAX_ADDRESSES else "")


def _addresses(context: Context, pids: Sequence[int]) -> str:
    """Other ends of the ranks' sockets that are no address of a followed process of this host."""
    rows = context.store.sql(
        f"SELECT DISTINCT remote_address FROM socket_io WHERE pid IN ({', '.join(map(str, pids))}) "
        "AND remote_address NOT IN (SELECT local_address FROM socket_io WHERE local_address IS NOT NULL "
        f"AND {NOT_OWN}) ORDER BY 1 LIMIT {MAX_ADDRESSES}"
    )
    return ", ".join(shown(a) for (a,) in rows) or "none recorded"


def _evidence(context: Context, f: _Found) -> Callable[[Intervals], tuple[str, ...]]:
    """The observed ranks' calls and waits for these collectives, and all of the communicator, which tell the usual."""

    def rows(_: Intervals) -> tuple[str, ...]:
        told = [context.book.where("nccl_calls", f.c.where)]
        told.append(context.book.listed("nccl_calls", f.c.call_keys[:, f.at].reshape(-1, 2), f.c.where))
        waits = f.c.sync_keys[:, f.at].reshape(-1, 2)
        waits = waits[waits[:, 0] != NONE]
        if len(waits):
            pids = ", ".join(map(str, f.c.pids))
            told.append(context.book.listed("cuda_calls", waits, f"{CARRIERS.condition} AND pid IN ({pids})"))
        return tuple(told)

    return rows


DETECTOR = Detector(
    precedence=140,
    kinds=frozenset({"slow_call", slow_steps.KIND}),
    scope="same communicator and collective, the very call that carries the wait of an observed rank",
    find=find,
    refuted_by="A capture of the other host in the same time that shows its ranks entering no later than these.",
    experiment="Run the same job without the suspected host, or with its ranks on this one, and compare.",
    next_step="Capture the host of the ranks that are named, at the same time; see its load and its network.",
    inferred=True,
)
