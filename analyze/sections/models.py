"""Models: what each engine serves, who says so, and what it could reach at best on its GPUs.

Rates are of all GPUs of the engine, memory is of one. What has a catalogue figure in it is estimated.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Provenance, Quantity, Section, SectionTable, Statement
from gpuaudit.analyze.inference import formulas
from gpuaudit.analyze.inference.baseline import Baseline
from gpuaudit.analyze.inference.capacity import capacity
from gpuaudit.analyze.inference.economics import context_tokens
from gpuaudit.analyze.inference.model import GIVEN, EngineRun
from gpuaudit.analyze.inference.model_facts import Fact, ModelFacts, type_provenance
from gpuaudit.analyze.inference.rows import rows_of
from gpuaudit.analyze.store import quoted
from gpuaudit.bundle.rounding import significant

ORDER = 18

MAX_ENGINES = 16
"""Engines with tables of their own; the largest servers have 16 GPUs."""

MAX_TEXT = 256

TITLE = "Models and their ceilings"
QUESTION = "Which model does each engine serve, who says so, and what could it reach at best?"

NS_PER_MS = 1_000_000

DEFINITIONS = (
    ("decode ceiling", "Tokens per second of one sequence if each step only reads every weight once: bandwidth × GPUs "
     "× 8 ÷ (parameters a token uses × bits)."),
    ("KV-aware decode ceiling", "Of the batch that ran: B × bandwidth × GPUs ÷ (weights read + B × length × KV cache "
     "per token); length is the mean prompt and half the mean output. Of a mixture, weights of the experts touched."),
    ("ridge", "Sequences in a batch from which on computing takes longer than reading the weights: tensor-core peak × "
     "bits ÷ (bandwidth × 16), with the dense peak of the type that is computed in."),
    ("prefill ceiling", "Prompts per second: peak × GPUs ÷ (2·P·s + c·L·s²)."),
    ("experts touched", "E·(1 − (1 − k/E)^B) of each layer, if every expert were as likely as any other: an estimate."),
    ("room for the KV cache", "VRAM × share that the engine may take − 3 GB for activations (estimate) − weights ÷ "
     "GPUs. Below nothing: it does not fit."),
)  # fmt: skip


def evaluate(context: Context) -> Section:
    """The section; not evaluated where no engine answered."""
    runs = [r for r in context.engine_runs if r.windows]
    if not runs:
        reason = "no engine answered" if context.engine_runs else "no inference engine was found"
        return Section("models", TITLE, QUESTION, "not evaluated", reason)
    shown = runs[:MAX_ENGINES]
    lost = len(runs) - len(shown)
    notes = (f"{lost} more engines answered and have no tables here.",) if lost else ()
    return Section(
        "models", TITLE, QUESTION, "evaluated", "", tuple(s for r in shown for s in _statements(context, r)),
        tuple(t for r in shown for t in _tables(context, r)), (), DEFINITIONS, notes,
    )  # fmt: skip


def _statements(context: Context, run: EngineRun) -> Iterator[Statement]:
    engine = str(run.engine)
    if run.ceiling is None:
        yield Statement(
            "The ceilings of engine {engine} are not known: {reason}.",
            {"engine": engine, "reason": _short(run.ceiling_reason) or "no reason was told"},
        )
        return
    lines = {label: q for label, q, _ in _ceilings(_Maker(context, run), run.ceiling)}
    yield Statement(
        "Engine {engine} could decode {ceiling} for one sequence on {gpu}, and more with a larger batch, up to {ridge} "
        "sequences.",
        {"engine": engine, "ceiling": lines[DECODE], "ridge": lines[RIDGE], "gpu": run.ceiling.gpu.name},
    )
    if run.ceiling.tp_exceeds_observed:
        yield Statement(
            "Engine {engine} was set to more GPUs than were observed of it; its ceilings are those of its setting.",
            {"engine": engine},
        )


def _tables(context: Context, run: EngineRun) -> Iterator[SectionTable]:
    make, number = _Maker(context, run), run.engine
    columns = (("figure", "figure"), ("value", "value"), ("basis", "by"))
    if run.facts is not None:
        notes = tuple(f"Sources disagree: {_short(c)}." for c in run.facts.conflicts)
        rows = tuple(_facts(make, run.facts))
        heads = (("fact", "fact"), ("value", "value"), ("source", "source"))
        yield SectionTable(f"model_{number}", f"The model of engine {number}", heads, rows, notes)
    if run.ceiling is not None:
        b = run.ceiling
        notes = (f"{b.source('gpu')}.",)
        yield SectionTable(
            f"ceilings_{number}", f"Ceilings of engine {number}", columns, tuple(_ceilings(make, b)), notes
        )
    if run.ceiling is not None or run.number("kv_cache_max_concurrency") is not None or run.totals.active:
        yield SectionTable(f"room_{number}", f"Memory and seats of engine {number}", columns, tuple(_room(make)))


Line = tuple[str, Quantity | str, str]
DECODE, RIDGE = "decode ceiling of one sequence", "ridge"


class _Maker:
    """Quantities of one engine with their rows."""

    def __init__(self, context: Context, run: EngineRun) -> None:
        self.context, self.run = context, run
        self.config = (context.book.where("engine_config", run.where),)
        self.provenance: Provenance = run.ceiling.provenance if run.ceiling else "estimated"

    def estimated(
        self, value: int | Fraction | None, unit: str, formula: str, *reasons: str, provenance: Provenance | None = None
    ) -> Quantity:
        """From settings and the catalogue."""
        return self._quantity(value, unit, provenance or self.provenance, self.config, formula, reasons)

    def vram(self, value: int | Fraction | None, reason: str) -> Quantity:
        """What NVML says of the memory of one of its GPUs."""
        listed = ", ".join(quoted(u) for u in self.run.gpus)
        where = f"gpu_uuid IN ({listed})" if listed else "false"
        evidence = (self.context.book.where("nvml_samples", where),)
        return self._quantity(value, "bytes", "measured", evidence, "", (reason,))

    def sampled(
        self, value: int | Fraction | None, unit: str, formula: str, *reasons: str, of: tuple[str, ...],
        provenance: Provenance | None = None,
    ) -> Quantity:  # fmt: skip
        """From settings, the catalogue and what was measured of ``of``."""
        evidence = tuple(dict.fromkeys((*self.config, *rows_of(self.context, self.run, of))))
        return self._quantity(value, unit, provenance or self.provenance, evidence, formula, reasons)

    def fact(self, fact: Fact[Any] | None, value: int | Fraction | None, unit: str, reason: str = "") -> Quantity:
        """A fact as it stands."""
        made: Provenance = fact.provenance if fact else "estimated"
        return self._quantity(value, unit, made, self.config, "", (reason,))

    @staticmethod
    def _quantity(
        value: int | Fraction | None, unit: str, provenance: Provenance, evidence: tuple[str, ...], *told: Any
    ) -> Quantity:
        formula, reasons = told
        reason = next((r for r in reasons if r), "not known")
        return Quantity(value, unit, provenance, evidence, formula, "" if value is not None else _short(reason))


def _facts(make: _Maker, f: ModelFacts) -> Iterator[Line]:
    kind, why = f.weight_type, f.why_missing("total")
    total, active, weights = f.total, f.active, f.weights
    yield "name", _short(f.name or "not told"), "served name"
    yield "parameters", make.fact(total, total.value if total else None, "count", why), total.source if total else ""
    yield (
        "parameters a token uses",
        make.fact(active, active.value if active else None, "count", why),
        (active.source if active else ""),
    )
    yield (
        "bits of a weight",
        make.estimated(kind.bits, "bits", "", kind.reason, provenance=type_provenance(kind)),
        (f"{kind.name} ({kind.source})" if kind.bits is not None else _short(kind.source)),
    )
    size = weights.value * formulas.GIGA if weights else None
    yield "weights", make.fact(weights, size, "bytes", why or kind.reason), weights.source if weights else ""
    if f.experts is not None and f.experts_per_token is not None:
        yield "experts of a layer", make.fact(active, f.experts, "count"), active.source if active else ""
        yield "experts a token uses", make.fact(active, f.experts_per_token, "count"), active.source if active else ""
    if f.kv is None:
        yield "KV cache", f"not known: {_short(f.why_missing('kv'))}", ""
        return
    shape = f.kv.value
    for label, count in (
        ("layers with a KV cache", shape.layers), ("KV heads", shape.kv_heads), ("elements of a head", shape.head_dim),
        ("tokens of the sliding window", shape.swa_window), ("layers with the window", shape.swa_layers),
        ("layers with a state of fixed size", shape.linear.layers if shape.linear else None),
    ):  # fmt: skip
        if count is not None:
            yield label, make.fact(f.kv, count, "count"), f.kv.source
    element = f.kv_element
    said = f"kv_cache_dtype {element.certainty}" + (f" ({element.source})" if element.source else "")
    sure: Provenance = "measured" if element.certainty == "explicit" else "estimated"
    if element.source == GIVEN:
        sure = "assumed"
    yield "bytes of a KV element", make.estimated(element.size_bytes, "bytes", "", provenance=sure), said


def _ceilings(make: _Maker, b: Baseline) -> Iterator[tuple[str, Quantity, str]]:
    t, estimated = make.run.totals, make.estimated
    low = b.decode_band
    yield DECODE, estimated(b.decode_tps, "token/s", "BW·GPUs·1e9·8 ÷ (P·bits)"), "weights read once per token"
    yield "measured rates at that ceiling, from", estimated(low.lower, "token/s", "0.85 × ceiling"), "band"
    yield "to", estimated(low.upper, "token/s", "1.05 × ceiling"), "band"
    floor = None if b.tpot_floor_ms is None else b.tpot_floor_ms * NS_PER_MS
    yield "time per token at the ceiling", estimated(floor, "ns", "1 ÷ ceiling"), "one sequence"
    peak = f"dense peak of {b.compute}, {significant(b.tflops, 4)} TFLOP/s"
    yield RIDGE, estimated(b.ridge, "count", "F·bits ÷ (BW·16)"), peak
    batch = t.running if t.running is not None and t.running > 0 else None
    yield (
        "KV-aware decode ceiling of the batch",
        make.sampled(
            b.decode_kv_tps(batch, context_tokens(make.run)), "token/s",
            "B·BW·GPUs ÷ (weights + B·length·KV per token)", b.reason("kv_token_bytes"),
            b.reason("batch_tps"), "nothing ran, or the length of requests is not known",
            of=("running", "prompt_size", "generation_size"),
        ),
        "mean running requests and their length",
    )  # fmt: skip
    if b.mixture and batch is not None:
        touched = formulas.expected_experts(b.facts.experts, b.facts.experts_per_token, batch)
        yield (
            "experts touched by the batch",
            make.sampled(touched, "count", "E·(1 − (1 − k/E)^B)", of=("running",)),
            "each expert as likely as any other (est)",
        )
    why = b.reason("prefill_prompts_per_s")
    yield (
        "prefill ceiling",
        make.sampled(b.prefill_prompts_per_s, "prompt/s", "F·GPUs ÷ (2·P·s + c·L·s²)", why, of=("prompt_size",)),
        b.source("prompt_tokens") or "no length",
    )
    shown = formulas.prefill_floor_shown_ms(b.prefill_prompts_per_s, t.running, b.ridge)
    yield "time of a prompt at that ceiling", make.sampled(
        None if shown is None else shown * NS_PER_MS, "ns", "1 ÷ prefill ceiling", why,
        "it would say nothing: below 0.5 ms, below 10 prompts per second, or a batch past the ridge",
        of=("prompt_size", "running"),
    ), "one prompt"  # fmt: skip


def _room(make: _Maker) -> Iterator[tuple[str, Quantity, str]]:
    b, estimated = make.run.ceiling, make.estimated
    if b is not None:
        why = b.reason("vram_gb") or b.reason("weights_gb")
        vram = None if b.vram_gb is None else b.vram_gb * formulas.GIGA
        yield "VRAM of one GPU", make.vram(vram, b.reason("vram_gb")), "NVML"
        yield "share that the engine may take", estimated(b.utilization, "share", ""), b.source("utilization")
        each = None if b.weights_gb is None else b.weights_gb * formulas.GIGA / b.tp
        yield (
            "weights on one GPU",
            estimated(each, "bytes", "weights ÷ GPUs", b.reason("weights_gb")),
            (f"tensor-parallel degree: {b.source('tp')}"),
        )
        room = None if b.kv_headroom_gb is None else b.kv_headroom_gb * formulas.GIGA
        yield "room for the KV cache", estimated(room, "bytes", "VRAM × share − 3 GB − weights ÷ GPUs", why), "estimate"
        yield (
            "GPUs that the weights need",
            estimated(b.min_tp, "GPU", "ceil(weights ÷ (VRAM × share − 3 GB))", why, "not even the activations fit"),
            "estimate",
        )
        kv = b.reason("kv_token_bytes")
        yield (
            "KV cache of a token, over all GPUs",
            estimated(
                b.kv_token_bytes, "bytes", "2·layers·heads·elements·bytes, heads repeated where fewer than GPUs", kv
            ),
            b.source("kv"),
        )
        yield "KV cache of a sequence of max_model_len", estimated(
            b.sequence_bytes, "bytes", "full layers·length + windowed layers·min(length, window) + state", kv,
            b.reason("sequence_bytes"),
        ), b.source("kv")  # fmt: skip
    yield from _seats(make)


def _seats(make: _Maker) -> Iterator[tuple[str, Quantity, str]]:
    c, run = capacity(make.run), make.run
    told: Provenance = "assumed" if run.given("kv_cache_max_concurrency") else "measured"
    blocks = "the server tells no blocks, or they cannot be priced"
    sizes = ("prompt_size", "generation_size")
    yield (
        "full-length sequences, as the server tells",
        make.sampled(c.reported, "count", "", "kv_cache_max_concurrency is not told", of=(), provenance=told),
        "kv_cache_max_concurrency",
    )
    yield (
        "full-length sequences in its blocks",
        make.estimated(c.pool, "count", "blocks ÷ a sequence", blocks),
        "blocks",
    )
    yield (
        "full-length sequences in the room",
        make.estimated(
            c.headroom, "count", "room ÷ a sequence", run.ceiling_reason, "nothing fits, or its size is not known"
        ),
        "estimate",
    )
    yield "sequences at the size of the requests", make.sampled(
        c.sized, "count", "capacity × max_model_len ÷ (mean prompt + mean output)", "capacity or sizes are not known",
        of=sizes,
    ), "mean size of finished requests"  # fmt: skip
    yield (
        "sequences if max_model_len were that size",
        make.sampled(c.shorter, "count", "blocks ÷ (ceil(length ÷ block) + state pages)", blocks, of=sizes),
        "blocks and observed concurrency",
    )
    yield "sequences by what the traffic used", make.sampled(
        c.shown, "count", "mean running ÷ peak KV use", "KV use never passed 1 %, or is not told",
        of=("running", "kv_use"), provenance="derived",
    ), "peak KV use"  # fmt: skip


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
