"""Sets of time, exact in nanoseconds: union, intersection and difference of half-open intervals.

An interval set is an int64 array of shape (n, 2), ``[start, end)`` in ns on CLOCK_BOOTTIME, sorted, disjoint, without
empty or touching members: so equal sets of time are equal arrays. Every share of time in a report is a quotient of
two :func:`measure`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

Intervals = npt.NDArray[np.int64]
"""Shape (n, 2): start and end in ns."""

EMPTY: Intervals = np.zeros((0, 2), dtype=np.int64)
EMPTY.flags.writeable = False


def from_bounds(starts: npt.ArrayLike, ends: npt.ArrayLike) -> Intervals:
    """The set covered by any number of intervals in any order; an interval that ends before it starts covers none."""
    pairs = np.stack([np.asarray(starts, dtype=np.int64), np.asarray(ends, dtype=np.int64)], axis=1)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    if not len(pairs):
        return EMPTY
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    reach = np.maximum.accumulate(pairs[:, 1])
    first = np.ones(len(pairs), dtype=bool)
    first[1:] = pairs[1:, 0] > reach[:-1]
    at = np.flatnonzero(first)
    return np.stack([pairs[at, 0], reach[np.append(at[1:], len(pairs)) - 1]], axis=1)


def single(start: int, end: int) -> Intervals:
    """One interval."""
    return from_bounds([start], [end])


def measure(a: Intervals) -> int:
    """Length of the set in ns."""
    return int((a[:, 1] - a[:, 0]).sum())


def union(*sets: Intervals) -> Intervals:
    """Time in at least one of ``sets``."""
    pairs = np.concatenate([EMPTY, *sets])
    return from_bounds(pairs[:, 0], pairs[:, 1])


def intersect(a: Intervals, b: Intervals) -> Intervals:
    """Time in both."""
    return _combine(a, b, lambda in_a, in_b: in_a & in_b)


def subtract(a: Intervals, b: Intervals) -> Intervals:
    """Time in ``a`` and not in ``b``."""
    return _combine(a, b, lambda in_a, in_b: in_a & ~in_b)


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


def _combine(
    a: Intervals, b: Intervals, keep: Callable[[npt.NDArray[np.bool_], npt.NDArray[np.bool_]], npt.NDArray[np.bool_]]
) -> Intervals:
    edges = np.concatenate([a[:, 0], a[:, 1], b[:, 0], b[:, 1]])
    if not len(edges):
        return EMPTY
    step_a = np.repeat(np.array([1, -1, 0, 0]), [len(a), len(a), len(b), len(b)])
    step_b = np.repeat(np.array([0, 0, 1, -1]), [len(a), len(a), len(b), len(b)])
    order = np.argsort(edges, kind="stable")
    at = edges[order]
    inside = keep(np.cumsum(step_a[order])[:-1] > 0, np.cumsum(step_b[order])[:-1] > 0)
    return from_bounds(at[:-1][inside], at[1:][inside])
