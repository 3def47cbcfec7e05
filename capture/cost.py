"""What a capture cost the host: probe hits × measured cost, CPU time and memory of attacher and recorder.

Rows have the form of the artefact ``cost``: name, value (decimal string), unit, provenance, definition.
"""

from __future__ import annotations

import resource
from typing import Any

CostRow = dict[str, str]


def cost_row(name: str, value: int, unit: str, provenance: str, definition: str) -> CostRow:
    """One row of the artefact."""
    return {"name": name, "value": str(value), "unit": unit, "provenance": provenance, "definition": definition}


def usage_rows(process: str, usage: resource.struct_rusage) -> list[CostRow]:
    """CPU time and peak memory of one process, from getrusage(2); ``ru_maxrss`` is in KiB on Linux."""
    cpu_ns = round((usage.ru_utime + usage.ru_stime) * 1e9)
    return [
        cost_row(f"{process}_cpu", cpu_ns, "ns", "measured", f"user and system CPU time of the {process} (getrusage)"),
        cost_row(f"{process}_memory_max", usage.ru_maxrss << 10, "bytes", "measured", f"largest resident set of the {process} (getrusage)"),
    ]  # fmt: skip


def probe_rows(totals: list[dict[str, Any]], calibrated_ns: int | None) -> list[CostRow]:
    """CPU time that probes added to the workload: Σ hits × cost of one entry and return.

    ``totals`` are the final rows of the ``probes`` table; a probe's own ``expected_cost_ns`` (by how its first
    instruction is executed) goes before ``calibrated_ns``, the cost measured on this host at the start.
    """
    hits = sum(int(row["hits"] or 0) for row in totals)
    rows = [cost_row("probe_hits", hits, "count", "measured", "times an entry probe ran")]
    if calibrated_ns is not None:
        definition = "entry and return of one probed call, measured on this host at the start"
        rows.append(cost_row("probe_pair", calibrated_ns, "ns", "measured", definition))
    each = [(int(row["hits"] or 0), row.get("expected_cost_ns") or calibrated_ns) for row in totals]
    if all(cost is not None for n, cost in each if n):
        total = sum(n * int(cost or 0) for n, cost in each)
        rows.append(
            cost_row("probe_time", total, "ns", "derived", "sum over the probes of hits × cost of one entry and return")
        )
    return rows
