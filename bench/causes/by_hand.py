"""Three joins as somebody who knows DuckDB would write them for one question: ``bench.causes.stages`` compares.

Slow calls per thread and operation, and of their time what lay in intervals off the CPU of the same thread: runnable
(preempted, or late after a wake-up), asleep in a futex, or asleep while a disk request of the process was served.
All that is joined is laid into buckets of time, so that each join is a hash join on thread and bucket: by inequalities
alone all pairs of a thread are compared. Parts are added up: those of one thread do not overlap in this evidence. No
evidence ids, no arbitration, no grades.
"""

from __future__ import annotations

from gpuaudit.analyze.store import Store

SLOW = """
CREATE OR REPLACE TEMP TABLE slow AS
WITH calls AS (SELECT pid, tid, op, start_ns, end_ns, duration_ns FROM cuda_calls
  WHERE parent_ns IS NULL AND duration_ns IS NOT NULL
  UNION ALL SELECT pid, tid, op, start_ns, end_ns, duration_ns FROM nccl_calls
  WHERE parent_ns IS NULL AND duration_ns IS NOT NULL),
c AS (SELECT pid, op, duration_ns AS ns, count(*) AS n FROM calls GROUP BY ALL),
r AS (SELECT pid, op, ns, sum(n) OVER (PARTITION BY pid, op) AS whole,
  sum(n) OVER (PARTITION BY pid, op ORDER BY ns) AS upto FROM c),
l AS (SELECT pid, op, min(ns) FILTER (upto * 2 >= whole) AS median, min(ns) FILTER (upto * 100 >= whole * 99) AS top
  FROM r GROUP BY pid, op HAVING any_value(whole) >= 10)
SELECT t.pid, t.tid, t.op, t.start_ns::BIGINT AS a, t.end_ns::BIGINT AS b FROM calls t JOIN l USING (pid, op)
WHERE duration_ns > median * 3 AND duration_ns >= top
"""

BUCKETS = "CREATE OR REPLACE TEMP MACRO buckets(a, b) AS range(a // 10_000_000, (b - 1) // 10_000_000 + 1)"
"""10 ms, about as long as what is joined."""

PARTS = """
CREATE OR REPLACE TEMP TABLE parts AS
SELECT pid, tid, op, k, greatest(a, k * 10_000_000) AS a, least(b, (k + 1) * 10_000_000) AS b
FROM (SELECT *, unnest(buckets(a, b)) AS k FROM slow)
"""
"""Slow calls, cut where a bucket ends."""

OFF = """
CREATE OR REPLACE TEMP TABLE off AS
SELECT pid, tid, op, syscall, waker_pid, waker_tid, start_ns::BIGINT AS a, end_ns::BIGINT AS b,
  CASE WHEN op = 'preempted' THEN start_ns ELSE end_ns - coalesce(runqueue_ns, 0) END::BIGINT AS ready,
  unnest(buckets(start_ns::BIGINT, end_ns::BIGINT)) AS k FROM off_cpu
"""
"""Intervals off the CPU, once for each bucket that they touch."""

PREEMPTED = """
SELECT pid::BIGINT, sum(least(s.b, o.b) - greatest(s.a, o.ready))::BIGINT FROM parts s JOIN off o USING (pid, tid, k)
WHERE o.ready < s.b AND o.b > s.a GROUP BY 1 ORDER BY 1
"""
FUTEX = """
SELECT pid::BIGINT, sum(least(s.b, o.b) - greatest(s.a, o.a))::BIGINT FROM parts s JOIN off o USING (pid, tid, k)
WHERE o.a < s.b AND o.b > s.a AND o.syscall = 202 AND (NOT regexp_matches(s.op, 'Synchronize$|^cudaMemcpy(2D|3D)?$')
  OR (o.waker_pid, o.waker_tid) IN (SELECT (pid, tid) FROM cuda_calls)) GROUP BY 1 ORDER BY 1
"""
"""In a call that waits for the GPU, a thread without calls of its own that ends the sleep is the driver's."""

DISK = """
WITH reads AS (SELECT pid, start_ns::BIGINT AS a, end_ns::BIGINT AS b,
  unnest(buckets(start_ns::BIGINT, end_ns::BIGINT)) AS k FROM block_io WHERE op = 'read')
SELECT pid::BIGINT, sum(least(s.b, o.b, i.b) - greatest(s.a, o.a, i.a))::BIGINT
FROM parts s JOIN off o USING (pid, tid, k) JOIN reads i USING (pid, k)
WHERE o.op = 'blocked' AND greatest(s.a, o.a, i.a) < least(s.b, o.b, i.b) GROUP BY 1 ORDER BY 1
"""

JOINS = {"preempted": PREEMPTED, "lock_wait": FUTEX, "blocking_io": DISK}


def run(store: Store) -> dict[str, dict[int, int]]:
    """Per detector and process, ns of slow calls that the cause covers."""
    for query in (SLOW, BUCKETS, PARTS, OFF):
        store.sql(query)
    return {name: {int(p): int(ns) for p, ns in store.sql(query)} for name, query in JOINS.items()}
