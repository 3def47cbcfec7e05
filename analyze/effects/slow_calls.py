"""Slow calls: those of one operation on one thread that took far longer than the operation usually does.

A call is slow if it took more than :data:`TIMES` times the median of its own operation in its process and is among
the slowest :data:`SLOWEST` of them (a hundredth: at or above the value at rank ceil(0.99·n)); an operation with fewer
than :data:`LEAST_CALLS` calls has no usual duration. Outermost calls only. Calls without rows of their own count for
median and rank, by the most that their bucket says. A call that had not returned when the capture ended is none: how
long it took is not known. Time in which the host slept is nobody's loss and is taken out. Units: ns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuaudit.analyze import intervals, unlisted
from gpuaudit.analyze.call_meanings import OUTERMOST
from gpuaudit.analyze.call_totals import OF_TABLE, OUTER
from gpuaudit.analyze.causal.model import Effect
from gpuaudit.analyze.finding import Declaration, Threshold
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.store import MAX_TIME_NS, NOT_OWN, quoted

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

KIND = "slow_call"
TABLES = ("cuda_calls", "nccl_calls")

TIMES = Threshold(
    "slow_times_median", 3, "ratio", "design: three times the operation's own median (analysis.md, Causal chains)",
    least=1, most=1_000_000,
)  # fmt: skip
SLOWEST = Threshold(
    "slowest_share", Fraction(1, 100), "share", "design: the slowest hundredth of the operation's calls"
)
LEAST_CALLS = Threshold("least_calls", 10, "count", "design: fewer calls have no usual duration", least=1)

DECLARATION = Declaration(
    id="slow_calls",
    kind="effect",
    title="Slow calls and slow steps",
    question="Which calls, and which steps of a thread, took far longer than others of their kind usually do?",
    inputs=tuple((t, ("start_ns", "duration_ns", "pid", "tid", "op", "parent_ns")) for t in TABLES),
    thresholds=(TIMES, SLOWEST, LEAST_CALLS),
    texts={},
    never_claims="That anything was lost by a slow call, or that it took longer than it had to: a call that does more "
    "than others of its operation takes longer.",
)

MAX_EFFECTS = 200
"""Operations of threads that are looked at, those with most slow time first."""

MAX_CALLS = 1 << 62
"""More are not evidence; times a denominator of a policy (18 digits) they stay within 128 bits."""

_LIMITS = """
WITH c AS (
  SELECT pid, op, duration_ns AS ns, count(*) AS n FROM {table}
  WHERE {own} AND {outer} AND duration_ns IS NOT NULL GROUP BY ALL
  UNION ALL SELECT pid, op, max_ns, sum(count) FROM call_totals
  WHERE {own} AND {of_table} AND {outer_totals} AND count > 0 GROUP BY ALL
), r AS (
  SELECT pid, op, ns, least(sum(n) OVER (PARTITION BY pid, op), {most}) AS total,
    least(sum(n) OVER (PARTITION BY pid, op ORDER BY ns), {most}) AS upto FROM c
)
SELECT pid, op, any_value(total)::BIGINT AS calls, (min(ns) FILTER (WHERE upto * 2 >= total))::BIGINT AS median,
  (min(ns) FILTER (WHERE (total - upto)::HUGEINT * {slowest.denominator} <= total::HUGEINT * {slowest.numerator}))
    ::BIGINT AS top
FROM r GROUP BY pid, op HAVING any_value(total) >= {least}
"""


def effects(context: Context) -> Sequence[Effect]:
    """One per process, thread and operation with a slow call, those with most time first."""
    found = [e for table in TABLES for e in _of_table(context, table)]
    found.sort(key=lambda e: (-e.length_ns, e.key))
    return found[:MAX_EFFECTS]


def limits_of(context: Context) -> tuple[Fraction, Fraction, int]:
    """How many times the median, which share of the slowest, of how many calls at least."""
    times, slowest, least = (context.policy.value(t, DECLARATION.id) for t in DECLARATION.thresholds)
    return Fraction(times), Fraction(slowest), int(least)


def _scaled(column: str, times: Fraction) -> str:
    """SQL: the whole part of a column times a number, in parts that stay within 128 bits whatever a policy sets."""
    whole, rest = divmod(times.numerator, times.denominator)
    product = f"{column}::HUGEINT * {whole} + {column}::HUGEINT * {rest} // {times.denominator}"
    return f"least({product}, {MAX_TIME_NS})::BIGINT"


def _of_table(context: Context, table: str) -> list[Effect]:
    if not context.store.row_count(table):
        return []
    times, slowest, least = limits_of(context)
    limits = _LIMITS.format(
        table=table, own=NOT_OWN, outer=OUTERMOST, of_table=OF_TABLE[table], outer_totals=OUTER, slowest=slowest,
        least=least, most=MAX_CALLS,
    )  # fmt: skip
    a = context.store.arrays(
        f"WITH limits AS (SELECT *, {_scaled('median', times)} AS most FROM ({limits})) "
        "SELECT t.pid::BIGINT AS pid, t.tid::BIGINT AS tid, t.op AS op, "
        "t.start_ns::BIGINT AS a, t.end_ns::BIGINT AS b, t.leaf::BIGINT AS leaf, t.row::BIGINT AS row, calls, median "
        f"FROM {table} t JOIN limits USING (pid, op) WHERE t.{OUTERMOST} AND duration_ns > most AND "
        "duration_ns >= top ORDER BY t.pid, t.tid, t.op, a, leaf, row"
    )
    if not len(a["pid"]):
        return []
    lives = _observed(context)
    out = []
    watched = ~np.isin(a["pid"], sorted(context.observers))
    a = {k: v[watched] for k, v in a.items()}
    starts = np.flatnonzero(_changes(a))
    for low, high in zip(starts, [*starts[1:], len(a["pid"])], strict=True):
        out.append(_effect(context, table, {k: v[low:high] for k, v in a.items()}, lives))
    return out


def _changes(a: dict[str, Any]) -> np.ndarray[Any, Any]:
    new = np.ones(len(a["pid"]), dtype=bool)
    new[1:] = (a["pid"][1:] != a["pid"][:-1]) | (a["tid"][1:] != a["tid"][:-1]) | (a["op"][1:] != a["op"][:-1])
    return new


def _observed(context: Context) -> dict[tuple[int, int], int]:
    """Per thread: ns from its first recorded call to the end of its last one."""
    rows = context.store.sql(
        " UNION ALL ".join(
            f"SELECT pid, tid, min(start_ns), max(coalesce(end_ns, start_ns)) FROM {t} WHERE {NOT_OWN} GROUP BY ALL"
            for t in TABLES
        )
    )
    spans: dict[tuple[int, int], tuple[int, int]] = {}
    for pid, tid, start, end in rows:
        known = spans.get((pid, tid), (int(start), int(end)))
        spans[pid, tid] = (min(known[0], int(start)), max(known[1], int(end)))
    return {k: b - a for k, (a, b) in spans.items()}


def _effect(context: Context, table: str, a: dict[str, Any], lives: dict[tuple[int, int], int]) -> Effect:
    pid, tid, op = int(a["pid"][0]), int(a["tid"][0]), str(a["op"][0])
    parts = np.stack([a["a"], a["b"]], axis=1).astype(np.int64)
    calls, median = int(a["calls"][0]), int(a["median"][0])
    times, slowest, _ = limits_of(context)
    keys = np.stack([a["leaf"], a["row"]], axis=1).astype(np.int64)
    wide = f"pid = {pid} AND tid = {tid} AND op = {quoted(op)} AND {OUTERMOST} AND duration_ns > {int(median * times)}"
    notes: tuple[str, ...] = ()
    if calls * slowest < 1:
        notes = (f"of {calls} calls the slowest {slowest} is one call: what it shows may never happen again",)
    return Effect(
        kind=KIND,
        key=f"{KIND}:{pid}:{tid}:{op}",
        name=f"the {_counted(len(parts))} of {op} on thread {tid} of {context.process_name(pid)} ({pid})",
        pid=pid, tid=tid, op=op, parts=parts,
        time=intervals.subtract(intervals.from_bounds(parts[:, 0], parts[:, 1]), context.window.asleep),
        of_ns=lives.get((pid, tid), context.window.length_ns),
        evidence=_evidence(context, table, keys, wide),
        subject={"pid": str(pid), "tid": str(tid), "op": op}, notes=(*notes, *unlisted.note(context, pid, op)),
    )  # fmt: skip


def _counted(calls: int) -> str:
    return "slow call" if calls == 1 else f"{calls} slow calls"


def _evidence(context: Context, table: str, keys: Intervals, wide: str) -> Callable[[], tuple[str, ...]]:
    return cache(lambda: (context.book.listed(table, keys, wide),))
