"""``audit import``: recordings made by others, through the recorder and the sealer of a capture, into one bundle.

Nothing of it is evidence of this host: leaf 0 says ``imported``, the artefact ``imports`` holds the digest of every
original and what could not be carried, and times are the recording's own wall clock.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from gpuaudit.bundle import keys
from gpuaudit.bundle.errors import InputUnusable, UsageError
from gpuaudit.bundle.tool import tool_facts
from gpuaudit.bundle.writer import BundleWriter
from gpuaudit.capture import host
from gpuaudit.capture.importers import (
    dcgmi,
    engine_series,
    ingero,
    kineto,
    nccl_inspector,
    nccl_profiler,
    nsight,
    nvidia_smi,
)
from gpuaudit.capture.importers.foreign_sqlite import ForeignDatabase, is_sqlite
from gpuaudit.capture.importers.model import About, Format, Request, Told, unrecorded
from gpuaudit.capture.importers.reading import Recording
from gpuaudit.capture.output import BUNDLE_NAME, Output
from gpuaudit.capture.recorder import Recorder, SegmentLimits
from gpuaudit.capture.source import SELECTABLE_SOURCES

FORMATS: tuple[Format, ...] = (
    engine_series.FORMAT, nvidia_smi.FORMAT, dcgmi.FORMAT, nccl_profiler.FORMAT, kineto.FORMAT, ingero.FORMAT,
    nsight.FORMAT, nccl_inspector.FORMAT,
)  # fmt: skip
"""In the order in which a file is shown to them."""

NOT_RECORDED = "not recorded"
IMPORT_BOOT_ID = "00000000-0000-4000-8000-000000000002"
"""Stands for the boot of the recorded host, which an imported recording does not tell."""

MAX_FILES = 256
LIMITS = SegmentLimits(age_ns=3_600_000_000_000)
"""An import can be repeated, so a segment need not close every 5 s of the recording; larger ones take less room."""


@dataclass(frozen=True)
class ImportOptions:
    """What to import; ``hostname`` is where the recordings were made, as the user says."""

    files: tuple[Path, ...]
    out: Path
    force: bool = False
    site: str = "local"
    hostname: str = NOT_RECORDED
    request: Request = field(default_factory=Request)


@dataclass(frozen=True)
class ImportResult:
    """The sealed bundle, and what became of each file (as the artefact ``imports`` tells it)."""

    path: Path
    receipt_path: Path
    origin: str
    root_b64: str
    size: int
    identity_created: bool
    files: list[dict[str, object]]


Progress = Callable[[str, int, int], None]
"""Told the name of a file, bytes read and bytes in all."""


class RecordingClock:
    """The clock of leaf headers: how far the recordings have come, on their own axis; UTC is the time of the import."""

    def __init__(self) -> None:
        self._at_ns = 0

    def boot_id(self) -> str:
        """No boot of any host."""
        return IMPORT_BOOT_ID

    def boot_ns(self) -> int:
        """Latest time of a recording that was read, in ns since 1970 UTC; never runs back."""
        return self._at_ns

    def utc_ns(self) -> int:
        """Now."""
        now = datetime.datetime.now(datetime.UTC) - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        return now // datetime.timedelta(microseconds=1) * 1000

    def reached(self, time_ns: int) -> None:
        """A recording tells of ``time_ns``."""
        self._at_ns = max(self._at_ns, time_ns)


class _Sink:
    """The recorder, with a clock that follows the rows and a word of progress for every batch."""

    def __init__(self, recorder: Recorder, clock: RecordingClock, tell: Callable[[], None]) -> None:
        self._recorder = recorder
        self._clock = clock
        self._tell = tell

    def add_records(self, table: str, records: Sequence[Mapping[str, object]]) -> None:
        if records:
            self._clock.reached(int(str(records[-1]["start_ns"])))
            self._recorder.add_records(table, records)
            self._recorder.tick()
            self._tell()

    def gap(
        self, source: str, reason: str, start_ns: int, end_ns: int | None, *, table: str | None = None,
        pid: int | None = None,
    ) -> None:  # fmt: skip
        self._recorder.gap(source, reason, start_ns, end_ns, table=table, pid=pid)


def run_import(options: ImportOptions, *, progress: Progress | None = None) -> ImportResult:
    """Import and seal. ``progress`` hears how far it is.

    InputUnusable for a file that no format recognises, or that is broken: then nothing is left behind. UsageError and
    OutputExists before anything is made.
    """
    if not 1 <= len(options.files) <= MAX_FILES:
        raise UsageError(f"{len(options.files)} files to import, between 1 and {MAX_FILES} can be")
    if (Path.cwd() / options.out).resolve() in {f.resolve() for f in options.files}:
        raise UsageError(f"{options.out} is one of the files to import", hint="name another output with --out")
    output = Output(Path.cwd() / options.out, Path.cwd() / f"{options.out}.receipt", options.force)
    output.check()
    recordings = [Recording(path) for path in options.files]
    try:
        chosen = [_choose(r) for r in recordings]
        _refuse_repeats(recordings)
        return _import(options, output, chosen, progress)
    finally:
        for recording in recordings:
            recording.close()
        output.close()


@dataclass(frozen=True)
class Chosen:
    """A file, its format, and what its beginning says of GPUs and host."""

    recording: Recording
    form: Format
    about: About


def _choose(recording: Recording) -> Chosen:
    head = recording.head()
    if is_sqlite(head):
        return _choose_database(recording)
    for form in FORMATS:
        if not form.tables and form.recognises(head):
            return Chosen(recording, form, About(form.gpus(head)))
    if recording.cut:
        raise InputUnusable(f"{recording.name}: {recording.cut}")
    raise _no_format(recording)


def _choose_database(recording: Recording) -> Chosen:
    """An SQLite file is told by its tables."""
    with ForeignDatabase(recording.path) as database:
        for form in FORMATS:
            if form.tables and form.tables <= database.tables:
                database.check()
                return Chosen(recording, form, form.about(database))
    raise _no_format(recording)


def _no_format(recording: Recording) -> InputUnusable:
    return InputUnusable(
        f"{recording.name} is in no format that can be imported",
        hint=f"there are: {', '.join(f.name for f in FORMATS)}",
    )


def _refuse_repeats(recordings: Sequence[Recording]) -> None:
    names = [r.path.resolve() for r in recordings]
    if len(set(names)) != len(names):
        raise UsageError("a file is named twice", hint="name each recording once")


def _import(options: ImportOptions, output: Output, chosen: list[Chosen], progress: Progress | None) -> ImportResult:
    identity, created = keys.load_identity(create=True)
    output.create(None)
    clock = RecordingClock()
    done = False
    try:
        writer = BundleWriter.create(
            output.partial / BUNDLE_NAME, site=options.site, host_id=host.host_id(identity.public_key),
            capture_uuid=str(uuid.uuid4()), open_body=_open_body(options, chosen), identity=identity, clock=clock,
        )  # fmt: skip
        try:
            output.save_receipt(writer.receipt.to_text())
            files, totals = _read_all(options.request, chosen, writer, clock, progress)
            sealed = writer.seal({"tables": totals})
        finally:
            writer.close()
        output.publish()
        done = True
    finally:
        if not done:
            output.discard()
            output.receipt_path.unlink(missing_ok=True)
    return ImportResult(output.path, output.receipt_path, writer.origin, sealed.root_b64, sealed.size, created, files)


def _read_all(
    request: Request, chosen: list[Chosen], writer: BundleWriter, clock: RecordingClock, progress: Progress | None
) -> tuple[list[dict[str, object]], dict[str, dict[str, str]]]:  # fmt: skip
    recorder = Recorder(writer, limits=LIMITS, now_ns=clock.boot_ns)
    told_of: list[dict[str, object]] = []
    times: list[int] = []
    axes: dict[bool, str] = {}
    numbers, uuids = count(), _uuids(chosen)
    pids: dict[tuple[int, int | None], int] = {}
    for number, (recording, form) in enumerate((c.recording, c.form) for c in chosen):
        told = Told(form.source, number, numbers, uuids, pids)

        def tell(recording: Recording = recording) -> None:
            if progress is not None:
                progress(recording.name, recording.bytes_read, recording.size_bytes)

        sink = _Sink(recorder, clock, tell)
        if form.read_file is not None:
            form.read_file(recording, sink, request, told)
        else:
            form.read(recording.name, recording.lines(), sink, request, told)
        if told.first_ns is None or told.last_ns is None:
            why = f": {told.examples[0]}" if told.examples else ""
            raise InputUnusable(
                f"{recording.name}: no line of it could be read{why}", hint=f"it looks like {form.name}"
            )
        axes.setdefault(told.wall_clock, recording.name)
        if len(axes) > 1:
            raise InputUnusable(
                f"{axes[True]} tells wall-clock time and {axes[False]} does not, so they have no common axis",
                hint="import them apart",
            )
        times += [told.first_ns, told.last_ns]
        told_of.append(_told(recording, form, told))
    for at in (min(times), max(times)) if True in axes else ():  # the axis is the wall clock itself
        recorder.add_records("clock", [{"start_ns": at, "duration_ns": 0, "realtime_ns": at, "monotonic_ns": at}])
    recorder.flush()
    writer.append_artefact("imports", told_of)
    writer.append_artefact("sources", _sources(told_of))
    return told_of, recorder.totals()


def _told(recording: Recording, form: Format, told: Told) -> dict[str, object]:
    return {
        "name": recording.name, "sha256": recording.sha256(), "size_bytes": str(recording.size_bytes),
        "format": form.name, "source": form.source, "lines": str(told.lines), "unreadable": str(told.unreadable),
        "unreadable_examples": told.examples, "rows": {t: str(n) for t, n in sorted(told.rows.items())},
        "first_ns": str(told.first_ns), "last_ns": str(told.last_ns), "not_carried": told.not_carried,
        "assumptions": told.assumptions, "facts": told.facts, "weaknesses": told.weaknesses,
        "sources": sorted(told.sources or {form.source}),
    }  # fmt: skip


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _sources(told_of: list[dict[str, object]]) -> list[dict[str, object]]:
    """State of every source: one that a file told of was recorded by others; the rest was not recorded."""
    told = {str(s) for t in told_of for s in _listed(t["sources"])}
    partly = {str(s) for t in told_of if t["unreadable"] != "0" for s in _listed(t["sources"])}
    return [
        {
            "source": s,
            "state": NOT_RECORDED if s not in told else "partly recorded" if s in partly else "recorded",
            "reason": (
                "no imported file tells of it" if s not in told
                else "imported; lines of a file could not be read" if s in partly else ""
            ),
        }
        for s in SELECTABLE_SOURCES
    ]  # fmt: skip


def _uuids(chosen: list[Chosen]) -> dict[int, list[str]]:
    """UUIDs of the GPUs that the beginnings of the files name, by index."""
    out: dict[int, list[str]] = {}
    for gpus in (c.about.gpus for c in chosen):
        for gpu in gpus:
            index, uuid = int(str(gpu["index"])), str(gpu["uuid"])
            if uuid != unrecorded(index) and uuid not in out.setdefault(index, []):
                out[index].append(uuid)
    return out


def _open_body(options: ImportOptions, chosen: list[Chosen]) -> dict[str, object]:
    gpus: dict[tuple[object, object], dict[str, object]] = {}
    uuids = _uuids(chosen)
    told = [c.about.host for c in chosen if c.about.host]
    facts = told[0] if told and all(h == told[0] for h in told) else {}
    for about in (c.about for c in chosen):
        for gpu in about.gpus:
            index = int(str(gpu["index"]))
            if gpu["uuid"] != unrecorded(index) or len(uuids.get(index, ())) != 1:
                gpus.setdefault((gpu["index"], gpu["uuid"]), gpu)
    given = {"hostname": options.hostname} if options.hostname != NOT_RECORDED else {}
    return {
        "host": {
            "kernel": NOT_RECORDED, "machine": NOT_RECORDED, "cpus": 0, "host_id": "", "boot_id": IMPORT_BOOT_ID,
            "hostname": NOT_RECORDED, **facts, **given,
        },
        "gpus": [gpus[k] for k in sorted(gpus, key=str)],
        "options": {"site": options.site, "files": [c.recording.name for c in chosen]},
        "sources": [{"source": c.form.source, "state": "imported", "reason": c.recording.name} for c in chosen],
        "imported": {"files": len(chosen)}, "synthetic": False, "tool": tool_facts(),
    }  # fmt: skip
