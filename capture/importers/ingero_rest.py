"""What an Ingero database holds beside its events: totals, host samples, processes, and conclusions that it stored."""

from __future__ import annotations

import json
from collections import Counter

from gpuaudit.bundle import canonical
from gpuaudit.bundle.errors import BundleInvalid
from gpuaudit.capture.importers.batches import Batches
from gpuaudit.capture.importers.cells import Unreadable
from gpuaudit.capture.importers.foreign_sqlite import Cell, ForeignDatabase
from gpuaudit.capture.importers.ingero_processes import People, Process
from gpuaudit.capture.importers.ingero_values import (
    COUNTED,
    HOST,
    INSTANT,
    MIB,
    SIZED,
    SWITCH,
    named,
    number,
    text,
    time_ns,
    unsigned,
    whole,
)
from gpuaudit.capture.importers.model import Told

MINUTE_NS, FIVE_SECONDS_NS = 60_000_000_000, 5_000_000_000
MAX_CGROUPS = 65_536
MAX_SUMMARY = 4_096
MAX_DETAIL_BYTES = 65_536
"""As the table says."""
MAX_STORED_CHARACTERS = 1 << 20
I63 = (1 << 63) - 1

_LAYERS = {"HOST": "host", "SYSTEM": "host_cpu", "IO": "block_io", "INFRA": "block_io", "TCP": "network",
           "NET": "network", "CUDA": "", "DRIVER": "", "GRAPH": "", "NCCL": ""}  # fmt: skip
_OPS = {"sched_switch": "off_cpu", "cpu": "host_cpu", "cpu_pct": "host_cpu", "block_io": "block_io",
        "memory": "host_memory", "mem": "host_memory", "mm_page_alloc": "host_memory", "swap": "host_memory",
        "oom_kill": "host_memory", "tcp_retransmit": "network"}  # fmt: skip
"""What an entry of a stored timeline names, by its op, else by its layer; entries of the effect itself name nothing."""


def totals(
    database: ForeignDatabase, people: People, out: Batches, told: Told, span: tuple[int, int]
) -> Counter[str]:  # fmt: skip
    """``period_totals`` from the totals by minute, or where there are none from those by five seconds.

    A period reaches no further than ``span``, in which the tool recorded. Gives the sums over all of them: ``count``
    and ``kept``.
    """
    sums = Counter[str]()
    fine = database.count("event_aggregates_5s")
    table, length = "event_aggregates", MINUTE_NS
    if not database.count(table):
        table, length = "event_aggregates_5s", FIVE_SECONDS_NS
    elif fine:
        told.not_carried.append(f"event_aggregates_5s ({fine} rows): the totals by minute count the same events")
    if table not in database.tables:
        return sums
    told.assume("Periods of totals begin no earlier and end no later than the tool recorded, by its sessions.")
    wanted = ("bucket", "source", "op", "pid", "count", "stored", "sum_dur", "min_dur", "max_dur", "sum_arg0")
    for line, row in enumerate(database.read(table, wanted, order="bucket, source, op, pid"), start=1):
        told.lines += 1
        try:
            made = _total(row, people)
        except Unreadable as e:
            told.refuse(told.lines, f"{table} row {line}: {e}")
            continue
        if made is None:
            told.refuse(told.lines, f"{table} row {line}: source {row[1]!r:.20}, op {row[2]!r:.20} is not known")
            continue
        sums["count"] += int(str(made["count"]))
        sums["kept"] += int(str(made["kept"]))
        made["start_ns"], made["duration_ns"] = _within(int(str(made["start_ns"])), length, span)
        out.add("period_totals", made)
    return sums


def _within(start: int, length: int, span: tuple[int, int]) -> tuple[int, int]:
    low, high = max(start, span[0]), min(start + length, span[1])
    return (low, high - low) if low < high else (start, length)


def _total(row: tuple[Cell, ...], people: People) -> dict[str, object] | None:
    bucket, source, op, pid, count, stored, total, least, most, arg0 = row
    key = whole(source, "source", 0, 255), whole(op, "op", 0, 255)
    name = COUNTED.get(key)
    if name is None:
        return None
    who = whole(pid, "pid")
    of_thread = key == (HOST, SWITCH)
    timed = name not in INSTANT
    return {
        "start_ns": time_ns(bucket, "bucket"),
        "pid": people.pid_of(who) if of_thread else who, "tid": who if of_thread else None,
        "comm": people.name_of(who), "op": name, "count": whole(count, "count", 0, I63),
        "kept": whole(stored, "stored", 0, I63),
        "sum_ns": time_ns(total, "sum_dur") if timed else None, "min_ns": time_ns(least, "min_dur") if timed else None,
        "max_ns": time_ns(most, "max_dur") if timed else None,
        "size_bytes": unsigned(arg0, "sum_arg0") * SIZED[name] if name in SIZED else None,
    }  # fmt: skip


def samples(database: ForeignDatabase, out: Batches, told: Told) -> None:
    """``host_samples``."""
    if "system_snapshots" not in database.tables:
        return
    wanted = ("timestamp", "cpu_pct", "mem_pct", "mem_avail", "swap_mb", "load_avg")
    for line, row in enumerate(database.read("system_snapshots", wanted, order="timestamp"), start=1):
        told.lines += 1
        at, cpu, memory, available, swap, load = row
        try:
            out.add("host_samples", {
                "start_ns": time_ns(at), "cpu_percent": number(cpu, "cpu_pct"),
                "memory_percent": number(memory, "mem_pct"),
                "memory_available_bytes": whole(available, "mem_avail", 0, I63 // MIB) * MIB,
                "swap_used_bytes": whole(swap, "swap_mb", 0, I63 // MIB) * MIB,
                "load_average_1min": number(load, "load_avg"),
            })  # fmt: skip
            told.at(time_ns(at))
        except Unreadable as e:
            told.refuse(told.lines, f"system_snapshots row {line}: {e}")


def processes(database: ForeignDatabase, people: People, out: Batches, told: Told, begin_ns: int) -> None:
    """``processes``, one row each, and of one that was seen to end a second one."""
    cgroups = _cgroups(database)
    for process in sorted(people.processes.values(), key=lambda p: p.pid):
        if process.start_ns is None:
            told.assume("Processes whose fork was not recorded are shown as starting when the recording did.")
        out.add("processes", _process(process, cgroups, begin_ns, told.last_ns or begin_ns))


def _process(p: Process, cgroups: dict[int, tuple[str, str]], begin_ns: int, end_ns: int) -> dict[str, object]:
    start = begin_ns if p.start_ns is None else p.start_ns
    path, container = cgroups.get(p.cgroup_id or 0, ("", ""))
    rank, local, world = p.rank
    return {
        "start_ns": start, "pid": p.pid, "op": "found" if p.end_ns is None else "exited", "role": p.role,
        "duration_ns": None if p.end_ns is None else max(0, p.end_ns - start), "parent_pid": p.parent,
        "comm": p.name or "name not recorded", "cgroup": path or None, "cgroup_id": p.cgroup_id,
        "container_id": container or None, "seen_ns": p.seen_ns or end_ns, "rank": rank, "local_rank": local,
        "world_size": world, "rank_source": None if rank is None else "the recording", "reason": p.reason or None,
    }  # fmt: skip


def _cgroups(database: ForeignDatabase) -> dict[int, tuple[str, str]]:
    out: dict[int, tuple[str, str]] = {}
    if "cgroup_metadata" in database.tables:
        for id, path, container in database.read("cgroup_metadata", ("cgroup_id", "cgroup_path", "container_id")):
            if isinstance(id, int) and id and len(out) < MAX_CGROUPS:
                out[id & ((1 << 64) - 1)] = text(path, 1024), text(container, 128)
    return out


def conclusions(database: ForeignDatabase, out: Batches, told: Told, tool: str) -> int:
    """``stored_conclusions``; how many there are."""
    if "causal_chains" not in database.tables:
        return 0
    wanted = ("id", "detected_at", "severity", "summary", "root_cause", "explanation", "recommendations", "cuda_op",
              "cuda_p99_us", "cuda_p50_us", "tail_ratio", "timeline")  # fmt: skip
    carried = 0
    for line, row in enumerate(database.read("causal_chains", wanted, order="detected_at, id"), start=1):
        told.lines += 1
        try:
            out.add("stored_conclusions", _conclusion(row, tool, told))
            carried += 1
        except Unreadable as e:
            told.refuse(told.lines, f"causal_chains row {line}: {e}")
    return carried


def _conclusion(row: tuple[Cell, ...], tool: str, told: Told) -> dict[str, object]:
    id, at, severity, summary, cause, explanation, advice, op, p99, p50, ratio, timeline = row
    entries = _entries(timeline)
    switched = [e["dur_us"] for e in entries if e.get("op") == "sched_switch" and isinstance(e.get("dur_us"), int)]
    detail: dict[str, object] = {"explanation": text(explanation, 8192), "recommendations": text(advice, 8192)}
    if entries:
        detail["timeline"] = [{k: text(_cell(e.get(k)), 512) for k in ("layer", "op", "detail")} for e in entries[:32]]
    stated = canonical.dumps(detail)
    if len(stated) > MAX_DETAIL_BYTES:
        stated = canonical.dumps({"explanation": text(explanation, 8192)})
        told.assume("The details of conclusions longer than 65,536 bytes are carried without their timelines.")
    tail, usual = (whole(v, "a percentile in µs", 0, I63 // 1_000_000) * 1000 for v in (p99, p50))
    return {
        "start_ns": time_ns(at, "detected_at"), "tool": tool, "key": text(id, 256) or str(id)[:64],
        "severity": text(severity, 32), "op": named(text(op, 128)) or None, "summary": text(summary, MAX_SUMMARY),
        "cause": text(cause, MAX_SUMMARY) or None, "detail": stated.decode("utf-8"),
        "alleged": ",".join(sorted({a for e in entries if (a := _alleged(e))})) or None,
        "usual_ns": usual or None, "tail_ns": tail or None, "ratio": number(ratio, "tail_ratio") or None,
        "alleged_off_cpu_ns": sum(min(int(str(v)), I63 // 10**6) for v in switched[:32] if int(str(v)) >= 0) * 1000
        if switched else None,
    }  # fmt: skip


def _entries(timeline: Cell) -> list[dict[str, object]]:
    """Entries of a stored timeline; none where it is no list of objects."""
    if not isinstance(timeline, str) or not timeline or len(timeline) > MAX_STORED_CHARACTERS:
        return []
    try:
        found = json.loads(timeline)
    except (ValueError, RecursionError, BundleInvalid):
        return []
    return [e for e in found if isinstance(e, dict)] if isinstance(found, list) else []


def _alleged(entry: dict[str, object]) -> str:
    layer, op = str(entry.get("layer"))[:32], str(entry.get("op"))[:64]
    if _LAYERS.get(layer) == "":
        return ""
    known = _OPS.get(op) or _LAYERS.get(layer) or "other"
    return "other" if known == "host" else known


def _cell(value: object) -> Cell:
    return value if isinstance(value, str | int | float) else None
