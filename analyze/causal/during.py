"""Rows of a table that share a moment with sets of time: one query for all sets, through the interval join, per some
leaves, so that a join of many millions of rows is never in memory at once.

A row counts for a set where its key is the set's key (the thread, the process, the device) and a moment of it lies in
the set. Rows that had no end when the capture ended reach to its end. Times: ns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.intervals import Intervals

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

Columns = dict[str, npt.NDArray[Any]]

THREAD = "pid::UBIGINT * 4294967296 + tid"
"""SQL key of a thread; :func:`thread_key` makes the same of two numbers."""

PROCESS = "pid::UBIGINT"

_ROWS = """
WITH candidates AS NOT MATERIALIZED (
  SELECT leaf::UBIGINT * 4294967296 + row AS id, {key} AS k, ({start})::BIGINT AS a, ({end})::BIGINT AS b
  FROM {table} WHERE {part} AND ({condition})
), pairs AS MATERIALIZED (SELECT DISTINCT l, r FROM overlapping('wanted_time', 'candidates'))
SELECT pairs.l AS wanted, ({start})::BIGINT AS start_ns, ({end})::BIGINT AS end_ns, {columns}, leaf::BIGINT AS leaf,
  row::BIGINT AS row
FROM pairs JOIN {table} ON leaf = (r // 4294967296)::UINTEGER AND row = (r % 4294967296)::UINTEGER
WHERE {part}
"""

ORDER = ("row", "leaf", "start_ns", "wanted")
"""Of rows, the last first."""


@dataclass(frozen=True)
class During:
    """What to look for: ``columns`` are SQL expressions by name, ``start`` and ``end`` bound a row's interval."""

    table: str
    key: str
    columns: Mapping[str, str]
    condition: str = "true"
    start: str = "start_ns"
    end: str = "end_ns"


DEVICE = "major::UBIGINT * 4294967296 + minor"


def thread_key(pid: int, tid: int) -> int:
    """The number of :data:`THREAD`."""
    return (pid << 32) + tid


def device_key(major: int, minor: int) -> int:
    """The number of :data:`DEVICE`."""
    return (major << 32) + minor


def rows_during(context: Context, what: During, wanted: Mapping[str, tuple[int, Intervals]]) -> dict[str, Columns]:
    """Per name of ``wanted`` (key and set of time) the rows, in order of time; a name without rows is left out.

    Each has the columns asked for, ``start_ns`` and ``end_ns`` of its interval, ``leaf`` and ``row``. A row that meets
    several sets is given for each.
    """
    names = sorted(n for n, (_, time) in wanted.items() if len(time))
    if not names or not context.store.row_count(what.table):
        return {}
    lengths = [len(wanted[n][1]) for n in names]
    bounds = np.concatenate([wanted[n][1] for n in names])
    sets = {
        "id": np.repeat(np.arange(len(names), dtype=np.int64), lengths),
        "k": np.repeat(np.array([wanted[n][0] for n in names], dtype=np.uint64), lengths),
        "a": np.ascontiguousarray(bounds[:, 0]), "b": np.ascontiguousarray(bounds[:, 1]),
    }  # fmt: skip
    query = partial(
        _ROWS.format, key=what.key, start=what.start, end=f"coalesce({what.end}, {context.window.end_ns})",
        table=what.table, condition=what.condition,
        columns=", ".join(f"{sql} AS {name}" for name, sql in what.columns.items()),
    )  # fmt: skip
    with context.store.relation("wanted_time", sets):
        found = [context.store.arrays(query(part=part)) for part in context.store.parts(what.table)]
    order = np.lexsort([np.concatenate([f[name] for f in found]) for name in ORDER])
    a = {name: np.concatenate([f.pop(name) for f in found])[order] for name in list(found[0])}  # one column held twice
    which = a.pop("wanted")
    cuts = np.searchsorted(which, np.arange(len(names) + 1))
    return {
        name: {k: v[low:high] for k, v in a.items()}
        for name, low, high in zip(names, cuts[:-1], cuts[1:], strict=True)
        if low < high
    }
