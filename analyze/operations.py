"""Exact statistics of every recorded operation.

Order statistics are values that occurred: rank ceil(q·n) of the n finished calls, from counts per distinct duration,
which is exact, needs little memory and can be merged. Calls still open at the end are counted apart; failed calls
(return code not 0) are counted among all.
"""

from __future__ import annotations

from gpuaudit.analyze.evidence import EvidenceBook
from gpuaudit.analyze.finding import Json, Quantity
from gpuaudit.analyze.store import NOT_OWN, Store, quoted

API_TABLES = ("cuda_calls", "nccl_calls", "nccl_comms")
STATE_TABLES = ("off_cpu",)

P99_MIN_CALLS = 100
"""Below a hundred calls rank ceil(0.99·n) is the largest: the maximum has that name already."""

_QUERY = """
WITH c AS (
  SELECT op, duration_ns AS d, count(*) AS n FROM {table} WHERE {own} AND duration_ns IS NOT NULL GROUP BY op,
  duration_ns
), r AS (
  SELECT op, d, n, sum(n) OVER (PARTITION BY op ORDER BY d) AS upto, sum(n) OVER (PARTITION BY op) AS of_op FROM c
), s AS (
  SELECT op, any_value(of_op) AS finished, sum(d * n::HUGEINT) AS total, max(d) AS longest,
    min(d) FILTER (WHERE upto * 2 >= of_op) AS p50, min(d) FILTER (WHERE upto * 100 >= of_op * 99) AS p99
  FROM r GROUP BY op
), a AS (
  SELECT op, count(*) AS calls, count(*) - count(duration_ns) AS open,
  {errors} AS errors FROM {table} WHERE {own} GROUP BY op
)
SELECT a.op, calls, open, errors, coalesce(finished, 0)::BIGINT, coalesce(total, 0)::HUGEINT, p50, p99, longest
FROM a LEFT JOIN s ON s.op = a.op ORDER BY 6 DESC, a.op
"""


def operations(store: Store, book: EvidenceBook) -> list[dict[str, Json]]:
    """Section ``operations``: API calls by total time descending, then off-CPU states."""
    api = [row for table in API_TABLES for row in _of_table(store, book, table)]
    api.sort(key=lambda r: -int(r[0]))
    return [row for _, row in api] + [row for table in STATE_TABLES for _, row in _of_table(store, book, table)]


def _of_table(store: Store, book: EvidenceBook, table: str) -> list[tuple[int, dict[str, Json]]]:
    has_code = table in API_TABLES
    errors = "count(*) FILTER (WHERE return_code <> 0)" if has_code else "0"
    out = []
    for op, calls, still_open, failed, finished, total, p50, p99, longest in store.sql(
        _QUERY.format(table=table, own=NOT_OWN, errors=errors)
    ):
        evidence = (book.where(table, f"op = {quoted(op)} AND {NOT_OWN}"),)
        none_done = "no call finished within the capture"
        errors_reason = "a thread state has no return code"
        few = f"fewer than {P99_MIN_CALLS} finished calls ({finished}): see the maximum"
        rank = "duration at rank ceil({}·n) of the n finished calls, in order of duration"
        statistics = {
            "count": _quantity(calls, "count", evidence, "rows"),
            "open": _quantity(still_open, "count", evidence, "rows without duration_ns"),
            "errors": _quantity(
                failed if has_code else None, "count", evidence, "rows with return_code not 0", errors_reason
            ),
            "total": _quantity(int(total) if finished else None, "ns", evidence, "sum of duration_ns", none_done),
            "p50": _quantity(p50, "ns", evidence, rank.format("0.5"), none_done),
            "p99": _quantity(
                p99 if finished >= P99_MIN_CALLS else None,
                "ns",
                evidence,
                rank.format("0.99"),
                few if finished else none_done,
            ),
            "max": _quantity(longest, "ns", evidence, "longest duration_ns", none_done),
        }
        out.append((int(total), {"table": table, "op": op, **{k: q.to_json() for k, q in statistics.items()}}))
    return out


def _quantity(value: int | None, unit: str, evidence: tuple[str, ...], formula: str, reason: str = "") -> Quantity:
    return Quantity(
        None if value is None else int(value), unit, "derived", evidence, formula, reason if value is None else ""
    )
