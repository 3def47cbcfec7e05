"""Databases of Ingero (an open-source GPU tracer), schema 0.8 to 0.10: SQLite, as hostile input, memory flat.

Every table that ours can hold is carried; what is not is counted and named. What the tool keeps as rows is a selection,
and the import says so in a way that lowers the grade. Its stored conclusions are carried as quotations.
"""

from __future__ import annotations

import re
from collections import Counter

from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.capture.importers import ingero_rest
from gpuaudit.capture.importers.batches import Batches
from gpuaudit.capture.importers.cells import Unreadable
from gpuaudit.capture.importers.foreign_sqlite import Cell, ForeignDatabase, digested, unchanged
from gpuaudit.capture.importers.ingero_processes import People, read_people, tools_of
from gpuaudit.capture.importers.ingero_rows import COLUMNS, ORDER, EventRows, event
from gpuaudit.capture.importers.ingero_stacks import Stacks
from gpuaudit.capture.importers.ingero_values import U32, text
from gpuaudit.capture.importers.model import (
    MAX_TIME_NS,
    About,
    Format,
    Request,
    RowSink,
    Told,
    not_of_lines,
    unrecorded,
)
from gpuaudit.capture.importers.reading import Recording

VERSIONS = ("0.8", "0.9", "0.10")
_USER_VERSIONS = {8: "0.8", 9: "0.9", 10: "0.10"}
_NEEDED = {
    "events": frozenset(COLUMNS[:8]),
    "sessions": frozenset({"started_at"}),
}  # fmt: skip
"""Columns without which there is nothing to import."""
MAX_SESSIONS = 64
_SESSION = ("started_at", "stopped_at", "gpu_model", "gpu_driver", "cpu_model", "cpu_cores", "mem_total", "kernel",
            "os_release", "cuda_ver", "python_ver", "ingero_ver", "pid_filter", "flags", "node")  # fmt: skip
_LEFT = {
    "cgroup_schedstat": "statistics of cgroups",
    "annotations": "of the user",
}
"""Tables that ours cannot hold, and what they have."""
_CARRIED = {"events", "stack_traces", "event_aggregates", "event_aggregates_5s", "system_snapshots", "causal_chains",
            "sessions", "process_names", "cgroup_metadata", "sources", "ops", "schema_info", *_LEFT}  # fmt: skip

COMPLETE_NS = 10_000_000_000
"""The tool keeps every event of the first 10 s, here from the first event on: before it nobody was traced."""

Session = dict[str, str]


def read(recording: Recording, sink: RowSink, request: Request, told: Told) -> None:  # noqa: ARG001
    """See :class:`gpuaudit.capture.importers.model.FileReader`."""
    digested(recording)
    with ForeignDatabase(recording.path) as database:
        database.check()
        _read(database, sink, told)
    unchanged(recording)


def _read(database: ForeignDatabase, sink: RowSink, told: Told) -> None:
    version = _version(database)
    sessions = _sessions(database)
    _one_node(database, sessions)
    tools = tools_of(database)
    people = read_people(database, _filtered(sessions), tools)
    out = Batches(sink, told)
    stacks = Stacks(database, out)
    rows = EventRows(out, people, stacks, told, pointers=version == "0.10")
    events = _events(database, rows, told), told.first_ns or 0
    ingero_rest.samples(database, out, told)
    if told.first_ns is None or told.last_ns is None:
        raise InputUnusable(f"{database.name}: no event and no sample of it could be read")
    _between(sessions, sink)
    begin, end = _span(sessions, told.first_ns, told.last_ns)
    sums = ingero_rest.totals(database, people, out, told, (begin, end))
    ingero_rest.processes(database, people, out, told, begin)
    stored = ingero_rest.conclusions(database, out, told, "Ingero")
    out.finish()
    rows.finish()
    told.facts = {"tool": "Ingero", "schema": version, "user_version": str(database.user_version),
                  "sessions": sessions, "stored_conclusions": str(stored)}  # fmt: skip
    told.sources = {s for s, tables in _SOURCES.items() if any(told.rows[t] for t in tables)}
    _left_out(database, rows, stacks, people, told)
    complete = 0 if _trimmed(database, stacks, told) else events[1] + COMPLETE_NS
    _weaknesses(database, told, version, sums, (events[0], complete))


def _span(sessions: list[Session], first_ns: int, last_ns: int) -> tuple[int, int]:
    """When the tool began to record and when it stopped, by its sessions, where they tell a time that can be."""
    begins = [t for s in sessions if (t := _number(s.get("started_at", ""))) is not None and t <= first_ns]
    ends = [t for s in sessions if (t := _number(s.get("stopped_at", ""))) is not None and t >= last_ns]
    return min([first_ns, *begins]), max([last_ns, *ends])


def _between(sessions: list[Session], sink: RowSink) -> None:
    """Nothing was recorded between two runs of the tool that wrote into one database."""
    spans = [(_number(s.get("started_at", "")), _number(s.get("stopped_at", ""))) for s in sessions]
    known = sorted((a, b) for a, b in spans if a is not None and b is not None and a <= b)
    reach = known[0][1] if known else 0
    for begin, end in known[1:]:
        if begin > reach:
            for source, table in (("cuda", "cuda_calls"), ("off_cpu", "off_cpu"), ("block_io", "block_io")):
                sink.gap(source, "the tool was not running between two of its sessions", reach, begin, table=table)
        reach = max(reach, end)


def _number(stored: str) -> int | None:
    value = int(stored) if stored.isdecimal() else 0
    return value if 0 < value < MAX_TIME_NS else None


_SOURCES = {
    "cuda": ("cuda_calls",),
    "off_cpu": ("off_cpu",), "block_io": ("block_io",), "tcp": ("tcp_retransmits",), "lifecycle": ("lifecycle",),
    "stacks": ("stack_frames",), "memory": ("oom_kills",),
}  # fmt: skip


def _version(database: ForeignDatabase) -> str:
    """Schema version; InputUnusable for one that nobody has read yet."""
    for table, columns in _NEEDED.items():
        lacking = sorted(columns - set(database.columns(table)))
        if lacking:
            raise InputUnusable(f"{database.name}: its table {table} has no column {', '.join(lacking)}",
                                hint="an Ingero database of schema 0.8 to 0.10 has")  # fmt: skip
    told = [text(v, 16) for k, v in database.read("schema_info", ("key", "value")) if k == "version"]
    version = told[0] if told else _USER_VERSIONS.get(database.user_version, f"user_version {database.user_version}")
    if version not in VERSIONS:
        raise InputUnusable(f"{database.name}: schema {version!r}, and {', '.join(VERSIONS)} can be imported",
                            hint="use the version of gpu-audit that reads it, or a newer one")  # fmt: skip
    return version


def _sessions(database: ForeignDatabase) -> list[Session]:
    have = database.columns("sessions")
    rows = database.read("sessions", _SESSION, order="started_at")
    return [
        {c: _fact(v) for c, v in zip(_SESSION, row, strict=True) if c in have}
        for row, _ in zip(rows, range(MAX_SESSIONS), strict=False)
    ]


def _fact(value: Cell) -> str:
    return str(value)[:32] if isinstance(value, int) else text(value, 512)


def _one_node(database: ForeignDatabase, sessions: list[Session]) -> None:
    """Process ids of several hosts would be taken for one another."""
    nodes = {s.get("node", "") for s in sessions} - {""}
    if "node" in database.columns("events"):
        nodes |= {text(n, 64) for (n,) in database.rows("SELECT DISTINCT node FROM events NOT INDEXED LIMIT 64")} - {""}
    if len(nodes) > 1:
        raise InputUnusable(
            f"{database.name} was merged from {len(nodes)} nodes ({', '.join(sorted(nodes)[:4])}): their process ids "
            "collide", hint="import the database of each node by itself",
        )  # fmt: skip


def _filtered(sessions: list[Session]) -> frozenset[int]:
    found = (p for s in sessions for p in re.findall(r"[0-9]{1,10}", s.get("pid_filter", "")))
    return frozenset(int(p) for p in found if 0 < int(p) <= U32)


def _events(database: ForeignDatabase, rows: EventRows, told: Told) -> int:
    """All of ``events``, in order of time; how many were read."""
    for line, row in enumerate(database.read("events", COLUMNS, order=ORDER), start=1):
        told.lines = line
        try:
            rows.add(event(row))
        except Unreadable as e:
            told.refuse(line, str(e))
    return told.lines


def _left_out(database: ForeignDatabase, rows: EventRows, stacks: Stacks, people: People, told: Told) -> None:
    told.not_carried += [f"{what}: {n}" for what, n in sorted(rows.counts.items())]
    for table, what in _LEFT.items():
        if n := database.count(table):
            told.not_carried.append(f"{table} ({n} rows, {what})")
    for n, what in (
        (stacks.unresolved, "stacks without names: addresses alone say nothing after the process ended"),
        (stacks.unreadable, "stacks whose frames could not be read"),
        (stacks.dangling, "stacks that a row refers to and that are not in the file"),
        (stacks.too_many, "references to further stacks, past the number that is carried"),
        (people.ambiguous, "thread ids that rows give to several processes: they stand for themselves"),
    ):
        if n:
            told.not_carried.append(f"{what}: {n}")
    told.not_carried += ["gpu_id, which the tool always writes as 0", "addresses of native frames"]
    unknown = sorted(database.tables - _CARRIED)
    if unknown:
        told.not_carried.append(f"tables that are not known: {', '.join(unknown[:16])}")
    told.assume("Rows of calls carry the time of entry; rows of switches, disks and sockets that of the end.")
    told.assume("Sizes of host memory are in MiB.")


def _weaknesses(
    database: ForeignDatabase, told: Told, version: str, sums: Counter[str], events: tuple[int, int]
) -> None:  # fmt: skip
    """Why no conclusion from it can be as sure as one from complete rows.

    ``events``: how many rows there are, and until when there is one of every event.
    """
    selected = ("cuda_calls", "off_cpu", "block_io", "os_calls", "stack_frames")
    flags, (kept, complete_until_ns) = [s.get("flags", "") for s in _sessions(database)], events
    if not all("record-all" in f for f in flags or [""]):
        text = ("its rows are a selection: all of the first 10 s, then synchronisation and slow calls, so that counts, "
                "medians and percentiles of rows are biased")  # fmt: skip
        if sums["count"]:
            text += f"; totals count {sums['count']} events, of which {kept} have rows"
        told.weak("C", text, selected, kind="selection", complete_until_ns=str(complete_until_ns))
    if sums and sums["kept"] != kept:
        told.weak("B", f"totals and rows do not reconcile: the totals say {sums['kept']} rows were kept, and there are "
                       f"{kept}", ("period_totals", *selected))  # fmt: skip
    if not sums:
        told.weak("B", "it has no totals, so how many events have no rows is not known", selected)
    if told.rows["off_cpu"]:
        told.weak("B", "switches of main threads, and of threads that began after the tool attached, only; whether a "
                       "thread slept or was preempted is not told", ("off_cpu",))  # fmt: skip
    if str(database.user_version) != version.removeprefix("0."):
        told.weak("B", f"it says schema {version}, and its user_version is {database.user_version}")


def _trimmed(database: ForeignDatabase, stacks: Stacks, told: Told) -> bool:
    """Whether rows were there once: stacks that nothing refers to any more, and ids that do not begin with 1."""
    orphans = database.count("stack_traces") - stacks.referred
    ids = database.read("events", ("id",)) if "id" in database.columns("events") else ()
    first = min((s for (id,) in ids if (s := _sequence(id)) is not None), default=1)
    if orphans > 0:
        told.not_carried.append(f"stacks that no row refers to: {orphans}")
    if orphans > 0 or first > 1:
        parts = [f"{orphans} stacks are left that no row refers to"] if orphans > 0 else []
        parts += [f"ids of rows begin with {first}"] if first > 1 else []
        told.weak("C", f"rows were taken out of it: {' and '.join(parts)}", ("cuda_calls", "off_cpu", "block_io"))
    return orphans > 0 or first > 1


def _sequence(id: object) -> int | None:
    """``node:seq``, or the number itself in older files."""
    tail = str(id).rpartition(":")[2]
    return int(tail) if tail.isdecimal() and len(tail) <= 19 else None


def about(database: ForeignDatabase) -> About:
    """GPU and host of its sessions, where they agree."""
    sessions = _sessions(database)

    def one(key: str) -> str:
        found = {s.get(key, "") for s in sessions}
        return found.pop() if len(found) == 1 else ""

    host: dict[str, object] = {}
    if one("kernel"):
        host["kernel"] = one("kernel")
    if one("cpu_model"):
        host["machine"] = one("cpu_model")
    cores = one("cpu_cores")
    if cores.isdecimal() and len(cores) <= 6:
        host["cpus"] = int(cores)
    if one("node"):
        host["hostname"] = one("node")
    model = one("gpu_model")
    gpus: list[dict[str, object]] = [
        {"index": 0, "uuid": unrecorded(0), "name": model, "driver": one("gpu_driver") or "not recorded"}
    ]
    return About(gpus if model else [], host)


FORMAT = Format(
    "Ingero database", "cuda", lambda head: False, not_of_lines, read_file=read,  # noqa: ARG005
    tables=frozenset({"events", "stack_traces", "sessions", "process_names", "causal_chains", "system_snapshots"}),
    about=about,
)  # fmt: skip
