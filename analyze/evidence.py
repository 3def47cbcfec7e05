"""The evidence table of a findings document: for every number, the query over the public views that gives its rows.

A query returns exactly the rows that stand behind the number, in the order of the bundle; the entry holds how many
they are and which sealed leaves hold them. Equal queries share one entry. Ids are given in the order of asking, which
is the same in every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.finding import Evidence
from gpuaudit.analyze.store import Store

MAX_LISTED_RUNS = 400
"""Row ranges that one query lists (about 12 kB of SQL); past it the query names rows by what they have in common."""

RowKeys = npt.NDArray[np.int64]
"""Shape (n, 2): leaf and row of each piece of evidence."""


class EvidenceBook:
    """Collects evidence entries while the analysis runs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_query: dict[str, Evidence] = {}

    def where(self, table: str, condition: str = "true") -> str:
        """The id of the entry for all rows of ``table`` (a view's name) that meet an SQL condition."""
        known = self._by_query.get(_query(table, condition))
        if known is not None:
            return known.id
        counts = self._store.sql(f"SELECT leaf, count(*) FROM {table} WHERE {condition} GROUP BY leaf ORDER BY leaf")
        return self._enter(table, condition, [(int(leaf), int(rows)) for leaf, rows in counts])

    def present(self, tables: Sequence[str], condition: str) -> tuple[str, ...]:
        """The ids for those of ``tables`` that have a row which meets the condition."""
        having = [t for t in tables if self._store.sql(f"SELECT 1 FROM {t} WHERE {condition} LIMIT 1")]
        return tuple(self.where(t, condition) for t in having)

    def listed(self, table: str, keys: RowKeys, otherwise: str) -> str:
        """The id of the entry for the rows named by ``keys``.

        Where they fall into more than :data:`MAX_LISTED_RUNS` runs, the entry holds the rows that meet ``otherwise``:
        a condition that all of them meet, and that tells what the number was computed from.
        """
        runs = _runs(keys)
        if len(runs) > MAX_LISTED_RUNS:
            return self.where(table, otherwise)
        if not runs:
            return self.where(table, "false")
        terms = [
            f"leaf = {leaf} AND row = {low}" if low == high else f"leaf = {leaf} AND row BETWEEN {low} AND {high}"
            for leaf, low, high in runs
        ]
        condition = terms[0] if len(terms) == 1 else " OR ".join(f"({t})" for t in terms)
        known = self._by_query.get(_query(table, condition))
        if known is not None:
            return known.id
        counts: dict[int, int] = {}  # the runs are the rows themselves: nothing has to be looked up
        for leaf, low, high in runs:
            counts[leaf] = counts.get(leaf, 0) + high - low + 1
        return self._enter(table, condition, list(counts.items()))

    def _enter(self, table: str, condition: str, counts: Sequence[tuple[int, int]]) -> str:
        """A new entry; ``counts`` has a leaf and its rows, in the order of leaves."""
        query = _query(table, condition)
        leaves, rows = tuple(leaf for leaf, _ in counts), sum(n for _, n in counts)
        self._by_query[query] = Evidence(f"E{len(self._by_query) + 1}", table, leaves, rows, query)
        return self._by_query[query].id

    def entries(self) -> list[Evidence]:
        """Every entry so far, in the order of their ids."""
        return list(self._by_query.values())


def _query(table: str, condition: str) -> str:
    tail = "ORDER BY leaf" if table in {"leaves", "artefacts"} else "ORDER BY leaf, row"
    return f"SELECT * FROM {table} WHERE {condition} {tail}"


def _runs(keys: RowKeys) -> list[tuple[int, int, int]]:
    """(leaf, first row, last row) of maximal runs of consecutive rows."""
    if not len(keys):
        return []
    keys = np.unique(keys, axis=0)
    starts = np.ones(len(keys), dtype=bool)
    starts[1:] = (keys[1:, 0] != keys[:-1, 0]) | (keys[1:, 1] != keys[:-1, 1] + 1)
    first = np.flatnonzero(starts)
    last = np.append(first[1:], len(keys)) - 1
    return [(int(keys[a, 0]), int(keys[a, 1]), int(keys[b, 1])) for a, b in zip(first, last, strict=True)]
