"""The tables of evidence: the single source of truth for every column that a bundle can hold.

From these definitions come the C records of the BPF programs (:func:`c_header`), the numpy dtype of a ring record
(:meth:`Table.record_dtype`), the SQL view (:func:`sql_view`) and ``docs/reference/tables.md`` (:func:`markdown`).
``python -m gpuaudit.bundle.generate --check`` says whether a generated file is out of step.

Conventions: ``start_ns`` is the *start* of what the row tells, on CLOCK_BOOTTIME; ``duration_ns`` is null while the
call was still open when the capture ended. Absent is null, never 0. Units stand last in a name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

ColumnType = Literal["u8", "u16", "u32", "u64", "i32", "i64", "f64", "text"]
RingType = Literal["", "op", "comm"]

NUMPY_DTYPE: dict[str, str] = {
    "u8": "<u1", "u16": "<u2", "u32": "<u4", "u64": "<u8", "i32": "<i4", "i64": "<i8", "f64": "<f8", "text": "<u4",
}  # fmt: skip
"""Little-endian dtype of a column's values; text is a code into the column's dictionary."""

SQL_TYPE: dict[str, str] = {
    "u8": "UTINYINT", "u16": "USMALLINT", "u32": "UINTEGER", "u64": "UBIGINT", "i32": "INTEGER", "i64": "BIGINT",
    "f64": "DOUBLE", "text": "VARCHAR",
}  # fmt: skip
C_TYPE: dict[str, str] = {
    "u8": "__u8", "u16": "__u16", "u32": "__u32", "u64": "__u64", "i32": "__s32", "i64": "__s64",
}  # fmt: skip

COMM_LEN_BYTES = 16
"""TASK_COMM_LEN of the Linux kernel (include/linux/sched.h)."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}\Z")


@dataclass(frozen=True)
class Column:
    """One column: name, type, unit and meaning; ``ring`` says how a text column sits in a BPF record.

    ``ring="op"``: a ``__u32`` index into the probe table, which user space turns into the API's own name.
    ``ring="comm"``: ``char[16]``, NUL-padded. ``in_ring=False``: user space adds the column after the drain.
    """

    name: str
    type: ColumnType
    unit: str
    meaning: str
    nullable: bool = False
    ring: RingType = ""
    in_ring: bool = True


@dataclass(frozen=True)
class Table:
    """One kind of evidence. ``ring`` tables are filled from a BPF ring of their own with fixed-size records."""

    name: str
    meaning: str
    columns: tuple[Column, ...]
    ring: bool = False

    def __post_init__(self) -> None:
        names = [c.name for c in self.columns]
        if len(set(names)) != len(names) or not all(_NAME.match(n) for n in (self.name, *names)):
            raise ValueError(f"table {self.name}: bad or repeated name in {names}")
        if self.ring and len(self.nullable_in_ring) > 32:
            raise ValueError(f"table {self.name}: more than 32 nullable columns do not fit valid_mask")

    def column(self, name: str) -> Column:
        """The column called ``name``; KeyError if there is none."""
        for c in self.columns:
            if c.name == name:
                return c
        raise KeyError(f"table {self.name} has no column {name}")

    @property
    def ring_columns(self) -> tuple[Column, ...]:
        """Columns of the BPF record, largest first, so that natural alignment leaves no implicit padding."""
        return tuple(sorted((c for c in self.columns if c.in_ring), key=lambda c: -_ring_size(c)))

    @property
    def nullable_in_ring(self) -> tuple[Column, ...]:
        """Nullable columns of the record, in declared order: bit i of ``valid_mask`` set means column i is valid."""
        return tuple(c for c in self.columns if c.in_ring and c.nullable)

    def record_fields(self) -> list[tuple[str, str, int]]:
        """(name, numpy dtype, offset) of every field of the BPF record, explicit padding included."""
        out: list[tuple[str, str, int]] = []
        at = 0
        for name, dtype, size in [
            *((c.name, _ring_dtype(c), _ring_size(c)) for c in self.ring_columns if _ring_size(c) >= 4),
            ("valid_mask", "<u4", 4),
            *((c.name, _ring_dtype(c), _ring_size(c)) for c in self.ring_columns if _ring_size(c) < 4),
        ]:
            align = 1 if dtype.startswith("S") else size
            if at % align:
                raise ValueError(f"table {self.name}: {name} at {at} is not aligned")
            out.append((name, dtype, at))
            at += size
        if at % 8:
            out.append(("pad", f"V{8 - at % 8}", at))
        return out

    def record_dtype(self) -> np.dtype[np.void]:
        """The numpy dtype of one BPF ring record (without the ring's own 8-byte header)."""
        fields = self.record_fields()
        return np.dtype([(n, d) for n, d, _ in fields])


def _ring_size(c: Column) -> int:
    if c.ring == "comm":
        return COMM_LEN_BYTES
    return 4 if c.ring == "op" else np.dtype(NUMPY_DTYPE[c.type]).itemsize


def _ring_dtype(c: Column) -> str:
    if c.ring == "comm":
        return f"S{COMM_LEN_BYTES}"
    return "<u4" if c.ring == "op" else NUMPY_DTYPE[c.type]


def _c(name: str, type: ColumnType, unit: str, meaning: str, **kw: bool | RingType) -> Column:
    return Column(name, type, unit, meaning, **kw)  # type: ignore[arg-type]


_START = _c("start_ns", "u64", "ns", "start of the interval, CLOCK_BOOTTIME")
_DURATION = _c(
    "duration_ns", "u64", "ns", "length of the interval; null while open when the capture ended", nullable=True
)
_PID = _c("pid", "u32", "", "process id (thread group id) in the host's PID namespace")
_TID = _c("tid", "u32", "", "thread id in the host's PID namespace")
_CPU = _c("cpu", "u16", "", "CPU that wrote the record")
_SEQ = _c("seq", "u64", "", "sequence number on that CPU in this table; a lost record leaves a hole")
_RC = _c("return_code", "i32", "", "what the call returned; null while open", nullable=True)


def _op(meaning: str) -> Column:
    return _c("op", "text", "", meaning, ring="op")


CUDA_CALLS = Table("cuda_calls", "Calls into the CUDA runtime, seen by entry and return probes.", (
    _START, _DURATION, _PID, _TID, _op("API name, as exported (cudaMalloc)"), _RC,
    _c("size_bytes", "u64", "bytes", "size argument of an allocation or copy", nullable=True),
    _c("direction", "i32", "", "cudaMemcpyKind: 0 H2H, 1 H2D, 2 D2H, 3 D2D, 4 default", nullable=True),
    _c("stream", "u64", "", "stream handle, 0 is the default stream", nullable=True),
    _c("device_pointer", "u64", "", "address: allocated (read at return), freed, or copy destination", nullable=True),
    _c("source_pointer", "u64", "", "address a copy reads from", nullable=True),
    _c("function", "u64", "", "host-side function pointer of a launch", nullable=True),
    _c("grid_x", "u32", "", "grid dimension of a launch", nullable=True),
    _c("grid_y", "u32", "", "grid dimension of a launch", nullable=True),
    _c("grid_z", "u32", "", "grid dimension of a launch", nullable=True),
    _c("block_x", "u32", "", "block dimension of a launch", nullable=True),
    _c("block_y", "u32", "", "block dimension of a launch", nullable=True),
    _c("block_z", "u32", "", "block dimension of a launch", nullable=True),
    _c("shared_bytes", "u64", "bytes", "dynamic shared memory of a launch", nullable=True),
    _CPU, _SEQ,
), ring=True)  # fmt: skip

NCCL_CALLS = Table("nccl_calls", "NCCL collectives, seen by entry and return probes on the host.", (
    _START, _DURATION, _PID, _TID, _op("API name (ncclAllReduce)"), _RC,
    _c("comm_handle", "u64", "", "ncclComm_t value, meaningful within its process only"),
    _c("comm_id", "u64", "", "identity of the communicator (splitmix64 fold of ncclUniqueId); null when it was made "
       "before the probes were attached", nullable=True),
    _c("rank", "i32", "", "rank of the caller in the communicator", nullable=True),
    _c("nranks", "i32", "", "size of the communicator", nullable=True),
    _c("datatype", "i32", "", "ncclDataType_t", nullable=True),
    _c("reduce_op", "i32", "", "ncclRedOp_t", nullable=True),
    _c("root", "i32", "", "root rank of a broadcast", nullable=True),
    _c("count", "u64", "", "element count argument", nullable=True),
    _c("size_bytes", "u64", "bytes", "count × size of the datatype; null for an unknown datatype", nullable=True),
    _c("stream", "u64", "", "stream handle, 0 is the default stream", nullable=True),
    _CPU, _SEQ,
), ring=True)  # fmt: skip

NCCL_COMMS = Table("nccl_comms", "Communicators made and destroyed.", (
    _START, _DURATION, _PID, _TID, _op("API name (ncclCommInitRank)"), _RC,
    _c("comm_handle", "u64", "", "ncclComm_t value (read at return for an init)", nullable=True),
    _c("comm_id", "u64", "", "splitmix64 fold of the 128-byte ncclUniqueId", nullable=True),
    _c("rank", "i32", "", "rank argument", nullable=True),
    _c("nranks", "i32", "", "nranks argument", nullable=True),
    _CPU, _SEQ,
), ring=True)  # fmt: skip

OFF_CPU = Table("off_cpu", "Intervals in which a thread of a traced process was not on a CPU.", (
    _START, _DURATION, _PID, _TID,
    _c("op", "text", "", "preempted (still runnable when it left) or blocked (asleep), from prev_state", in_ring=False),
    _c("comm", "text", "", "name of the thread", ring="comm"),
    _c("prev_state", "u32", "", "task state at the switch: 0 is TASK_RUNNING (preempted)"),
    _c("next_pid", "u32", "", "process that ran on this CPU instead (0: idle)"),
    _c("next_tid", "u32", "", "thread that ran on this CPU instead (0: idle)"),
    _c("next_comm", "text", "", "name of the thread that ran instead", ring="comm"),
    _c("wake_ns", "u64", "ns", "when the thread was made runnable again, CLOCK_BOOTTIME; null if not seen",
       nullable=True),
    _c("waker_pid", "u32", "", "process that woke it; null if not seen", nullable=True),
    _c("waker_tid", "u32", "", "thread that woke it; null if not seen", nullable=True),
    _c("waker_comm", "text", "", "name of the thread that woke it", ring="comm", nullable=True),
    _c("cpu_out", "u16", "", "CPU it left"),
    _CPU, _SEQ,
), ring=True)  # fmt: skip

NVML_SAMPLES = Table("nvml_samples", "One row per GPU and poll, from NVML.", (
    _START, _DURATION,
    _c("gpu_index", "u32", "", "NVML index"), _c("gpu_uuid", "text", "", "NVML UUID"),
    _c("gpu_utilization_percent", "u32", "%", "share of the last NVML period in which a kernel ran", nullable=True),
    _c("memory_utilization_percent", "u32", "%", "share of the period in which memory was read or written",
       nullable=True),
    _c("memory_total_bytes", "u64", "bytes", "framebuffer", nullable=True),
    _c("memory_used_bytes", "u64", "bytes", "allocated framebuffer", nullable=True),
    _c("memory_reserved_bytes", "u64", "bytes", "reserved by the driver (memory info v2)", nullable=True),
    _c("power_mw", "u32", "mW", "board power", nullable=True),
    _c("power_limit_mw", "u32", "mW", "enforced power limit", nullable=True),
    _c("temperature_c", "u32", "°C", "GPU die temperature", nullable=True),
    _c("clock_sm_mhz", "u32", "MHz", "SM clock", nullable=True),
    _c("clock_memory_mhz", "u32", "MHz", "memory clock", nullable=True),
    _c("clock_sm_max_mhz", "u32", "MHz", "highest SM clock", nullable=True),
    _c("event_reasons", "u64", "bit mask", "nvmlClocksEventReasons*", nullable=True),
    _c("pcie_tx_kib_per_s", "u32", "KiB/s", "NVML PCIe throughput, transmit (20 ms window)", nullable=True),
    _c("pcie_rx_kib_per_s", "u32", "KiB/s", "NVML PCIe throughput, receive (20 ms window)", nullable=True),
    _c("pcie_generation", "u32", "", "current link generation", nullable=True),
    _c("pcie_width", "u32", "lanes", "current link width", nullable=True),
    _c("ecc_corrected", "u64", "", "volatile corrected ECC errors since the driver was loaded", nullable=True),
    _c("ecc_uncorrected", "u64", "", "volatile uncorrected ECC errors since the driver was loaded", nullable=True),
    _c("unavailable", "text", "", "fields that NVML refused, as field=code, comma separated; empty if none"),
))  # fmt: skip

NVML_PROCESSES = Table("nvml_processes", "Processes with a context on a GPU, one row per poll.", (
    _START, _DURATION, _c("gpu_index", "u32", "", "NVML index"), _c("gpu_uuid", "text", "", "NVML UUID"), _PID,
    _c("op", "text", "", "compute or graphics"),
    _c("memory_used_bytes", "u64", "bytes", "framebuffer held by the process; null where NVML does not tell",
       nullable=True),
))  # fmt: skip

PROCESSES = Table("processes", "Processes that map a probed library, the workload, and the recorder itself.", (
    _c("start_ns", "u64", "ns", "start of the process (field 22 of /proc/PID/stat), CLOCK_BOOTTIME"),
    _c("duration_ns", "u64", "ns", "life time; null while it lived", nullable=True), _PID,
    _c("op", "text", "", "why the row exists: found, exited"),
    _c("role", "text", "", "workload, traced, recorder or attacher"),
    _c("parent_pid", "u32", "", "parent", nullable=True), _c("uid", "u32", "", "real user id", nullable=True),
    _c("comm", "text", "", "kernel's name"), _c("exe", "text", "", "executable", nullable=True),
    _c("command_line", "text", "", "arguments joined by spaces, at most 4,096 bytes", nullable=True),
    _c("cgroup", "text", "", "cgroup path", nullable=True),
    _c("seen_ns", "u64", "ns", "when the recorder saw it, CLOCK_BOOTTIME"),
    _c("exit_status", "i32", "", "wait status code of the workload: exit code, or −signal", nullable=True),
))  # fmt: skip

LIBRARIES = Table("libraries", "Libraries mapped by processes that could be probed, and whether they were.", (
    _c("start_ns", "u64", "ns", "when the mapping was found, CLOCK_BOOTTIME"),
    _c("duration_ns", "u64", "ns", "from found to the last probe attached; null if not attached", nullable=True),
    _PID, _c("op", "text", "", "attached, shared (probed already through another process) or not observable"),
    _c("library", "text", "", "row of the probe table: cudart, nccl"), _c("path", "text", "", "path as mapped"),
    _c("build_id", "text", "", "GNU build id, hex", nullable=True),
    _c("device", "u64", "", "st_dev of the mapping"), _c("inode", "u64", "", "inode of the mapping"),
    _c("probes", "u32", "", "functions probed"),
    _c("not_observed", "text", "", "exported but not in the table, comma separated"),
    _c("reason", "text", "", "why not, where not", nullable=True),
))  # fmt: skip

PROBES = Table("probes", "Every probe: where it was attached and how, and at the end what it counted.", (
    _c("start_ns", "u64", "ns", "when it was attached, CLOCK_BOOTTIME"),
    _c("duration_ns", "u64", "ns", "attached for; null in the row written at attach", nullable=True),
    _c("op", "text", "", "function or tracepoint"), _c("library", "text", "", "row of the probe table, or kernel"),
    _c("path", "text", "", "file probed; empty for a kernel tracepoint"),
    _c("offset", "u64", "bytes", "file offset of the probe", nullable=True),
    _c("mechanism", "text", "", "uprobe_multi, perf uprobe, tp_btf or raw_tp"),
    _c("instruction", "text", "", "first instruction: push or nop5 (emulated), or single-stepped", nullable=True),
    _c("expected_cost_ns", "u64", "ns", "measured cost of one entry and return on this host", nullable=True),
    _c("hits", "u64", "", "times the entry probe ran; null in the row written at attach", nullable=True),
    _c("unmatched", "u64", "", "returns without an entry, or entries that could not be kept", nullable=True),
    _c("misses", "u64", "", "recursion misses reported by the kernel", nullable=True),
))  # fmt: skip

CLOCK = Table("clock", "Pairs of clock readings, so that CLOCK_BOOTTIME can be read as wall-clock time.", (
    _START, _c("duration_ns", "u64", "ns", "width of the bracket: the pair is uncertain by this much"),
    _c("realtime_ns", "i64", "ns", "CLOCK_REALTIME"), _c("monotonic_ns", "u64", "ns", "CLOCK_MONOTONIC"),
))  # fmt: skip

GAPS = Table("gaps", "Time in which a source could not see, and why.", (
    _START, _DURATION, _c("source", "text", "", "source: cuda, nccl, off_cpu, nvml, …"),
    _c("table_name", "text", "", "table that lacks rows for the time", nullable=True),
    _c("pid", "u32", "", "process concerned; null for the whole host", nullable=True),
    _c("reason", "text", "", "one sentence"),
))  # fmt: skip

LOSSES = Table("losses", "Counters per table and CPU: what was seen, written and lost, cumulative at start_ns.", (
    _START, _DURATION, _c("table_name", "text", "", "table"), _c("cpu", "u16", "", "CPU"),
    _c("seen", "u64", "", "records the probes tried to write"),
    _c("written", "u64", "", "records that reached the recorder"),
    _c("lost", "u64", "", "records that found the ring full"),
))  # fmt: skip

TABLES: dict[str, Table] = {
    t.name: t
    for t in (
        CUDA_CALLS, NCCL_CALLS, NCCL_COMMS, OFF_CPU, NVML_SAMPLES, NVML_PROCESSES, PROCESSES, LIBRARIES, PROBES,
        CLOCK, GAPS, LOSSES,
    )
}  # fmt: skip
"""Every table of format version 1, in the order of the documentation."""

SPDX_BPF = "/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */"


def c_header() -> str:
    """``capture/bpf/tables.h``: one packed-by-construction struct and the validity bits per ring table."""
    out = [SPDX_BPF, "/* Generated from bundle/tables.py. Do not edit. */", "#pragma once", ""]
    for t in TABLES.values():
        if not t.ring:
            continue
        out.append(f"struct {t.name}_record {{")
        ring = {c.name: c for c in t.ring_columns}
        for name, dtype, at in t.record_fields():
            if name == "pad":
                out.append(f"\t__u8 pad[{np.dtype(dtype).itemsize}]; /* {at} */")
            elif name == "valid_mask":
                out.append(f"\t__u32 valid_mask; /* {at} */")
            elif ring[name].ring == "comm":
                out.append(f"\tchar {name}[{COMM_LEN_BYTES}]; /* {at} */")
            else:
                c_type = "__u32" if ring[name].ring == "op" else C_TYPE[ring[name].type]
                out.append(f"\t{c_type} {name}; /* {at} */")
        out.append("};")
        out.append(f'_Static_assert(sizeof(struct {t.name}_record) == {t.record_dtype().itemsize}, "{t.name}");')
        for bit, c in enumerate(t.nullable_in_ring):
            out.append(f"#define {t.name.upper()}_HAS_{c.name.upper()} (1u << {bit})")
        out.append("")
    return "\n".join(out)


def sql_view(table: Table) -> str:
    """The SELECT behind the view of one table, over ``raw.<table>`` (columns, then ``leaf`` and ``row``)."""
    cols = [f'"{c.name}"::{SQL_TYPE[c.type]} AS "{c.name}"' for c in table.columns]
    names = {c.name for c in table.columns}
    if {"start_ns", "duration_ns"} <= names:
        cols.append('("start_ns" + "duration_ns")::UBIGINT AS "end_ns"')
    return f'SELECT {", ".join(cols)}, "leaf", "row" FROM raw."{table.name}"'  # noqa: S608 (names of ours, checked)


def markdown() -> str:
    """``docs/reference/tables.md``."""
    out = [
        "# Tables of evidence",
        "",
        "Generated from `bundle/tables.py`; do not edit. Every SQL view has two more columns, `leaf` (index of the",
        "sealed leaf) and `row` (row within it), and `end_ns` where a row has a start and a duration.",
        "",
    ]
    for t in TABLES.values():
        out += [f"## {t.name}", "", t.meaning, "", "| column | type | unit | null | meaning |", "|---|---|---|---|---|"]
        out += [
            f"| `{c.name}` | {c.type} | {c.unit or '–'} | {'yes' if c.nullable else 'no'} | {c.meaning} |"
            for c in t.columns
        ]
        out.append("")
    return "\n".join(out)
