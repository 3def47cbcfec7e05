"""What the evidence lacks, one function per way of lacking: each gives reasons that lower the quality grade."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpuaudit.analyze import call_totals, intervals
from gpuaudit.analyze.finding import Grade, Json
from gpuaudit.analyze.store import NOT_OWN, Store
from gpuaudit.analyze.window import Window
from gpuaudit.analyze.words import duration
from gpuaudit.bundle import canonical
from gpuaudit.bundle.errors import BundleInvalid
from gpuaudit.bundle.tables import RING_TABLES, TABLES

SOURCE_TABLES = {
    "cuda": ("cuda_calls",), "cudart": ("cuda_calls",), "driver": ("cuda_calls",), "hip": ("cuda_calls",),
    "nccl": ("nccl_calls", "nccl_comms"), "rccl": ("nccl_calls", "nccl_comms"), "off_cpu": ("off_cpu",),
    "ioctl": ("ioctls",), "sockets": ("socket_io",), "tcp": ("tcp_retransmits",), "block_io": ("block_io", "mounts"),
    "memory": ("page_allocations", "reclaims", "oom_kills", "pressure", "process_samples", "cgroup_cpu"),
    "lifecycle": ("lifecycle",), "stacks": ("stack_frames",),
    "nvml": ("nvml_samples", "nvml_processes", "nvml_health", "nvml_links", "nvml_accounting", "nvml_events",
             "gpm_samples"),
    "gpm": ("gpm_samples",), "engines": ("engine_scrapes", "engine_samples"), "clock": ("clock",),
}  # fmt: skip
"""Tables that a source, or a library of the probe table, fills."""

NOT_SUPPORTED = 3
"""NVML_ERROR_NOT_SUPPORTED of nvml.h, as ``nvml_samples.unavailable`` has it."""

MAX_WEAKNESSES = 16
"""Weaknesses of one imported file that are told."""

MAX_NAMED = 5
"""Reasons of one kind that are spelled out; the rest are counted, so that page 1 stays one page."""


@dataclass(frozen=True)
class Reason:
    """One thing that lowers the grade; ``tables`` empty means that it concerns the whole bundle."""

    grade: Grade
    text: str
    tables: tuple[str, ...] = ()


def missing(store: Store, window: Window, sources: Sequence[dict[str, Json]]) -> list[Reason]:
    """Everything but losses and the seal."""
    out = [
        *_imported(store),
        *_unavailable(sources),
        *_gaps(store),
        *_full_rings(store),
        *_silent(store),
        *_clock(window),
        *_unmatched(store),
    ]
    return [
        *out,
        *_not_observable(store),
        *_late(store, window),
        *_no_identity(store),
        *_refused(store),
        *_aggregated(store),
    ]


def _silent(store: Store) -> list[Reason]:
    """Holes in the sequence numbers of a CPU beyond the losses that were counted there: the two must agree.

    Only where the counters are at least as new as the rows: those of an interrupted capture can be older.
    """
    out: list[Reason] = []
    for name in (t for t in RING_TABLES if store.row_count(t)):
        found = store.sql(
            "SELECT cpu, (top + 1 - n - lost)::HUGEINT FROM "
            f"(SELECT cpu, count(*)::HUGEINT AS n, max(seq)::HUGEINT AS top FROM {name} GROUP BY cpu) JOIN "
            f"(SELECT cpu, max(seen) AS seen, max(lost) AS lost FROM losses WHERE table_name = '{name}' GROUP BY cpu) "
            "USING (cpu) WHERE top < seen AND top + 1 - n > lost ORDER BY cpu"
        )
        if found:
            cpus = ", ".join(str(cpu) for cpu, _ in found[:MAX_NAMED]) + (", …" if len(found) > MAX_NAMED else "")
            count = sum(int(n) for _, n in found)
            text = f"{name}: {count} sequence numbers are missing that no counter tells of (CPU {cpus})"
            out.append(Reason("C", text, (name,)))
    return out


def _imported(store: Store) -> list[Reason]:
    """Recordings of others: only that they have not changed since the import can be proven."""
    if store.open_body.get("imported") is None:
        return []
    out = [
        Reason(
            "B",
            "imported recordings, made by other tools: the seal proves that they have not changed since the import, "
            "not who made them or how",
        )
    ]
    artefact = store.artefact("imports")
    try:
        told = canonical.loads(artefact.body) if artefact else []
    except BundleInvalid:
        told = []
    files = [t for t in told if isinstance(t, dict)] if isinstance(told, list) else []
    for t in files[:MAX_NAMED]:
        unread, left = t.get("unreadable"), t.get("not_carried")
        name = str(t.get("name"))[:128]
        if isinstance(unread, str) and unread != "0":
            out.append(Reason("B", f"{name}: {unread[:20]} lines could not be read", _tables_of(str(t.get("source")))))
        if isinstance(left, list) and left:
            shown = ", ".join(str(x)[:64] for x in left[:MAX_NAMED])
            more = f" and {len(left) - MAX_NAMED} more" if len(left) > MAX_NAMED else ""
            out.append(Reason("A", f"{name}: the import could not carry {shown}{more}"))
        out += _weaknesses(name, t.get("weaknesses"))
    return out


def _weaknesses(name: str, told: object) -> list[Reason]:
    """What an importer says of a recording that complete rows would not lack: a selection, totals that do not fit."""
    out = []
    for w in told[:MAX_WEAKNESSES] if isinstance(told, list) else []:
        if not isinstance(w, dict) or w.get("grade") not in {"B", "C", "D"}:
            continue
        tables = w.get("tables")
        known = tuple(t for t in tables if isinstance(t, str) and t in TABLES) if isinstance(tables, list) else ()
        out.append(Reason(w["grade"], f"{name}: {str(w.get('text'))[:400]}", known))
    return out


def _unavailable(sources: Sequence[dict[str, Json]]) -> list[Reason]:
    return [
        Reason(
            "B", f"source {s['source']} {s['state']}: {s['reason'] or 'no reason given'}", _tables_of(str(s["source"]))
        )
        for s in sources
        if s["state"] != "recorded"
    ]


def _tables_of(source: str) -> tuple[str, ...]:
    return SOURCE_TABLES.get(source, (f"source:{source}",))


def _gaps(store: Store) -> list[Reason]:
    rows = store.sql(
        "SELECT source, any_value(table_name), reason, count(*), sum(duration_ns)::HUGEINT, count(*) - "
        "count(duration_ns) "
        f"FROM (SELECT * FROM gaps WHERE NOT {_RING_FULL} ORDER BY start_ns, leaf, row) "
        "GROUP BY source, reason ORDER BY source, reason"
    )
    out = []
    for source, table, reason, count, total, open_count in rows:
        ended = [duration(int(total or 0))] if count > open_count else []
        length = " and ".join([*ended, *([f"{open_count} without an end"] if open_count else [])])
        tables = (str(table),) if table else _tables_of(str(source))
        out.append(Reason("B", f"source {source} could not see ({count} gaps, {length}): {reason}", tables))
    return out


_RING_FULL = "regexp_matches(reason, '^the ring of [a-z_]+ was full on CPU [0-9]+: [0-9]+ records were lost$')"
"""SQL condition of the gaps that the recorder makes of an episode of losses; they differ in their numbers only."""


def _full_rings(store: Store) -> list[Reason]:
    """Episodes of losses, one reason per table, with how many there were and from when to when."""
    rows = store.sql(
        "SELECT table_name, count(*), sum(regexp_extract(reason, ': ([0-9]+) records', 1)::HUGEINT)::HUGEINT, "
        f"min(start_ns), max(coalesce(end_ns, start_ns)) FROM gaps WHERE {_RING_FULL} AND table_name IS NOT NULL "
        "GROUP BY 1 ORDER BY 1"
    )
    return [
        Reason("B", f"{table}: the rings were full in {count} stretches, between {start} and {end} ns "
               f"(CLOCK_BOOTTIME), and {lost} records were lost in them", (str(table),))
        for table, count, lost, start, end in rows
    ]  # fmt: skip


def _clock(window: Window) -> list[Reason]:
    out = [
        Reason(
            "B",
            f"the wall clock was stepped by {duration(s.step_ns)}: UTC times are uncertain by it, durations are not",
            ("clock",),
        )
        for s in window.steps
    ]
    if window.start_utc_ns is None:
        out.append(Reason("B", "no clock pair was recorded, so UTC times are not known", ("clock",)))
    if window.suspended_ns:
        out.append(Reason("B", f"the host was suspended for {duration(window.suspended_ns)} within the capture"))
    return out


def _unmatched(store: Store) -> list[Reason]:
    """Calls that the probes saw only half of. Counters are cumulative: the last row of a probe has the total."""
    rows = store.sql(
        "SELECT library, sum(u)::HUGEINT, sum(m)::HUGEINT, sum(h)::HUGEINT FROM (SELECT library, op, path, "
        'coalesce("offset", 0), max(unmatched) AS u, max(misses) AS m, max(hits) AS h FROM probes GROUP BY 1, 2, 3, 4) '
        "GROUP BY library HAVING coalesce(sum(u), 0) + coalesce(sum(m), 0) > 0 ORDER BY library"
    )
    return [
        Reason(
            "B", f"probes on {library}: {u or 0} unmatched entries or returns and {m or 0} misses of {h or 0} hits",
            _tables_of("off_cpu" if library == "kernel" else str(library)),
        )
        for library, u, m, h in rows
    ]  # fmt: skip


def _not_observable(store: Store) -> list[Reason]:
    rows = store.sql(
        "SELECT pid, library, coalesce(reason, 'no reason given') FROM libraries WHERE op = 'not observable' "
        f"AND {NOT_OWN} GROUP BY ALL ORDER BY pid, library, 3"
    )
    texts = [(f"process {pid}: {library} not observable: {reason}", str(library)) for pid, library, reason in rows]
    return _capped([Reason("B", text, _tables_of(library)) for text, library in texts], "libraries not observable")


def _late(store: Store, window: Window) -> list[Reason]:
    """Processes that started within the capture and whose library was probed for the first time after they started."""
    rows = store.sql(
        "SELECT l.pid, l.library, max(l.start_ns + coalesce(l.duration_ns, 0) - p.start_ns)::BIGINT FROM libraries l "
        "JOIN (SELECT pid, min(start_ns) AS start_ns FROM processes WHERE role NOT IN ('recorder', 'attacher') "
        "GROUP BY pid) p "
        "ON p.pid = l.pid WHERE l.op = 'attached' AND p.start_ns >= ? AND l.start_ns + coalesce(l.duration_ns, "
        "0) > p.start_ns "
        "GROUP BY l.pid, l.library ORDER BY l.pid, l.library", [window.start_ns]
    )  # fmt: skip
    out = [
        Reason("B", f"process {pid}: {library} was probed {duration(int(late))} after the process started; "
        f"calls before are not recorded",
               _tables_of(str(library)))
        for pid, library, late in rows
    ]  # fmt: skip
    return _capped(out, "libraries probed late")


def _no_identity(store: Store) -> list[Reason]:
    rows = store.sql(
        f"SELECT pid, comm_handle, count(*) FROM nccl_calls WHERE comm_id IS NULL AND {NOT_OWN} GROUP BY 1, 2 "
        f"ORDER BY 1, 2"
    )
    out = [
        Reason("B", f"process {pid}: communicator {handle:#x} has no identity, it was made before the probes "
        f"were attached "
               f"({calls} calls)", ("nccl_comms",))
        for pid, handle, calls in rows
    ]  # fmt: skip
    return _capped(out, "communicators without identity")


def _aggregated(store: Store) -> list[Reason]:
    """Windows in which fast calls were counted in the kernel: in every count and sum, without rows of their own."""
    out = [
        Reason("B", f"process {pid}: {calls} fast calls were aggregated in the kernel in {len(windows)} windows, of "
               f"{duration(intervals.measure(windows))} in all, from {int(windows[0, 0])} to {int(windows[-1, 1])} ns "
               "(CLOCK_BOOTTIME): counts and sums are exact, percentiles are bounded", (table,))
        for pid, table, calls, windows in call_totals.by_process(store) if len(windows)
    ]  # fmt: skip
    return _capped(out, "processes with aggregated calls")


def _refused(store: Store) -> list[Reason]:
    """Fields that NVML refused; what a GPU does not support, its evidence cannot lack, but for process lists."""
    rows = store.sql("SELECT unavailable, count(*) FROM nvml_samples WHERE unavailable <> '' GROUP BY 1 ORDER BY 1")
    counts: dict[str, int] = {}
    for unavailable, n in rows:
        fields = str(unavailable).split(",")
        refused = ",".join(f for f in fields if "_processes=" in f or not f.endswith(f"={NOT_SUPPORTED}"))
        if refused:
            counts[refused] = counts.get(refused, 0) + int(n)
    out = [
        Reason("B", f"NVML refused fields in {n} samples: {fields}", ("source:nvml_fields",))
        for fields, n in sorted(counts.items())
    ]
    return _capped(out, "sets of fields that NVML refused")


def _capped(reasons: list[Reason], what: str) -> list[Reason]:
    if len(reasons) <= MAX_NAMED:
        return reasons
    rest = reasons[MAX_NAMED:]
    tables = tuple(sorted({t for r in rest for t in r.tables}))
    return [*reasons[:MAX_NAMED], Reason("B", f"and {len(rest)} more {what}", tables)]
