"""What a capture cost the host: probe hits × measured cost, CPU time and memory of attacher, helpers and recorder.

Rows have the form of the artefact ``cost``: name, value (decimal string), unit, provenance, definition.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from typing import Any

from gpuaudit.capture import process_samples

CostRow = dict[str, str]


def cost_row(name: str, value: int, unit: str, provenance: str, definition: str) -> CostRow:
    """One row of the artefact."""
    return {"name": name, "value": str(value), "unit": unit, "provenance": provenance, "definition": definition}


def usage_rows(process: str, usage: resource.struct_rusage) -> list[CostRow]:
    """CPU time and peak memory of one process, from getrusage(2); ``ru_maxrss`` is in KiB on Linux."""
    cpu_ns = round((usage.ru_utime + usage.ru_stime) * 1e9)
    cpu = f"user and system CPU time of the {process} (getrusage)"
    memory = f"largest resident set of the {process} (getrusage)"
    return [
        cost_row(f"{process}_cpu", cpu_ns, "ns", "measured", cpu),
        cost_row(f"{process}_memory_max", usage.ru_maxrss << 10, "bytes", "measured", memory),
    ]


def helper_rows(pids: Sequence[int]) -> list[CostRow]:
    """CPU time and memory of processes that keep a capability for the attacher, while they still run; none without any.

    The attacher's own rusage of children would hold the command that it started, too.
    """
    if not pids:
        return []
    running = [s for pid in pids if (s := process_samples.sample(pid, 0))]
    who = "the processes that keep a capability for the attacher"
    if len(running) < len(pids):
        who += f" ({len(running)} of {len(pids)}: the others had ended)"
    cpu_ns = sum(int(str(s["user_ns"])) + int(str(s["system_ns"])) for s in running)
    held = sum(int(str(s["resident_bytes"])) for s in running)
    cpu = f"user and system CPU time of {who}, in ticks of {process_samples.NS_PER_TICK // 1_000_000} ms"
    return [
        cost_row("helpers_cpu", cpu_ns, "ns", "measured", cpu),
        cost_row("helpers_memory", held, "bytes", "measured", f"resident sets of {who}, at the end"),
    ]


def probe_rows(totals: list[dict[str, Any]], costs_ns: Mapping[str, int]) -> list[CostRow]:
    """CPU time that probes added to the workload: Σ hits × cost of one entry and return.

    ``totals`` are the final rows of the ``probes`` table, ``costs_ns`` the cost by kind of first instruction, measured
    on this host at the start. Without a measurement there is no ``probe_time``: it is not guessed.
    """
    counted = [row for row in totals if row["hits"] is not None]
    hits = sum(int(row["hits"]) for row in counted)
    rows = [cost_row("probe_hits", hits, "count", "measured", "times an entry probe ran")]
    for kind in sorted({str(row["instruction"]) for row in counted} & costs_ns.keys()):
        definition = f"one entry and return where the first instruction is {kind}, measured on this host at the start"
        rows.append(cost_row(f"probe_pair {kind}", costs_ns[kind], "ns", "measured", definition))
    if all(str(row["instruction"]) in costs_ns for row in counted if row["hits"]):
        total = sum(int(row["hits"]) * costs_ns.get(str(row["instruction"]), 0) for row in counted)
        definition = "sum over the probed functions of hits × cost of one entry and return"
        rows.append(cost_row("probe_time", total, "ns", "derived", definition))
    return rows
