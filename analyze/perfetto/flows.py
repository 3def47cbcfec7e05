"""The links of chains as flows: from the slices that cause and effect are made of to the time that one explains.

A flow of Perfetto goes forward in time. What a cause explains of an effect begins in both of them, never before: so
two arrows meet at the beginning of each explained interval, one from the cause's slice and one from the effect's.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate, count

from gpuaudit.analyze.lanes import Drawing, Lane
from gpuaudit.analyze.perfetto.slices import CALLS, OFF_CPU, Slice

MOST_EXPLAINED = 10_000
"""Explained intervals of one link that are drawn, the longest ones."""

Key = tuple[str, tuple[int, int]]
At = tuple[Key, int]
"""A slice: its track and its place in the order of it."""


@dataclass
class Explained:
    """One interval on the track of a link; ``ends`` are the flows that meet here, ``flows`` those that go on."""

    start_ns: int
    end_ns: int
    ends: list[int] = field(default_factory=list)
    flows: list[int] = field(default_factory=list)


@dataclass
class Flows:
    """Flow ids by the slice they go out from. ``count`` is how many there are."""

    slices: dict[Key, list[Slice]]
    out: dict[At, list[int]] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        self._ids = count(1)
        self._reach: dict[Key, tuple[list[int], list[int]]] = {}

    def links(self, drawing: Drawing) -> list[list[Explained]]:
        """The explained intervals of each step, joined to the slices they come from and to each other."""
        made = []
        for step in drawing.steps:
            rows = sorted(step.overlap.tolist(), key=lambda x: x[0] - x[1])[:MOST_EXPLAINED]
            made.append([Explained(a, b) for a, b in sorted(rows)])
        for step, explained in zip(drawing.steps, made, strict=True):
            for one in explained:
                for lane in (step.cause, step.effect):
                    self._from_slice(lane, one)
        for at, step in enumerate(drawing.steps):  # what explains the cause goes on to what that cause explains
            for before, of in zip(drawing.steps, made, strict=True):
                if before is not step and before.effect.label == step.cause.label:
                    self._join(of, made[at])
        return made

    def _from_slice(self, lane: Lane, one: Explained) -> None:
        found = self._find(lane, one.start_ns)
        if found is not None:
            one.ends.append(self._next())
            self.out.setdefault(found, []).append(one.ends[-1])

    def _join(self, causes: list[Explained], effects: list[Explained]) -> None:
        starts = [x.start_ns for x in causes]
        for one in effects:
            at = bisect_right(starts, one.start_ns) - 1
            if at >= 0 and causes[at].end_ns > one.start_ns:
                one.ends.append(self._next())
                causes[at].flows.append(one.ends[-1])

    def _next(self) -> int:
        self.count += 1
        return next(self._ids)

    def _find(self, lane: Lane, at_ns: int) -> At | None:
        """The outermost slice of a lane's thread that is open at ``at_ns``; of its process where no thread is named."""
        if lane.pid is None:
            return None
        for kind in (OFF_CPU, CALLS) if lane.role == "cause" else (CALLS,):
            threads = [(lane.pid, lane.tid)] if lane.tid is not None else sorted(
                place for k, place in self.slices if k == kind and place[0] == lane.pid
            )  # fmt: skip
            for place in threads:
                found = self._open((kind, place), at_ns)
                if found is not None:
                    return found
        return None

    def _open(self, key: Key, at_ns: int) -> At | None:
        if key not in self.slices:
            return None
        if key not in self._reach:
            slices = self.slices[key]
            ends = [s.start_ns if s.end_ns is None else s.end_ns for s in slices]
            self._reach[key] = [s.start_ns for s in slices], list(accumulate(ends, max))
        starts, reach = self._reach[key]
        at = bisect_right(reach, at_ns)
        return (key, at) if at < len(starts) and starts[at] <= at_ns else None
