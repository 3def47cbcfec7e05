"""Section: what other types of weights and KV cache would change for each engine. Definitions: ``quantisation.py``.

Bytes and tokens are of one GPU; changes are ratios new / old of bounds, estimated.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Quantity, Section, SectionTable
from gpuaudit.analyze.inference.model import EngineRun
from gpuaudit.analyze.quantisation import Advice, KvOption, advise, kv_options

ORDER = 50

ID = "quantisation"

WEIGHTS = (
    ("engine", "engine"), ("current", "weights now"), ("method", "weights in"), ("bits", "bits per weight"),
    ("freed", "memory freed per GPU"), ("tokens", "more tokens of KV cache"), ("decode", "decode bound, new / old"),
    ("prefill", "prefill bound, new / old"),
)  # fmt: skip
CONDITIONS = (
    ("engine", "engine"), ("method", "weights in"), ("hardware", "hardware"), ("needs", "needs"),
    ("quality", "quality"), ("falsified", "falsified if"),
)  # fmt: skip
KV = (
    ("engine", "engine"), ("option", "option"), ("freed", "memory freed per GPU"),
    ("decode", "decode bound, new / old"),
    ("needs", "needs"), ("quality", "quality"), ("note", "note"),
)  # fmt: skip

DEFINITIONS = (
    ("memory freed", "Weights × (1 − new bits / bits) / tensor-parallel degree. Layers that stay in 16 bits (often the "
     "embedding and the output head) make it less."),
    ("decode bound", "min(B·BW·TP / (W + B·len·kv), F·TP / (2·P + 2·c·L·len)), token/s at the observed batch B and "
     "length len: W weights read per step, kv bytes of cache per token, F dense peak of the type computed in."),
    ("prefill bound", "min(F·TP / (2·P·s + c·L·s²), BW·TP / (W + s·kv)), prompt/s of the mean prompt s."),
    ("new / old", "How much higher the bound would be. An engine that is not at its bound gains less."),
    ("quality", "Only what was published, with its source and date, for the models it was measured on."),
)  # fmt: skip


def evaluate(context: Context) -> Section:
    """A row per engine and method with fewer bits, and per engine and option of its KV cache."""
    title = "Quantisation"
    question = "What would other types of weights and KV cache free and allow, and on which conditions?"
    runs = context.engine_runs
    advice = [(run, a) for run in runs for a in advise(run)]
    weights = tuple(_weights(context, run, a) for run, a in advice)
    conditions = tuple((str(a.engine), a.label, a.hardware, a.needs, a.quality, a.falsified_by) for _, a in advice)
    caches = tuple(_cache(context, run, o) for run in runs for o in kv_options(run))
    tables = tuple(
        t for t in (SectionTable("weights", "Types of weights", WEIGHTS, weights),
                    SectionTable("conditions", "What they need, and what would refute them", CONDITIONS, conditions),
                    SectionTable("kv_cache", "KV cache", KV, caches)) if t.rows
    )  # fmt: skip
    state: Literal["evaluated", "not evaluated"] = "evaluated" if tables else "not evaluated"
    return Section(ID, title, question, state, _reason(runs), (), tables, (), DEFINITIONS)


def _reason(runs: list[EngineRun]) -> str:
    if not runs:
        return "no inference engine was found"
    without = [f"engine {r.engine}: {r.ceiling_reason or 'its ceilings are not known'}" for r in runs if not r.ceiling]
    return f"{len(runs) - len(without)} of {len(runs)} engines" + "".join(f"; {w}" for w in without)


def _evidence(context: Context, run: EngineRun) -> tuple[str, ...]:
    return context.book.where("engine_config", run.where), context.book.where("engine_scrapes", run.where)


def _weights(context: Context, run: EngineRun, a: Advice) -> tuple[Quantity | str | None, ...]:
    evidence = _evidence(context, run)
    missing = a.reason or "an input of the bound was not recorded"

    def q(value: int | Fraction | None, unit: str, formula: str, why: str = missing) -> Quantity:
        return Quantity(value, unit, a.provenance, evidence, formula, "" if value is not None else why)

    assert run.facts is not None  # noqa: S101 - a run with ceilings has facts
    return (
        str(a.engine), f"{run.facts.weight_type.name} ({run.facts.weight_type.source})", a.label,
        q(a.bits, "bits", "bits of a weight and its share of scales"),
        q(a.freed_bytes, "bytes", "weights × (1 − new bits / bits) / TP", "the size of the weights is not known"),
        q(a.more_kv_tokens, "token", "memory freed / KV bytes per token", "the size of the KV cache is not known"),
        q(a.decode_change, "ratio", "decode bound, new / old"),
        q(a.prefill_change, "ratio", "prefill bound, new / old"),
    )  # fmt: skip


def _cache(context: Context, run: EngineRun, o: KvOption) -> tuple[Quantity | str | None, ...]:
    evidence = _evidence(context, run)
    freed = decode = None
    if o.freed_bytes is not None:
        freed = Quantity(o.freed_bytes, "bytes", o.provenance, evidence, "KV cache / 2")
    if o.decode_change is not None:
        decode = Quantity(o.decode_change, "ratio", o.provenance, evidence, "decode bound, new / old")
    return (str(o.engine), o.option, freed, decode, o.needs, o.quality, o.reason or None)
