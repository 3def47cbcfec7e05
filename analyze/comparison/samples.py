"""Durations of every operation of every program in a capture, as exact counts, and the median of each block of time.

Processes of one name are one program: their ids differ between captures. Calls follow one another, and neighbours are
alike, so single calls are no independent draws; medians over blocks of time (:data:`BLOCKS` equal ones from the first
to the last call of the operation) nearly are, and so are their 99th percentiles: tests are made on these. Units: ns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gpuaudit.analyze.call_meanings import OUTERMOST
from gpuaudit.analyze.comparison.rank_test import Counted
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Threshold
from gpuaudit.analyze.store import NOT_OWN, quoted

BLOCKS = Threshold(
    "blocks", 16, "count", "chosen: the exact test of 16 against 16 medians is counted at once, and can tell p of 10⁻⁸",
    fixed=True,
)  # fmt: skip
TABLES = ("cuda_calls", "nccl_calls")
MAX_SAMPLES = 200
"""Operations of programs that are compared, those with most time first."""

Key = tuple[str, str, str]
"""Table, program, operation."""


@dataclass(frozen=True)
class Sample:
    """Finished outermost calls of one operation of one program; ``of_program`` counts those of all its operations,
    ``medians`` and ``tails`` are the durations at rank ceil(n/2) and ceil(0.99·n) of each block that has a call."""

    pids: tuple[int, ...]
    counted: Counted
    medians: tuple[int, ...]
    tails: tuple[int, ...]
    mean_bytes: int | None
    of_program: int
    aggregated: int
    evidence: tuple[str, ...]

    @cached_property
    def calls(self) -> int:
        """How many."""
        return int(self.counted[1].sum())

    def at(self, numerator: int, denominator: int) -> int:
        """The duration at rank ceil(q·n), which occurred."""
        upto = np.cumsum(self.counted[1])
        rank = -(-self.calls * numerator // denominator)
        return int(self.counted[0][int(np.searchsorted(upto, rank))])


def read(context: Context) -> dict[Key, Sample]:
    """Every operation with a finished call, those with most time first."""
    programs: dict[str, list[int]] = {}
    calls: dict[str, int] = {}
    sums: dict[Key, int] = {}
    for table in TABLES:
        for pid, op, n, ns in context.store.sql(
            f"SELECT pid, op, count(*), sum(duration_ns)::HUGEINT FROM {table} WHERE {NOT_OWN} AND {OUTERMOST} AND "
            "duration_ns IS NOT NULL GROUP BY pid, op ORDER BY pid, op"
        ):
            name = context.process_name(int(pid))
            if int(pid) not in programs.setdefault(name, []):
                programs[name].append(int(pid))
            calls[name] = calls.get(name, 0) + int(n)
            key = (table, name, str(op))
            sums[key] = sums.get(key, 0) + int(ns)
    totals = sorted(((-ns, key) for key, ns in sums.items()))
    return {k: _sample(context, k, programs[k[1]], calls[k[1]]) for _, k in totals[:MAX_SAMPLES]}


def _sample(context: Context, key: Key, pids: list[int], of_program: int) -> Sample:
    table, _, op = key
    who = f"pid IN ({', '.join(map(str, sorted(pids)))}) AND op = {quoted(op)}"
    mine = f"{who} AND {OUTERMOST} AND duration_ns IS NOT NULL"
    a = context.store.arrays(
        f"SELECT duration_ns::BIGINT AS ns, count(*)::BIGINT AS n FROM {table} WHERE {mine} GROUP BY 1 ORDER BY 1"
    )
    ((size, aggregated),) = context.store.sql(
        f"SELECT (SELECT (sum(size_bytes)::HUGEINT // count(size_bytes))::BIGINT FROM {table} WHERE {mine}), "
        f"(SELECT coalesce(sum(count), 0)::BIGINT FROM call_totals WHERE {who})"
    )
    return Sample(
        tuple(sorted(pids)), (a["ns"], a["n"]), *_blocks(context, table, mine), None if size is None else int(size),
        of_program, int(aggregated), (context.book.where(table, mine),),
    )  # fmt: skip


def _blocks(context: Context, table: str, mine: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Exact median and 99th percentile of every block that has a call."""
    rows = context.store.sql(
        f"WITH w AS (SELECT min(start_ns) AS a, max(start_ns) + 1 AS b FROM {table} WHERE {mine}), "
        f"c AS (SELECT ((start_ns - a) * {BLOCKS.value}) // (b - a) AS block, duration_ns AS ns, count(*) AS n "
        f"FROM {table}, w WHERE {mine} GROUP BY ALL), "
        "r AS (SELECT block, ns, sum(n) OVER (PARTITION BY block) AS whole, "
        "sum(n) OVER (PARTITION BY block ORDER BY ns) AS upto FROM c) "
        "SELECT min(ns) FILTER (upto * 2 >= whole), min(ns) FILTER (upto * 100 >= whole * 99) "
        "FROM r GROUP BY block ORDER BY block"
    )
    return tuple(int(p50) for p50, _ in rows), tuple(int(p99) for _, p99 in rows)
