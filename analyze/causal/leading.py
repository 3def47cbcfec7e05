"""Who of many had most of the time: the few that are named one by one, and the rest together.

A busy host has hundreds of threads that run for a moment, and a stranger's bundle may have a name on every row: what is
told of them stays bounded, and nothing of their time is lost. Units: ns.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Chosen = npt.NDArray[np.bool_]

MAX_CULPRITS = 12
"""Culprits of one effect that are named."""


def codes(*columns: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """One number per row, equal where all columns are: the rank of first appearance."""
    known: dict[Hashable, int] = {}
    rows = zip(*(c.tolist() for c in columns), strict=True)
    return np.fromiter((known.setdefault(row, len(known)) for row in rows), dtype=np.int64, count=len(columns[0]))


def leading(
    group: npt.NDArray[np.int64], ns: npt.NDArray[np.int64], among: Chosen, order: Sequence[npt.NDArray[Any]],
    most: int = MAX_CULPRITS,
) -> tuple[list[Chosen], Chosen]:  # fmt: skip
    """Rows of each of the ``most`` groups with most time, and all other rows ``among`` which groups are looked for.

    ``group`` has a number per row (:func:`codes`). What is told is in the order of the columns ``order`` of a group's
    first row, so that it does not depend on times alone.
    """
    at = np.flatnonzero(among)
    if not len(at):
        return [], among
    names, first, index = np.unique(group[at], return_index=True, return_inverse=True)
    sums = np.zeros(len(names), dtype=np.int64)
    np.add.at(sums, index, ns[at])
    keys = [tuple(c[at[i]] for c in order) for i in first]
    ranked = sorted(range(len(names)), key=lambda i: (-int(sums[i]), keys[i]))
    top = sorted(ranked[:most], key=lambda i: keys[i])
    masks = [among & (group == names[i]) for i in top]
    rest = among & ~np.isin(group, names[top])
    return masks, rest
