"""Health of the GPUs: what was read of each one's memory errors, links, limits and modes, and the XIDs it reported.

Every cell is a value with its evidence, or says why there is none: "not supported" with NVML's code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.drafts import derived
from gpuaudit.analyze.finding import Quantity, Section, SectionTable
from gpuaudit.analyze.gpu_facts import NOT_NOTED, Fact, read_facts
from gpuaudit.analyze.gpu_time import UNKNOWN
from gpuaudit.analyze.nvml_values import Array, Device, devices, growth, last_told, refusal, series
from gpuaudit.analyze.xid import SOURCE, xid

ORDER = 70

TITLE = "Health of the GPUs"
QUESTION = "What do the GPUs tell of their memory, links, limits and modes, and did they report errors?"

MAX_GPUS = 16
"""GPUs with a table of their own; the largest servers have 16."""

MAX_XIDS = 200
"""Rows of the table of XIDs; there are fewer than two hundred numbers."""

MAX_TITLE = 256
"""Characters of a table's title (``analyze/schema.py``); the UUID is a stranger's text."""

Cell = Quantity | str | None
Row = tuple[Cell, ...]
Reading = tuple[str, str, str]
"""What it is, column, unit."""

FACTS = (
    ("name", "name"), ("serial number", "serial"), ("VBIOS", "vbios_version"), ("architecture", "architecture"),
    ("PCI address", "pci_bus_id"), ("CPUs near it", "cpu_affinity"),
)  # fmt: skip

COUNTERS: tuple[Reading, ...] = (
    ("corrected ECC errors", "ecc_corrected_volatile", "count"),
    ("uncorrected ECC errors", "ecc_uncorrected_volatile", "count"),
)
LAST: tuple[Reading, ...] = (
    ("corrected ECC errors in the board's life", "ecc_corrected_aggregate", "count"),
    ("uncorrected ECC errors in the board's life", "ecc_uncorrected_aggregate", "count"),
    ("rows remapped for corrected errors", "remapped_rows_corrected", "count"),
    ("rows remapped for uncorrected errors", "remapped_rows_uncorrected", "count"),
    ("pages retired for single-bit errors", "retired_pages_single_bit", "count"),
    ("pages retired for a double-bit error", "retired_pages_double_bit", "count"),
    ("PCIe generation, at most", "pcie_generation_max", "count"),
    ("PCIe lanes, at most", "pcie_width_max", "count"),
    ("power limit, default", "power_limit_default_mw", "mW"), ("power limit, set", "power_limit_set_mw", "mW"),
    ("power limit, highest", "power_limit_max_mw", "mW"),
    ("temperature of slowdown", "temperature_slowdown_c", "°C"),
    ("BAR1 aperture", "bar1_total_bytes", "bytes"), ("BAR1 in use", "bar1_used_bytes", "bytes"),
)  # fmt: skip
FLAGS: tuple[tuple[str, str, dict[int, str]], ...] = (
    ("ECC", "ecc_enabled", {0: "off", 1: "on"}),
    ("row remapping pending", "remapped_rows_pending", {0: "no", 1: "yes, at the next reset of the GPU"}),
    ("row remapping failed", "remapped_rows_failed", {0: "no", 1: "yes"}),
    ("page retirement pending", "retired_pages_pending", {0: "no", 1: "yes, when the driver is loaded again"}),
    ("persistence mode", "persistence_mode", {0: "off", 1: "on"}),
    ("compute mode", "compute_mode", {0: "default", 2: "prohibited", 3: "exclusive process"}),
    ("MIG mode", "mig_mode", {0: "off", 1: "on"}), ("accounting", "accounting_mode", {0: "off", 1: "on"}),
)  # fmt: skip
"""nvmlComputeMode_t and the switches of nvml.h."""

LOWEST: tuple[Reading, ...] = (
    ("PCIe generation, lowest in use", "pcie_generation", "count"),
    ("PCIe lanes, fewest in use", "pcie_width", "count"),
    ("power limit, enforced", "power_limit_mw", "mW"),
    ("SM clock that the applications clock allows", "clock_sm_cap_mhz", "MHz"),
)  # fmt: skip
HIGHEST: tuple[Reading, ...] = (
    ("highest SM clock", "clock_sm_max_mhz", "MHz"), ("temperature, highest", "temperature_c", "°C"),
    ("memory temperature, highest", "temperature_memory_c", "°C"), ("power, highest", "power_mw", "mW"),
)  # fmt: skip

COLUMNS = (("what", "What"), ("value", "Value"), ("capture", "Within the capture"))

DEFINITIONS = (
    ("within the capture", "Growth of a counter from its first reading to its last; a counter that falls began anew."),
    ("XID", f"An error report of the driver. Meaning and action: {SOURCE}. It is where to begin to look, not a cause."),
    ("PCIe generation, lowest in use", "GPUs lower it when they are idle, to save power."),
)


def evaluate(context: Context) -> Section:
    """One table per GPU, and one of XIDs where any was reported."""
    gpus = devices(context.store, "nvml_samples", "nvml_health")
    if not gpus:
        reason = context.quality.source_reason("nvml") or "no NVML reading in the bundle"
        return Section("gpu_health", TITLE, QUESTION, "not evaluated", reason)
    facts = read_facts(context.store)
    tables = [_table(context, i, gpu, facts.get(gpu.uuid, {})) for i, gpu in enumerate(gpus[:MAX_GPUS])]
    notes = (f"{len(gpus) - MAX_GPUS} more GPUs have no table here.",) if gpus[MAX_GPUS:] else ()
    return Section(
        "gpu_health", TITLE, QUESTION, "evaluated", "", tables=(*_xids(context), *tables), definitions=DEFINITIONS,
        notes=notes,
    )  # fmt: skip


def _table(context: Context, place: int, gpu: Device, facts: dict[str, Fact]) -> SectionTable:
    rows = [*_facts(facts), *_health(context, gpu), *_samples(context, gpu), *_links(context, gpu)]
    return SectionTable(f"gpu_{place}", f"GPU {gpu.name}"[:MAX_TITLE], COLUMNS, tuple(rows))


def _facts(facts: dict[str, Fact]) -> Iterator[Row]:
    for what, name in FACTS:
        fact = facts.get(name, NOT_NOTED)
        if fact is not NOT_NOTED:
            yield what, fact.reason if fact.value is None else str(fact.value), None


def _health(context: Context, gpu: Device) -> Iterator[Row]:
    columns = [c for _, c, *_ in (*COUNTERS, *LAST, *FLAGS)]
    a = series(context.store, "nvml_health", gpu.where, columns)
    rows = (context.book.where("nvml_health", gpu.where),)
    for what, column, names in FLAGS:
        told = last_told(a[column])
        if told is None:
            yield what, refusal(context.store, "nvml_health", gpu.where, column), None
        else:
            yield what, names.get(told, f"NVML's number {told}"), None
    for what, column, unit in COUNTERS:
        grew = derived(
            growth(a[column]), unit, rows, f"growth of {column}, reading by reading", "fewer than two readings"
        )
        yield what, _cell(context, gpu, ("nvml_health", column, unit), a[column], _last), grew
    for what, column, unit in LAST:
        yield what, _cell(context, gpu, ("nvml_health", column, unit), a[column], _last), None


def _samples(context: Context, gpu: Device) -> Iterator[Row]:
    columns = [c for _, c, _ in (*LOWEST, *HIGHEST)]
    a = series(context.store, "nvml_samples", gpu.where, (*columns, "pcie_replays"))
    for readings, choose in ((LOWEST, _least), (HIGHEST, _most)):
        for what, column, unit in readings:
            yield what, _cell(context, gpu, ("nvml_samples", column, unit), a[column], choose), None
    rows = (context.book.where("nvml_samples", gpu.where),)
    grew = derived(growth(a["pcie_replays"]), "count", rows, "growth of pcie_replays", "fewer than two readings")
    yield "PCIe replays", _cell(context, gpu, ("nvml_samples", "pcie_replays", "count"), a["pcie_replays"], _last), grew


def _links(context: Context, gpu: Device) -> Iterator[Row]:
    rows = context.store.sql(
        "SELECT count(*), count(active), count(*) FILTER (active = 1) FROM (SELECT link, active FROM nvml_links "
        f"WHERE {gpu.where} QUALIFY row_number() OVER (PARTITION BY link ORDER BY start_ns DESC, leaf DESC, row DESC) "
        "= 1)"
    )
    links, told, up = (int(v) for v in rows[0])
    if not links:
        yield "NVLinks up", "NVML listed no link", None
    elif not told:
        yield "NVLinks up", refusal(context.store, "nvml_links", gpu.where, "active"), None
    else:
        evidence = (context.book.where("nvml_links", gpu.where),)
        up_now = derived(up, "count", evidence, "links with active = 1 at their last reading")
        yield f"NVLinks up, of {links}", up_now, None


def _cell(
    context: Context,
    gpu: Device,
    place: tuple[str, str, str],
    values: Array,
    choose: Callable[[Array], tuple[int, str]],
) -> Quantity:
    table, column, unit = place
    told = values[values != UNKNOWN]
    rows = (context.book.where(table, gpu.where),)
    if not len(told):
        return Quantity(None, unit, "measured", rows, column, refusal(context.store, table, gpu.where, column))
    value, how = choose(told)
    return Quantity(value, unit, "measured", rows, f"{how} {column}")


def _last(told: Array) -> tuple[int, str]:
    return int(told[-1]), "last"


def _least(told: Array) -> tuple[int, str]:
    return int(np.min(told)), "lowest"


def _most(told: Array) -> tuple[int, str]:
    return int(np.max(told)), "highest"


def _xids(context: Context) -> list[SectionTable]:
    rows = context.store.sql(
        "SELECT min(gpu_index), gpu_uuid, event_data, count(*) FROM nvml_events WHERE op = 'xid' AND event_data IS NOT "
        "NULL GROUP BY 2, 3 ORDER BY 1, 2, 3"
    )
    if not rows:
        return []
    out: list[Row] = []
    for index, uuid, number, count in rows[:MAX_XIDS]:
        gpu, told = Device(str(uuid), int(index)), xid(int(number))
        evidence = (context.book.where("nvml_events", f"{gpu.where} AND op = 'xid' AND event_data = {int(number)}"),)
        events = Quantity(int(count), "count", "measured", evidence, "rows of the event")
        out.append((gpu.name, str(number), events, told.meaning, told.action, told.then))
    columns = (
        ("gpu", "GPU"), ("xid", "XID"), ("events", "Events"), ("meaning", "Meaning"), ("action", "The vendor's action"),
        ("then", "To look into"),
    )  # fmt: skip
    return [
        SectionTable(
            "xids", "XIDs that were reported", columns, tuple(out), (f"Source: {SOURCE}.",), len(rows) - len(out)
        )
    ]
