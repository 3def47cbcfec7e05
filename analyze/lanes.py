"""The intervals that a chain speaks of, as lanes: what was lost, what explains it, and who waited meanwhile.

They are the very intervals that the shares were computed from (:attr:`gpuaudit.analyze.context.Context.causal`), found
again by the words of the links. A link that is not made of effects and causes is drawn by the sealed rows that it names
as evidence, and says so by its role. Units: ns on the capture's clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from gpuaudit.analyze import intervals
from gpuaudit.analyze.causal.detect import LATE_ARRIVAL
from gpuaudit.analyze.causal.model import Cause, Effect
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Chain, Evidence, Link
from gpuaudit.analyze.intervals import Intervals

Role = Literal["effect", "cause", "peer", "rows"]

MOST_PEERS = 16
"""Peers of a late rank that get a lane, those that waited longest; the others are counted."""

MOST_ROWS = 100_000
"""Rows of one evidence entry that are drawn, the first ones: a lane has a few hundred columns."""


@dataclass(frozen=True)
class Lane:
    """``time`` of one role. ``pid`` and ``tid`` tell whose it is, where it is one thread's; ``parts`` has a row (start,
    end) for each call, arrival or wait, which may touch where ``time`` does not tell them apart."""

    role: Role
    label: str
    time: Intervals
    pid: int | None = None
    tid: int | None = None
    parts: Intervals = field(default_factory=lambda: intervals.EMPTY)


@dataclass(frozen=True)
class Step:
    """One link: ``overlap`` is the time of ``effect`` that ``cause`` explains, as it was allotted."""

    effect: Lane
    cause: Lane
    overlap: Intervals


@dataclass(frozen=True)
class Drawing:
    """Lanes in the order in which they are read, each once; ``omitted`` counts peers that have none."""

    lanes: tuple[Lane, ...]
    steps: tuple[Step, ...]
    omitted: int = 0


def drawing(context: Context, chain: Chain) -> Drawing:
    """What there is to draw of one chain."""
    peers = _peers(context, chain)
    steps = [*peers[:MOST_PEERS], *(s for link in chain.links for s in _steps(context, link))]
    lanes: dict[tuple[Role, str], Lane] = {}
    for step in steps:
        for lane in (step.effect, step.cause):
            lanes.setdefault((lane.role, lane.label), lane)
    if not lanes:
        for lane in _rows(context, chain):
            lanes.setdefault((lane.role, lane.label), lane)
    order: list[Role] = ["effect", "cause", "peer", "rows"]
    ordered = sorted(lanes.values(), key=lambda x: order.index(x.role))
    return Drawing(tuple(ordered), tuple(steps), max(0, len(peers) - MOST_PEERS))


def _steps(context: Context, link: Link) -> Iterator[Step]:
    for effect in context.causal.effects:
        if effect.name != link.effect or effect.key not in context.causal.allotments:
            continue
        for part in context.causal.allotments[effect.key].parts:
            cause = part.who[1]
            if (cause.what or cause.culprit) == link.cause:
                yield Step(_effect(effect), _cause(effect, cause), part.allotted)


def _effect(e: Effect) -> Lane:
    return Lane("effect", e.name, e.time, e.pid, e.tid, e.parts)


def _cause(e: Effect, c: Cause) -> Lane:
    return Lane("cause", c.culprit, c.time, e.pid, e.tid, c.time)


def _peers(context: Context, chain: Chain) -> list[Step]:
    """The other ranks of a late rank's communicator while not all had come, those that waited longest first."""
    comm, rank = chain.subject.get("comm"), chain.subject.get("rank")
    late = [
        e for e in context.causal.effects
        if e.kind == LATE_ARRIVAL and (e.subject.get("comm"), e.subject.get("rank")) == (comm, rank)
    ]  # fmt: skip
    if comm is None or not late:
        return []
    cause = _effect(late[0])
    steps = []
    for c in context.collectives:
        for r, pid in zip(c.ranks, c.pids, strict=True) if c.name == comm else ():
            if str(r) == rank:
                continue
            waits = intervals.union(*(t for name, t in context.waiting.get(pid, ()) if name == comm))
            label = f"rank {r} ({context.process_name(pid)} {pid}) waits for its peers"
            steps.append(
                Step(Lane("peer", label, waits, pid, None, waits), cause, intervals.intersect(waits, cause.time))
            )
    return sorted(steps, key=lambda s: -intervals.measure(s.overlap))


def _rows(context: Context, chain: Chain) -> Iterator[Lane]:
    """A lane for each evidence entry whose rows have a beginning."""
    entries = {e.id: e for e in context.book.entries()}
    for id in dict.fromkeys((*chain.evidence, *(i for x in chain.links for i in x.evidence))):
        if id in entries:
            yield from _of_entry(context, entries[id])


def _of_entry(context: Context, e: Evidence) -> Sequence[Lane]:
    columns = {str(c[0]) for c in context.store.sql(f"DESCRIBE {e.query}")}
    if "start_ns" not in columns:
        return []
    length = "coalesce(duration_ns, 0)" if "duration_ns" in columns else "0"
    a = context.store.arrays(
        f"SELECT start_ns::BIGINT AS a, (start_ns + {length})::BIGINT AS b FROM ({e.query}) LIMIT {MOST_ROWS}"
    )
    parts = np.stack([a["a"], a["b"]], axis=1).astype(np.int64)
    return [Lane("rows", f"{e.id}: {e.rows} rows of {e.table}", intervals.from_bounds(a["a"], a["b"]), parts=parts)]
