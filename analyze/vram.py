"""What the memory of a GPU holds, by process, category and precision, adding up to NVML's number to the byte.

The total is NVML's used memory, and what the driver reserves beside it where NVML tells (memory info v2: total =
used + reserved + free). Every process gets what NVML says it holds; inside that stand, in this order, what is known:
weights, KV cache, and other allocations that were seen; the rest of it is activations, workspace and context. What no
process holds is unattributed. A claim that is larger than what is left for it is cut, and what was cut is told as
overshoot: parts are never negative, and the sum is always the total.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from gpuaudit.analyze import residency, shards
from gpuaudit.analyze.call_meanings import ALLOCATE, COPY, FREE, any_of
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Provenance
from gpuaudit.analyze.gpu_time import GpuTime
from gpuaudit.analyze.inference import memory
from gpuaudit.analyze.inference.model import EngineRun
from gpuaudit.analyze.residency import Residency

WEIGHTS = "weights"
KV_CACHE = "kv_cache"
RESERVED_POOL = "reserved_pool"
ALLOCATIONS = "other_allocations"
REMAINDER = "process_remainder"
OTHER_PROCESS = "other_process"
DRIVER = "driver_reserved"
UNATTRIBUTED = "unattributed"

LABELS = {
    WEIGHTS: "weights", KV_CACHE: "KV cache", RESERVED_POOL: "reserved pool, purpose not known",
    ALLOCATIONS: "other allocations seen", REMAINDER: "activations, workspace, context",
    OTHER_PROCESS: "other processes", DRIVER: "driver reserved", UNATTRIBUTED: "unattributed",
}  # fmt: skip
"""Categories in the order of the bar, with their names for people."""

UNKNOWN_PRECISION = "not known"

LAST, PEAK = "last sample", "peak"

MAX = 1 << 60
"""A GPU with an exbibyte is not evidence; sums of eight stay within int64."""


@dataclass(frozen=True)
class Claim:
    """Bytes that something says are in a category, before they are fitted into what NVML tells."""

    category: str
    precision: str
    bytes: int
    provenance: Provenance
    source: str
    tables: tuple[tuple[str, str], ...]
    """(table, SQL condition) of the evidence."""


@dataclass(frozen=True)
class Part:
    """One part of a GPU's memory. ``pid`` None: of no process. ``cut`` are bytes that were claimed and do not fit."""

    pid: int | None
    category: str
    precision: str
    bytes: int
    provenance: Provenance
    source: str
    tables: tuple[tuple[str, str], ...]
    cut: int = 0


@dataclass(frozen=True)
class Holding:
    """A process on the GPU: what NVML says it holds (None: not told), and what is claimed to be in it."""

    pid: int
    bytes: int | None
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class Topology:
    """One GPU at one moment; ``parts`` add up to ``total``, ``reserved`` None where NVML did not tell it."""

    gpu: GpuTime
    at_ns: int
    when: str
    used: int
    reserved: int | None
    capacity: int | None
    parts: tuple[Part, ...]

    @property
    def total(self) -> int:
        """Used, and what the driver reserves beside it."""
        return self.used + (self.reserved or 0)

    @property
    def overshoot(self) -> int:
        """Bytes that were claimed and do not fit into NVML's number."""
        return sum(p.cut for p in self.parts)


def fitted(used: int, reserved: int | None, holdings: Iterable[Holding], sample: tuple[str, str]) -> tuple[Part, ...]:
    """Parts that add up to ``used`` and ``reserved``; ``sample`` is the evidence of both."""
    left = used
    parts: list[Part] = []
    for h in holdings:
        room = left if h.bytes is None else min(h.bytes, left)
        too_much = 0 if h.bytes is None else h.bytes - room
        inside = room
        for c in h.claims:
            taken = min(c.bytes, inside)
            parts.append(Part(h.pid, c.category, c.precision, taken, c.provenance, c.source, c.tables, c.bytes - taken))
            inside -= taken
        if h.bytes is not None:
            category = REMAINDER if h.claims else OTHER_PROCESS
            source = "NVML's memory of the process, less what is known of it"
            parts.append(Part(h.pid, category, "", inside, "derived", source, (sample,), too_much))
            inside = 0
        left -= room - inside
    parts.append(Part(None, UNATTRIBUTED, "", left, "derived", "NVML's used memory, less all processes", (sample,)))
    source = "NVML's reserved memory" if reserved is not None else "NVML told no reserved memory: it lies in other rows"
    parts.append(Part(None, DRIVER, "", reserved or 0, "measured", source, (sample,)))
    return tuple(parts)


def read_topologies(context: Context) -> list[Topology]:
    """Every GPU at its last sample that tells its memory, and at the sample with most used where that had more."""
    out = []
    claims = _Claims(context)
    for gpu in context.gpus:
        rows = context.store.sql(
            f"SELECT start_ns::BIGINT, coalesce(end_ns, start_ns)::BIGINT, least(memory_used_bytes, {MAX})::BIGINT, "
            f"least(memory_reserved_bytes, {MAX})::BIGINT, least(memory_total_bytes, {MAX})::BIGINT, "
            "memory_reserved_bytes IS NULL, memory_total_bytes IS NULL "
            f"FROM nvml_samples WHERE {gpu.where} AND memory_used_bytes IS NOT NULL ORDER BY start_ns, leaf, row"
        )
        if not rows:
            continue
        peak = max(rows, key=lambda r: (r[2], -r[0]))
        out.append(claims.topology(gpu, rows[-1], LAST))
        if peak[2] > rows[-1][2]:
            out.append(claims.topology(gpu, peak, PEAK))
    return out


class _Claims:
    """What is known of the inside of processes; the calls of each are read once."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._residency: dict[int, Residency] = {}

    def topology(self, gpu: GpuTime, row: tuple[int, ...], when: str) -> Topology:
        """One GPU at one sample. A process on several MIG devices of it holds what it holds on all of them."""
        at, end, used, reserved, capacity, no_reserved, no_capacity = row
        where = f"{gpu.where} AND start_ns >= {at} AND start_ns < {max(end, at + 1)}"
        told = self.context.store.sql(
            "SELECT pid, sum(m)::HUGEINT, count(m) < count(*) FROM (SELECT pid, "
            f"max(least(memory_used_bytes, {MAX}))::BIGINT AS m FROM nvml_processes WHERE {where} "
            "GROUP BY pid, gpu_instance, compute_instance) GROUP BY pid ORDER BY pid"
        )
        holders = {int(pid): None if none else int(held) for pid, held, none in told}
        holdings = [Holding(pid, held, self._of(gpu, pid, holders, at)) for pid, held in holders.items()]
        kept = None if no_reserved else int(reserved)
        sample = ("nvml_samples", f"{gpu.where} AND start_ns = {at}")
        parts = fitted(int(used), kept, holdings, sample)
        return Topology(gpu, int(at), when, int(used), kept, None if no_capacity else int(capacity), parts)

    def _of(self, gpu: GpuTime, pid: int, holders: Mapping[int, int | None], at_ns: int) -> tuple[Claim, ...]:
        run = engine_of(self.context, gpu, pid, holders)
        seen = {c.category: c for c in self._seen(pid, at_ns)}
        weights = seen.get(WEIGHTS)
        if weights is not None and run is not None and run.facts is not None:
            weights = replace(weights, precision=run.facts.weight_type.name)
        weights = weights or (weights_of(run) if run else None)
        pool = (kv_pool(run) if run else None) or seen.get(RESERVED_POOL)
        out = [c for c in (weights, pool) if c is not None]
        other = seen.get(ALLOCATIONS)
        if other is not None:
            rest = sum(c.bytes for c in seen.values()) - sum(c.bytes for c in out)
            out.append(replace(other, bytes=max(0, min(rest, other.bytes))))
        return tuple(c for c in out if c.bytes)

    def _seen(self, pid: int, at_ns: int) -> list[Claim]:
        """What the calls of a process say it holds at a moment; on several GPUs they do not say on which."""
        if len(shards.gpus_of(self.context, pid)) > 1:
            return []
        if pid not in self._residency:
            self._residency[pid] = residency.read_residency(self.context, pid)
        live = self._residency[pid].live_bytes(at_ns)
        calls = (("cuda_calls", f"pid = {pid} AND {any_of(ALLOCATE, FREE).first}"),)
        copies = (*calls, ("cuda_calls", f"pid = {pid} AND {COPY.first}"))
        kinds = (
            (residency.WEIGHTS, WEIGHTS, "allocations filled once by copies from the host", copies),
            (residency.RESERVED, RESERVED_POOL, "large allocations after the load that stayed", copies),
            (residency.OTHER, ALLOCATIONS, "allocations alive by the calls that were recorded", calls),
        )
        return [
            Claim(category, UNKNOWN_PRECISION if kind != residency.OTHER else "", live[kind], "derived", source, where)
            for kind, category, source, where in kinds
            if live[kind]
        ]


def engine_of(context: Context, gpu: GpuTime, pid: int, holders: Mapping[int, int | None]) -> EngineRun | None:
    """The engine whose worker on this GPU is ``pid``: of its processes there the one that holds most.

    Of an engine whose own process is not known, the only process on the GPU is taken as its worker.
    """
    for run in context.engine_runs:
        if gpu.uuid not in run.gpus:
            continue
        if run.pid is None:
            mine = list(holders) if len(holders) == 1 else []
        else:
            family = shards.descendants(context, run.pid)
            mine = [p for p in holders if p in family]
        if mine and max(mine, key=lambda p: (holders[p] or 0, -p)) == pid:
            return run
    return None


def degree(run: EngineRun) -> int | None:
    """Over how many GPUs an engine's model is split: the baseline's, else the setting, else the GPUs observed."""
    if run.ceiling is not None:
        return run.ceiling.tp
    told = run.number("tensor_parallel_size")
    if told is not None and told >= 1:
        return int(told)
    return len(run.gpus) or None


def weights_of(run: EngineRun) -> Claim | None:
    """Weights on each GPU of an engine: those of the model over its tensor-parallel degree, whole bytes cut off."""
    split = degree(run)
    if run.facts is None or run.facts.weights is None or not split:
        return None
    fact = run.facts.weights
    size = int(Fraction(fact.value) * 10**9 / split)
    provenance: Provenance = "derived" if fact.provenance == "measured" else fact.provenance
    source = f"{fact.source}, over {split} GPUs" if split > 1 else fact.source
    return Claim(WEIGHTS, run.facts.weight_type.name, size, provenance, source, _config(run))


def kv_token_bytes(run: EngineRun) -> Fraction | None:
    """Bytes that one token takes in the KV cache, over all GPUs of the engine, copies of heads included."""
    split = degree(run)
    if run.facts is None or run.facts.kv is None or not split:
        return None
    shape = run.facts.kv.value
    one = memory.kv_bytes_per_token(shape.layers, shape.kv_heads, shape.head_dim, run.facts.kv_element.size_bytes)
    copies = memory.kv_copies(shape.kv_heads, split)
    return None if one is None or copies is None else Fraction(one) * copies


def kv_pool(run: EngineRun) -> Claim | None:
    """The KV cache on each GPU: blocks × block size × bytes per token, as far as the engine tells them."""
    blocks, size, token, split = (
        run.number("num_gpu_blocks"), run.number("block_size"), kv_token_bytes(run), degree(run)
    )  # fmt: skip
    if blocks is None or size is None or token is None or not split or run.facts is None or run.facts.kv is None:
        return None
    shape = run.facts.kv.value
    if shape.swa_layers or shape.linear is not None:
        return None
    amount = int(blocks * size * token / split)
    name = run.text("kv_cache_dtype") or "auto"
    precision = f"{8 * run.facts.kv_element.size_bytes} bits ({name})"
    provenance: Provenance = "derived" if run.facts.kv.provenance == "measured" else run.facts.kv.provenance
    source = "blocks × block size × bytes per token, as the engine and its model tell them"
    return Claim(KV_CACHE, precision, amount, provenance, source, _config(run))


def _config(run: EngineRun) -> tuple[tuple[str, str], ...]:
    return (("engine_config", run.where),)
