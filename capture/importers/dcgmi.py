"""Logs of ``dcgmi dmon``: rows of fields per GPU, under a header that names them.

dcgmi writes no times. A log with a time in front of every line (as ``ts`` puts it there) is read as it is; of any other
the user gives the start and the interval, and a round begins where a GPU comes again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from gpuaudit.bundle.errors import InputUnusable, UsageError
from gpuaudit.capture.importers.cells import PERCENT, REFUSALS, Unreadable, fitting, scaled
from gpuaudit.capture.importers.model import MAX_TIME_NS, Format, Line, Request, RowSink, Told, unrecorded
from gpuaudit.capture.importers.nvidia_smi import MAX_GPU_INDEX, parse_time
from gpuaudit.capture.importers.samples import Samples

SAMPLES, GPM = "nvml_samples", "gpm_samples"


def _share(cell: str) -> float:
    """DCGM's profiling fields are shares of 1; the table has percent."""
    value = _decimal(cell)
    if value > 1:
        raise Unreadable(f"got {cell!r:.40}, expected a share of at most 1")
    return float(value * 100)


def _mebibytes(cell: str) -> float:
    return float(_decimal(cell) / (1 << 20))


def _decimal(cell: str) -> Decimal:
    if not re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,12})?", cell):
        raise Unreadable(f"got {cell!r:.40}, expected a number")
    return Decimal(cell)


FIELDS: dict[str, tuple[str, str, Callable[[str], int | float]]] = {
    "GRACT": (GPM, "graphics_percent", _share),
    "SMACT": (GPM, "sm_activity_percent", _share),
    "SMOCC": (GPM, "sm_occupancy_percent", _share),
    "TENSO": (GPM, "tensor_percent", _share),
    "DRAMA": (GPM, "dram_bandwidth_percent", _share),
    "FP64A": (GPM, "fp64_percent", _share),
    "FP32A": (GPM, "fp32_percent", _share),
    "FP16A": (GPM, "fp16_percent", _share),
    "PCITX": (GPM, "pcie_tx_mib_per_s", _mebibytes),
    "PCIRX": (GPM, "pcie_rx_mib_per_s", _mebibytes),
    "NVLTX": (GPM, "nvlink_tx_mib_per_s", _mebibytes),
    "NVLRX": (GPM, "nvlink_rx_mib_per_s", _mebibytes),
    "GPUTL": (SAMPLES, "gpu_utilization_percent", PERCENT),
    "MCUTL": (SAMPLES, "memory_utilization_percent", PERCENT),
    "POWER": (SAMPLES, "power_mw", scaled(1000)),
    "TOTEC": (SAMPLES, "energy_mj", scaled(1)),
    "TMPTR": (SAMPLES, "temperature_c", scaled(1)),
    "MMTMP": (SAMPLES, "temperature_memory_c", scaled(1)),
    "SMCLK": (SAMPLES, "clock_sm_mhz", scaled(1)),
    "MMCLK": (SAMPLES, "clock_memory_mhz", scaled(1)),
    "FBTTL": (SAMPLES, "memory_total_bytes", scaled(1 << 20)),
    "FBUSD": (SAMPLES, "memory_used_bytes", scaled(1 << 20)),
}
"""Short name (``dcgmi dmon --list``) → table, column and conversion. DCGM's frame buffer sizes are in MiB."""

_STAMP = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,9})?)\s+(.*)", re.ASCII)
_ROW = re.compile(r"(GPU|GPU-I|GPU-CI|Switch|Link|CPU|Core)\s+(\S+)((?:\s+\S+)+)\s*\Z")


def fields_of(line: str) -> list[str] | None:
    """Short names of the columns, or None where the line is no header."""
    match = re.match(r"#\s*Entity\s+(.*)", _unstamped(line)[1])
    names = match[1].split() if match else []
    return names if names and len(set(names)) == len(names) else None


def _unstamped(line: str) -> tuple[str | None, str]:
    match = _STAMP.match(line)
    return (match[1], match[2]) if match else (None, line.strip())


@dataclass
class _Log:
    """The state of reading one log: the columns now, the round now, and what came of it."""

    request: Request
    told: Told
    samples: Samples
    names: list[str] = field(default_factory=list)
    round: int = 0
    seen: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)

    def line(self, number: int, text: str) -> None:
        stamp, rest = _unstamped(text)
        names = fields_of(text)
        if names is not None:
            self.names = names
            self._uncarried(f"field {n}" for n in names if n not in FIELDS)
            return
        match = _ROW.match(rest)
        if match is None:
            if rest and not re.fullmatch(r"#?\s*I[Dd]\b.*", rest):
                self.told.refuse(number, f"neither a header nor a row: {rest[:120]!r}")
            return
        cells = match[3].split()
        if len(cells) != len(self.names):
            self.told.refuse(number, f"{len(cells)} values, expected {len(self.names)}")
        elif match[1] != "GPU":
            self._uncarried([f"rows of {match[1]} entities"])
        else:
            try:
                self._gpu(match[2], stamp, cells)
            except Unreadable as e:
                self.told.refuse(number, str(e))

    def _gpu(self, entity: str, stamp: str | None, cells: list[str]) -> None:
        index = scaled(1)(entity)
        if index > MAX_GPU_INDEX:
            raise Unreadable(f"no GPU has index {index}")
        time_ns = parse_time(stamp, self.request.utc_offset_ns) if stamp else self._round_ns(entity)
        rows: dict[str, dict[str, object]] = {}
        refused: dict[str, list[str]] = {}
        for name, cell in zip(self.names, cells, strict=True):
            if name not in FIELDS:
                continue
            table, column, convert = FIELDS[name]
            row = rows.setdefault(table, {})
            code = REFUSALS.get(cell.lower())
            if code is None:
                row[column] = fitting(table, column, convert(cell))
            else:
                refused.setdefault(table, []).append(f"{column}={code}")
        for table, row in rows.items():
            if table == SAMPLES:
                refused.setdefault(table, []).append("compute_processes=not_in_the_log")
            row["unavailable"] = ",".join(refused.get(table, []))
            self.samples.add(table, index, self.told.uuid_of(index), time_ns, row)

    def _round_ns(self, entity: str) -> int:
        """Start of the round that this row belongs to, from the user's start and interval."""
        if entity in self.seen:
            self.seen.clear()
            self.round += 1
        self.seen.add(entity)
        if self.request.start_ns is None or self.request.interval_ns is None:
            raise UsageError(
                "a log of dcgmi dmon tells no times",
                hint="give --start 2026-11-22T05:00:00Z and --interval 1s, the -d of dcgmi",
            )
        time_ns = self.request.start_ns + self.round * self.request.interval_ns
        if self.request.interval_ns <= 0 or not 0 <= time_ns < MAX_TIME_NS:
            raise UsageError(
                f"round {self.round} of the log would be at {time_ns} ns, one every {self.request.interval_ns} ns",
                hint="give the --start and --interval of the recording",
            )
        return time_ns

    def _uncarried(self, what: Iterable[str]) -> None:
        for item in what:
            if item not in self.others:
                self.others.add(item)
                self.told.not_carried.append(item)


def read(name: str, lines: Iterable[Line], sink: RowSink, request: Request, told: Told) -> None:
    """Rows of ``nvml_samples`` and ``gpm_samples``; see :class:`gpuaudit.capture.importers.model.Reader`."""
    log = _Log(request, told, Samples("nvml", sink, told))
    for number, text in lines:
        told.lines = number
        log.line(number, text)
    if not log.names:
        raise InputUnusable(f"{name}: no line of it names the columns of dcgmi dmon")
    log.samples.finish()
    if log.round or log.seen:
        told.assumptions.append(
            "dcgmi dmon writes no times: they follow from --start and --interval, a round each time a GPU comes again."
        )
    else:
        told.assumptions.append("Times in front of the lines are taken to be in the zone that --utc-offset gives.")


def gpus(head: Sequence[str]) -> list[dict[str, object]]:
    """GPUs that the first rows tell of, for leaf 0."""
    found = {
        int(m[2]) for line in head if (m := _ROW.match(_unstamped(line)[1])) and m[1] == "GPU" and m[2].isdecimal()
    }
    return [
        {"index": i, "uuid": unrecorded(i), "name": "not recorded", "driver": "not recorded"}
        for i in sorted(found)
        if i <= MAX_GPU_INDEX
    ]


FORMAT = Format("dcgmi dmon", "nvml", lambda head: any(fields_of(x) is not None for x in head[:16]), read, gpus)
