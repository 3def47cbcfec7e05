"""The interval join, written once: the SQL macro ``overlapping(l, r)`` over two relations of intervals.

Each relation has the columns ``id``, ``k`` (what must be equal: a thread, a process, a device), ``a`` and ``b`` (the
half-open ``[a, b)`` in ns, not negative). The macro gives one row ``(l, r, a, b)`` for every pair of equal ``k`` that
shares a moment, with the time that they share; an empty interval shares none.

A join on ``a < b`` alone is quadratic within a key. So each interval is laid into buckets of time: of
:data:`BUCKET_NS` where it is shorter than :data:`RATIO` of them, of a coarser level otherwise (an hour's sleep has
ten copies at most, not 36,000), and of the coarser levels that the other side uses. A pair meets on the level
of its longer interval, and counts in the bucket in which the later of the two begins: once.
"""

from __future__ import annotations

BUCKET_NS = 100_000_000
"""Design (analysis.md, Store and engine): 100 ms, a few times the slices and requests that are joined."""

RATIO_BITS = 6
RATIO = 1 << RATIO_BITS
"""Buckets of one level in a bucket of the next: what a long interval is copied at most, plus one."""

LEVELS = 6
"""The coarsest has buckets of 1e8·64^5 ns, three years: the longest interval of a store (2^62 ns) lies in 44."""

MACRO = f"""
CREATE MACRO interval_level(ns) AS CASE
  {" ".join(f"WHEN ns < {BUCKET_NS << (RATIO_BITS * (n + 1))} THEN {n}" for n in range(LEVELS - 1))} ELSE {LEVELS - 1}
END;
CREATE MACRO interval_bucket(t, n) AS t // ({BUCKET_NS} * (1::BIGINT << ({RATIO_BITS} * n)));
CREATE MACRO overlapping(l, r) AS TABLE
WITH lefts AS MATERIALIZED (
  SELECT id, k, a, b, interval_level(b - a) AS own FROM query_table(l) WHERE a < b
), rights AS NOT MATERIALIZED (
  SELECT id, k, a, b, interval_level(b - a) AS own FROM query_table(r) WHERE a < b AND k IN (SELECT k FROM lefts)
), of_lefts AS MATERIALIZED (SELECT DISTINCT own AS level FROM lefts),
of_rights AS MATERIALIZED (SELECT DISTINCT own AS level FROM rights),
levels AS MATERIALIZED (SELECT level FROM of_lefts UNION SELECT level FROM of_rights),
left_entries AS (
  SELECT id, k, a, b, own, level, interval_bucket(a, level) AS begun,
    unnest(range(interval_bucket(a, level), interval_bucket(b - 1, level) + 1)) AS bucket
  FROM lefts JOIN levels ON level >= own AND (level = own OR level IN (SELECT level FROM of_rights))
), right_entries AS (
  SELECT id, k, a, b, own, level, interval_bucket(a, level) AS begun,
    unnest(range(interval_bucket(a, level), interval_bucket(b - 1, level) + 1)) AS bucket
  FROM rights JOIN levels ON level >= own AND (level = own OR level IN (SELECT level FROM of_lefts))
)
SELECT x.id AS l, y.id AS r, greatest(x.a, y.a) AS a, least(x.b, y.b) AS b
FROM left_entries x JOIN right_entries y ON x.k = y.k AND x.level = y.level AND x.bucket = y.bucket
WHERE x.a < y.b AND y.a < x.b AND x.bucket = greatest(x.begun, y.begun)
  AND (x.own = x.level OR y.own = y.level);
"""
"""Arguments of ``overlapping`` are names of relations, as texts: ``FROM overlapping('wanted', 'rows')``."""
