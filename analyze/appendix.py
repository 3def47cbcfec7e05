"""The technical appendix: every probe, library, window, threshold, definition and assumption behind a document."""

from __future__ import annotations

from gpuaudit.analyze import quality, stall, window
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Json, Quantity, Threshold
from gpuaudit.analyze.money import Rate
from gpuaudit.analyze.operations import P99_MIN_CALLS
from gpuaudit.analyze.registry import declarations
from gpuaudit.analyze.sections import driver_boundary
from gpuaudit.analyze.store import NOT_OWN
from gpuaudit.analyze.window import WINDOW_TABLES

DEFINITIONS = (
    ("quality grade", "A complete; B something is missing and named; C conclusions need care; D cannot support "
    "conclusions."),
    ("p50, p99", "The value at rank ceil(q·n) of the n finished calls in order of duration: a duration that occurred."),
    ("open", "Calls that had begun and not returned when the capture ended; they are in the count and in no duration."),
    ("observed time of a GPU", "Time covered by its NVML samples: each stands for the time from its poll to the "
    "next one."),
    ("arrival", "The start of a rank's call of a collective, on the host."),
    ("lateness", "Arrival of a rank minus the median arrival of the other observed ranks, same communicator and "
    "collective."),
    ("wait for a late rank", "Overlap of the peers' calls, or of the synchronisations that follow them, with "
    "the time from "
     "the median arrival to the late arrival."),
    ("explained", "Overlap divided by the effect's own duration; the rest is unexplained."),
    ("waste ledger", "Observed GPU time by what it went into, each nanosecond once. A sample of length t and "
     "utilisation u stands for u·t of kernel time, spread evenly. Waiting for peers takes its time first; idle time of "
     "the rest goes to blocked, starved and allocated as the host's own intervals lie; kernel time goes to the clock "
     "that was missing, then to the memory wall that GPM tells, and the rest is useful. Low and high are the bounds if "
     "kernel time lay elsewhere within samples that say the same."),
    ("memory wall", "GPM tells DRAM at 60 % of its bandwidth or more, and no arithmetic pipe as busy; headroom is what "
     "the busiest pipe left unused."),
    ("compute/stall ratio", stall.DEFINITION),
    ("device-side lateness", "A rank whose GPU, not host, is slow. Calls do not tell it; where a profiler's "
     "record of the GPUs was imported, the section on what the GPUs did compares the lengths of their kernels."),
    ("preempted, blocked", "Off-CPU while runnable; off-CPU while asleep. Sleep is not evidence of a problem."),
    ("outermost call", "A call that no other recorded call of its thread made. Only their durations are added up: the "
     "driver's call inside one of the runtime is a row that names the call it is in, and is counted apart."),
    ("aggregated call", "A fast call above the budget: counted in the kernel with its number, sum and a histogram of "
     "four buckets in each doubling, without a row. It is in every count and sum; percentiles are then bounds. Slow "
     "calls always have rows."),
    ("call site", "The innermost Python frame of a call's stack with the line that was executing, or the innermost "
     "named native frame. Stacks are taken of slow calls, and of one in so many of the rest."),
    ("gap between ioctls", " ".join(driver_boundary.MEANING)),
)  # fmt: skip


def appendix(context: Context, rate: Rate | None) -> dict[str, Json]:
    """Section ``appendix`` of the document."""
    return {
        "declarations": [context.policy.applied(d).to_json() for d in declarations()],
        "probes": _strings(context, "probes", _LAST_PROBES),
        "libraries": _strings(
            context, "libraries", f"SELECT * FROM libraries WHERE {NOT_OWN} ORDER BY start_ns, pid, path, leaf, row"
        ),
        "definitions": [{"term": t, "text": x} for t, x in DEFINITIONS],
        "assumptions": _assumptions(rate),
        "windows": {"whole capture": _window(context)},
        "clock": _clock(context),
    }


_LAST_PROBES = (
    'SELECT * FROM probes QUALIFY row_number() OVER (PARTITION BY library, op, path, coalesce("offset", 0) '
    "ORDER BY (duration_ns IS NOT NULL) DESC, leaf DESC, row DESC) = 1 ORDER BY library, path, op, "
    'coalesce("offset", 0)'
)
"""The last row of each probe: that of the end of the capture, where there is one."""

MAX_ROWS = 2_000
"""Rows of a list in the appendix; a host with more processes than that has the rest in the bundle."""

_LEFT_OUT = {"leaf", "row", "end_ns"}


def _strings(context: Context, table: str, query: str) -> Json:
    names = [str(r[0]) for r in context.store.sql(f"SELECT column_name FROM (DESCRIBE {table})")]
    rows = context.store.sql(query)
    shown = [
        {n: None if v is None else str(v) for n, v in zip(names, row, strict=True) if n not in _LEFT_OUT}
        for row in rows[:MAX_ROWS]
    ]
    return {"rows": shown, "omitted": len(rows) - len(shown), "evidence": [context.book.where(table)]}


def _assumptions(rate: Rate | None) -> list[Json]:
    out: list[Json] = []
    for d in declarations():
        out += [{"id": f"{d.id}.{i + 1}", "text": t, "value": ""} for i, t in enumerate(d.assumptions)]
    limits = [("quality", t) for t in quality.THRESHOLDS]
    out += [_limit(where, t) for where, t in limits]
    out += [
        {"id": "operations.p99_min", "text": "Finished calls below which no p99 is given", "value": str(P99_MIN_CALLS)},
        {"id": "window.max_slew", "text": "Faster changes of the wall clock are steps (500 ppm, Linux)",
         "value": f"{window.MAX_SLEW.numerator}/{window.MAX_SLEW.denominator}"},
    ]  # fmt: skip
    if rate is not None:
        out.append(
            {"id": "rate", "text": f"{rate.currency} per GPU-hour, given by the user", "value": f"{rate.per_hour:f}"}
        )
    return out


def _limit(where: str, t: Threshold) -> Json:
    return {"id": f"{where}.{t.name}", "text": t.source, "value": Quantity(t.value, t.unit, "assumed").to_json()}


def _window(context: Context) -> Json:
    evidence = tuple(context.book.where(t) for t in WINDOW_TABLES if context.store.row_count(t))
    return Quantity(
        context.window.length_ns, "ns", "derived", evidence, "from the first to the last moment any row tells of"
    ).to_json()


def _clock(context: Context) -> Json:
    w = context.window
    evidence = (context.book.where("clock"),)

    def derived(value: int | None, unit: str, formula: str) -> Json:
        return Quantity(
            value, unit, "derived", evidence, formula, "" if value is not None else "no clock pair"
        ).to_json()

    return {
        "pairs of readings": derived(context.store.row_count("clock"), "count", "rows of clock"),
        "UTC uncertain by": derived(w.utc_uncertainty_ns, "ns", "widest bracket plus drift between the clocks"),
        "host suspended for": derived(w.suspended_ns, "ns", "growth of CLOCK_BOOTTIME over CLOCK_MONOTONIC"),
        "steps": [f"by {s.step_ns} ns between {s.start_ns} and {s.end_ns}" for s in w.steps] or "none seen",
    }
