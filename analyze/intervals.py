"""Sets of time, exact in nanoseconds: union, intersection, difference, coverage and neighbours of half-open intervals.

An interval set is an int64 array of shape (n, 2), ``[start, end)`` in ns on CLOCK_BOOTTIME, sorted, disjoint, without
empty or touching members: so equal sets of time are equal arrays. Every share of time in a report is a quotient of
two :func:`measure`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Intervals = npt.NDArray[np.int64]
"""Shape (n, 2): start and end in ns."""

EMPTY: Intervals = np.zeros((0, 2), dtype=np.int64)
EMPTY.flags.writeable = False

FAR = np.iinfo(np.int64).max
"""Farther than anything is from anything."""


def from_bounds(starts: npt.ArrayLike, ends: npt.ArrayLike) -> Intervals:
    """The set covered by any number of intervals in any order; an interval that ends before it starts covers none."""
    a, b = np.asarray(starts, dtype=np.int64), np.asarray(ends, dtype=np.int64)
    some = a < b
    if not some.all():
        a, b = a[some], b[some]
    if not len(a):
        return EMPTY
    if (a[1:] < a[:-1]).any():  # most come in order, and millions are not sorted again for nothing
        order = np.argsort(a, kind="stable")
        a, b = a[order], b[order]
    if (a[1:] > b[:-1]).all():  # calls of one thread are a set as they come
        return np.stack([a, b], axis=1)
    reach = np.maximum.accumulate(b)
    at = np.flatnonzero(np.concatenate([[True], a[1:] > reach[:-1]]))
    return np.stack([a[at], reach[np.append(at[1:], len(a)) - 1]], axis=1)


def single(start: int, end: int) -> Intervals:
    """One interval."""
    return from_bounds([start], [end])


def measure(a: Intervals) -> int:
    """Length of the set in ns."""
    return int((a[:, 1] - a[:, 0]).sum())


def union(*sets: Intervals) -> Intervals:
    """Time in at least one of ``sets``."""
    some = [s for s in sets if len(s)]
    if len(some) == 1:
        return some[0]
    pairs = np.concatenate([EMPTY, *some])
    return from_bounds(pairs[:, 0], pairs[:, 1])


def intersect(a: Intervals, b: Intervals) -> Intervals:
    """Time in both."""
    few, many = (a, b) if len(a) <= len(b) else (b, a)
    if not len(few):
        return EMPTY
    first = np.searchsorted(many[:, 1], few[:, 0], side="right")
    last = np.searchsorted(many[:, 0], few[:, 1], side="left")
    if len(few) == 1 and first[0] < last[0]:
        inside = many[first[0] : last[0]].copy()
        inside[0, 0], inside[-1, 1] = max(inside[0, 0], few[0, 0]), min(inside[-1, 1], few[0, 1])
        return inside
    pairs = np.maximum(last - first, 0)
    which = np.repeat(np.arange(len(few)), pairs)
    other = np.arange(len(which)) + np.repeat(first - (np.cumsum(pairs) - pairs), pairs)
    # Parts of disjoint sets that do not touch are in order, disjoint, and do not touch either.
    return np.stack(
        [np.maximum(few[which, 0], many[other, 0]), np.minimum(few[which, 1], many[other, 1])], axis=1
    ) if len(which) else EMPTY  # fmt: skip


def subtract(a: Intervals, b: Intervals) -> Intervals:
    """Time in ``a`` and not in ``b``."""
    if not len(a) or not len(b):
        return a
    ends = np.iinfo(np.int64)
    outside = np.stack([np.append(ends.min, b[:, 1]), np.append(b[:, 0], ends.max)], axis=1)
    return intersect(a, outside)


def intersect_all(sets: Iterable[Intervals]) -> Intervals:
    """Time in every one of ``sets``; of none, no time."""
    todo = list(sets)
    if not todo:
        return EMPTY
    out = todo[0]
    for s in todo[1:]:
        out = intersect(out, s)
    return out


def clip(a: Intervals, start: int, end: int) -> Intervals:
    """Time of ``a`` within ``[start, end)``."""
    return from_bounds(np.clip(a[:, 0], start, end), np.clip(a[:, 1], start, end))


def coverage(parts: Intervals, by: Intervals) -> npt.NDArray[np.int64]:
    """ns of each of ``parts`` that lie in the set ``by``.

    Parts are rows ``[start, end)`` in any order, which may overlap each other (calls of several threads, pieces of a
    sleep); one that ends before it starts has none.
    """
    if not len(by):
        return np.zeros(len(parts), dtype=np.int64)
    ends = np.maximum(parts[:, 0], parts[:, 1])
    return _before(by, ends) - _before(by, parts[:, 0])


def _before(a: Intervals, at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """ns of the set before each moment."""
    whole = np.concatenate([[0], np.cumsum(a[:, 1] - a[:, 0])]).astype(np.int64)
    begun = np.searchsorted(a[:, 0], at, side="right")
    last = np.maximum(begun - 1, 0)
    inside = np.where(begun > 0, np.minimum(at, a[last, 1]) - a[last, 0], 0)
    out: npt.NDArray[np.int64] = whole[last] + inside
    return out


def nearest(parts: Intervals, to: Intervals) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """For each of ``parts`` (rows as in :func:`coverage`) the member of the set ``to`` that is nearest, and the gap.

    The gap (ns) is 0 where they share a moment or touch. Of members equally near one that shares a moment goes first,
    then the earlier; no member is -1, with a gap of -1.
    """
    if not len(to):
        none = np.full(len(parts), -1, dtype=np.int64)
        return none.astype(np.intp), none
    after = np.searchsorted(to[:, 1], parts[:, 0], side="right")
    late, early = np.minimum(after, len(to) - 1), np.maximum(after - 1, 0)
    behind = np.where(after < len(to), np.maximum(to[late, 0] - parts[:, 1], 0), FAR)
    before = np.where(after > 0, parts[:, 0] - to[early, 1], FAR)
    shares = (after < len(to)) & (to[late, 0] < parts[:, 1]) & (parts[:, 0] < parts[:, 1])
    back = (before < behind) | ((before == behind) & ~shares)
    return np.where(back, early, late), np.where(back, before, behind)
