"""Section: what the memory of each GPU holds, adding up to NVML's number to the byte, and what could be given back.

Bytes, at the last sample of each GPU that tells its memory, and at the one with most used if that had more. Definition:
``vram.py``.
"""

from __future__ import annotations

from fractions import Fraction

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Json, Provenance, Quantity, Section, SectionChart, SectionTable, Statement
from gpuaudit.analyze.reclaimable import Reclaimable, read_reclaimable
from gpuaudit.analyze.vram import LABELS, LAST, Part, Topology, read_topologies

ORDER = 40

ID = "vram"
MAX_ROWS = 1_024
MAX_BARS = 32
MAX_PARTS = 15

KINDS: tuple[Provenance, ...] = ("assumed", "estimated", "derived", "measured")
"""The weakest first: a sum is of the weakest kind of its parts."""

COLUMNS = (
    ("gpu", "GPU"), ("when", "at"), ("pid", "process"), ("category", "category"), ("precision", "precision"),
    ("bytes", "bytes"), ("share", "of the total"), ("cut", "claimed, does not fit"),
)  # fmt: skip
CATEGORIES = (
    ("gpu", "GPU"), ("when", "at"), ("category", "category"), ("precision", "precision"), ("bytes", "bytes"),
    ("share", "of the total"),
)  # fmt: skip
"""Parts of all processes together: with driver reserved and unattributed they add up to the total of each GPU."""
TOTALS = (
    ("gpu", "GPU"), ("when", "at"), ("at_ns", "after the start"), ("used", "used by NVML"),
    ("reserved", "reserved by the driver"), ("total", "sum of the parts"), ("capacity", "memory of the GPU"),
)  # fmt: skip
RECLAIM = (("gpu", "GPU"), ("what", "what"), ("bytes", "not used"), ("condition", "could be given back"))

DEFINITIONS = (
    ("total", "NVML's used memory and, where NVML tells it apart, what the driver reserves beside it. The parts add up "
     "to it exactly; a claim larger than what is left for it is cut, and the cut is told."),
    ("weights", "Of a process whose load was seen: its allocations filled once by copies from the host. Else of an "
     "engine: bytes of its files, or parameters × bits, over its tensor-parallel degree."),
    ("KV cache", "Blocks × block size × bytes per token over the tensor-parallel degree, as the engine and its model "
     "tell them. Where no engine tells it, large allocations after the load are a reserved pool of unknown purpose."),
    ("other allocations seen", "Device memory that recorded calls allocated and did not free, less the parts above."),
    ("activations, workspace, context", "What NVML says the process holds, less all that is known of it: not told "
     "apart further. Of a process of which nothing is known it is all it holds (other processes)."),
    ("driver reserved", "NVML's reserved memory (memory info v2); 0 with the reason where NVML did not tell it."),
    ("unattributed", "NVML's used memory less that of all processes it lists: context of the driver, processes that "
     "NVML cannot name, and what NVML does not assign."),
    ("reclaimable", "What this capture did not use: KV cache × (1 − its highest use at any scrape) of engines that had "
     "requests, and all memory of processes that were idle in every sample. Whether it can be given back is for "
     "somebody to say who knows the loads to come; each row has its condition."),
)  # fmt: skip


def evaluate(context: Context) -> Section:
    """One bar per GPU and moment."""
    title, question = "Memory of the GPUs", "What does the memory of each GPU hold, and what of it was not used?"
    topologies = read_topologies(context)
    if not topologies:
        why = context.quality.source_reason("nvml") or "no sample of NVML tells the memory used on any GPU"
        return Section(ID, title, question, "not evaluated", why, definitions=DEFINITIONS)
    freed = read_reclaimable(context, topologies)
    rows = [_row(context, t, p) for t in topologies for p in _sorted(t)]
    tables = [
        SectionTable("totals", "Totals", TOTALS, tuple(_total(context, t) for t in topologies)),
        SectionTable("categories", "By category and precision", CATEGORIES,
                     tuple(row for t in topologies for row in _categories(context, t))),
        SectionTable("topology", "Parts, by process", COLUMNS, tuple(rows[:MAX_ROWS]), (),
                     max(0, len(rows) - MAX_ROWS)),
    ]  # fmt: skip
    if freed:
        tables.append(SectionTable("reclaimable", "Reclaimable", RECLAIM, tuple(_freed(context, r) for r in freed)))
    seen = sum(1 for t in topologies if t.when == LAST)
    chart = SectionChart(
        "stack", "vram", "Memory by category", {"unit": "bytes", "bars": [_bar(t) for t in topologies[:MAX_BARS]]}
    )  # fmt: skip
    return Section(
        ID, title, question, "evaluated", f"{seen} of {len(context.gpus)} GPUs told their memory",
        tuple(_statements(context, topologies, freed)), tuple(tables), (chart,), DEFINITIONS,
    )  # fmt: skip


def _sorted(t: Topology) -> list[Part]:
    order = list(LABELS)
    return sorted(t.parts, key=lambda p: (order.index(p.category), -1 if p.pid is None else p.pid))


def _evidence(context: Context, tables: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(context.book.where(table, where) for table, where in tables))


def _sample(context: Context, t: Topology) -> tuple[str, ...]:
    return _evidence(context, (("nvml_samples", f"{t.gpu.where} AND start_ns = {t.at_ns}"),))


def _gpu(t: Topology) -> str:
    return f"{t.gpu.index} ({t.gpu.uuid})"


def _total(context: Context, t: Topology) -> tuple[Quantity | str | None, ...]:
    evidence = _sample(context, t)

    def told(value: int | None, formula: str) -> Quantity:
        why = "" if value is not None else "NVML did not tell it"
        return Quantity(value, "bytes", "measured", evidence, formula, why)

    return (
        _gpu(t), t.when,
        Quantity(t.at_ns - context.window.start_ns, "ns", "measured", evidence, "start of the sample − of the capture"),
        told(t.used, "memory_used_bytes"), told(t.reserved, "memory_reserved_bytes"),
        Quantity(sum(p.bytes for p in t.parts), "bytes", "derived", evidence, "sum of the parts = used + reserved"),
        told(t.capacity, "memory_total_bytes"),
    )  # fmt: skip


def _row(context: Context, t: Topology, p: Part) -> tuple[Quantity | str | None, ...]:
    evidence = _evidence(context, p.tables)
    share = Fraction(p.bytes, t.total) if t.total else None
    cut = Quantity(p.cut, "bytes", p.provenance, evidence, "claimed − fitted") if p.cut else None
    return (
        _gpu(t), t.when, "" if p.pid is None else f"{p.pid} ({context.process_name(p.pid)})", LABELS[p.category],
        p.precision, Quantity(p.bytes, "bytes", p.provenance, evidence, f"{LABELS[p.category]}: {p.source}"),
        Quantity(share, "share", p.provenance, evidence, "bytes / total", "" if t.total else "NVML told 0 bytes used"),
        cut,
    )  # fmt: skip


def _categories(context: Context, t: Topology) -> list[tuple[Quantity | str | None, ...]]:
    """One row per category and precision of a GPU at one moment, over processes."""
    groups: dict[tuple[str, str], list[Part]] = {}
    for p in _sorted(t):
        if p.bytes or p.pid is None:
            groups.setdefault((p.category, p.precision), []).append(p)
    out: list[tuple[Quantity | str | None, ...]] = []
    why = "" if t.total else "NVML told 0 bytes used"
    for (category, precision), parts in groups.items():
        evidence = tuple(dict.fromkeys(i for p in parts for i in _evidence(context, p.tables)))
        size, provenance = sum(p.bytes for p in parts), _worst({p.provenance for p in parts})
        share = Fraction(size, t.total) if t.total else None
        out.append((
            _gpu(t), t.when, LABELS[category], precision,
            Quantity(size, "bytes", provenance, evidence, "sum of the parts of this category and precision"),
            Quantity(share, "share", provenance, evidence, "bytes / total", why),
        ))  # fmt: skip
    return out


def _worst(kinds: set[Provenance]) -> Provenance:
    """What a sum of values of these kinds is."""
    return next(k for k in KINDS if k in kinds)


def _freed(context: Context, r: Reclaimable) -> tuple[Quantity | str | None, ...]:
    evidence = _evidence(context, r.tables)
    size = Quantity(r.bytes, "bytes", r.provenance, evidence, r.formula)
    return f"{r.gpu.index} ({r.gpu.uuid})", r.what, size, r.condition


def _bar(t: Topology) -> Json:
    """Parts by category and precision, over processes; what is past :data:`MAX_PARTS` is put together."""
    sums: dict[tuple[str, str], int] = {}
    for p in _sorted(t):
        if p.bytes or p.pid is None:
            sums[p.category, p.precision] = sums.get((p.category, p.precision), 0) + p.bytes
    parts = [
        [key, LABELS[key] + (f", {precision}" if precision else ""), str(amount)]
        for (key, precision), amount in sums.items()
    ]
    rest = sum(int(p[2]) for p in parts[MAX_PARTS:])
    more = [["other", "other, see the table", str(rest)]] if rest else []
    return {"label": f"GPU {t.gpu.index}, {t.when}", "total": str(t.total), "parts": parts[:MAX_PARTS] + more}


def _statements(context: Context, topologies: list[Topology], freed: list[Reclaimable]) -> list[Statement]:
    out = []
    for t in topologies:
        if t.when == LAST and t.overshoot:
            evidence = _sample(context, t)
            out.append(Statement(
                "GPU {gpu}: {cut} that settings, models or processes claim do not fit into what NVML tells; they were "
                "cut from the parts.",
                {"gpu": str(t.gpu.index), "cut": Quantity(t.overshoot, "bytes", "estimated", evidence,
                                                          "sum of what was cut")},
            ))  # fmt: skip
    for idle, text in ((True, IDLE), (False, SPARE)):
        if chosen := [r for r in freed if r.idle is idle]:
            out.append(Statement(text, {"total": _together(context, chosen)}))
    return out


IDLE = "{total} are held by processes that ran no kernel in any sample; ending them would give it back."
SPARE = (
    "{total} of KV cache lay above the highest use that any scrape saw. They are free to give back only if no later "
    "load needs more than that of this capture."
)


def _together(context: Context, freed: list[Reclaimable]) -> Quantity:
    evidence = tuple(dict.fromkeys(i for r in freed for i in _evidence(context, r.tables)))
    worst = _worst({r.provenance for r in freed})
    return Quantity(sum(r.bytes for r in freed), "bytes", worst, evidence, "sum of the rows")
