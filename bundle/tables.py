"""The tables of evidence: the single source of truth for every column that a bundle can hold.

From these definitions come the C records of the BPF programs (:func:`c_header`), the numpy dtype of a ring record
(:meth:`Table.record_dtype`), the SQL tables of an analysis and ``docs/reference/tables.md`` (:func:`markdown`).
``python -m gpuaudit.bundle.generate --check`` says whether a generated file is out of step.

Conventions: ``start_ns`` is the *start* of what the row tells, on CLOCK_BOOTTIME; ``duration_ns`` is null while the
call was still open when the capture ended. Absent is null, never 0. Units stand last in a name. A bundle that was made
before a nullable column was added has nulls there: columns and tables are added, never changed or taken away.
"""

from __future__ import annotations

import numpy as np

from gpuaudit.bundle.table import (
    C_TYPE,
    DURATION,
    PID,
    RING_BYTES,
    START,
    Table,
    col,
)
from gpuaudit.bundle.tables_calls import CALL_TOTALS, CUDA_CALLS, NCCL_CALLS, NCCL_COMMS, STACK_FRAMES
from gpuaudit.bundle.tables_engine import (
    ENGINE_CONFIG,
    ENGINE_SAMPLES,
    ENGINE_SCRAPES,
    ENGINE_SERIES,
    ENGINES,
)
from gpuaudit.bundle.tables_host import (
    BLOCK_IO,
    CGROUP_CPU,
    CPU_OCCUPANTS,
    IOCTLS,
    LIFECYCLE,
    MAX_OCCUPANTS,
    MIGRATIONS,
    MOUNTS,
    OCCUPANTS_FROM_NS,
    OFF_CPU,
    OOM_KILLS,
    PAGE_ALLOCATIONS,
    PRESSURE,
    PROCESS_SAMPLES,
    RECLAIMS,
    SOCKET_IO,
    TCP_RETRANSMITS,
)
from gpuaudit.bundle.tables_imported import IMPORTED_TABLES
from gpuaudit.bundle.tables_nvml import (
    GPM_SAMPLES,
    NVML_ACCOUNTING,
    NVML_EVENTS,
    NVML_HEALTH,
    NVML_LINKS,
    NVML_PROCESSES,
    NVML_SAMPLES,
)

PROCESSES = Table("processes", "Processes that map a probed library, the workload, and the recorder itself.", (
    col("start_ns", "u64", "ns", "start of the process (field 22 of /proc/PID/stat), CLOCK_BOOTTIME"),
    col("duration_ns", "u64", "ns", "from there to its end, which is exact; null while it lived", nullable=True), PID,
    col("op", "text", "", "why the row exists: found, exited"),
    col("role", "text", "", "workload, traced, recorder, attacher, observer (another tool that watches), or bystander "
        "(of an import: a process that it names and that is none of these)"),
    col("parent_pid", "u32", "", "parent", nullable=True), col("uid", "u32", "", "real user id", nullable=True),
    col("comm", "text", "", "kernel's name"), col("exe", "text", "", "executable", nullable=True),
    col("command_line", "text", "", "arguments joined by spaces, at most 4,096 bytes, secrets replaced", nullable=True),
    col("cgroup", "text", "", "cgroup path", nullable=True),
    col("seen_ns", "u64", "ns", "when the recorder saw it, CLOCK_BOOTTIME"),
    col("exit_status", "i32", "", "exit code, or −signal; null while it lived or if not seen", nullable=True),
    col("cgroup_id", "u64", "", "id of its cgroup (version 2 hierarchy)", nullable=True),
    col("container_id", "text", "", "container id, from the cgroup path", nullable=True),
    col("container_runtime", "text", "", "docker, containerd, cri-o, podman, lxc or ecs, from the cgroup path",
        nullable=True),
    col("pod_uid", "text", "", "Kubernetes pod UID, from the cgroup path", nullable=True),
    col("job_id", "text", "", "Slurm job (and step), from the cgroup path or the environment", nullable=True),
    col("rank", "u32", "", "global rank, from the environment at start", nullable=True),
    col("local_rank", "u32", "", "rank on this node, from the environment", nullable=True),
    col("world_size", "u32", "", "number of ranks, from the environment", nullable=True),
    col("rank_source", "text", "", "names of the variables that said so, comma separated", nullable=True),
    col("pid_in_namespace", "u32", "", "process id in its own PID namespace, where that is another", nullable=True),
    col("reason", "text", "", "observer, or recorder of an import: what shows it", nullable=True),
))  # fmt: skip

LIBRARIES = Table("libraries", "Libraries mapped by processes that could be probed, and whether they were.", (
    col("start_ns", "u64", "ns", "when the mapping was found, CLOCK_BOOTTIME"),
    col("duration_ns", "u64", "ns", "from found to the last probe attached; null if not attached", nullable=True),
    PID, col("op", "text", "", "attached, shared (probed already through another process) or not observable"),
    col("library", "text", "", "row of the probe table: cudart, nccl"), col("path", "text", "", "path as mapped"),
    col("build_id", "text", "", "GNU build id, hex", nullable=True),
    col("device", "u64", "", "st_dev of the mapping"), col("inode", "u64", "", "inode of the mapping"),
    col("probes", "u32", "", "functions probed"),
    col("not_observed", "text", "", "exported but not in the table, comma separated"),
    col("not_observed_count", "u32", "", "how many these are; null where the file could not be read", nullable=True),
    col("reason", "text", "", "why not, where not", nullable=True),
))  # fmt: skip

PROBES = Table("probes", "Every probe: where it was attached and how, and at the end what it counted.", (
    col("start_ns", "u64", "ns", "when it was attached, CLOCK_BOOTTIME"),
    col("duration_ns", "u64", "ns", "attached for; null in the row written at attach", nullable=True),
    col("op", "text", "", "function or tracepoint"), col("library", "text", "", "row of the probe table, or kernel"),
    col("path", "text", "", "file probed; empty for a kernel tracepoint"),
    col("offset", "u64", "bytes", "file offset of the probe", nullable=True),
    col("mechanism", "text", "", "uprobe_multi, perf uprobe, tp_btf or raw_tp"),
    col("instruction", "text", "", "first instruction: push or nop5 (emulated), or single-stepped", nullable=True),
    col("expected_cost_ns", "u64", "ns", "measured cost of one entry and return on this host", nullable=True),
    col("hits", "u64", "", "times the entry probe ran; null in the row written at attach", nullable=True),
    col("unmatched", "u64", "", "returns without an entry, or entries that could not be kept", nullable=True),
    col("misses", "u64", "", "recursion misses reported by the kernel", nullable=True),
    col("probe", "u32", "", "number of the probe, which the rows of calls name; null for a kernel program",
        nullable=True),
))  # fmt: skip

CLOCK = Table("clock", "Pairs of clock readings, so that CLOCK_BOOTTIME can be read as wall-clock time.", (
    START, col("duration_ns", "u64", "ns", "width of the bracket: the pair is uncertain by this much"),
    col("realtime_ns", "i64", "ns", "CLOCK_REALTIME"), col("monotonic_ns", "u64", "ns", "CLOCK_MONOTONIC"),
))  # fmt: skip

GAPS = Table("gaps", "Time in which a source could not see, and why.", (
    START, DURATION, col("source", "text", "", "source: cuda, nccl, off_cpu, nvml, …"),
    col("table_name", "text", "", "table that lacks rows for the time", nullable=True),
    col("pid", "u32", "", "process concerned; null for the whole host", nullable=True),
    col("reason", "text", "", "one sentence"),
))  # fmt: skip

LOSSES = Table("losses", "Counters per table and CPU: what was seen, written and lost, cumulative at start_ns.", (
    START, DURATION, col("table_name", "text", "", "table"), col("cpu", "u16", "", "CPU"),
    col("seen", "u64", "", "records the probes tried to write"),
    col("written", "u64", "", "records that reached the recorder"),
    col("lost", "u64", "", "records that found the ring full"),
))  # fmt: skip

TABLES: dict[str, Table] = {
    t.name: t
    for t in (
        CUDA_CALLS, NCCL_CALLS, NCCL_COMMS, OFF_CPU, NVML_SAMPLES, NVML_PROCESSES, PROCESSES, LIBRARIES, PROBES,
        CLOCK, GAPS, LOSSES, NVML_HEALTH, NVML_LINKS, NVML_ACCOUNTING, NVML_EVENTS, GPM_SAMPLES, ENGINES,
        ENGINE_CONFIG, ENGINE_SCRAPES, ENGINE_SERIES, ENGINE_SAMPLES, CALL_TOTALS, STACK_FRAMES, MIGRATIONS, IOCTLS,
        SOCKET_IO, PAGE_ALLOCATIONS, RECLAIMS, OOM_KILLS, BLOCK_IO, TCP_RETRANSMITS, LIFECYCLE, PRESSURE,
        PROCESS_SAMPLES, CGROUP_CPU, *IMPORTED_TABLES, MOUNTS, CPU_OCCUPANTS,
    )
}  # fmt: skip
"""Every table of format version 1, in the order of the documentation."""

RING_TABLES: tuple[str, ...] = tuple(t.name for t in TABLES.values() if t.ring)
"""Tables with a ring, in the order of ``enum table`` in capture/bpf/tables.h, which starts at 1."""

SPDX_BPF = "/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */"


def c_header() -> str:
    """``capture/bpf/tables.h``: numbers, a packed-by-construction struct and the validity bits of each ring table."""
    out = [SPDX_BPF, "/* Generated from bundle/tables.py. Do not edit. */", "#pragma once", ""]
    numbers = [f"\tTABLE_{name.upper()} = {n}," for n, name in enumerate(RING_TABLES, start=1)]
    out += ["enum table {", "\tTABLE_NONE = 0,", *numbers, f"\tTABLES = {len(RING_TABLES)},", "};", ""]
    out += [f"#define OCCUPANTS_FROM_NS {OCCUPANTS_FROM_NS}", f"#define MAX_OCCUPANTS {MAX_OCCUPANTS}", ""]
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
            elif ring[name].ring in RING_BYTES:
                out.append(f"\tchar {name}[{RING_BYTES[ring[name].ring]}]; /* {at} */")
            else:
                c_type = "__u32" if ring[name].ring in ("op", "f32") else C_TYPE[ring[name].type]
                out.append(f"\t{c_type} {name}; /* {at} */")
        out.append("};")
        out.append(f'_Static_assert(sizeof(struct {t.name}_record) == {t.record_dtype().itemsize}, "{t.name}");')
        for bit, c in enumerate(t.nullable_in_ring):
            out.append(f"#define {t.name.upper()}_HAS_{c.name.upper()} (1u << {bit})")
        out.append("")
    return "\n".join(out)


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
