"""Achieved rate and operational intensity against the roofs of a GPU: memory bandwidth, and tensor-core peak by type.

Roofs are figures of a data sheet (catalogue), so that everything here is estimated, or assumed where a row is the
user's. Units: FLOP/s, FLOP/byte of the GPU's memory, bytes/s; all of one GPU. The *knee* is where the roofs meet:
peak / bandwidth. What can be attained at an intensity I is min(peak, I × bandwidth) (Williams et al. 2009).

- *GPM*: rate = Σ over tensor pipes of (time the pipe was active × its dense peak), traffic = DRAM activity × bandwidth.
  A pipe that is active need not issue at its full rate, so the rate is an upper bound of 16-bit and integer work; GPM
  does not tell FP8 from FP16 and BF16, so that where FP8 ran it may be up to twice as high. Vector pipes are left out.
- *Decode* of an engine, B sequences (mean running, at least 1) of len tokens (mean prompt + half the mean output):
  2·P + 2·c·L·len FLOP per token; each step reads the weights once (of a mixture the experts that B tokens touch) and
  B·len·kv bytes of cache, and makes B tokens.
- *Prefill*: (2·P·s + c·L·s²) FLOP per prompt of s tokens, of tokens not found in the prefix cache; each prompt reads
  the weights once and writes s·kv bytes. Several prompts in one pass have a higher intensity than that.

P are the parameters a token uses, L layers, c the attention coefficient (``formulas.attention_coefficient``).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from gpuaudit.analyze import busy, intervals, shards
from gpuaudit.analyze.catalogue import provenance
from gpuaudit.analyze.catalogue_rows import TENSOR_TYPES, GpuRow
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Provenance
from gpuaudit.analyze.gpu_time import GpuTime
from gpuaudit.analyze.inference import formulas
from gpuaudit.analyze.inference.baseline import Baseline
from gpuaudit.analyze.inference.economics import context_tokens
from gpuaudit.analyze.inference.formulas import GIGA, TERA
from gpuaudit.analyze.inference.model import EngineRun

PIPES = (("tensor_half_percent", "bf16"), ("tensor_integer_percent", "int8"), ("tensor_double_percent", "fp64"))
"""GPM's tensor pipes and the type whose dense peak they are taken at."""

DRAM = "dram_bandwidth_percent"


@dataclass(frozen=True)
class Roof:
    """One type on one product: dense tensor-core peak in FLOP/s and memory bandwidth in bytes/s."""

    gpu: str
    dtype: str
    flops: Fraction
    bandwidth: Fraction
    basis: str
    provenance: Provenance

    @property
    def knee(self) -> Fraction:
        """FLOP per byte at which the roofs meet."""
        return self.flops / self.bandwidth

    def attainable(self, intensity: Fraction) -> Fraction:
        """FLOP/s that the roofs allow at an intensity."""
        return min(self.flops, intensity * self.bandwidth)


@dataclass(frozen=True)
class Point:
    """Work of one subject on one GPU; without ``rate`` and ``traffic`` it is not told, and ``reason`` says why.

    ``rate`` in FLOP/s (numerator), ``traffic`` in bytes/s of the GPU's memory (denominator); ``roof`` the type they
    are compared with.
    """

    gpu: str
    pid: str
    shard: str
    work: str
    rate: Fraction | None = None
    traffic: Fraction | None = None
    roof: Roof | None = None
    numerator: str = ""
    denominator: str = ""
    tables: tuple[tuple[str, str], ...] = ()
    reason: str = ""
    provenance: Provenance = "estimated"

    @property
    def intensity(self) -> Fraction | None:
        """FLOP/byte; None without a denominator above 0."""
        return self.rate / self.traffic if self.rate is not None and self.traffic else None

    @property
    def of_attainable(self) -> Fraction | None:
        """Rate over what the roofs allow at its intensity."""
        if self.roof is None or self.intensity is None or self.rate is None:
            return None
        top = self.roof.attainable(self.intensity)
        return self.rate / top if top else None

    @property
    def bound(self) -> str:
        """Which roof lies above the point."""
        if self.roof is None or self.intensity is None:
            return ""
        return "memory" if self.intensity < self.roof.knee else "compute"


def roofs(row: GpuRow) -> list[Roof]:
    """Every type with a known peak, in the catalogue's order of types; fp16 is told with bf16."""
    doubt = ", doubtful" if row.doubtful else ""
    basis = f"{row.source}, {row.date}{doubt}"
    out = []
    for dtype in TENSOR_TYPES:
        peak = row.tflops(dtype)
        if peak is not None and dtype != "fp16":
            out.append(Roof(row.name, dtype, peak * TERA, row.bandwidth_gbs * GIGA, basis, provenance(row)))
    return out


def gpu_rows(context: Context) -> dict[str, GpuRow]:
    """The catalogue's row of each GPU that leaf 0 names, by UUID."""
    told: Any = context.store.open_body.get("gpus")
    names = (
        {str(g.get("uuid")): str(g.get("name")) for g in told if isinstance(g, dict)} if isinstance(told, list) else {}
    )
    found = {uuid: context.catalogue.gpu(name) for uuid, name in sorted(names.items())}
    return {uuid: row for uuid, row in found.items() if row is not None}


def gpm_points(context: Context, rows: dict[str, GpuRow]) -> list[Point]:
    """Each GPU, and each process while it had the GPU to itself."""
    out = []
    for gpu in context.gpus:
        label = f"{gpu.index} ({gpu.uuid})"
        row = rows.get(gpu.uuid)
        if row is None:
            out.append(Point(label, "", "", "tensor pipes", reason="the GPU is not in the catalogue"))
            continue
        out.append(_gpm_point(context, gpu, row, None))
        out += [_gpm_point(context, gpu, row, pid) for pid in shards.holders(context, gpu)]
    return out


def _gpm_point(context: Context, gpu: GpuTime, row: GpuRow, pid: int | None) -> Point:
    shard = shards.shard_of(context, pid) if pid is not None else None
    who = Point(
        f"{gpu.index} ({gpu.uuid})", "" if pid is None else str(pid), shard.name if shard else "", "tensor pipes"
    )
    columns = [*(c for c, _ in PIPES), DRAM]
    told = {c: busy.gpm(context, gpu, c) for c in columns}
    every = intervals.intersect_all([told[DRAM].covered, *([] if pid is None else [busy.alone(gpu, pid)])])
    known = [(c, d) for c, d in PIPES if len(told[c].spans) and row.tflops(d) is not None]
    if not len(told[DRAM].spans) or not known:
        missing = "DRAM" if not len(told[DRAM].spans) else "tensor pipe"
        return _without(who, f"GPM recorded no {missing} activity of it")
    every = intervals.intersect_all([every, *(told[c].covered for c, _ in known)])
    if not intervals.measure(every):
        return _without(who, "the process never had the GPU to itself" if pid is not None else "GPM covers no time")
    rate = sum((told[c].within(every).mean * (row.tflops(d) or 0) * TERA for c, d in known), Fraction(0))
    traffic = told[DRAM].within(every).mean * row.bandwidth_gbs * GIGA
    largest = max(known, key=lambda p: told[p[0]].within(every).mean)
    roof = next(r for r in roofs(row) if r.dtype == largest[1])
    pipes = " + ".join(f"{c} × {d} peak" for c, d in known)
    return Point(
        who.gpu, who.pid, who.shard, who.work, rate, traffic, roof, pipes, f"{DRAM} × bandwidth",
        (("gpm_samples", gpu.where),), "" if traffic else "no traffic of the GPU's memory was recorded",
    )  # fmt: skip


def _without(p: Point, reason: str) -> Point:
    return Point(p.gpu, p.pid, p.shard, p.work, reason=reason)


def engine_points(run: EngineRun) -> list[Point]:
    """Prefill and decode of an engine, each on one of its GPUs."""
    base = run.ceiling
    gpus = ", ".join(run.gpus) if run.gpus else "not known"
    pid = "" if run.pid is None else str(run.pid)
    name = f"engine {run.engine}"
    if base is None:
        why = run.ceiling_reason or "its ceilings are not known"
        return [Point(gpus, pid, name, work, reason=why) for work in ("decode", "prefill")]
    shard = name if base.tp == 1 else f"{name}, one of {base.tp} shards"
    roof = next((r for r in roofs(base.gpu) if r.dtype == ("bf16" if base.compute == "fp16" else base.compute)), None)
    out = []
    for work, found in (("decode", _decode(run, base)), ("prefill", _prefill(run, base))):
        if isinstance(found, str):
            out.append(Point(gpus, pid, shard, work, reason=found))
            continue
        rate, traffic, numerator, denominator = found
        tables = (("engine_samples", run.where), ("engine_config", run.where))
        out.append(
            Point(gpus, pid, shard, work, rate, traffic, roof, numerator, denominator, tables, "", base.provenance)
        )
    return out


Found = tuple[Fraction, Fraction, str, str]


def _decode(run: EngineRun, base: Baseline) -> Found | str:
    """FLOP/s and bytes/s of decode on one GPU, and how they were made; or why not."""
    totals = run.totals
    tps, running, length = totals.generation_tps, totals.running, context_tokens(run)
    if not tps:
        return "no token was generated in an active window" if tps == 0 else "its rate of tokens was not recorded"
    if running is None or length is None:
        return "its running requests, or the length of its prompts and outputs, were not recorded"
    if base.kv_token_bytes is None:
        return base.reason("kv_token_bytes") or "the size of its KV cache is not known"
    batch = max(running, Fraction(1))
    weights = base.weight_read_bytes(batch)
    if weights is None:
        return "which experts of the mixture a step reads is not known"
    flop = formulas.FLOP_PER_PARAM * base.params_active + 2 * attention(base) * length
    step = weights + batch * length * base.kv_token_bytes
    return (
        tps * flop / base.tp, tps / batch * step / base.tp, "tokens/s × (2·P + 2·c·L·len) / TP",
        "tokens/s / B × (weights read + B·len·kv) / TP",
    )  # fmt: skip


def _prefill(run: EngineRun, base: Baseline) -> Found | str:
    totals = run.totals
    tps, size = totals.prompt_tps, totals.prompt_size.mean
    if not tps:
        return "no prompt token was processed in an active window" if tps == 0 else "prompt tokens were not recorded"
    if not size:
        return "the length of its prompts was not recorded"
    if base.kv_token_bytes is None:
        return base.reason("kv_token_bytes") or "the size of its KV cache is not known"
    weights = base.weight_read_bytes(size)
    if weights is None:
        return "which experts of the mixture a pass reads is not known"
    computed = tps * (1 - min(totals.prefix_hit_share or Fraction(0), Fraction(1)))
    flop = formulas.FLOP_PER_PARAM * base.params_active * size + attention(base) * size**2
    return (
        computed / size * flop / base.tp, computed / size * (weights + size * base.kv_token_bytes) / base.tp,
        "prompts/s × (1 − prefix hits) × (2·P·s + c·L·s²) / TP",
        "prompts/s × (1 − prefix hits) × (weights read + s·kv) / TP",
    )  # fmt: skip


def attention(base: Baseline) -> Fraction:
    """c·L: FLOP of attention per square of the prompt, over all layers."""
    coefficient = formulas.attention_coefficient(base.facts.attention_coeff, base.facts.hidden_dim)
    return Fraction(coefficient) * (base.facts.layers or 0)
