"""Memory of a GPU that this capture did not use: KV cache above its peak use, and what idle processes hold. Bytes.

Whether it can be given back is not for a capture to say: each row has its condition. No byte stands in two rows. Of an
engine that had no request the need of KV cache is not known, and nothing is told.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Provenance
from gpuaudit.analyze.gpu_time import GpuTime
from gpuaudit.analyze.vram import KV_CACHE, LAST, Part, Topology, engine_of


@dataclass(frozen=True)
class Reclaimable:
    """Bytes of one GPU that were not used, by which definition, and on which condition they could be given back."""

    gpu: GpuTime
    what: str
    bytes: int
    provenance: Provenance
    formula: str
    tables: tuple[tuple[str, str], ...]
    condition: str
    idle: bool


KV_CONDITION = (
    "if no later load needs more than that of this capture: use between two scrapes is not seen, and cached prefixes "
    "do not count as use, so that a smaller cache may lose hits; a smaller cache takes a restart"
)
IDLE_CONDITION = "if nobody needs the process ready: it gives its memory back when it ends"


def read_reclaimable(context: Context, topologies: list[Topology]) -> list[Reclaimable]:
    """KV cache above its peak use, and memory of processes that were idle throughout, at the last sample."""
    out = []
    for t in topologies:
        if t.when != LAST:
            continue
        idle = {pid: why for pid in {p.pid for p in t.parts if p.pid is not None} if (why := _idle(context, t, pid))}
        for p in t.parts:
            if p.category == KV_CACHE and p.pid is not None and p.pid not in idle:
                out += _unused_kv(context, t, p)
        for pid in sorted(idle):
            held = sum(p.bytes for p in t.parts if p.pid == pid)
            where = (("nvml_processes", f"{t.gpu.where} AND pid = {pid}"),)
            if held:
                what = f"process {pid} ({context.process_name(pid)}), idle: {idle[pid]}"
                formula = "memory of the process at the last sample"
                out.append(Reclaimable(t.gpu, what, held, "derived", formula, where, IDLE_CONDITION, True))
    return out


def _unused_kv(context: Context, t: Topology, part: Part) -> list[Reclaimable]:
    assert part.pid is not None  # noqa: S101 - KV cache is of a process
    holders = {p.pid: sum(q.bytes for q in t.parts if q.pid == p.pid) for p in t.parts if p.pid is not None}
    run = engine_of(context, t.gpu, part.pid, holders)
    peak = None if run is None else run.totals.kv_peak_share
    if run is None or peak is None or not run.totals.active or not 0 <= peak < 1:
        return []
    size = int(part.bytes * (1 - peak))
    what = f"KV cache of engine {run.engine} above its peak use"
    formula = "KV cache × (1 − highest use of any scrape); a peak of this capture, without a margin"
    where = (*part.tables, ("engine_scrapes", run.where))
    return [Reclaimable(t.gpu, what, size, part.provenance, formula, where, KV_CONDITION, False)]


def _idle(context: Context, t: Topology, pid: int) -> str:
    """Why a process counts as idle throughout, or nothing."""
    rows = context.store.sql(
        "SELECT count(*), count(sm_utilization_percent), coalesce(max(sm_utilization_percent), 0) "
        f"FROM nvml_processes WHERE {t.gpu.where} AND pid = {pid}"
    )[0]
    if rows[1] and rows[1] == rows[0]:
        return f"NVML told a utilisation of 0 of it in all its samples ({rows[0]})" if rows[2] == 0 else ""
    held = [i for i, who in enumerate(t.gpu.holders) if pid in who]
    told = t.gpu.utilization[held]
    if len(told) and (told == 0).all():
        return f"no kernel ran on the GPU in any sample that lists it ({len(told)})"
    return ""
