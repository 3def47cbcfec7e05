"""The life of a KV cache, as far as calls tell it: each time it was made, by which call, and what was copied.

*Cache*: large allocations after the load of the weights (``residency.py``) of which the host had filled less than half
when the process began its next step, and that are alive at the end, or were there for half of the time between its
first step after the load and its last: each by itself where it was allocated, by its size (a cache that is freed and
made again has the same), or by its addresses where memory was mapped at a reserved range (``cuMemMap``; pieces side by
side are one). What they are for is taken from that. A *generation* lasts while at least half of the most bytes that
the cache ever had exist: a server that sleeps frees it, and makes another when it wakes.

*Moves* are copies whose address on the GPU lies in the cache, by way, and by the step that they fall into: the one that
their start lies in, of the same thread or else of the thread with most steps of the process; or, made by the thread of
steps between two of them, the one that follows. What kernels and graphs move is in no call, and neither is whose
request a block belongs to. Units: bytes, ns on CLOCK_BOOTTIME.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import call_sites, intervals, residency
from gpuaudit.analyze.allocations import ALIVE, MAX_ADDRESS, Allocations
from gpuaudit.analyze.call_meanings import COPY, FIRST, PEER_COPY
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.evidence import RowKeys
from gpuaudit.analyze.steps import Steps

MAX_BYTES = 1 << 40
"""Of one copy: more is not evidence."""

MAX_FILLED = 1 << 60
"""Larger sums of them are none either, and their doubles stay within int64."""

MAX_RANGES = 64
"""Address ranges that a query names; of more it names the whole from the first to the last."""

MAX_KEYS = 100_000
"""Copies of one move that are kept to be named as evidence; of more, the copies of the way are."""

MAX_SITED = 64
"""Allocations of a generation, the first ones, whose call sites are looked up."""

HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, DEFAULT = 1, 2, 3, 4
"""cudaMemcpyKind (driver_types.h); by DEFAULT the addresses say it."""

FROM_HOST, TO_HOST, INSIDE, FROM_OTHER, TO_OTHER, FROM_PEER, TO_PEER, FROM_UNTOLD, TO_UNTOLD = range(9)
WAYS = (
    "from the host", "to the host", "inside the cache", "from other memory of a GPU", "to other memory of a GPU",
    "from another GPU", "to another GPU", "from memory that is not told", "to memory that is not told",
)  # fmt: skip

NO_STEP = "no step"

Array = npt.NDArray[np.int64]
Chosen = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Generation:
    """One life of the cache. ``begin`` is the return of its first allocation, ``end`` :data:`ALIVE` if it never ended;
    ``bytes`` the most that existed at once, of allocations ``keys``. ``place`` is empty where no stack was taken."""

    begin: int
    end: int
    bytes: int
    keys: RowKeys
    op: str
    tids: tuple[int, ...]
    place: str


@dataclass
class Move:
    """Copies of one way in one phase of one generation (an index); ``steps`` are those that they fell into."""

    generation: int
    way: int
    phase: str
    bytes: int = 0
    copies: int = 0
    steps: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    keys: list[RowKeys] = field(default_factory=list)


@dataclass(frozen=True)
class Lineage:
    """Of one process. With a ``reason`` nothing is told. ``where`` is an SQL condition that all its copies meet;
    ``untold`` one of copies after the cache was made that tell no address or no size."""

    pid: int
    load_end: int = 0
    generations: tuple[Generation, ...] = ()
    moves: tuple[Move, ...] = ()
    where: str = "false"
    untold: str = "false"
    reason: str = ""


Phased = Sequence[tuple[Steps, tuple[str, ...]]]
"""Threads of a process with the phase of each kind of their steps."""


def read_lineage(context: Context, pid: int, phased: Phased) -> Lineage:
    """What the calls of a process say of its cache; ``phased`` are its threads with steps, one at least."""
    known = residency.read_residency(context, pid)
    if known.load is None:
        return Lineage(pid, reason=known.reason)
    load_end = known.load.end_ns
    cache = _cache(context, pid, known.allocations, load_end, phased)
    if not len(cache):
        return Lineage(pid, load_end, reason="no large allocation after the load stayed that the host did not fill")
    lives = _lives(cache)
    generations = tuple(_generation(context, cache, life) for life in lives)
    began = f"pid = {int(pid)} AND {context.means(COPY)} AND {FIRST} AND start_ns >= {generations[0].begin}"
    where = f"{began} AND {_touches(cache)}"
    untold = f"{began} AND (size_bytes IS NULL OR (device_pointer IS NULL AND source_pointer IS NULL))"
    found = _Moves(known.allocations, cache, np.array([g.begin for g in generations]), phased)
    for batch in _copies(context, where):
        found.add(batch)
    moves = sorted(found.moves.values(), key=lambda m: (m.generation, m.way, found.order(m.phase)))
    return Lineage(pid, load_end, generations, tuple(moves), where, untold)


def _cache(context: Context, pid: int, made: Allocations, load_end: int, phased: Phased) -> Allocations:
    after = made.only(made.begin > load_end)
    large = int(residency.LARGE.value)
    extent, sizes = _extents(after)
    after, extent = after.only(sizes >= large), extent[sizes >= large]
    starts = np.sort(np.concatenate([s.starts for s, _ in phased]))
    next_step = np.append(starts, ALIVE)[np.searchsorted(starts, after.begin)]
    unfilled = 2 * _filled(context, pid, after, next_step) < after.size
    after, extent = after.only(unfilled), extent[unfilled]
    serving = starts[starts > load_end]
    stayed = after.end == ALIVE
    if len(serving):
        first, last = int(serving[0]), int(serving[-1]) + 1
        stayed |= _stays(after, extent, first, last)
    kept = np.isin(extent, extent[stayed])
    return after.only(kept)


def _extents(made: Allocations) -> tuple[Array, Array]:
    """Per allocation the number of what it is a piece of, and how many bytes that has: mapped pieces whose addresses
    lie side by side are one, and those that are allocated are told apart by their size alone."""
    number, size = np.zeros(len(made), dtype=np.int64), made.size.copy()
    mapped = np.flatnonzero(made.mapped == 1)
    mapped = mapped[np.argsort(made.address[mapped], kind="stable")]
    if len(mapped):
        low, high = made.address[mapped], np.maximum.accumulate(made.address[mapped] + made.size[mapped])
        part = np.concatenate([[0], np.cumsum(low[1:] > high[:-1])])
        first = np.flatnonzero(np.diff(part, prepend=-1))
        last = np.append(first[1:], len(part)) - 1
        number[mapped], size[mapped] = -1 - part, (high[last] - low[first])[part]
    alone = made.mapped != 1
    number[alone] = np.unique(made.size[alone], return_inverse=True)[1]
    return number, size


def _filled(context: Context, pid: int, made: Allocations, until: Array) -> Array:
    """Bytes that the host copied into each allocation before a moment of its own."""
    out = np.zeros(len(made), dtype=np.int64)
    if not len(made):
        return out
    last = min(int(until.max()), context.window.end_ns + 1)
    where = f"pid = {int(pid)} AND {context.means(COPY)} AND {FIRST} AND direction = {HOST_TO_DEVICE} "
    where += f"AND start_ns >= {int(made.begin.min())} AND start_ns <= {last} AND {_touches(made)}"
    for a in _copies(context, where):
        at = made.holders(a["destination"], a["start_ns"])
        early = (at >= 0) & (a["start_ns"] < until[at])
        np.add.at(out, at[early], a["bytes"][early])
        np.minimum(out, MAX_FILLED, out=out)
    return out


def _stays(made: Allocations, extent: Array, first: int, last: int) -> Chosen:
    """Which belong to what exists for at least half of a stretch of time, by turns or as a whole."""
    begin, end = np.clip(made.begin, first, last), np.clip(made.end, first, last)
    kinds, kind = np.unique(extent, return_inverse=True)
    at_most = np.bincount(kind, (end - begin).astype(np.float64), len(kinds))
    long = np.zeros(len(kinds), dtype=bool)
    for k in np.flatnonzero(2 * at_most >= 0.99 * (last - first)):  # most are not, and need no union
        mine = kind == k
        long[k] = 2 * intervals.measure(intervals.from_bounds(begin[mine], end[mine])) >= last - first
    out: Chosen = long[kind]
    return out


class _Life(NamedTuple):
    """``before`` is the end of the life before."""

    before: int
    begin: int
    end: int
    bytes: int


def _lives(cache: Allocations) -> list[_Life]:
    ended = cache.end != ALIVE
    at = np.concatenate([cache.end[ended], cache.begin])
    change = np.concatenate([-cache.size[ended], cache.size])
    order = np.argsort(at, kind="stable")  # what ends at a moment does so before what begins
    at, held = at[order], np.cumsum(change[order])
    enough = np.append(2 * held >= held.max(), False)
    edges = np.flatnonzero(np.diff(enough, prepend=False))
    out: list[_Life] = []
    for up, down in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        end = int(at[down]) if down < len(at) else ALIVE
        out.append(_Life(out[-1].end if out else 0, int(at[up]), end, int(held[up:down].max())))
    return out


def _generation(context: Context, cache: Allocations, life: _Life) -> Generation:
    mine = (cache.begin >= life.before) & (cache.begin < life.end)
    keys = np.stack([cache.leaf[mine], cache.row[mine]], axis=1)
    named = " OR ".join(f"(leaf = {leaf} AND row = {row})" for leaf, row in keys[:MAX_SITED].tolist())
    rows = context.store.sql(f"SELECT op, tid FROM cuda_calls WHERE {named} GROUP BY op, tid ORDER BY op, tid")
    ops, tids = dict.fromkeys(str(op) for op, _ in rows), dict.fromkeys(int(tid) for _, tid in rows)
    sites = call_sites.sites(context.store, f"({named})", ("cuda_calls",), 1)
    place = sites[0].place or call_sites.NO_FRAMES if sites else ""
    first = min(life.begin, int(cache.begin[mine].min()))
    return Generation(first, life.end, life.bytes, keys, ", ".join(ops), tuple(tids), place)


def _touches(made: Allocations) -> str:
    """SQL condition: an address of the call lies in one of the allocations, or near them where they are many."""
    order = np.argsort(made.address, kind="stable")
    low, high = made.address[order], np.maximum.accumulate((made.address + made.size)[order])
    first = np.concatenate([[0], np.flatnonzero(low[1:] > high[:-1]) + 1])
    ranges = [(int(low[a]), int(high[b - 1])) for a, b in pairwise([*first.tolist(), len(low)])]
    if len(ranges) > MAX_RANGES:
        ranges = [(ranges[0][0], ranges[-1][1])]
    columns = ("device_pointer", "source_pointer")
    return "(" + " OR ".join(f"({c} >= {a} AND {c} < {b})" for c in columns for a, b in ranges) + ")"


def _copies(context: Context, where: str) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Copies of some bytes that meet a condition and did not fail, some at a time."""
    peer = f"{context.means(PEER_COPY)} AND coalesce(device <> peer_device, handle <> other_handle, true)"
    return context.store.batches(
        "SELECT start_ns::BIGINT AS start_ns, tid::BIGINT AS tid, "
        f"least(coalesce(device_pointer, 0), {MAX_ADDRESS})::BIGINT AS destination, "
        f"least(coalesce(source_pointer, 0), {MAX_ADDRESS})::BIGINT AS source, "
        f"least(size_bytes, {MAX_BYTES})::BIGINT AS bytes, coalesce(direction, {DEFAULT})::BIGINT AS direction, "
        f"({peer})::BIGINT AS peer, leaf::BIGINT AS leaf, row::BIGINT AS row FROM cuda_calls "
        f"WHERE {where} AND size_bytes > 0 AND coalesce(return_code, 0) = 0"
    )


class _Moves:
    """Sums copies up, a batch at a time."""

    def __init__(self, made: Allocations, cache: Allocations, begins: Array, phased: Phased) -> None:
        self.moves: dict[tuple[int, int, int], Move] = {}
        self._made, self._cache, self._begins = made, cache, begins
        self._threads = {s.tid: (s, names) for s, names in phased}
        self._main = max(phased, key=lambda p: (len(p[0]), -p[0].tid))[0].tid
        self._first = dict(zip(self._threads, np.cumsum([0] + [len(s) for s, _ in phased]).tolist(), strict=False))
        phases = dict.fromkeys(n for _, names in phased for n in names)
        self._phases = [*phases, *(f"before {p}" for p in phases), NO_STEP]

    def order(self, phase: str) -> int:
        """Where a phase comes among all."""
        return self._phases.index(phase)

    def add(self, a: dict[str, npt.NDArray[Any]]) -> None:
        """Add copies to the moves that they are part of."""
        way = self._ways(a)
        a, way = {name: values[way >= 0] for name, values in a.items()}, way[way >= 0]
        if not len(way):
            return
        generation = np.maximum(np.searchsorted(self._begins, a["start_ns"], side="right") - 1, 0)
        phase, step = self._steps(a["start_ns"], a["tid"])
        part = (generation * len(WAYS) + way) * len(self._phases) + phase
        for key in np.unique(part).tolist():
            mine = part == key
            (g, w), p = divmod(key // len(self._phases), len(WAYS)), key % len(self._phases)
            move = self.moves.setdefault((g, w, p), Move(g, w, self._phases[p]))
            move.bytes += int(a["bytes"][mine].sum())
            move.copies += int(mine.sum())
            move.steps = np.union1d(move.steps, step[mine & (step >= 0)])
            if move.copies <= MAX_KEYS:
                move.keys.append(np.stack([a["leaf"][mine], a["row"][mine]], axis=1))

    def _ways(self, a: dict[str, npt.NDArray[Any]]) -> Array:
        """The way of each copy, -1 of one that does not touch the cache."""
        into = self._cache.holders(a["destination"], a["start_ns"]) >= 0
        out_of = self._cache.holders(a["source"], a["start_ns"]) >= 0
        other = np.where(into, a["source"], a["destination"])
        on_gpu = self._made.holders(other, a["start_ns"]) >= 0
        kind, peer = a["direction"], a["peer"] == 1
        device = (kind == DEVICE_TO_DEVICE) | ((kind == DEFAULT) & on_gpu)
        chosen = (
            (into & (kind == HOST_TO_DEVICE), FROM_HOST), (out_of & (kind == DEVICE_TO_HOST), TO_HOST),
            (out_of & peer, TO_PEER), (into & peer, FROM_PEER), (into & out_of & device, INSIDE),
            (into & device, FROM_OTHER), (out_of & device, TO_OTHER),
            (into & (kind == DEFAULT), FROM_UNTOLD), (out_of & (kind == DEFAULT), TO_UNTOLD),
        )  # fmt: skip
        out: Array = np.select([c for c, _ in chosen], [w for _, w in chosen], -1)
        return out

    def _steps(self, at: Array, tid: Array) -> tuple[Array, Array]:
        """Per copy its phase, and the number of its step in the process, -1 for none."""
        phase, step = np.full(len(at), len(self._phases) - 1), np.full(len(at), -1)
        for t in np.unique(tid).tolist():
            mine = np.flatnonzero(tid == t)
            s, names = self._threads[t if t in self._threads else self._main]
            labels = np.array([self._phases.index(n) for n in names])
            i = np.searchsorted(s.starts, at[mine], side="right") - 1
            inside = (i >= 0) & (at[mine] < s.ends[np.maximum(i, 0)])
            before = ~inside & (t == s.tid) & (i + 1 < len(s))
            i = np.where(before, i + 1, i)
            known = inside | before
            shift = np.where(before, (len(self._phases) - 1) // 2, 0)
            phase[mine[known]] = (labels[s.kinds[np.maximum(i, 0)]] + shift)[known]
            step[mine[known]] = self._first[s.tid] + i[known]
        return phase, step
