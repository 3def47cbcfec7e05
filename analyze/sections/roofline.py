"""Section: achieved rate and intensity of every subject against the roofs of its GPU. Definitions: ``roofline.py``.

FLOP/s, bytes/s and FLOP/byte of one GPU. Every point stands in the table with its numerator and its denominator.
"""

from __future__ import annotations

from fractions import Fraction

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Json, Provenance, Quantity, Section, SectionChart, SectionTable
from gpuaudit.analyze.roofline import Point, Roof, engine_points, gpm_points, gpu_rows, roofs
from gpuaudit.analyze.transfers import Transfer, read_transfers

ORDER = 20

ID = "roofline"
MAX_ROWS = 512
MAX_POINTS = 64
MAX_CEILINGS = 12

ROOFS = (
    ("gpu", "product"), ("dtype", "type"), ("flops", "dense tensor-core peak"), ("bandwidth", "memory bandwidth"),
    ("knee", "knee"), ("basis", "source"),
)  # fmt: skip
POINTS = (
    ("gpu", "GPU"), ("pid", "process"), ("shard", "shard"), ("work", "work"), ("rate", "rate"),
    ("traffic", "memory traffic"), ("intensity", "rate / traffic"), ("share", "of what the roofs allow"),
    ("bound", "bound by"),
)  # fmt: skip
"""Numerator and denominator of a point stand before it."""
COPIES = (
    ("pid", "process"), ("gpu", "GPU"), ("direction", "direction"), ("bytes", "copied"),
    ("blocking_bytes", "by blocking copies"), ("blocking_ns", "time inside them"), ("rate", "rate"),
    ("link_rate", "rate of the link"), ("share", "of the link"),
)  # fmt: skip

DEFINITIONS = (
    ("roof", "Memory bandwidth, and dense tensor-core peak of a type without sparsity, of a data sheet: estimated."),
    ("knee", "Peak / bandwidth, FLOP per byte: below it memory bounds the rate, above it the tensor cores do."),
    ("rate and memory traffic, tensor pipes", "GPM: time that tensor pipes were active × their dense peak, and DRAM "
     "activity × bandwidth, means over the time that all of them cover; of a process while it had the GPU to itself. "
     "An active pipe need not issue at its full rate: an upper bound, but where FP8 ran, which GPM does not tell from "
     "16-bit types, up to twice as much was possible. Vector pipes are left out."),
    ("rate and memory traffic, decode", "Tokens/s × (2·P + 2·c·L·len), and tokens/s / B × (weights read + B·len·kv): "
     "P parameters a token uses, c·L FLOP of attention per square of a prompt, B mean running requests (at least 1), "
     "len mean prompt and half the mean output, kv bytes of cache per token. Of a mixture the weights of the experts "
     "that B tokens touch. Over active windows, by tensor-parallel degree for one GPU."),
    ("rate and memory traffic, prefill", "Prompts/s × (1 − prefix hits) × (2·P·s + c·L·s²), and × (weights read + "
     "s·kv): one prompt of s tokens per pass. Several in one pass have a higher intensity."),
    ("of what the roofs allow", "Rate / min(peak, intensity × bandwidth)."),
    ("rate of the link", "Lanes × transfers/s × coding / 8 of the fastest generation and width that NVML told: "
     "theoretical, one direction."),
)  # fmt: skip


def evaluate(context: Context) -> Section:
    """A row per roof, per point, and per process and direction of copies."""
    title, question = "Roofline", "How far from what the GPU allows is the work, and which roof is above it?"
    rows = gpu_rows(context)
    ceilings = {(r.gpu, r.dtype): r for row in rows.values() for r in roofs(row)}
    points = gpm_points(context, rows) + [p for run in context.engine_runs for p in engine_points(run)]
    for p in points:
        if p.roof is not None:
            ceilings.setdefault((p.roof.gpu, p.roof.dtype), p.roof)
    copies = read_transfers(context)
    told = [p for p in points if p.intensity is not None]
    tables = [
        SectionTable("roofs", "Roofs", ROOFS, tuple(_roof(context, r) for r in ceilings.values())),
        SectionTable("points", "Points", POINTS, tuple(_point(context, p) for p in points[:MAX_ROWS]),
                     (), max(0, len(points) - MAX_ROWS)),
        SectionTable("copies", "Copies over PCIe", COPIES, tuple(_copy(context, t) for t in copies[:MAX_ROWS]),
                     (), max(0, len(copies) - MAX_ROWS)),
    ]  # fmt: skip
    reason = f"{len(told)} of {len(points)} points have a rate and a denominator"
    without = [p.reason for p in points if p.reason]
    reason = (reason if points else "no GPU was sampled and no engine was scraped") + "".join(
        f"; {w}" for w in without[:1]
    )
    state = bool(told) or any(t.rate is not None for t in copies)
    return Section(
        ID, title, question, "evaluated" if state else "not evaluated", reason, (),
        tuple(t for t in tables if t.rows), _charts(list(ceilings.values()), told) if told else (), DEFINITIONS,
        tuple(f"GPUs of engine {r.engine}: {r.gpu_join}." for r in context.engine_runs[:MAX_ROWS] if r.gpu_join),
    )  # fmt: skip


def _evidence(context: Context, tables: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    return tuple(context.book.where(table, where) for table, where in tables)


def _roof(context: Context, r: Roof) -> tuple[Quantity | str | None, ...]:
    evidence = (context.book.where("leaves", "leaf = 0"),)
    return (
        r.gpu, r.dtype, Quantity(r.flops, "flop/s", r.provenance, evidence, "catalogue, for the name in leaf 0"),
        Quantity(r.bandwidth, "bytes/s", r.provenance, evidence, "catalogue, for the name in leaf 0"),
        Quantity(r.knee, "flop/byte", r.provenance, evidence, "peak / bandwidth"), r.basis,
    )  # fmt: skip


def _point(context: Context, p: Point) -> tuple[Quantity | str | None, ...]:
    if p.rate is None or p.traffic is None or p.roof is None:
        why = p.reason or "its roof is not known"
        leaf = (context.book.where("leaves", "leaf = 0"),)
        nothing = Quantity(None, "flop/s", "estimated", leaf, "rate of the work", why)
        return (p.gpu, p.pid, p.shard, p.work, nothing, None, None, None, None)
    evidence, kind = _evidence(context, p.tables), _kind(p)

    def q(value: Fraction | None, unit: str, formula: str) -> Quantity:
        return Quantity(value, unit, kind, evidence, formula, "" if value is not None else p.reason)

    return (
        p.gpu, p.pid, p.shard, p.work, q(p.rate, "flop/s", p.numerator), q(p.traffic, "bytes/s", p.denominator),
        q(p.intensity, "flop/byte", "rate / memory traffic"),
        q(p.of_attainable, "share", "rate / min(peak, intensity × bandwidth)"),
        f"{p.bound} ({p.roof.dtype} of {p.roof.gpu})" if p.bound else None,
    )  # fmt: skip


def _kind(p: Point) -> Provenance:
    return "assumed" if p.roof is not None and p.roof.provenance == "assumed" else p.provenance


def _copy(context: Context, t: Transfer) -> tuple[Quantity | str | None, ...]:
    evidence = (context.book.where(t.table, t.where),)
    known = t.table == "cuda_calls"
    link: tuple[str, ...] = (context.book.where("nvml_samples", t.gpu.where),) if t.gpu is not None else evidence

    def q(value: Fraction | int | None, unit: str, formula: str, why: str = "") -> Quantity:
        return Quantity(value, unit, "derived", evidence, formula, "" if value is not None else why)

    none = "no copy in this direction was blocking" if known else t.reason
    who = f"{t.pid} ({context.process_name(t.pid)})" + (f", {t.shard}" if t.shard else "")
    theory = "lanes × transfers/s × coding / 8"
    return (
        who, "" if t.gpu is None else f"{t.gpu.index} ({t.gpu.uuid})", t.direction,
        q(t.bytes, "bytes", "sum of the sizes of copies that succeeded"),
        q(t.blocking_bytes if known else None, "bytes", "sum of the sizes of blocking ones", none),
        q(t.blocking_ns if known else None, "ns", "union of the time inside blocking ones", none),
        q(t.rate, "bytes/s", "bytes of blocking copies / time inside them", none),
        Quantity(t.link_bytes_per_s, "bytes/s", "derived", link, f"{t.link}: {theory}" if t.link else theory, t.reason),
        Quantity(t.of_link, "share", "derived", tuple(dict.fromkeys((*evidence, *link))), "rate / rate of the link",
                 "" if t.of_link is not None else t.reason or none),
    )  # fmt: skip


def _charts(ceilings: list[Roof], told: list[Point]) -> tuple[SectionChart, ...]:
    used = {p.roof.gpu for p in told if p.roof is not None}
    roofs_of: dict[tuple[str, Fraction, Fraction, str, str], list[str]] = {}
    for r in ceilings:
        if r.gpu in used:
            roofs_of.setdefault((r.gpu, r.flops, r.bandwidth, r.basis, _word(r.provenance)), []).append(r.dtype)
    shown = list(roofs_of.items())[:MAX_CEILINGS]
    data: dict[str, Json] = {
        "ceilings": [
            {"label": f"{gpu}, {', '.join(dtypes)} dense ({word})", "flops": str(round(flops)),
             "bandwidth": str(round(bandwidth)), "basis": basis}
            for (gpu, flops, bandwidth, basis, word), dtypes in shown
        ],
        "points": [_dot(p) for p in told[:MAX_POINTS] if p.intensity is not None and p.rate is not None],
    }  # fmt: skip
    undrawn = max(0, len(roofs_of) - MAX_CEILINGS), max(0, len(told) - MAX_POINTS)
    more = f"; {undrawn[0]} roofs and {undrawn[1]} points stand in the tables alone" if any(undrawn) else ""
    return (SectionChart("roofline", "roofline", f"Rate against intensity{more}", data),)


def _dot(p: Point) -> Json:
    assert p.intensity is not None  # noqa: S101 - told points have one
    assert p.rate is not None  # noqa: S101
    who = p.shard or (f"process {p.pid}" if p.pid else f"GPU {p.gpu.partition(' ')[0]}")
    return {
        "label": f"{who}, {p.work}", "intensity": [str(p.intensity.numerator), str(p.intensity.denominator)],
        "rate": str(round(p.rate)), "kind": "estimated",
    }  # fmt: skip


def _word(provenance: Provenance) -> str:
    return "est" if provenance == "estimated" else "user's"
