"""Rule: a process that made CUDA or NCCL calls made none for long while it lived.

The time in which a process was inside at least one recorded call is subtracted from the time between its first call
and its end (its exit, or the end of the capture). Stretches of at least ``silence_ns`` remain silent. Time in which
the source could not see, or in which records were lost, is cut out first. Unit: ns of the process's time.
"""

from __future__ import annotations

from fractions import Fraction

from gpuaudit.analyze import intervals, severity
from gpuaudit.analyze.context import UNNUMBERED, Context, Found, NotEvaluated, Outcome
from gpuaudit.analyze.finding import Declaration, Finding, Quantity, Threshold
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.store import NOT_OWN, Store
from gpuaudit.analyze.words import duration

SILENCE = Threshold(
    "silence_ns", 5_000_000_000, "ns",
    "chosen: shorter pauses are usual around checkpoints, evaluation and data loading, and five seconds are a twelfth "
    "of the default capture of 60 s",
)  # fmt: skip

TABLES = ("cuda_calls", "nccl_calls", "nccl_comms")

DECLARATION = Declaration(
    id="api_silence",
    kind="rule",
    title="API silence",
    question="Did a process that used the GPU make no CUDA or NCCL call for a long time while it existed?",
    inputs=(
        *((t, ("start_ns", "duration_ns", "pid")) for t in TABLES),
        ("processes", ("start_ns", "duration_ns", "pid", "op", "role")),
        ("gaps", ("start_ns", "duration_ns", "source", "table_name", "pid")),
        ("losses", ("start_ns", "table_name", "cpu", "lost")),
    ),
    thresholds=(SILENCE, *severity.THRESHOLDS),
    texts={
        "api_silence": "Process {process} made {calls} recorded calls, and none for {silent} of the {observed} "
        "after its "
        "first ({share}; stretches of at least {threshold}: {stretches}, the longest {longest}, {where})."
    },
    never_claims="That the GPU was idle (kernels may run without calls), or what the process did instead.",
    assumptions=("A process makes no GPU work known except through the probed functions.",),
)


def evaluate(context: Context) -> Outcome:
    """One finding per process."""
    calls = " UNION ALL ".join(f"SELECT pid, start_ns, duration_ns FROM {t} WHERE {NOT_OWN}" for t in TABLES)
    rows = context.store.sql(f"SELECT pid, count(*) FROM ({calls}) GROUP BY pid ORDER BY pid")
    if not rows:
        reason = context.quality.source_reason("cuda") or "no process that maps a probed library made one"
        return NotEvaluated(f"no API call was recorded: {reason}")
    if context.window.length_ns < SILENCE.value:
        return NotEvaluated(
            f"the capture covers {duration(context.window.length_ns)}, less than the {duration(SILENCE.value)} it takes"
        )
    blind = _lossy(context.store)
    unplaced = sum(context.quality.lost(t) for t in TABLES) - blind[1]
    if unplaced > 0:
        return NotEvaluated(
            f"{unplaced} records were lost at times that are not known, so silence cannot be told from loss"
        )
    items = [f for pid, n in rows if (f := _of_process(context, int(pid), int(n), blind[0])) is not None]
    return Found(items, f"{len(rows)} processes evaluated")


def _of_process(context: Context, pid: int, count: int, lossy: Intervals) -> Finding | None:
    end = _last_moment(context, pid)
    calls = " UNION ALL ".join(
        f"SELECT start_ns::BIGINT AS a, coalesce(end_ns, {max(end, 0)})::BIGINT AS b FROM {t} WHERE pid = {pid}"
        for t in TABLES
    )
    a = context.store.arrays(f"SELECT a, greatest(b, a + 1) AS b FROM ({calls}) ORDER BY a, b")
    first = int(a["a"][0])
    lived = intervals.single(first, max(end, int(a["b"].max())))
    observed = intervals.subtract(intervals.subtract(lived, _gaps(context, pid)), lossy)
    silent = intervals.subtract(observed, intervals.from_bounds(a["a"], a["b"]))
    silent = silent[silent[:, 1] - silent[:, 0] >= int(SILENCE.value)]
    if not len(silent):
        return None
    total, of = intervals.measure(silent), intervals.measure(observed)
    at = int((silent[:, 1] - silent[:, 0]).argmax())
    tail = int(silent[at, 1]) == int(lived[-1, 1])
    evidence = context.book.present((*TABLES, "processes"), f"pid = {pid}")

    def derived(value: int | Fraction, unit: str, how: str) -> Quantity:
        return Quantity(value, unit, "derived", evidence, how)

    formula = "time after the first call inside no recorded call, in stretches of at least the threshold"
    return Finding(
        id=UNNUMBERED,
        rule=DECLARATION.id,
        severity=severity.of_share(total, of),
        text="api_silence",
        values={
            "process": f"{pid} ({context.process_name(pid)})",
            "calls": derived(count, "count", "rows of the process"),
            "silent": derived(total, "ns", formula),
            "observed": derived(of, "ns", "from the first call to its end or the capture's, less time not observed"),
            "share": derived(Fraction(total, of), "share", "silent / observed"),
            "stretches": derived(len(silent), "count", "stretches of at least the threshold"),
            "longest": derived(int(silent[at, 1] - silent[at, 0]), "ns", "length of the longest stretch"),
            "start": derived(int(silent[at, 0]), "ns", "end of the call before the longest stretch"),
            "where": "after its last call" if tail else "between two calls",
            "threshold": Quantity(int(SILENCE.value), "ns", "assumed"),
        },
        subject={"pid": str(pid), "comm": context.process_name(pid)},
        impact=derived(total, "ns", formula),
        grade=context.quality.grade_of(TABLES),
        evidence=evidence,
    )


def _last_moment(context: Context, pid: int) -> int:
    """Until when the process is known to have existed: its exit, or the end of the capture; 0 if not known."""
    rows = context.store.sql(
        f"SELECT op, end_ns FROM processes WHERE pid = {pid} ORDER BY seen_ns, (op = 'exited'), leaf, row"
    )
    if not rows:
        return 0
    ends = [int(end) for _, end in rows if end is not None]
    return min(ends[-1], context.window.end_ns) if ends else context.window.end_ns


def _gaps(context: Context, pid: int) -> Intervals:
    tables = ", ".join(f"'{t}'" for t in TABLES)
    rows = context.store.arrays(
        f"SELECT start_ns::BIGINT AS a, coalesce(end_ns, {context.window.end_ns})::BIGINT AS b FROM gaps WHERE "
        f"(source IN ('cuda', 'cudart', 'nccl') OR table_name IN ({tables})) AND (pid IS NULL OR pid = {pid}) "
        f"ORDER BY 1, 2"
    )
    return intervals.from_bounds(rows["a"], rows["b"])


def _lossy(store: Store) -> tuple[Intervals, int]:
    """Time between two readings of the loss counters that differ, and how many losses that places."""
    tables = ", ".join(f"'{t}'" for t in TABLES)
    rows = store.arrays(
        "SELECT a, b, n FROM (SELECT coalesce(lag(start_ns) OVER w, 0)::BIGINT AS a, start_ns::BIGINT AS b, "
        "greatest(least(lost::HUGEINT - coalesce(lag(lost) OVER w, 0), 1::HUGEINT << 40), 0)::BIGINT AS n "
        f"FROM losses WHERE table_name IN ({tables}) WINDOW w AS (PARTITION BY table_name, cpu ORDER BY "
        f"start_ns, leaf, row)) "
        "WHERE n > 0 ORDER BY a, b"
    )
    return intervals.from_bounds(rows["a"], rows["b"]), int(rows["n"].sum())
