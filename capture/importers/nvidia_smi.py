"""Logs of ``nvidia-smi --query-gpu=… --format=csv -l N``, with or without units.

Which columns a log has is what its first line says, and any such line after it where logs were joined. A sample stands
for the time until the next one of the same GPU, but not past three times the usual interval: then the log has a hole,
and a gap says so.
"""

from __future__ import annotations

import csv
import datetime
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.capture.importers.cells import (
    CELSIUS,
    COMPUTE_MODE,
    COUNT,
    MEGAHERTZ,
    MIB,
    PERCENT,
    REFUSALS,
    SWITCH,
    WATT,
    Convert,
    Unreadable,
    fitting,
    hexadecimal,
    performance_state,
)  # fmt: skip
from gpuaudit.capture.importers.model import EPOCH, MAX_TIME_NS, Format, Line, Request, RowSink, Told
from gpuaudit.capture.importers.reading import HEAD_LINES
from gpuaudit.capture.importers.samples import Samples

SAMPLES, HEALTH = "nvml_samples", "nvml_health"

COLUMNS: dict[str, tuple[str, str, Convert]] = {
    "utilization.gpu": (SAMPLES, "gpu_utilization_percent", PERCENT),
    "utilization.memory": (SAMPLES, "memory_utilization_percent", PERCENT),
    "utilization.encoder": (SAMPLES, "encoder_utilization_percent", PERCENT),
    "utilization.decoder": (SAMPLES, "decoder_utilization_percent", PERCENT),
    "memory.total": (SAMPLES, "memory_total_bytes", MIB),
    "memory.used": (SAMPLES, "memory_used_bytes", MIB),
    "memory.reserved": (SAMPLES, "memory_reserved_bytes", MIB),
    "power.draw": (SAMPLES, "power_mw", WATT),
    "power.limit": (HEALTH, "power_limit_set_mw", WATT),
    "enforced.power.limit": (SAMPLES, "power_limit_mw", WATT),
    "power.default_limit": (HEALTH, "power_limit_default_mw", WATT),
    "power.max_limit": (HEALTH, "power_limit_max_mw", WATT),
    "temperature.gpu": (SAMPLES, "temperature_c", CELSIUS),
    "temperature.memory": (SAMPLES, "temperature_memory_c", CELSIUS),
    "clocks.sm": (SAMPLES, "clock_sm_mhz", MEGAHERTZ),
    "clocks.current.sm": (SAMPLES, "clock_sm_mhz", MEGAHERTZ),
    "clocks.mem": (SAMPLES, "clock_memory_mhz", MEGAHERTZ),
    "clocks.current.memory": (SAMPLES, "clock_memory_mhz", MEGAHERTZ),
    "clocks.max.sm": (SAMPLES, "clock_sm_max_mhz", MEGAHERTZ),
    "clocks.applications.graphics": (SAMPLES, "clock_sm_cap_mhz", MEGAHERTZ),
    "clocks.applications.memory": (SAMPLES, "clock_memory_cap_mhz", MEGAHERTZ),
    "clocks_event_reasons.active": (SAMPLES, "event_reasons", hexadecimal),
    "clocks_throttle_reasons.active": (SAMPLES, "event_reasons", hexadecimal),
    "pstate": (SAMPLES, "performance_state", performance_state),
    "pcie.link.gen.current": (SAMPLES, "pcie_generation", COUNT),
    "pcie.link.gen.gpucurrent": (SAMPLES, "pcie_generation", COUNT),
    "pcie.link.width.current": (SAMPLES, "pcie_width", COUNT),
    "pcie.link.gen.max": (HEALTH, "pcie_generation_max", COUNT),
    "pcie.link.width.max": (HEALTH, "pcie_width_max", COUNT),
    "ecc.mode.current": (HEALTH, "ecc_enabled", SWITCH),
    "ecc.errors.corrected.volatile.total": (SAMPLES, "ecc_corrected", COUNT),
    "ecc.errors.uncorrected.volatile.total": (SAMPLES, "ecc_uncorrected", COUNT),
    "ecc.errors.corrected.aggregate.total": (HEALTH, "ecc_corrected_aggregate", COUNT),
    "ecc.errors.uncorrected.aggregate.total": (HEALTH, "ecc_uncorrected_aggregate", COUNT),
    "retired_pages.single_bit_ecc.count": (HEALTH, "retired_pages_single_bit", COUNT),
    "retired_pages.double_bit.count": (HEALTH, "retired_pages_double_bit", COUNT),
    "retired_pages.pending": (HEALTH, "retired_pages_pending", SWITCH),
    "remapped_rows.correctable": (HEALTH, "remapped_rows_corrected", COUNT),
    "remapped_rows.uncorrectable": (HEALTH, "remapped_rows_uncorrected", COUNT),
    "remapped_rows.pending": (HEALTH, "remapped_rows_pending", SWITCH),
    "remapped_rows.failure": (HEALTH, "remapped_rows_failed", SWITCH),
    "persistence_mode": (HEALTH, "persistence_mode", SWITCH),
    "compute_mode": (HEALTH, "compute_mode", COMPUTE_MODE),
    "mig.mode.current": (HEALTH, "mig_mode", SWITCH),
    "accounting.mode": (HEALTH, "accounting_mode", SWITCH),
}
"""Query name (``nvidia-smi --help-query-gpu``) → table, column and conversion."""

_PLACES = ("timestamp", "index", "uuid", "gpu_uuid", "name", "gpu_name", "driver_version")
"""Columns that say when and which GPU."""

_TIME = re.compile(r"(\d{4})[/-](\d\d)[/-](\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?\Z", re.ASCII)
MAX_GPU_INDEX = 4096
MAX_GPUS = 256
"""Different UUIDs in one log: a host has 16 at most, and samples of each are held."""

ONE_GPU = "The log names neither index nor UUID: all its rows are taken to be of one GPU."


def columns_of(line: str) -> list[str] | None:
    """Names of the columns without their units, or None where the line is not the first one of such a log."""
    cells = _cells(line)
    names = [re.sub(r"\s*\[[^]]*\]\Z", "", c) for c in cells]
    known = [n for n in names if n in COLUMNS or n in _PLACES]
    if "timestamp" not in names or len(known) < 2 or len(set(names)) != len(names):
        return None
    return names


def _cells(line: str) -> list[str]:
    try:
        return [c.strip() for c in next(csv.reader([line], skipinitialspace=True), [])]
    except csv.Error:
        return []


def parse_time(text: str, utc_offset_ns: int) -> int:
    """``2026/11/22 05:00:01.123``, local time, as ns since 1970 UTC; Unreadable otherwise."""
    match = _TIME.match(text)
    if match is None:
        raise Unreadable(f"got {text!r:.40}, expected a time like 2026/11/22 05:00:01.123")
    year, month, day, hour, minute, second = (int(match[i]) for i in range(1, 7))
    try:
        whole = datetime.datetime(year, month, day, hour, minute, second, tzinfo=datetime.UTC) - EPOCH
    except ValueError:
        raise Unreadable(f"{text!r:.40} is no time") from None
    ns = (whole.days * 86_400 + whole.seconds) * 1_000_000_000 + int((match[7] or "0").ljust(9, "0")) - utc_offset_ns
    if not 0 <= ns < MAX_TIME_NS:
        raise Unreadable(f"{text!r:.40} is out of range")
    return ns


@dataclass
class _Log:
    """The state of reading one log."""

    request: Request
    told: Told
    samples: Samples
    names: list[str] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)

    def header(self, names: list[str]) -> None:
        """The columns from here on."""
        self.names = names
        new = [f"column {n}" for n in names if n not in COLUMNS and n not in _PLACES]
        self.told.not_carried += [n for n in new if n not in self.told.not_carried]
        if "index" not in names and not {"uuid", "gpu_uuid"} & set(names):
            self.told.assume(ONE_GPU)

    def row(self, number: int, line: str) -> None:
        cells = _cells(line)
        if len(cells) != len(self.names):
            self.told.refuse(number, f"{len(cells)} cells, expected {len(self.names)}: {line[:120]!r}")
            return
        told = dict(zip(self.names, cells, strict=True))
        try:
            time_ns = parse_time(told["timestamp"], self.request.utc_offset_ns)
            index, uuid = self._gpu(told)
            tables = self._values(told)
        except Unreadable as e:
            self.told.refuse(number, str(e))
            return
        for table, values in tables.items():
            self.samples.add(table, index, uuid, time_ns, values)

    def _gpu(self, told: dict[str, str]) -> tuple[int, str]:
        uuid = told.get("uuid") or told.get("gpu_uuid") or ""
        index = COUNT(told["index"]) if "index" in told else -1
        if index > MAX_GPU_INDEX or len(uuid) > 128:
            raise Unreadable(f"no GPU has index {index} or such a UUID")
        if uuid and uuid not in self.places:
            if len(self.places) >= MAX_GPUS:
                raise Unreadable(f"it is of one more GPU than {MAX_GPUS}")
            self.places[uuid] = len(self.places)
            if self.told.lines > HEAD_LINES:
                self.told.assume(f"GPUs that come first after line {HEAD_LINES} have no name and no driver in leaf 0.")
        if index < 0:
            index = self.places.get(uuid, 0)
        return index, uuid or self.told.uuid_of(index)

    def _values(self, told: dict[str, str]) -> dict[str, dict[str, object]]:
        """Table → column → value; what nvidia-smi refused stands in ``unavailable``."""
        out: dict[str, dict[str, object]] = {SAMPLES: {}}
        refused: dict[str, list[str]] = {}
        for name, cell in told.items():
            if name not in COLUMNS:
                continue
            table, column, convert = COLUMNS[name]
            row = out.setdefault(table, {})
            code = REFUSALS.get(cell.lower())
            if code is not None:
                refused.setdefault(table, []).append(f"{column}={code}")
            else:
                try:
                    row[column] = fitting(table, column, convert(cell))
                except Unreadable as e:
                    raise Unreadable(f"{name}: {e}") from None
        refused.setdefault(SAMPLES, []).append("compute_processes=not_in_the_log")
        for table, row in out.items():
            row["unavailable"] = ",".join(refused.get(table, []))
        return out


def read(name: str, lines: Iterable[Line], sink: RowSink, request: Request, told: Told) -> None:
    """Rows of ``nvml_samples`` and ``nvml_health``; see :class:`gpuaudit.capture.importers.model.Reader`."""
    rest = iter(lines)
    for number, line in rest:
        told.lines = number
        if line.strip():
            break
    else:
        raise InputUnusable(f"{name} is empty")
    names = columns_of(line)
    if names is None:
        raise InputUnusable(f"{name}: its first line names no timestamp and no column of nvidia-smi --query-gpu")
    zone = f"{request.utc_offset_ns // 60_000_000_000:+d} minutes from UTC"
    told.assumptions.append(f"nvidia-smi writes local time without its zone; the log's is taken to be {zone}.")
    log = _Log(request, told, Samples("nvml", sink, told))
    log.header(names)
    for number, line in rest:
        told.lines = number
        if (again := columns_of(line)) is not None:  # where logs were joined
            log.header(again)
        elif line.strip():
            log.row(number, line)
    log.samples.finish()


def gpus(head: Sequence[str]) -> list[dict[str, object]]:
    """GPUs that the first rows tell of, for leaf 0."""
    out: dict[tuple[int, str], dict[str, object]] = {}
    log = _Log(Request(), Told("nvml"), Samples("nvml", _Nowhere(), Told("nvml")))
    for line in head:
        if (names := columns_of(line)) is not None:
            log.header(names)
            continue
        cells = _cells(line)
        if not log.names or len(cells) != len(log.names):
            continue
        told = dict(zip(log.names, cells, strict=True))
        try:
            index, uuid = log._gpu(told)
        except Unreadable:
            continue
        name = told.get("name") or told.get("gpu_name") or "not recorded"
        driver = told.get("driver_version", "not recorded")
        out.setdefault((index, uuid), {"index": index, "uuid": uuid, "name": name[:256], "driver": driver[:64]})
    return [out[k] for k in sorted(out)]


class _Nowhere:
    def add_records(self, table: str, records: Sequence[object]) -> None:
        """Rows of a head are not kept."""

    def gap(self, *_: object, **__: object) -> None:
        """Neither are gaps."""


FORMAT = Format(
    "nvidia-smi --query-gpu CSV", "nvml", lambda head: bool(head) and columns_of(head[0]) is not None, read, gpus
)
