"""CPU quotas of cgroups and when they held processes up: cumulative counters as windows between two readings.

A quota may be set on a process's own cgroup or on any above it, up to the root. Units: ns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze.evidence import RowKeys

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

Place = tuple[int, str]
"""Version of the hierarchy and path in it."""

MAX_DEPTH = 64
"""Cgroups above one that are looked at; Linux's own default for how deep they may be (cgroup.max.depth) is far more,
but nobody nests limits so deep, and a stranger's path may be of slashes only."""


@dataclass(frozen=True)
class Throttled:
    """One cgroup with a quota, between two readings in which ``throttled_ns`` grew; row i of each array is one window.

    ``ns``: by how much; ``periods``: throttled enforcement periods that ended; ``rows``: leaf and row of the reading
    at the end of the window; ``quota_ns`` of every ``period_ns`` were allowed at the last of them.
    """

    place: Place
    start: np.ndarray[tuple[int], np.dtype[np.int64]]
    end: np.ndarray[tuple[int], np.dtype[np.int64]]
    ns: np.ndarray[tuple[int], np.dtype[np.int64]]
    periods: np.ndarray[tuple[int], np.dtype[np.int64]]
    rows: RowKeys
    quota_ns: int
    period_ns: int


def throttled(context: Context) -> dict[Place, Throttled]:
    """Every cgroup whose quota was used up at any time between two readings."""
    a = context.store.arrays(
        """
        WITH r AS (
          SELECT version, cgroup, start_ns, throttled_ns, throttled_periods, quota_ns, period_ns, leaf, row,
            lag(start_ns) OVER w AS start, throttled_ns::HUGEINT - lag(throttled_ns) OVER w AS ns,
            throttled_periods::HUGEINT - lag(throttled_periods) OVER w AS periods
          FROM cgroup_cpu WHERE throttled_ns IS NOT NULL AND throttled_periods IS NOT NULL
          WINDOW w AS (PARTITION BY version, cgroup ORDER BY start_ns, leaf, row)
        )
        SELECT version::BIGINT AS version, cgroup, start::BIGINT AS start, start_ns::BIGINT AS "end",
          try_cast(ns AS BIGINT) AS ns, try_cast(periods AS BIGINT) AS periods, leaf::BIGINT AS leaf,
          row::BIGINT AS row, try_cast(quota_ns AS BIGINT) AS quota, try_cast(period_ns AS BIGINT) AS period
        FROM r WHERE ns > 0 AND periods > 0 AND quota_ns > 0 AND period_ns > 0
          AND try_cast(ns AS BIGINT) IS NOT NULL AND try_cast(periods AS BIGINT) IS NOT NULL
          AND try_cast(quota_ns AS BIGINT) IS NOT NULL AND try_cast(period_ns AS BIGINT) IS NOT NULL
        ORDER BY version, cgroup, start_ns, leaf, row
        """
    )
    places = list(zip(a["version"].tolist(), a["cgroup"].tolist(), strict=True))
    out = {}
    for place in sorted(set(places)):
        at = np.array([i for i, p in enumerate(places) if p == place], dtype=np.intp)
        out[place] = Throttled(
            place, a["start"][at], a["end"][at], a["ns"][at], a["periods"][at],
            np.stack([a["leaf"][at], a["row"][at]], axis=1).astype(np.int64),
            int(a["quota"][at[-1]]), int(a["period"][at[-1]]),
        )  # fmt: skip
    return out


def limited_by(context: Context) -> Mapping[int, tuple[Place, ...]]:
    """Per process the cgroups whose quotas hold for it: its own, and every one above, the nearest first."""
    rows = context.store.sql(
        "SELECT DISTINCT pid, cpu_cgroup_version, cpu_cgroup FROM process_samples "
        "WHERE cpu_cgroup IS NOT NULL AND cpu_cgroup_version IS NOT NULL ORDER BY ALL"
    )
    out: dict[int, tuple[Place, ...]] = {}
    for pid, version, path in rows:
        out[int(pid)] = tuple(dict.fromkeys((*out.get(int(pid), ()), *_and_above(int(version), str(path)))))
    return out


def _and_above(version: int, path: str) -> list[Place]:
    found: list[Place] = []
    while len(path) > 1 and len(found) < MAX_DEPTH:
        found.append((version, path))
        path = path.rpartition("/")[0]
    return found
