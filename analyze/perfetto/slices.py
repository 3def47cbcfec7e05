"""Rows of evidence as slices: which tables, on which track, and how those that overlap without nesting are laid apart.

A track of Perfetto is a stack: a slice that ends after the one it began in would close the wrong one. So slices of one
track are put into lanes in each of which every two are apart or one inside the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gpuaudit.analyze.perfetto.wire import Note
from gpuaudit.analyze.store import Store

MOST_SLICES = 500_000
"""Of one table, the longest ones: Perfetto's user interface reads a few million slices, and each takes 100 bytes."""

MOST_LANES = 32
"""Of one track: the calls of a thread need one, the activities of a stream rarely two."""


class Slice(NamedTuple):
    """``end_ns`` None: the row has no end. ``place`` is whose track: process and thread, or device and stream."""

    start_ns: int
    end_ns: int | None
    place: tuple[int, int]
    name: str
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Source:
    """A table whose rows are slices; ``kind`` is the track of a thread (or GPU) they stand on."""

    table: str
    kind: str
    name: str
    place: tuple[str, str] = ("pid", "tid")
    notes: tuple[str, ...] = ()


CALLS, OFF_CPU, GPU = "calls", "off-CPU", "gpu"

SOURCES = (
    Source("cuda_calls", CALLS, "op", notes=("size_bytes", "stream", "correlation", "return_code")),
    Source("nccl_calls", CALLS, "op", notes=("rank", "size_bytes", "stream", "return_code")),
    Source("off_cpu", OFF_CPU, "op",
           notes=("next_comm", "next_pid", "waker_comm", "waker_pid", "runqueue_ns", "cpu_out")),
    Source("user_ranges", "ranges", "name", notes=("op", "correlation")),
    Source("os_calls", "system calls", "op", notes=("descriptor", "size_bytes", "return_code")),
    Source("ioctls", "ioctls", "op"),
    Source("reclaims", "memory reclaim", "op"),
    Source("gpu_activities", GPU, "name", ("device", "stream"), ("op", "size_bytes", "correlation", "collective")),
)  # fmt: skip


@dataclass(frozen=True)
class Read:
    """Slices by kind and place, each in order of start and outer ones first; ``omitted`` counts rows per table."""

    slices: dict[tuple[str, tuple[int, int]], list[Slice]]
    omitted: dict[str, int]


def read(store: Store, sources: Iterable[Source] = SOURCES, most: int = MOST_SLICES) -> Read:
    """Everything that is drawn as a slice. Rows whose place is not recorded stand at −1."""
    out = Read({}, {})
    for s in sources:
        total = store.row_count(s.table)
        if not total:
            continue
        if total > most:
            out.omitted[s.table] = total - most
        for slice in _of(store, s, most):
            out.slices.setdefault((s.kind, slice.place), []).append(slice)
    for slices in out.slices.values():
        slices.sort(key=lambda x: (x.start_ns, -(x.end_ns or x.start_ns)))
    return out


def _of(store: Store, s: Source, most: int) -> Iterator[Slice]:
    known = {str(c[0]) for c in store.sql(f"DESCRIBE SELECT * FROM {s.table}")}
    notes = [n for n in s.notes if n in known]
    name = f"coalesce({s.name}::VARCHAR, '{s.table}')" if s.name in known else f"'{s.table}'"
    place = [f"coalesce({p}::BIGINT, -1)" if p in known else "-1" for p in s.place]
    columns = ", ".join([
        "start_ns::BIGINT", "(start_ns + duration_ns)::BIGINT", *place, name, *(f'"{n}"' for n in notes)
    ])  # fmt: skip
    rows = store.sql(f"SELECT {columns} FROM {s.table} ORDER BY duration_ns DESC NULLS FIRST, leaf, row LIMIT {most}")
    for start, end, first, second, called, *values in rows:
        pairs = zip(notes, values, strict=True)
        told = tuple((n, v if isinstance(v, int) else str(v)) for n, v in pairs if v is not None)
        yield Slice(start, end, (first, second), called, told)


def lanes(slices: Sequence[Slice]) -> tuple[list[list[int]], int]:
    """Indices of ``slices`` (in their order) per lane, and how many found no place in :data:`MOST_LANES`.

    One without an end is an instant and stands anywhere.
    """
    out: list[list[int]] = []
    stacks: list[list[int]] = []
    left = 0
    for at, s in enumerate(slices):
        end = s.start_ns if s.end_ns is None else s.end_ns
        for lane, stack in zip(out, stacks, strict=True):
            while stack and stack[-1] <= s.start_ns:
                stack.pop()
            if not stack or stack[-1] >= end:
                lane.append(at)
                stack.append(end)
                break
        else:
            if len(out) < MOST_LANES:
                out.append([at])
                stacks.append([end])
            else:
                left += 1
    return out, left
