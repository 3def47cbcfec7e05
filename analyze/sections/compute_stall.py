"""Section: compute/stall ratio per GPU, process and shard, over the capture, 1 s and 1 min. Definition: ``stall.py``.

Times in ns, ratios 0–1. A ratio is told only where both its inputs were observed: the source of kernel time, and the
calls of every process on the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from gpuaudit.analyze import blocked, busy, intervals, shards, stall
from gpuaudit.analyze.blocked import Blocked
from gpuaudit.analyze.busy import Busy
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Json, Quantity, Section, SectionChart, SectionTable, Statement
from gpuaudit.analyze.gpu_time import GpuTime
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.stall import Series, Stall

ORDER = 30

ID = "compute_stall"
MAX_ROWS = 512
MAX_BANDS = 32
MAX_BINS = 300

SUBJECT = (("gpu", "GPU"), ("pid", "process"), ("shard", "shard"))
RATIOS = (
    *SUBJECT, ("ratio", "ratio"), ("lowest", "lowest"), ("highest", "highest"), ("source", "busy time from"),
    ("verdict", "reading"),
)  # fmt: skip
TIMES = (*SUBJECT, ("busy", "busy"), ("stalled", "stalled in copies"), ("observed", "observed"))
WINDOWS = (
    *SUBJECT, ("last_second", "last 1 s"), ("last_minute", "last 1 min"), ("worst_minute", "worst 1 min"),
    ("below", "seconds below 0.7"), ("above", "seconds above 0.9"),
)  # fmt: skip

DEFINITIONS = (
    ("compute/stall ratio", stall.DEFINITION),
    ("busy", "Time in which kernels ran: GPM's SM activity × time where GPM was recorded (a share of SMs and time: "
     "kernels that fill a tenth of the SMs count a tenth), else NVML's utilisation of "
     "the process × time, else NVML's utilisation of the GPU × time while the process had the GPU to itself."),
    ("blocked", "Time in which at least one thread of the process was inside a call that copies memory, or inside the "
     "synchronisation of a stream (or device) that since its last synchronisation was given asynchronous copies and "
     "no kernel, or between two copies of one thread at most 10 ms apart with no other call between them."),
    ("stalled", "min(blocked, observed − busy), by second: as much of the blocked time as can have had no kernel "
     "beside it."),
    ("observed", "Time that the source of busy time covers and in which calls of the process were recorded; for a GPU, "
     "calls of every process that NVML listed on it at the time."),
    ("lowest, highest", "The ratio if synchronisations that had both copies and kernels to wait for count as blocked; "
     "and if copies overlapped kernels wherever they could: stalled = max(0, blocked − time in which a kernel may have "
     "run), which is the busy time, and for SM activity GPM's graphics activity, else all time in which any SM was "
     "active."),
    ("last 1 s, last 1 min", "The last window of that length with a ratio; windows of 1 s begin every 250 ms, of 1 min "
     "every second. A window that was observed for less than half of its length has none."),
)  # fmt: skip

NOTES = (
    "A kernel that waits for the GPU's own memory counts as busy; whether it does is told by the roofline.",
    "NVML averages utilisation over up to one second, so that a 1 s window borrows from its neighbours.",
    "Waits for events are not counted: what an event follows is not recorded. Copies inside the kernels of NCCL and "
    "of CUDA graphs are not seen by the probes.",
)


@dataclass(frozen=True)
class Row:
    """One subject: its ratio, or why there is none. ``pid`` None is the whole GPU."""

    gpu: GpuTime
    pid: int | None
    shard: str
    busy: Busy
    stall: Stall | None
    where_calls: str
    reason: str = ""

    @property
    def label(self) -> str:
        """For a chart."""
        who = "" if self.pid is None else f", process {self.pid}"
        return f"GPU {self.gpu.index}{who}" + (f", {self.shard.partition(' (')[0]}" if self.shard else "")


def evaluate(context: Context) -> Section:
    """One row per GPU and one per process on it; bands of 1 s and 1 min."""
    title, question = "Compute and stall", "How much of the time in which it had work did each GPU and process compute?"
    rows = read_rows(context)
    told = [r for r in rows if r.stall is not None and r.stall.whole.ratio is not None]
    reason = _reason(context, rows)
    tables = _tables(context, rows)
    if not told:
        return Section(ID, title, question, "not evaluated", reason, tables=tables[:1], definitions=DEFINITIONS)
    charts = tuple(c for c in (_bands(context, told, 1), _bands(context, told, stall.MINUTE_S)) if c is not None)
    return Section(
        ID, title, question, "evaluated", reason, (_statement(context, told),), tables, charts, DEFINITIONS, NOTES
    )  # fmt: skip


def _tables(context: Context, rows: list[Row]) -> tuple[SectionTable, ...]:
    """Ratios of every subject; times and windows of those that have a ratio."""
    if not rows:
        return ()
    shown, omitted = rows[:MAX_ROWS], max(0, len(rows) - MAX_ROWS)
    with_stall = [r for r in shown if r.stall is not None]
    return (
        SectionTable(
            "ratios", "Ratio over the capture", RATIOS, tuple(_ratios(context, r) for r in shown), (), omitted
        ),
        SectionTable("windows", "Ratio of windows", WINDOWS, tuple(_windows(context, r) for r in with_stall)),
        SectionTable("times", "What the ratios are made of", TIMES, tuple(_times(context, r) for r in with_stall)),
    )


def read_rows(context: Context) -> list[Row]:
    """Every GPU with NVML samples, and every process that NVML listed on it."""
    if context.window.length_ns > stall.MAX_SECONDS * stall.SECOND_NS:
        return []
    out = []
    for gpu in context.gpus:
        seen: dict[int, tuple[Intervals, str]] = {}
        calls: dict[int, Blocked] = {}
        for pid in shards.holders(context, gpu):
            seen[pid] = shards.calls_seen(context, pid)
            # Of a process on several GPUs nothing is told, so its calls are not read.
            one = len(shards.gpus_of(context, pid)) == 1
            calls[pid] = blocked.read_blocked(context.store, pid, context.window.end_ns) if one else blocked.NOTHING
        out.append(_gpu_row(context, gpu, seen, calls))
        out += [_process_row(context, gpu, pid, seen[pid], calls[pid]) for pid in seen]
    return out


def _gpu_row(
    context: Context, gpu: GpuTime, seen: dict[int, tuple[Intervals, str]], calls: dict[int, Blocked]
) -> Row:  # fmt: skip
    told = busy.of_gpu(context, gpu)
    reason = next((why for _, why in seen.values() if why), "") or told.reason
    many = [p for p in seen if len(shards.gpus_of(context, p)) > 1]
    if many:
        reason = f"process {many[0]} held several GPUs, and a copy does not say which one it was for"
    if not seen:
        reason = "NVML listed no process on the GPU"
    if reason:
        return Row(gpu, None, "", told, None, "", reason)
    told = told.within(_seen_of_all(gpu, {pid: time for pid, (time, _) in seen.items()}))
    certain = intervals.union(*(b.certain for b in calls.values()))
    possible = intervals.union(*(b.possible for b in calls.values()))
    pids = ", ".join(map(str, seen))
    window = context.window
    return Row(
        gpu, None, "", told, Stall(told, certain, possible, window.start_ns, window.end_ns),
        f"pid IN ({pids}) AND {blocked.COPY_CALLS}",
    )  # fmt: skip


def _seen_of_all(gpu: GpuTime, seen: dict[int, Intervals]) -> Intervals:
    """Time in which NVML told who was on the GPU, and calls of all of them were recorded."""
    blind = [intervals.subtract(shards.held(gpu, pid), time) for pid, time in seen.items()]
    return intervals.subtract(gpu.time(gpu.listed), intervals.union(*blind))


def _process_row(context: Context, gpu: GpuTime, pid: int, seen: tuple[Intervals, str], calls: Blocked) -> Row:
    told = busy.of_process(context, gpu, pid)
    shard = shards.shard_of(context, pid)
    name = "" if shard is None else shard.name
    reason = seen[1] or told.reason
    if len(shards.gpus_of(context, pid)) > 1:
        reason = f"process {pid} held several GPUs, and a copy does not say which one it was for"
    if reason:
        return Row(gpu, pid, name, told, None, "", reason)
    told = told.within(seen[0])
    window = context.window
    made = Stall(told, calls.certain, calls.possible, window.start_ns, window.end_ns)
    return Row(gpu, pid, name, told, made, f"pid = {pid} AND {blocked.COPY_CALLS}")


def _reason(context: Context, rows: list[Row]) -> str:
    if context.window.length_ns > stall.MAX_SECONDS * stall.SECOND_NS:
        return f"the capture is longer than {stall.MAX_SECONDS} s"
    if not rows:
        return "no NVML sample of any GPU: " + (context.quality.source_reason("nvml") or "no sample in the bundle")
    without = [f"GPU {r.gpu.index}: {r.reason}" for r in rows if r.reason]
    told = f"{sum(1 for r in rows if r.stall is not None and r.stall.whole.ratio is not None)} of {len(rows)} subjects"
    lost = context.quality.lost("cuda_calls")
    missing = f"; {lost} records of cuda_calls were lost, so that ratios may be too high" if lost else ""
    return f"{told} have a ratio{missing}" + (f"; {without[0]}" if without else "")


def _statement(context: Context, told: list[Row]) -> Statement:
    worst = min(told, key=lambda r: (_whole(r).ratio or 0, r.gpu.index, r.pid or 0))
    return Statement(
        "The lowest ratio over the capture is {ratio}, of {subject}: {verdict}.",
        {"ratio": _ratio_cell(context, worst, _whole(worst).ratio, "busy / (busy + stalled)"),
         "subject": worst.label, "verdict": _whole(worst).verdict},
    )  # fmt: skip


def _whole(row: Row) -> stall.Measured:
    assert row.stall is not None  # noqa: S101 - rows with a ratio only
    return row.stall.whole


def _evidence(context: Context, row: Row) -> tuple[str, ...]:
    told = (context.book.where(row.busy.table, row.busy.where),) if row.busy.table else ()
    return (*told, context.book.where("cuda_calls", row.where_calls)) if row.where_calls else told


def _ratio_cell(context: Context, row: Row, value: Fraction | None, formula: str, why: str = "") -> Quantity:
    reason = "" if value is not None else why or "no kernel ran and nothing waited for a copy"
    return Quantity(value, "ratio", "derived", _evidence(context, row), formula, reason)


Cells = tuple[Quantity | str | None, ...]


def _subject(row: Row) -> tuple[str, str, str]:
    return f"{row.gpu.index} ({row.gpu.uuid})", "" if row.pid is None else str(row.pid), row.shard


def _ratios(context: Context, row: Row) -> Cells:
    if row.stall is None:
        samples = (context.book.where("nvml_samples", row.gpu.where),)
        nothing = Quantity(None, "ratio", "derived", samples, "busy / (busy + stalled)", row.reason)
        return (*_subject(row), nothing, None, None, None, None)
    whole = row.stall.whole
    return (
        *_subject(row),
        _ratio_cell(context, row, whole.ratio, "busy / (busy + stalled)"),
        _ratio_cell(context, row, whole.lowest, "the same, waits for both copies and kernels counted as blocked"),
        _ratio_cell(context, row, whole.highest, "the same, with copies beside kernels wherever they could be"),
        row.busy.source, whole.verdict or None,
    )  # fmt: skip


def _times(context: Context, row: Row) -> Cells:
    whole, evidence = _whole(row), _evidence(context, row)

    def time(value: int | Fraction, formula: str) -> Quantity:
        return Quantity(value, "ns", "derived", evidence, formula)

    return (
        *_subject(row),
        time(whole.busy_ns, "sum over seconds of share × time of the source of busy time"),
        time(whole.stalled_ns, "sum over seconds of min(blocked, observed − busy)"),
        time(whole.observed_ns, "time that is told of and in which calls were recorded"),
    )


def _windows(context: Context, row: Row) -> Cells:
    assert row.stall is not None  # noqa: S101 - rows with a ratio only
    seconds, minutes, evidence = row.stall.seconds, row.stall.minutes, _evidence(context, row)

    def share(count: int) -> Quantity:
        total = len(seconds.known)
        value = Fraction(count, total) if total else None
        why = "" if total else "no window of 1 s has a ratio"
        return Quantity(value, "share", "derived", evidence, "windows of 1 s / windows of 1 s with a ratio", why)

    return (
        *_subject(row),
        _ratio_cell(context, row, _last(seconds), "the last window of 1 s", "no window of 1 s has a ratio"),
        _ratio_cell(context, row, _last(minutes), "the last window of 1 min", "no window of 1 min has a ratio"),
        _ratio_cell(context, row, _least(minutes), "the lowest of all windows of 1 min", "no window of 1 min has one"),
        share(int((seconds.known < int(stall.MEMORY_WALL * busy.SCALE)).sum())),
        share(int((seconds.known > int(stall.COMPUTE_BOUND * busy.SCALE)).sum())),
    )


def _last(series: Series) -> Fraction | None:
    return Fraction(int(series.known[-1]), busy.SCALE) if len(series.known) else None


def _least(series: Series) -> Fraction | None:
    return Fraction(int(series.known.min()), busy.SCALE) if len(series.known) else None


def _bands(context: Context, told: list[Row], length_s: int) -> SectionChart | None:
    """The lowest window that begins in each bin, in 1/10,000."""
    window = context.window
    bin_ns = max(stall.STEP_NS if length_s == 1 else stall.SECOND_NS, -(-window.length_ns // MAX_BINS))
    bins = max(1, -(-window.length_ns // bin_ns))
    rows: list[Json] = []
    for row in told[:MAX_BANDS]:
        assert row.stall is not None  # noqa: S101 - told rows have one
        series = row.stall.seconds if length_s == 1 else row.stall.minutes
        if len(series.known):
            rows.append({"label": row.label, "values": _lowest(series, window.start_ns, bin_ns, bins)})
    if not rows:
        return None
    name = "1 s" if length_s == 1 else "1 min"
    return SectionChart(
        "bands", f"ratio_{length_s}s", f"Compute/stall ratio, lowest window of {name} that begins in each interval",
        {"times_ns": [str(window.start_ns + i * bin_ns) for i in range(bins)], "bin_ns": str(bin_ns),
         "bounds": [[int(stall.MEMORY_WALL * busy.SCALE), "below 0.7: memory wall"],
                    [int(stall.COMPUTE_BOUND * busy.SCALE), "above 0.9: compute-bound"]],
         "rows": rows},
    )  # fmt: skip


def _lowest(series: Series, start_ns: int, bin_ns: int, bins: int) -> list[int | None]:
    known = series.ratios != stall.UNKNOWN
    at = np.clip((series.starts[known] - start_ns) // bin_ns, 0, bins - 1)
    lowest = np.full(bins, busy.SCALE + 1, dtype=np.int64)
    np.minimum.at(lowest, at, series.ratios[known])
    return [None if v > busy.SCALE else v for v in lowest.tolist()]
