"""Rule: a process that made CUDA or NCCL calls made none for long while it lived.

The time in which a process was inside at least one recorded call is subtracted from the time between its first call
and its end (its exit, or the end of the capture). Stretches of at least ``silence_ns`` remain silent. Time in which
the source could not see, in which records were lost or the host was suspended, is cut out first. Unit: ns of the
process's time.
"""

from __future__ import annotations

from fractions import Fraction

from gpuaudit.analyze import intervals, severity, silence
from gpuaudit.analyze.context import UNNUMBERED, Context, Found, NotEvaluated, Outcome
from gpuaudit.analyze.finding import Declaration, Finding, Quantity, Severity, Threshold
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.silence import TABLES, Seen
from gpuaudit.analyze.words import duration

SILENCE = Threshold(
    "silence_ns", 5_000_000_000, "ns",
    "chosen: shorter pauses are usual around checkpoints, evaluation and data loading, and five seconds are a twelfth "
    "of the default capture of 60 s",
)  # fmt: skip

DECLARATION = Declaration(
    id="api_silence",
    kind="rule",
    title="API silence",
    question="Did a process that used the GPU make no CUDA or NCCL call for a long time while it existed?",
    inputs=(
        *((t, ("start_ns", "duration_ns", "pid")) for t in TABLES),
        ("processes", ("start_ns", "duration_ns", "pid", "op", "role")),
        ("gaps", ("start_ns", "duration_ns", "source", "table_name", "pid")),
        ("nvml_samples", ("start_ns", "duration_ns", "gpu_uuid", "gpu_utilization_percent")),
        ("nvml_processes", ("start_ns", "gpu_uuid", "pid")),
        ("losses", ("start_ns", "table_name", "cpu", "lost")),
    ),
    thresholds=(SILENCE, *severity.THRESHOLDS),
    texts={
        "api_silence": "Process {process} made {calls} recorded calls, and none for {silent} of the {observed} "
        "after its "
        "first ({share}; stretches of at least {threshold}: {stretches}, the longest {longest}, {where}). Time of that "
        "silence in which a GPU that it held was busy: {gpu_busy}."
    },
    never_claims="That the GPU was idle (kernels may run without calls), or what the process did instead.",
    assumptions=(
        "Calls of functions that are not probed leave no row; work that they gave to a GPU shows in its utilisation.",
    ),
)


def evaluate(context: Context) -> Outcome:
    """One finding per process."""
    rows = silence.callers(context)
    if not rows:
        reason = context.quality.source_reason("cuda") or "no process that maps a probed library made one"
        return NotEvaluated(f"no API call was recorded: {reason}")
    silence_ns = int(context.policy.value(SILENCE, DECLARATION.id))
    if context.window.length_ns < silence_ns:
        return NotEvaluated(
            f"the capture covers {duration(context.window.length_ns)}, less than the {duration(silence_ns)} it takes"
        )
    unplaced = silence.unplaced_losses(context)
    if unplaced > 0:
        return NotEvaluated(
            f"{unplaced} records were lost at times that are not known, so silence cannot be told from loss"
        )
    seen = context.silences
    long = [s for s in seen if s.observed_ns >= silence_ns]
    reason = f"{len(long)} of {len(seen)} processes evaluated"
    if len(long) < len(seen):
        reason += f"; the others were observed for less than {duration(silence_ns)} after their first call"
    items = [f for s in long if (f := _finding(context, s, silence_ns)) is not None]
    return Found(items, reason) if long else NotEvaluated(reason)


def _finding(context: Context, seen: Seen, silence_ns: int) -> Finding | None:
    pid = seen.pid
    silent = seen.silent
    if not len(silent):
        return None
    total, of = intervals.measure(silent), seen.observed_ns
    at = int((silent[:, 1] - silent[:, 0]).argmax())
    evidence = context.book.present((*TABLES, "call_totals", "processes"), f"pid = {pid}")
    busy = _gpu_busy(context, pid, silent)

    def derived(value: int | Fraction, unit: str, how: str) -> Quantity:
        return Quantity(value, unit, "derived", evidence, how)

    formula = "time after the first call inside no recorded call, in stretches of at least the threshold"
    return Finding(
        id=UNNUMBERED,
        rule=DECLARATION.id,
        severity=_severity(context, total, busy, of),
        text="api_silence",
        values={
            "process": f"{pid} ({context.process_name(pid)})",
            "calls": derived(
                seen.calls,
                "count",
                "calls made inside no other: rows of the process, and those aggregated in the kernel",
            ),
            "silent": derived(total, "ns", formula),
            "observed": derived(of, "ns", "from the first call to its end or the capture's, less time not observed"),
            "share": derived(Fraction(total, of), "share", "silent / observed"),
            "stretches": derived(len(silent), "count", "stretches of at least the threshold"),
            "longest": derived(int(silent[at, 1] - silent[at, 0]), "ns", "length of the longest stretch"),
            "start": derived(int(silent[at, 0]), "ns", "begin of the longest stretch"),
            "where": "between two calls" if seen.last_start_ns >= silent[at, 1] else "after its last call",
            "gpu_busy": busy,
            "threshold": Quantity(silence_ns, "ns", "assumed"),
        },
        subject={"pid": str(pid), "comm": context.process_name(pid)},
        impact=derived(total, "ns", formula),
        grade=context.quality.grade_of(TABLES),
        evidence=(*evidence, *(i for i in busy.evidence if i not in evidence)),
    )


def _gpu_busy(context: Context, pid: int, silent: Intervals) -> Quantity:
    """Time of the silence in which a GPU that NVML listed the process on ran something: work of calls not recorded."""
    told, busy, where = silence.gpu_told(context, pid)
    evidence = [context.book.where(t, w) for w in where for t in ("nvml_samples", "nvml_processes")]
    formula = "silent time covered by samples with utilisation above 0 that list the process"
    if not intervals.measure(intervals.intersect(silent, told)):
        return Quantity(None, "ns", "derived", (), formula, "no NVML sample in that time lists the process")
    return Quantity(intervals.measure(intervals.intersect(silent, busy)), "ns", "derived", tuple(evidence), formula)


def _severity(context: Context, silent: int, busy: Quantity, observed: int) -> Severity:
    """By the silence in which its GPU was not busy; where nothing is known of its GPU, a warning at most."""
    if busy.value is None:
        grave = severity.of_share(silent, observed, context.policy, DECLARATION.id)
        return "warning" if grave == "critical" else grave
    return severity.of_share(silent - int(busy.value), observed, context.policy, DECLARATION.id)
