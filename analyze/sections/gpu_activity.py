"""Section: what each GPU did by its own record: idle, compute, communication, memory, and how much of it overlapped.

Units: ns of the recording's axis. Definitions: ``gpu_activity.py`` and ``device_lateness.py``.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from gpuaudit.analyze import aggregates, intervals
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.device_lateness import PAIRWISE, read_device_lateness
from gpuaudit.analyze.drafts import derived
from gpuaudit.analyze.finding import Quantity, Section, SectionTable, Statement
from gpuaudit.analyze.gpu_activity import COMMUNICATION, OF_GPU, Device, idle_time, read_devices, unlinked
from gpuaudit.analyze.store import is_text

ORDER = 31

ID = "gpu_activity"
TITLE = "What the GPUs did"
QUESTION = "By its own record, was each GPU idle, computing or communicating, and was communication hidden?"

MAX_DEVICES = 64
MAX_NOTES = 8
MAX_KERNELS = 20
"""Kernels of one device that are listed: the costliest."""

Cell = Quantity | str | None

TIMES = (
    ("process", "process"), ("device", "device"), ("span", "first to last work"), ("idle", "idle"),
    ("idle_share", "idle of it"), ("compute", "compute"), ("communication", "communication"), ("memory", "copies"),
    ("overlap", "compute and communication at once"), ("exposed", "communication without compute"),
    ("hidden_share", "communication hidden"), ("count", "kernels, copies, sets"), ("streams", "streams"),
    ("unlinked", "without their call"),
)  # fmt: skip
IDLE = (
    ("process", "process"), ("device", "device"), ("gaps", "idle stretches"), ("idle", "idle"), ("p50", "median"),
    ("longest", "longest"), ("before_call", "before the next call began"), ("in_call", "inside that call"),
    ("after_call", "after it"), ("unlinked", "call not recorded"),
)  # fmt: skip
KERNELS = (
    ("process", "process"), ("device", "device"), ("kernel", "kernel"), ("kind", "kind"), ("count", "runs"),
    ("total", "time in all"), ("share", "of all kernel time"), ("shortest", "shortest"), ("mean", "mean"),
    ("longest", "longest"),
)  # fmt: skip
LATENESS = (
    ("group", "group"), ("collective", "collective"), ("process", "process"), ("device", "device"),
    ("ranks", "ranks on record"), ("count", "collectives"), ("kernels", "time in its kernels"),
    ("longer", "longer than the shortest"), ("last", "began last"), ("imposed", "others waited for it"),
)  # fmt: skip
NO_COLLECTIVE = (
    "not evaluated: no kernel of a collective of a whole group is on record (sends and receives end with their own "
    "peers)."
)

DEFINITIONS = (
    ("span", "From the start of a device's first kernel, copy, memory set or graph to the end of its last "
     "one."),
    ("idle", "Time of the span in which none of them ran; the rest of the span is busy."),
    ("communication", "Time in which a kernel of a collective ran: the recording names its collective, or the name "
     "of the kernel has nccl or rccl. Compute is time in which any other kernel ran."),
    ("exposed communication", "Communication while no other kernel ran: the time that overlapping would win at most."),
    ("before the next call began", "Idle time until the host began the call that gave the work which ended the idle "
     "stretch: the host was late. Inside that call and after it: the way to the GPU, the queue, and what the work "
     "had to wait for there."),
    ("began last", "Collectives in which this rank's kernel was the shortest, alone: kernels of one collective end "
     "together, so it began last. What the others' kernels ran longer is how long their GPUs waited for it at most."),
)  # fmt: skip


def evaluate(context: Context) -> Section:
    """A row per process and device for each question, and the costliest kernels."""
    devices = read_devices(context.store)
    if not devices:
        why = "no recording of what the GPUs themselves did is in the bundle: a profiler makes one (audit import)"
        return Section(ID, TITLE, QUESTION, "not evaluated", why, definitions=DEFINITIONS)
    shown, omitted = devices[:MAX_DEVICES], max(0, len(devices) - MAX_DEVICES)
    times = tuple(_times(context, d) for d in shown)
    late, not_compared = _lateness(context, shown)
    tables = (
        SectionTable("times", "Time of each GPU", TIMES, times, _notes(context), omitted),
        SectionTable("idle", "Idle time, by what it waited for", IDLE, tuple(_idle(context, d) for d in shown), (),
                     omitted),
        *_kernels(context, shown), *late,
    )  # fmt: skip
    told = f"{len(devices)} devices with work of their own on record"
    statements = tuple(_statement(context, d, row) for d, row in zip(shown, times, strict=True))
    return Section(ID, TITLE, QUESTION, "evaluated", told, statements, tables, (), DEFINITIONS, not_compared)


def _notes(context: Context) -> tuple[str, ...]:
    ((open_ended, whole),) = context.store.sql(
        f"SELECT count(*) FILTER ({OF_GPU} AND duration_ns IS NULL), count(*) FILTER (op = 'graph') FROM gpu_activities"
    )
    told = (
        (open_ended, f"{open_ended} kernels or copies have no recorded end and count nowhere."),
        (whole, f"{whole} executions of CUDA graphs were recorded as a whole: what ran in them is in no column but "
                "span and idle."),
    )  # fmt: skip
    return tuple(sentence for number, sentence in told if number)


def _names(context: Context, d: Device) -> tuple[str, str]:
    """How a device is called: its process with its rank, and its number."""
    number = "not recorded" if d.device is None else str(d.device)
    if d.pid is None:
        return "not recorded", number
    rank = context.store.sql(f"SELECT max(rank) FROM processes WHERE pid = {d.pid}")[0][0]
    return ("" if rank is None else f"rank {int(rank)}: ") + aggregates.process(context)(d.pid), number


def _times(context: Context, d: Device) -> tuple[Cell, ...]:
    rows = (context.book.where("gpu_activities", d.where),)
    length = {name: intervals.measure(part) for name, part in d.sets.items()}
    idle, overlap = intervals.measure(d.idle), intervals.measure(d.overlap)
    communication = length["communication"]

    def q(value: int | Fraction | None, unit: str, formula: str, why: str = "") -> Quantity:
        return derived(value, unit, rows, formula, why)

    return (
        *_names(context, d), q(d.span_ns, "ns", "last end − first start"),
        q(idle, "ns", "span − time in which at least one ran"), q(Fraction(idle, d.span_ns), "share", "idle / span"),
        q(length["compute"], "ns", "union of kernels that are no collective"),
        q(communication, "ns", "union of kernels of collectives"),
        q(length["memory"], "ns", "union of copies and memory sets"),
        q(overlap, "ns", "compute within communication"),
        q(intervals.measure(d.exposed), "ns", "communication − compute"),
        q(Fraction(overlap, communication) if communication else None, "share",
          "compute within communication / communication", "no kernel of a collective was recorded"),
        q(d.count, "count", "rows"), q(d.streams, "count", "different streams"),
        q(unlinked(context.store, d), "count", "rows without a call of the same process and number in cuda_calls"),
    )  # fmt: skip


def _idle(context: Context, d: Device) -> tuple[Cell, ...]:
    rows = (context.book.where("gpu_activities", d.where),)
    i = idle_time(context.store, d)
    ordered = np.sort(i.gaps)
    none = "no idle time between first and last work"

    def q(value: int | None, unit: str, formula: str) -> Quantity:
        return derived(value, unit, rows, formula, none)

    return (
        *_names(context, d), q(len(ordered), "count", "stretches of idle time"),
        q(int(ordered.sum()), "ns", "sum of them"),
        q(int(ordered[(len(ordered) + 1) // 2 - 1]) if len(ordered) else None, "ns", "median of them"),
        q(int(ordered[-1]) if len(ordered) else None, "ns", "longest of them"),
        q(i.before_call, "ns", "start of the call that gave the next work − begin of the stretch, within it"),
        q(i.in_call, "ns", "that call within stretch"), q(i.after_call, "ns", "end of the stretch − end of that call"),
        q(i.unlinked, "ns", "stretches that end with work whose call is not recorded"),
    )  # fmt: skip


def _kernels(context: Context, devices: list[Device]) -> list[SectionTable]:
    """The costliest kernels of each device, by their time added up."""
    out: list[tuple[Cell, ...]] = []
    omitted = 0
    for d in devices:
        kernels = f"op = 'kernel' AND {d.where}"
        found = context.store.sql(
            f"SELECT name, bool_or({COMMUNICATION}), count(*), sum(duration_ns)::HUGEINT, min(duration_ns), "
            f"max(duration_ns) FROM gpu_activities WHERE {kernels} GROUP BY name ORDER BY 4 DESC, 1"
        )
        total = sum(int(row[3]) for row in found)
        for name, is_communication, count, time, shortest, longest in found[:MAX_KERNELS]:
            rows = (context.book.where("gpu_activities", f"{kernels} AND {is_text('name', name)}"),)
            out.append((
                *_names(context, d), aggregates.text(name), "communication" if is_communication else "compute",
                derived(int(count), "count", rows, "rows"), derived(int(time), "ns", rows, "sum of duration_ns"),
                derived(Fraction(int(time), total) if total else None, "share", rows,
                        "sum of duration_ns / that of all kernels of the device", "all kernels took no time"),
                derived(int(shortest), "ns", rows, "shortest"),
                derived(Fraction(int(time), int(count)), "ns", rows, "sum / rows"),
                derived(int(longest), "ns", rows, "longest"),
            ))  # fmt: skip
        omitted += max(0, len(found) - MAX_KERNELS)
    if not out:
        return []
    note = "Kernels of several streams run at once: their times added up may be more than the time of the device."
    return [SectionTable("kernels", "Costliest kernels", KERNELS, tuple(out), (note,), omitted)]


def _lateness(context: Context, devices: list[Device]) -> tuple[list[SectionTable], tuple[str, ...]]:
    """Which rank's GPU entered collectives last, where kernels of several ranks are on record; else notes why not."""
    found, reasons = read_device_lateness(context.store)
    named = {(d.pid, d.device): d for d in devices}
    out: list[tuple[Cell, ...]] = []
    for x in found[:MAX_DEVICES]:
        d = named.get(x.member)
        if d is None:
            continue
        rows = (context.book.where("gpu_activities", f"{COMMUNICATION} AND NOT {PAIRWISE} AND {d.where}"),)
        out.append((
            aggregates.text(x.group) or "without a name", aggregates.text(x.collective), *_names(context, d),
            derived(x.members, "count", rows, "ranks that recorded the group"),
            derived(x.count, "count", rows, "kernels of this collective"),
            derived(x.kernel_ns, "ns", rows, "sum of their duration_ns"),
            derived(x.longer_ns, "ns", rows, "Σ duration − shortest of the collective"),
            derived(x.last, "count", rows, "collectives in which its kernel was the shortest, alone"),
            derived(x.imposed_ns, "ns", rows, "Σ over the others, in those, of duration − its own"),
        ))  # fmt: skip
    why = [f"not compared: {r}." for r in reasons[:MAX_NOTES]]
    if not out:
        why = why or [NO_COLLECTIVE]
        return [], tuple(f"Device-side lateness {text}" for text in why)
    title = "Whose GPU entered collectives last"
    notes = tuple(text[0].upper() + text[1:] for text in why)
    return [SectionTable("lateness", title, LATENESS, tuple(out), notes, max(0, len(found) - len(out)))], ()


def _statement(context: Context, d: Device, row: tuple[Cell, ...]) -> Statement:
    at = {name: cell for (name, _), cell in zip(TIMES, row, strict=True)}
    process, device = _names(context, d)
    values: dict[str, Quantity | str] = {"process": process, "device": device}
    values |= {name: cell for name in ("idle", "span", "idle_share") if isinstance(cell := at[name], Quantity)}
    text = "{process}, device {device}: idle for {idle} of {span} ({idle_share})"
    communication = at["communication"]
    if isinstance(communication, Quantity) and communication.value:
        values |= {n: c for n in ("communication", "exposed") if isinstance(c := at[n], Quantity)}
        return Statement(text + "; {exposed} of {communication} of communication ran without compute.", values)
    return Statement(text + "; no communication on record.", values)
