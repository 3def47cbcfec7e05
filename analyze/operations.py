"""Exact statistics of every recorded operation.

Only outermost calls are added up: the time of a call made inside another recorded one is in that one's, so such calls
are counted apart (``nested``). Calls that were aggregated in the kernel (``call_totals``) are in every count and sum.

Order statistics are values that occurred: rank ceil(q·n) of the n finished calls, from counts per distinct duration,
which is exact, needs little memory and can be merged. Of aggregated calls the bucket is known and the least and most of
it: a percentile is then at most the one told here, and the formula says what it is at least. Calls still open at the
end are counted apart; failed calls (return code not 0) are counted among all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuaudit.analyze.call_meanings import OUTERMOST
from gpuaudit.analyze.call_totals import OF_TABLE, OUTER
from gpuaudit.analyze.evidence import EvidenceBook
from gpuaudit.analyze.finding import Json, Quantity
from gpuaudit.analyze.store import NOT_OWN, Store, quoted

API_TABLES = ("cuda_calls", "nccl_calls", "nccl_comms")
STATE_TABLES = ("off_cpu",)

P99_MIN_CALLS = 100
"""Below a hundred calls rank ceil(0.99·n) is the largest: the maximum has that name already."""

_QUERY = """
WITH c AS (
  SELECT op, duration_ns AS low, duration_ns AS high, count(*) AS n, sum(duration_ns::HUGEINT) AS ns FROM {table}
  WHERE {own} AND {outer} AND duration_ns IS NOT NULL GROUP BY op, duration_ns
  UNION ALL SELECT op, min_ns, max_ns, sum(count), sum(sum_ns)::HUGEINT FROM {totals} WHERE {fast} GROUP BY op, 2, 3
), r AS (
  SELECT op, low, high, n, ns, sum(n) OVER (PARTITION BY op) AS of_op,
    sum(n) OVER (PARTITION BY op ORDER BY low) AS upto_low, sum(n) OVER (PARTITION BY op ORDER BY high) AS upto_high
  FROM c
), s AS (
  SELECT op, any_value(of_op) AS finished, sum(ns) AS total, max(high) AS longest,
    min(high) FILTER (WHERE upto_high * 2 >= of_op) AS p50, min(low) FILTER (WHERE upto_low * 2 >= of_op) AS p50_least,
    min(high) FILTER (WHERE upto_high * 100 >= of_op * 99) AS p99,
    min(low) FILTER (WHERE upto_low * 100 >= of_op * 99) AS p99_least
  FROM r GROUP BY op
), a AS (
  SELECT op, sum(calls) AS calls, sum(open) AS open, sum(errors) AS errors, sum(fast) AS fast, sum(nested) AS nested
  FROM (
    SELECT op, count(*) FILTER ({outer}) AS calls, count(*) FILTER ({outer} AND duration_ns IS NULL) AS open,
      {errors} AS errors, 0 AS fast, count(*) FILTER (NOT ({outer})) AS nested FROM {table} WHERE {own} GROUP BY op
    UNION ALL SELECT op, coalesce(sum(count) FILTER (WHERE nested = 0), 0), 0,
      coalesce(sum(errors) FILTER (WHERE nested = 0), 0), coalesce(sum(count) FILTER (WHERE nested = 0), 0),
      coalesce(sum(count) FILTER (WHERE nested <> 0), 0) FROM {totals} WHERE {of_table} GROUP BY op
  ) GROUP BY op
)
SELECT a.op, calls::HUGEINT, open::HUGEINT, errors::HUGEINT, fast::HUGEINT, nested::HUGEINT,
  coalesce(finished, 0)::HUGEINT, coalesce(total, 0)::HUGEINT, p50, p50_least, p99, p99_least, longest
FROM a LEFT JOIN s ON s.op = a.op ORDER BY 8 DESC, a.op
"""


@dataclass(frozen=True)
class _Counted:
    """One operation: counts of calls, and durations in ns."""

    op: str
    calls: int
    open: int
    errors: int
    fast: int
    nested: int
    finished: int
    total: int
    p50: int | None
    p50_least: int | None
    p99: int | None
    p99_least: int | None
    longest: int | None


def operations(store: Store, book: EvidenceBook) -> list[dict[str, Json]]:
    """Section ``operations``: API calls by total time descending, then off-CPU states."""
    api = [row for table in API_TABLES for row in _of_table(store, book, table)]
    api.sort(key=lambda r: -int(r[0]))
    return [row for _, row in api] + [row for table in STATE_TABLES for _, row in _of_table(store, book, table)]


def _of_table(store: Store, book: EvidenceBook, table: str) -> list[tuple[int, dict[str, Json]]]:
    is_api = table in API_TABLES
    of_table = f"{NOT_OWN} AND {OF_TABLE.get(table, 'false')}"
    query = _QUERY.format(
        table=table, own=NOT_OWN, totals="call_totals", of_table=of_table, fast=f"{of_table} AND {OUTER} AND count > 0",
        outer=OUTERMOST if is_api else "true",
        errors=f"count(*) FILTER (return_code <> 0 AND {OUTERMOST})" if is_api else "0",
    )  # fmt: skip
    rows = [_counted(row) for row in store.sql(query)]
    return [(c.total, {"table": table, "op": c.op, **_statistics(book, table, c)}) for c in rows]


def _counted(row: tuple[Any, ...]) -> _Counted:
    return _Counted(str(row[0]), *(None if v is None else int(v) for v in row[1:]))  # type: ignore[arg-type]


def _statistics(book: EvidenceBook, table: str, c: _Counted) -> dict[str, Json]:
    is_api = table in API_TABLES
    own = f"op = {quoted(c.op)} AND {NOT_OWN}"
    has_rows = not (c.fast or c.nested) or c.calls > c.fast
    outer = f"{own} AND {OUTERMOST}" if c.nested else own
    evidence: tuple[str, ...] = (book.where(table, outer),) if has_rows else ()
    inside: tuple[str, ...] = book.present((table,), f"{own} AND NOT ({OUTERMOST})") if c.nested else ()
    fast: tuple[str, ...] = (book.where("call_totals", f"{own} AND {OUTER}"),) if c.fast else ()
    if c.nested:
        inside += book.present(("call_totals",), f"{own} AND NOT ({OUTER})")
    if not evidence and not fast:
        evidence = inside  # none was outermost: that is told by the rows of those that were not
    plus = ", plus those aggregated in the kernel" if c.fast else ""
    none_done = (
        "no call finished within the capture" if c.calls or not c.nested else "every call was made inside another"
    )
    few = f"fewer than {P99_MIN_CALLS} finished calls ({c.finished}): see the maximum"

    def q(value: int | None, unit: str, formula: str, reason: str = "", also: tuple[str, ...] = fast) -> Json:
        why = reason if value is None else ""
        return Quantity(value, unit, "derived", (*evidence, *also), formula, why).to_json()

    def rank(which: str, least: int | None) -> str:
        told = f"duration at rank ceil({which}·n) of the n finished calls, in order of duration"
        return (
            f"{told}; {c.fast} of them are known by their bucket: at most this, at least {least} ns" if c.fast else told
        )

    out = {
        "count": q(c.calls, "count", "rows" + (", of calls made inside no other" if c.nested else "") + plus),
        "open": q(c.open, "count", "rows without duration_ns"),
        "errors": q(c.errors if is_api else None, "count", "rows with return_code not 0" + plus,
                    "a thread state has no return code"),
        "total": q(c.total if c.finished else None, "ns", "sum of duration_ns" + plus, none_done),
        "p50": q(c.p50, "ns", rank("0.5", c.p50_least), none_done),
        "p99": q(c.p99 if c.finished >= P99_MIN_CALLS else None, "ns", rank("0.99", c.p99_least),
                 few if c.finished else none_done),
        "max": q(c.longest, "ns", "longest duration_ns" + plus, none_done),
    }  # fmt: skip
    if c.nested:
        how = "calls made inside another recorded call of the same thread: their time is in that one's"
        out["nested"] = Quantity(c.nested, "count", "derived", inside, how).to_json()
    if c.fast:
        how = "calls counted in the kernel, without rows of their own"
        out["aggregated"] = Quantity(c.fast, "count", "derived", fast, how).to_json()
    return out
