"""Section: ioctl(2) calls at the boundary of the NVIDIA kernel driver: how many, how long, and the gaps between them.

A gap is the time from the end of a call to the begin of the next one of the same process, none of its threads being in
one. Units: ns on CLOCK_BOOTTIME.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from gpuaudit.analyze import aggregates, intervals
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.drafts import derived
from gpuaudit.analyze.finding import Quantity, Section, SectionTable
from gpuaudit.analyze.store import NOT_OWN

ORDER = 76

ID = "driver_boundary"
TITLE = "Boundary of the kernel driver"
QUESTION = "How often did processes call into the GPU's kernel driver, and for how long did they not?"

MAX_PROCESSES = 64
MAX_NUMBERS = 40
NS_PER_S = 10**9

MEANING = (
    "A gap means that the process made no ioctl on a watched device in that time, and nothing more. It does not mean "
    "that the GPU was idle or that nothing was copied: kernels, and most copies, are submitted from user mode by "
    "writing to memory that the driver mapped before, without a system call. What does go through ioctl is set-up and "
    "teardown: contexts, channels, memory that is allocated, mapped or registered, events to wait for, and control "
    "calls of NVML.",
    "So a high rate in a steady phase is worth a look (memory is allocated and freed again and again, or something "
    "polls), and a long gap beside busy GPUs is how a program that has set itself up looks.",
)

RATES = (
    ("process", "process"), ("calls", "ioctls"), ("rate", "rate"), ("time", "time in them"), ("longest", "longest"),
    ("failed", "failed"), ("gap_p50", "gap, median"), ("gap_longest", "longest gap"), ("gap_share", "in gaps"),
)  # fmt: skip
NUMBERS = (
    ("process", "process"), ("type", "type"), ("number", "number"), ("size", "argument"), ("calls", "ioctls"),
    ("time", "time in them"), ("longest", "longest"),
)  # fmt: skip

Cell = Quantity | str | None


def evaluate(context: Context) -> Section:
    """A row per process, and a row per process and kind of request."""
    pids = context.store.sql(f"SELECT pid FROM ioctls WHERE {NOT_OWN} GROUP BY pid ORDER BY count(*) DESC, pid")
    if not pids:
        why = context.quality.source_reason("ioctl") or "no process of the workload made an ioctl on a watched device"
        return Section(ID, TITLE, QUESTION, "not evaluated", why, notes=MEANING)
    rows = tuple(_rate(context, int(pid)) for (pid,) in pids[:MAX_PROCESSES])
    numbers = _numbers(context)
    tables = (
        SectionTable("rates", "ioctls by process", RATES, rows, (), max(0, len(pids) - MAX_PROCESSES)),
        SectionTable("numbers", "ioctls by kind of request", NUMBERS, tuple(numbers[:MAX_NUMBERS]),
                     ("Type and number are those of the request (_IOC_TYPE, _IOC_NR); what a number means is the "
                      "driver's own.",),
                     max(0, len(numbers) - MAX_NUMBERS)),
    )  # fmt: skip
    told = f"{len(pids)} processes made ioctls on watched devices"
    return Section(ID, TITLE, QUESTION, "evaluated", told, (), tables, (), (), MEANING)


def _rate(context: Context, pid: int) -> tuple[Cell, ...]:
    where = f"pid = {pid}"
    rows = (context.book.where("ioctls", where),)
    a = context.store.arrays(
        f"SELECT start_ns::BIGINT AS a, coalesce(end_ns, {context.window.end_ns})::BIGINT AS b, "
        "coalesce(duration_ns, -1)::BIGINT AS took, coalesce(return_code < 0, false) AS failed "
        f"FROM ioctls WHERE {where} ORDER BY 1, 2"
    )
    inside = intervals.from_bounds(a["a"], np.maximum(a["b"], a["a"]))
    gaps = np.sort(inside[1:, 0] - inside[:-1, 1])
    span = int(inside[-1, 1] - inside[0, 0]) if len(inside) else 0
    done = a["took"][a["took"] >= 0]
    one = "there was one call, so no time between calls"

    def q(value: int | Fraction | None, unit: str, formula: str, why: str = "") -> Quantity:
        return derived(value, unit, rows, formula, why)

    return (
        aggregates.process(context)(pid), q(len(a["a"]), "count", "rows"),
        q(Fraction(len(a["a"]) * NS_PER_S, span) if span else None, "1/s", "calls / first begin to last end", one),
        q(intervals.measure(inside), "ns", "time in which at least one thread was inside a call"),
        q(int(done.max()) if len(done) else None, "ns", "longest duration_ns", "none returned within the capture"),
        q(int(a["failed"].sum()), "count", "rows with a negative return_code"),
        q(int(gaps[(len(gaps) + 1) // 2 - 1]) if len(gaps) else None, "ns", "median gap", one),
        q(int(gaps[-1]) if len(gaps) else None, "ns", "longest gap", one),
        q(Fraction(sum(gaps.tolist()), span) if span and len(gaps) else None, "share",
          "sum of the gaps / first begin to last end", one),
    )  # fmt: skip


def _numbers(context: Context) -> list[tuple[Cell, ...]]:
    found = context.store.sql(
        "SELECT pid, type, number, size_bytes, count(*), sum(duration_ns)::HUGEINT, max(duration_ns) FROM ioctls "
        f"WHERE {NOT_OWN} GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC, 1, 2, 3, 4 LIMIT {MAX_NUMBERS * 10}"
    )
    out: list[tuple[Cell, ...]] = []
    for pid, kind, number, size, calls, total, longest in found:
        rows: tuple[str, ...] = ()
        if len(out) < MAX_NUMBERS:
            where = f"pid = {int(pid)} AND type = {int(kind)} AND number = {int(number)} AND size_bytes = {int(size)}"
            rows = (context.book.where("ioctls", where),)
        done = "none returned within the capture"
        out.append((
            aggregates.process(context)(pid), f"{int(kind):#04x}", str(int(number)),
            derived(int(size), "bytes", rows, "size_bytes of the request"), derived(int(calls), "count", rows, "rows"),
            derived(None if total is None else int(total), "ns", rows, "sum of duration_ns", done),
            derived(None if longest is None else int(longest), "ns", rows, "longest duration_ns", done),
        ))  # fmt: skip
    return out
