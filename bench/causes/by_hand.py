"""Three joins as somebody who knows DuckDB would write them for one question: ``bench.causes.stages`` compares.

Slow calls per thread and operation, and of their time what lay in intervals off the CPU of the same thread: runnable
(preempted, or late after a wake-up), asleep in a futex, or asleep while a disk request of the process was served.
Pieces are added up: those of one thread do not overlap in this evidence. No evidence ids, no arbitration, no grades.
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

PREEMPTED = """
SELECT s.pid::BIGINT, sum(greatest(least(s.b, o.end_ns::BIGINT) - greatest(s.a, o.ready), 0))::BIGINT FROM slow s JOIN (
  SELECT pid, tid, end_ns, CASE WHEN op = 'preempted' THEN start_ns ELSE end_ns - coalesce(runqueue_ns, 0) END::BIGINT
    AS ready, start_ns FROM off_cpu) o
ON s.pid = o.pid AND s.tid = o.tid AND o.ready < s.b AND o.end_ns::BIGINT > s.a GROUP BY 1 ORDER BY 1
"""
FUTEX = """
SELECT s.pid::BIGINT, sum(least(s.b, o.end_ns::BIGINT) - greatest(s.a, o.start_ns::BIGINT))::BIGINT
FROM slow s JOIN off_cpu o ON s.pid = o.pid AND s.tid = o.tid AND o.start_ns::BIGINT < s.b AND o.end_ns::BIGINT > s.a
WHERE o.syscall = 202 AND (NOT regexp_matches(s.op, 'Synchronize$|^cudaMemcpy(2D|3D)?$')
  OR (o.waker_pid, o.waker_tid) IN (SELECT (pid, tid) FROM cuda_calls)) GROUP BY 1 ORDER BY 1
"""
"""In a call that waits for the GPU, a thread without calls of its own that ends the sleep is the driver's."""
DISK = """
SELECT s.pid::BIGINT, sum(least(s.b, o.end_ns::BIGINT, i.end_ns::BIGINT) -
  greatest(s.a, o.start_ns::BIGINT, i.start_ns::BIGINT))::BIGINT
FROM slow s JOIN off_cpu o ON s.pid = o.pid AND s.tid = o.tid AND o.start_ns::BIGINT < s.b AND o.end_ns::BIGINT > s.a
JOIN block_io i ON i.pid = s.pid AND i.start_ns < o.end_ns AND i.end_ns > o.start_ns AND i.op = 'read'
WHERE o.op = 'blocked' GROUP BY 1 ORDER BY 1
"""

JOINS = {"preempted": PREEMPTED, "lock_wait": FUTEX, "blocking_io": DISK}


def run(store: Store) -> dict[str, dict[int, int]]:
    """Per detector and process, ns of slow calls that the cause covers."""
    store.sql(SLOW)
    return {name: {int(p): int(ns) for p, ns in store.sql(query)} for name, query in JOINS.items()}
