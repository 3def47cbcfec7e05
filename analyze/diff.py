"""Before and after: two bundles side by side, or several regimes each beside the first.

Each bundle is verified before it is read, and nothing is compared unless all hold. Operations, chains, rules, waste and
settings: ``comparison/``. Engines (``inference/compare.py`` decides): one is paired by its URL, else by its model where
only one on each side has it, else by its number. Where what a ceiling depends on was changed, the efficiency is not
compared: the baseline is another one. The result is plain JSON in the units of a findings document;
``docs/reference/diff.md`` tells its members.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuaudit.analyze.catalogue import Catalogue
from gpuaudit.analyze.comparison import conclusions, configuration, operations
from gpuaudit.analyze.comparison.conclusions import Analysed
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Document, Json
from gpuaudit.analyze.inference import compare as engine_compare
from gpuaudit.analyze.inference import gates
from gpuaudit.analyze.inference.compare import Direction
from gpuaudit.analyze.inference.diff_figures import Figure, figures
from gpuaudit.analyze.inference.model import EngineRun
from gpuaudit.analyze.run import AnalyzeOptions, examine, read_evidence
from gpuaudit.analyze.words import counted
from gpuaudit.bundle import canonical
from gpuaudit.bundle.errors import UsageError
from gpuaudit.bundle.tool import tool_facts
from gpuaudit.bundle.verify import Verification

if TYPE_CHECKING:
    from decimal import Decimal

    from gpuaudit.bundle.keys import Identity

SCHEMA = "gpu-audit/diff/2"
"""Operations, chains, rules, waste and settings beside the engines of version 1; several captures."""

MAX_CAPTURES = 32
"""Captures compared at once: all are held in memory."""

NOT_COMPARABLE = "NotComparable"
RESET = "Config changed. Baseline reset."

BASELINE_KEYS = (
    "model", "dtype", "quantization", "kv_cache_dtype", "max_model_len", "block_size", "gpu_memory_utilization",
    "tensor_parallel_size", "data_parallel_size", "pipeline_parallel_size",
)  # fmt: skip
"""Settings that ceilings, or what fits into memory, depend on: a change of one resets the baseline."""


@dataclass(frozen=True)
class Side:
    """One bundle: what was verified of it, and its engines."""

    verification: Verification
    context: Context
    document: Document | None = None

    @property
    def analysed(self) -> Analysed:
        """With the findings, for what compares them."""
        if self.document is None:
            raise ValueError("only the engines of this side were read")
        return Analysed(self.context, self.document)

    def to_json(self) -> Json:
        v, body = self.verification, self.context.store.open_body
        return {
            "origin": v.origin, "root": v.root_b64, "status": v.status, "file_sha256": v.file_sha256,
            "synthetic": body.get("synthetic") is not False, "imported": body.get("imported") is not None,
            "grade": self.context.quality.grade_of(gates.TABLES), "engines": len(self.context.engine_runs),
            "grade_overall": self.context.quality.grade,
        }  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """An engine before and after, and by what the two were paired."""

    before: EngineRun
    after: EngineRun
    by: str


@dataclass(frozen=True)
class Drift:
    """A setting that differs; ``resets`` says whether ceilings depend on it."""

    key: str
    before: str
    after: str
    resets: bool

    def to_json(self) -> Json:
        return {"key": self.key, "before": self.before, "after": self.after, "resets_baseline": self.resets}


def diff(
    captures: Sequence[Path], *, trust: Sequence[Identity] = (), overlays: Sequence[Path] = (),
    rate: Decimal | None = None, currency: str = "USD", names: Sequence[str] = (),
) -> dict[str, Json]:  # fmt: skip
    """The comparison of two bundles, or of several with the first. BundleInvalid where one was changed.

    ``names`` of the captures, in their order; without any they are called before and after, or by the files' names.
    """
    if not 2 <= len(captures) <= MAX_CAPTURES:
        raise UsageError(f"{counted(len(captures), 'capture')} to compare; give from 2 to {MAX_CAPTURES}")
    if names and (len(names) != len(captures) or len(set(names)) != len(names)):
        raise UsageError(f"{len(names)} names for {len(captures)} captures; each needs one of its own")
    options = AnalyzeOptions(trust=trust, catalogue=Catalogue.load(overlays))
    price = None if rate is None else (Fraction(rate), currency)
    first = _read(captures[0], options)
    compared = []
    for path in captures[1:]:
        compared.append(compare(first, _read(path, options), price))
    if len(captures) == 2 and not names:
        return compared[0]
    called = list(names) or [f"{i}: {path.name}" for i, path in enumerate(captures, start=1)]
    return regimes(called, compared)


def _read(path: Path, options: AnalyzeOptions) -> Side:
    verification, store = read_evidence(path, options.trust)
    document, context = examine(store, verification, options)
    return Side(verification, context, document)


def regimes(names: Sequence[str], compared: Sequence[dict[str, Json]]) -> dict[str, Json]:
    """Several comparisons with the same first capture; ``names`` has one more than there are comparisons."""
    return {
        "schema": SCHEMA, "tool": dict(tool_facts()), "captures": list(names),
        "regimes": [{"name": name, "diff": one} for name, one in zip(names[1:], compared, strict=True)],
    }  # fmt: skip


def compare(before: Side, after: Side, price: tuple[Fraction, str] | None = None) -> dict[str, Json]:
    """Everything of two sides that were analysed whole; a pure function of them."""
    engines = compare_sides(before, after, price)
    sides = before.analysed, after.analysed
    found = {
        "operations": operations.compare(before.context, after.context, _loads(before, after)),
        "chains": conclusions.chains(*sides), "rules": conclusions.rules(*sides), "waste": conclusions.waste(*sides),
        "configuration": configuration.compare(*sides),
    }  # fmt: skip
    used = set(_ids([found, engines["engines"]]))
    return {
        **engines, **found,
        "thresholds": [*engines["thresholds"], *(t.to_json() for t in operations.THRESHOLDS)],
        "evidence": {
            name: [e.to_json() for e in side.context.book.entries() if e.id in used]
            for name, side in (("before", before), ("after", after))
        },
    }  # fmt: skip


def _grade_d(before: Side, after: Side) -> str:
    """Evidence that supports no conclusion supports no comparison."""
    return conclusions.grade_refusal(
        {name: side.context.quality.grade_of(gates.TABLES) for name, side in (("before", before), ("after", after))}
    )


def _loads(before: Side, after: Side) -> dict[str, str]:
    """Programs whose engine had another load: their calls are not compared, with the reason."""
    out = {}
    for pair in pairs(before.context.engine_runs, after.context.engine_runs):
        refused = engine_compare.comparable(_load(pair.before), _load(pair.after))
        if refused and pair.before.pid is not None:
            name = before.context.process_name(pair.before.pid)
            out[name] = f"its engine {gates.name_of(pair.before)}: {refused}"
    return out


def _ids(value: Json) -> Iterator[str]:
    """Ids of evidence anywhere in a document."""
    if isinstance(value, dict):
        told = value.get("evidence")
        if isinstance(told, list):
            yield from (i for i in told if isinstance(i, str))
        for v in value.values():
            yield from _ids(v)
    elif isinstance(value, list):
        for v in value:
            yield from _ids(v)


def compare_sides(before: Side, after: Side, price: tuple[Fraction, str] | None = None) -> dict[str, Json]:
    """The engines of two sides; a pure function of them. ``price`` is per GPU-hour."""
    found = pairs(before.context.engine_runs, after.context.engine_runs)
    paired = {id(run) for p in found for run in (p.before, p.after)}
    engines = [_pair(before, after, p, price) for p in found]
    return {
        "schema": SCHEMA, "tool": dict(tool_facts()), "before": before.to_json(), "after": after.to_json(),
        "engines": engines,
        "unpaired": [
            {"side": name, "engine": gates.name_of(run)}
            for name, side in (("before", before), ("after", after))
            for run in side.context.engine_runs
            if id(run) not in paired
        ],
        "thresholds": [t.to_json() for t in (*engine_compare.THRESHOLDS, *(n.bound for n in engine_compare.NOTES))],
        "evidence": {
            name: [e.to_json() for e in side.context.book.entries()]
            for name, side in (("before", before), ("after", after))
        },
    }  # fmt: skip


def document_bytes(document: dict[str, Json]) -> bytes:
    """Canonical JSON (RFC 8785)."""
    return canonical.dumps(document)


def pairs(before: Sequence[EngineRun], after: Sequence[EngineRun]) -> list[Pair]:
    """Engines put side by side: by URL, then by a model that one engine of each side has, then by number."""
    left, right = list(before), list(after)
    out: list[Pair] = []

    def take(by: str, key: Any) -> None:
        for one in list(left):
            mine = [r for r in left if key(r) == key(one)]
            theirs = [r for r in right if key(r) == key(one)]
            if key(one) is not None and len(mine) == len(theirs) == 1:
                out.append(Pair(one, theirs[0], by))
                left.remove(one)
                right.remove(theirs[0])

    take("URL", lambda r: r.url or None)
    take("model", lambda r: r.model)
    take("number", lambda r: r.engine)
    return sorted(out, key=lambda p: p.before.engine)


def drifts(before: EngineRun, after: EngineRun) -> list[Drift]:
    """Settings that both sides tell, and tell differently, and GPUs of another kind or number."""
    out = []
    for key in sorted(set(before.config) & set(after.config)):
        a, b = before.config[key].value, after.config[key].value
        if a != b:
            out.append(Drift(key, a, b, key in BASELINE_KEYS))
    hardware = (("GPU", before.gpu_name, after.gpu_name), ("GPUs", _count(before), _count(after)))
    out += [Drift(key, x, y, True) for key, x, y in hardware if x is not None and y is not None and x != y]
    return out


def _count(run: EngineRun) -> str | None:
    return str(len(run.gpus)) if run.gpus else None


def _pair(before: Side, after: Side, pair: Pair, price: tuple[Fraction, str] | None) -> Json:
    """One engine: the verdict or why there is none, the figures with their notes, what was changed."""
    drift = drifts(pair.before, pair.after)
    reset = any(d.resets for d in drift)
    shown = figures(before.context, pair.before, after.context, pair.after, price)
    refused = _grade_d(before, after) or engine_compare.comparable(_load(pair.before), _load(pair.after))
    found = None if refused else _direction(shown, reset=reset)
    return {
        "engine": {"before": gates.name_of(pair.before), "after": gates.name_of(pair.after), "paired_by": pair.by},
        "verdict": NOT_COMPARABLE if found is None else found.verdict,
        "reason": refused if found is None else found.reason or _alone(shown, reset=reset),
        "baseline": RESET if reset else "",
        "arms": None if found is None else _arms(found, reset=reset),
        "figures": [f.to_json() for f in shown.values()],
        "drift": [d.to_json() for d in drift],
        "notes": _notes(shown),
    }


def _notes(shown: dict[str, Figure]) -> list[str]:
    """What makes a verdict say less than it seems to: requests of another shape."""
    told = [f.name.lower() for f in (shown["Prompt mean"], shown["Generated mean"]) if _moved(f)]
    if not told:
        return []
    return [f"the requests are not alike ({' and '.join(told)} changed by more than a tenth), which moves every figure"]


def _moved(figure: Figure) -> bool:
    change = figure.change.value
    return change is not None and abs(Fraction(change)) > engine_compare.LOAD_BAND.value


def _load(run: EngineRun) -> engine_compare.Load:
    totals = run.totals
    concurrency = None
    if totals.running is not None and totals.waiting is not None:
        concurrency = totals.running + totals.waiting
    return engine_compare.Load(totals.active, concurrency, totals.requests_per_s)


def _direction(shown: dict[str, Figure], *, reset: bool) -> Direction:
    """The table's row; after a change of the baseline the efficiency says nothing."""
    efficiency, ttft, throughput = shown["Efficiency"], shown["TTFT p99"], shown["Throughput"]
    return engine_compare.direction(
        None if reset else efficiency.change.value, throughput.change.value, ttft.before.value, ttft.after.value
    )


def _alone(shown: dict[str, Figure], *, reset: bool) -> str:
    """What a verdict without an efficiency rests on; empty where there is one, or where nothing was compared."""
    if shown["Throughput"].change.value is None or (not reset and shown["Efficiency"].change.value is not None):
        return ""
    why = "the settings that it depends on were changed" if reset else "it is not known on both sides"
    return f"throughput alone decides: no efficiency, {why}; the time to first token has no part in it"


def _arms(found: Direction, *, reset: bool) -> Json:
    return {
        "efficiency": "ignored" if reset else found.efficiency, "ttft_p99": found.ttft, "throughput": found.throughput,
    }  # fmt: skip
