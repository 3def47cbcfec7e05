"""Rows of one thing that a cause is made of (calls, activities, samples): their time, and themselves as evidence.

Units: ns, half-open intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals
from gpuaudit.analyze.causal.states import Chosen, overlapping
from gpuaudit.analyze.intervals import Intervals

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

KEYS = "leaf::BIGINT AS leaf, row::BIGINT AS row"
"""SQL: what names a row."""

TIMES = "start_ns::BIGINT AS start_ns, end_ns::BIGINT AS end_ns"
"""SQL: when; a call that is still open has no end, and is left out by who reads."""


@dataclass(frozen=True)
class Rows:
    """Rows of ``table`` in order of time. ``a`` has ``start_ns``, ``end_ns``, ``leaf``, ``row`` and what was asked for.

    ``where`` is an SQL condition that all of them meet: it names them where they are too many to be listed.
    """

    table: str
    where: str
    a: dict[str, npt.NDArray[Any]]

    @classmethod
    def read(cls, context: Context, table: str, where: str, columns: Iterable[str] = (), join: str = "") -> Rows:
        """Rows that ended and meet ``where``, with ``columns`` (SQL with a name each); ``join`` follows the table."""
        more = "".join(f", {c}" for c in columns)
        ended = "end_ns IS NOT NULL AND end_ns > start_ns"
        query = f"SELECT {TIMES}, {KEYS}{more} FROM {table} {join} WHERE {ended} AND ({where}) ORDER BY 1, 3, 4"
        return cls(table, where, context.store.arrays(query))

    def __len__(self) -> int:
        return len(self.a["start_ns"])

    def of(self, chosen: Chosen) -> Rows:
        """The chosen ones."""
        return Rows(self.table, self.where, {k: v[chosen] for k, v in self.a.items()})

    @property
    def time(self) -> Intervals:
        """Time of at least one of them."""
        return intervals.from_bounds(self.a["start_ns"], self.a["end_ns"])

    def touching(self, time: Intervals) -> Chosen:
        """Which share a moment with ``time``."""
        return overlapping(self.a["start_ns"], self.a["end_ns"], time)

    def evidence(self, context: Context) -> Callable[[Intervals], tuple[str, ...]]:
        """Those that touch a given time, as evidence."""

        def rows(time: Intervals) -> tuple[str, ...]:
            chosen = self.touching(time)
            keys = np.stack([self.a["leaf"][chosen], self.a["row"][chosen]], axis=1).astype(np.int64)
            return (context.book.listed(self.table, keys, self.where),) if len(keys) else ()

        return rows


def pids_of(pids: Iterable[int]) -> str:
    """SQL condition: one of these processes; of none, no row."""
    named = ", ".join(str(int(p)) for p in sorted(set(pids)))
    return f"pid IN ({named})" if named else "false"
