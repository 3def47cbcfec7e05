"""Deltas of histogram buckets, their sum over windows, and the quantile of what is left: exact.

A quantile is only ever taken of merged buckets. Averaging quantiles of windows would give a number that belongs to no
set of requests.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

from gpuaudit.analyze.inference.exact import decimal
from gpuaudit.analyze.inference.model import Buckets, Quantile

EDGE_TOLERANCE = 1e-9
"""Edges that differ by more are different edges (``docs/reference/engines.md``)."""

NO_BUCKETS = Buckets()


def delta(edges: Sequence[float], before: Sequence[int], after: Sequence[int]) -> Buckets:
    """What each cumulative bucket gained; empty where the counts differ in number or any of them fell.

    Empty as well where a bucket gained less than the one below it, which it contains: such buckets are not cumulative,
    and a quantile of them would be of no requests.
    """
    if not len(edges) == len(before) == len(after):
        return NO_BUCKETS
    counts = tuple(b - a for a, b in zip(before, after, strict=True))
    if not counts or counts[0] < 0 or any(low > high for low, high in itertools.pairwise(counts)):
        return NO_BUCKETS
    return Buckets(tuple(edges), counts)


def merge(parts: Iterable[Buckets]) -> Buckets:
    """The sum of deltas, bucket by bucket; the first that is not empty sets the edges, others with others are left out.

    Order matters only through which edges come first: with equal edges the sum is the same in any order and grouping.
    """
    edges: tuple[float, ...] = ()
    sums: list[int] = []
    for part in parts:
        if not part.edges:
            continue
        if not edges:
            edges, sums = part.edges, list(part.counts)
        elif same_edges(edges, part.edges):
            sums = [a + b for a, b in zip(sums, part.counts, strict=True)]
    return Buckets(edges, tuple(sums))


def same_edges(a: Sequence[float], b: Sequence[float]) -> bool:
    """Equally many edges, each within :data:`EDGE_TOLERANCE`."""
    return len(a) == len(b) and all(x == y or abs(x - y) <= EDGE_TOLERANCE for x, y in zip(a, b, strict=True))


def quantile(buckets: Buckets, q: Fraction) -> Quantile | None:
    """The ``q`` quantile, linear inside its bucket, whose lower edge is 0 for the first one.

    In the last bucket, which has no upper edge, it is the last finite edge and ``clamped``. None without observations,
    without a bucket that ends in infinity, or without a finite edge.
    """
    edges, counts = buckets.edges, buckets.counts
    if len(edges) < 2 or edges[-1] != math.inf or counts[-1] <= 0:
        return None
    target = q * counts[-1]
    at = next(i for i, c in enumerate(counts) if c >= target)
    if edges[at] == math.inf:
        return Quantile(decimal(edges[-2]), True)
    upper = decimal(edges[at])
    lower = decimal(edges[at - 1]) if at else Fraction(0)
    below = counts[at - 1] if at else 0
    if counts[at] <= below or upper <= lower:
        return Quantile(upper, False)
    return Quantile(lower + (upper - lower) * (target - below) / (counts[at] - below), False)
