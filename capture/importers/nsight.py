"""SQLite exports of Nsight Systems (``nsys export --type sqlite``), 2022 to 2025, as hostile input, memory flat.

Read by NVIDIA's documentation of the schema, and not verified against a real export: the import says so. A table that
lacks a column which the documentation has for it is refused, not read as if it were empty.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.capture.importers.batches import Batches
from gpuaudit.capture.importers.cells import Unreadable
from gpuaudit.capture.importers.foreign_sqlite import ForeignDatabase, digested, unchanged
from gpuaudit.capture.importers.ingero_values import text
from gpuaudit.capture.importers.kineto_events import Pids
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
from gpuaudit.capture.importers.nsight_rows import SOURCES, Names, Rows, Source
from gpuaudit.capture.importers.reading import Recording

MAJOR_VERSIONS = range(1, 4)
"""EXPORT_SCHEMA_VERSION begins with 2 or 3 in releases of 2022 to 2025; those before them have 1, or none."""

MAX_GPUS = 256
MAX_PROCESS_NAMES = 4096
MAX_UNREADABLE = 10_000
"""As for other traces: a file with more rows that cannot be read is not an export."""

_SOURCES = {"cuda": ("cuda_calls", "gpu_activities"), "off_cpu": ("off_cpu",)}

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", re.ASCII)
_INFORMATION = re.compile(r"(ENUM|TARGET_INFO|META_DATA|ANALYSIS)_|StringIds\Z|ThreadNames\Z|PROCESSES\Z", re.ASCII)
"""Tables that explain others, or are read as facts: nothing of the recording is lost with them."""


def read(recording: Recording, sink: RowSink, request: Request, told: Told) -> None:  # noqa: ARG001
    """See :class:`gpuaudit.capture.importers.model.FileReader`."""
    digested(recording)
    with ForeignDatabase(recording.path) as database:
        database.check()
        _read(database, sink, told)
    unchanged(recording)


def _read(database: ForeignDatabase, sink: RowSink, told: Told) -> None:
    facts = _facts(database)
    base_ns = _base(database)
    out = Batches(sink, told)
    rows = Rows(out, Names(database), Pids(told), told, base_ns or 0)
    rows.pids.rank = -1 - told.file  # every file is a session of its own: equal numbers may be of two hosts
    present = [s for s in SOURCES if s.table in database.tables]
    if not present:
        raise InputUnusable(
            f"{database.name}: none of its tables is one that is imported",
            hint=f"export a report with traces of {', '.join(s.table for s in SOURCES)}",
        )
    for table, columns in (("StringIds", ("id", "value")), *((s.table, s.needed) for s in present)):
        _check(database, table, columns)
    for source in present:
        _table(database, source, rows, told)
    rows.finish()
    out.finish()
    told.wall_clock = base_ns is not None
    told.facts = {"tool": "Nsight Systems", **facts, "base_ns": None if base_ns is None else str(base_ns)}
    told.sources = {s for s, tables in _SOURCES.items() if any(told.rows[t] for t in tables)}
    _processes(database, sink, rows, told)
    _tell(database, rows, told, base_ns)


def _check(database: ForeignDatabase, table: str, columns: Sequence[str]) -> None:
    lacking = sorted(set(columns) - set(database.columns(table)))
    if lacking:
        raise InputUnusable(
            f"{database.name}: its table {table} has no column {', '.join(lacking)}",
            hint="use the version of gpu-audit that knows this export, or export with Nsight Systems 2022 to 2025",
        )


def _table(database: ForeignDatabase, source: Source, rows: Rows, told: Told) -> None:
    """Every row of one table."""
    columns = (*source.needed, *source.also)
    for row in database.read(source.table, columns, order=source.order):
        told.lines += 1
        try:
            source.make(rows, dict(zip(columns, row, strict=True)))
        except Unreadable as e:
            told.refuse(told.lines, f"{source.table}: {e}")
            if told.unreadable > MAX_UNREADABLE:
                raise InputUnusable(
                    f"{database.name}: more than {MAX_UNREADABLE} of its rows cannot be read, the last one because {e}"
                ) from None


def _facts(database: ForeignDatabase) -> dict[str, object]:
    """Versions; InputUnusable for a schema that nobody has read the documentation of."""
    found = {
        text(k, 64): text(v, 256)
        for k, v in (database.read("META_DATA_EXPORT", ("name", "value")) if _has(database, "META_DATA_EXPORT") else ())
    }
    version = found.get("EXPORT_SCHEMA_VERSION")
    major = re.match(r"([0-9]{1,4})(\.|\Z)", version or "1")
    if major is None or int(major[1]) not in MAJOR_VERSIONS:
        raise InputUnusable(
            f"{database.name}: schema {version!r}, and {MAJOR_VERSIONS[0]} to {MAJOR_VERSIONS[-1]} can be imported",
            hint="use the version of gpu-audit that reads it, or a newer one",
        )
    return {"schema": version, "product": found.get("EXPORT_PRODUCT_VERSION")}


def _has(database: ForeignDatabase, table: str) -> bool:
    return bool(database.columns(table))


def _base(database: ForeignDatabase) -> int | None:
    """UTC at the beginning of the session, in ns since 1970, which all times count from."""
    if "utcEpochNs" not in database.columns("TARGET_INFO_SESSION_START_TIME"):
        return None
    found = {v for (v,) in database.read("TARGET_INFO_SESSION_START_TIME", ("utcEpochNs",))}
    if len(found) > 1:
        raise InputUnusable(
            f"{database.name} has {len(found)} sessions with beginnings of their own",
            hint="export each report by itself",
        )
    value = found.pop() if found else None
    return value if isinstance(value, int) and 0 < value < MAX_TIME_NS else None


def _processes(database: ForeignDatabase, sink: RowSink, rows: Rows, told: Told) -> None:
    """A row per process with rows of its own, with its name where the export has it."""
    names: dict[int, str] = {}
    if {"pid", "name"} <= set(database.columns("PROCESSES")):
        for (pid, name), _ in zip(database.read("PROCESSES", ("pid", "name")), range(MAX_PROCESS_NAMES), strict=False):
            if isinstance(pid, int):
                names[pid] = text(name, 256)
    if told.first_ns is None:
        return
    made: list[Mapping[str, object]] = [
        {
            "start_ns": told.first_ns, "pid": pid, "op": "found", "role": "traced", "seen_ns": told.first_ns,
            "comm": names.get(recorded) or "name not recorded",
            "pid_in_namespace": recorded if pid != recorded else None,
        }
        for recorded, pid in sorted(rows.pids.all.items())
    ]  # fmt: skip
    sink.add_records("processes", made)
    told.rows["processes"] += len(made)
    told.assume("A process is taken to have begun no later than the first row of its recording.")


def _tell(database: ForeignDatabase, rows: Rows, told: Told, base_ns: int | None) -> None:
    told.assume("The format is read by NVIDIA's documentation of its schema, and was not verified against a real file.")
    if base_ns is None:
        told.assume("Times count from the beginning of the session, whose wall-clock time the export does not tell.")
    told.not_carried += [f"{what}: {n}" for what, n in sorted(rows.left.items())]
    told.not_carried.append("registers, local memory, cache configuration, call chains and NVTX payloads")
    if told.rows["off_cpu"]:
        told.not_carried.append("states of threads that left a CPU, and who woke them")
        told.weak("B", "whether a thread slept or was preempted while it was off a CPU is not told", ("off_cpu",))
    imported = {s.table for s in SOURCES}
    others = sorted(t for t in database.tables if t not in imported and not _INFORMATION.match(t))
    for table in others[:64]:
        if n := database.count(table):
            told.not_carried.append(f"table {table}: {n} rows")
    for code, what in (("cuda_calls", "CUDA calls"), ("gpu_activities", "work of the GPU"), ("os_calls", "OS calls")):
        if not told.rows[code]:
            told.not_carried.append(f"no {what}: the report was made without them, which is not the same as none")


def about(database: ForeignDatabase) -> About:
    """GPUs that the export lists, and the host's name where it tells it."""
    gpus: list[dict[str, object]] = []
    if {"id", "name"} <= set(database.columns("TARGET_INFO_GPU")):
        listed = database.read("TARGET_INFO_GPU", ("id", "name", "uuid"), order="id")
        for (index, name, uuid), _ in zip(listed, range(MAX_GPUS), strict=False):
            if isinstance(index, int) and 0 <= index < 1024:
                known = text(uuid, 64).lower()
                known = f"GPU-{known}" if _UUID.match(known) else text(uuid, 64)
                gpus.append({"index": index, "uuid": known or unrecorded(index),
                             "name": text(name, 128) or "not recorded", "driver": "not recorded"})  # fmt: skip
    host: dict[str, object] = {}
    if {"name", "value"} <= set(database.columns("TARGET_INFO_SYSTEM_ENV")):
        said = database.read("TARGET_INFO_SYSTEM_ENV", ("name", "value"))
        names = {text(v, 256) for (k, v), _ in zip(said, range(4096), strict=False) if k == "Hostname"} - {""}
        if len(names) == 1:
            host["hostname"] = names.pop()
    return About(gpus, host)


FORMAT = Format(
    "Nsight Systems SQLite export", "cuda", lambda head: False, not_of_lines, read_file=read,  # noqa: ARG005
    tables=frozenset({"StringIds"}), about=about,
)  # fmt: skip
