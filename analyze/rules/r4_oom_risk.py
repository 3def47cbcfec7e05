"""Rule R4: weights, or one longest request, that do not fit into the memory the engine may use.

Computed, not observed: GPU memory × gpu_memory_utilization, less a buffer of 3 GB (est) and the weights per GPU, is
what is left for the KV cache. Negative, or less than one request of max_model_len needs, it predicts an out-of-memory
error or requests that can never be admitted. It is a property of the configuration: no persistence is asked for. Where
the size of a weight is a guess (no source tells the type), nothing is claimed, and that is said. Unit of the impact: ns
of all evaluable windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from gpuaudit.analyze.context import Context, Outcome
from gpuaudit.analyze.finding import Declaration, Finding, Fix, Quantity, Threshold
from gpuaudit.analyze.inference import gates, levers, physics
from gpuaudit.analyze.inference.gates import Look, Teller
from gpuaudit.analyze.inference.model import EngineRun, Number
from gpuaudit.analyze.inference.persistence import Limit, declared

GIGA = 10**9
"""Bytes of a decimal GB."""

HEADROOM = Threshold(
    "headroom_gb", 0, "count",
    "rules of the reference profiler for vLLM (2026-08), R4: a computed headroom (decimal GB) below 0 does not fit",
    fixed=True,
)  # fmt: skip
UTILIZATION_MOST = levers.UTILIZATION_MOST

IMPACT = 5
CONFIDENCE_EXPLICIT = Fraction(95, 100)
CONFIDENCE_TOLD = Fraction(90, 100)

DECLARATION = Declaration(
    id="r4_oom_risk",
    kind="rule",
    title="R4 out-of-memory risk",
    question="Do the weights, and one request of the longest length, fit into the memory the engine may use?",
    inputs=(*gates.INPUTS, ("nvml_samples", ("gpu_uuid", "memory_total_bytes"))),
    thresholds=(HEADROOM, levers.UTILIZATION_STEP, UTILIZATION_MOST, *gates.SEVERITY),
    texts={
        "r4_oom_risk": "Engine {engine}: {what}. Weights take {weights} over {tp} GPUs, and a GPU has {vram}; "
        "{headroom} per GPU are left for the KV cache (est), and the longest request takes {request}."
    },
    never_claims="That the server ran out of memory, or that the estimate of 3 GB for activations is right for it: a "
    "server that starts and serves has shown that its weights fit.",
    window="configuration",
    assumptions=(
        "Impact 5 of 5; confidence 0.95 where the operator set the type of weights, 0.90 where the server or the "
        "catalogue tells it (reference profiler).",
        "3.0 GB per GPU are taken by activations, workspace and the CUDA context (estimate).",
        gates.SEVERITY_ASSUMPTION,
    ),
)

Kind = Literal["weights", "request"]
WHAT = {
    "weights": "weights and activations are larger than the memory it may use",
    "request": "one request of the longest length is larger than the memory left for the KV cache",
}


@dataclass(frozen=True)
class Gate:
    """Which of the two does not fit and how sure that is; ``advisory`` where a guess keeps the rule silent."""

    kind: Kind | None
    confidence: Fraction = CONFIDENCE_TOLD
    advisory: str = ""

    @property
    def fired(self) -> bool:
        return self.kind is not None


def gate(
    headroom_gb: Number | None, source: physics.WeightSource, request_bytes: Number | None = None,
    tp: int | None = 1, limit: Limit = declared,
) -> Gate:  # fmt: skip
    """The gate of one configuration; headroom is per GPU, ``request_bytes`` are of one request of max_model_len."""
    if headroom_gb is None:
        return Gate(None)
    kind: Kind | None = None
    if headroom_gb < limit(HEADROOM):
        kind = "weights"
    elif request_bytes is not None and tp is not None and tp <= 1 and headroom_gb * GIGA < request_bytes:
        kind = "request"
    if kind is not None and source == "fallback":
        return Gate(None, advisory="assuming bf16")
    return Gate(kind, CONFIDENCE_EXPLICIT if source == "explicit" else CONFIDENCE_TOLD)


def evaluate(context: Context) -> Outcome:
    """One finding per engine at most."""
    return gates.over_engines(context, DECLARATION, _look)


def _look(context: Context, run: EngineRun, limit: Limit) -> Look:
    facts = physics.memory_facts(run)
    if facts is None or facts.headroom_gb is None:
        return gates.unknown(f"headroom for the KV cache is not known: {physics.why_no_headroom(run)}")
    seen = gate(facts.headroom_gb, facts.source, facts.request_bytes, facts.tp, limit)
    if seen.advisory:
        return gates.unknown(f"it would not fit {seen.advisory}, but no source tells the type of the weights")
    if seen.kind is None:
        return Look(None, "what it needs fits")
    return Look(_finding(Teller(context, run, DECLARATION, limit), seen, facts), "")


def _finding(tell: Teller, seen: Gate, facts: physics.MemoryFacts) -> Finding:
    kind = seen.kind or "weights"
    config = gates.settings_rows(tell.context, tell.run)

    def gigabytes(value: Number | None, formula: str, reason: str) -> Quantity:
        size = None if value is None else int(value * GIGA)
        told = "" if value is not None else reason
        return Quantity(size, "bytes", "estimated", config, formula, told)

    request = None if facts.request_bytes is None else Fraction(facts.request_bytes) / GIGA
    run = tell.run
    fixes = fixes_of(kind, facts, run.number("gpu_memory_utilization"), run.number("max_model_len"), tell.limit)
    return tell.finding(
        "r4_oom_risk",
        {
            "engine": gates.name_of(tell.run),
            "what": WHAT[kind],
            "weights": gigabytes(facts.weight_gb, "parameters × bits / 8", "no parameter count"),
            "tp": Quantity(facts.tp, "GPU", "derived", config, "tensor-parallel degree"),
            "vram": gigabytes(facts.vram_gb, "memory of one GPU", "not known"),
            "headroom": gigabytes(
                facts.headroom_gb, "memory × gpu_memory_utilization − 3 GB − weights / GPUs", "not known"
            ),
            "request": gigabytes(request, "KV cache of one sequence of max_model_len", "model shape not known"),
        },
        impact=IMPACT, confidence=seen.confidence, fixes=fixes, lasting=True, extra=config,
    )  # fmt: skip


def fixes_of(
    kind: Kind | None, facts: physics.MemoryFacts, utilization: Number | None, max_model_len: Number | None,
    limit: Limit = declared,
) -> Sequence[Fix]:  # fmt: skip
    """What to change; ``utilization`` and ``max_model_len`` are the settings, None where no source tells them."""
    if kind is None:
        return ()
    now = Fraction(utilization) if utilization is not None else physics.DEFAULT_UTILIZATION
    return _fix_weights(facts, now) if kind == "weights" else _fix_request(facts, now, max_model_len, limit)


def _fix_weights(facts: physics.MemoryFacts, utilization: Fraction) -> Sequence[Fix]:
    """More GPUs, as many as the weights need; where they are enough already, the cache and activations are it."""
    needed, current = facts.min_tp, facts.tp
    if needed is None:
        return (
            Fix(
                "Use a GPU with more memory, or give the engine more of it: not even the activation buffer fits.",
                "gpu_memory_utilization", levers.decimal(utilization), "", "Another GPU costs more per hour.",
            ),
        )  # fmt: skip
    if current is not None and current >= needed:
        return (
            Fix(
                "The weights fit these GPUs; the KV cache and activations exhaust them: quantise the weights, or use "
                "GPUs with more memory.", "", "", "", "Quantised weights change the answers; measure them.",
            ),
        )  # fmt: skip
    return (
        Fix(
            "Spread the weights over more GPUs.",
            "tensor_parallel_size", str(current or 1), str(needed),
            "Takes that many GPUs, and a reduction between them for every layer.",
        ),
    )  # fmt: skip


def _fix_request(
    facts: physics.MemoryFacts, utilization: Fraction, max_model_len: Number | None, limit: Limit
) -> Sequence[Fix]:
    """raise gpu_memory_utilization by what is missing, while it stays below the bound, and a shorter max_model_len."""
    raised = raised_utilization(facts, utilization, limit)
    fixes = []
    if raised is not None:
        fixes.append(
            Fix(
                "Raise gpu-memory-utilization, so that one request of the longest length fits.",
                "gpu_memory_utilization", levers.decimal(utilization), levers.decimal(raised),
                "Less room for activations, CUDA graphs and other processes: an out-of-memory error ends the server.",
            )
        )  # fmt: skip
    if max_model_len is not None and facts.headroom_gb is not None and facts.request_bytes:
        fits = int(max_model_len * facts.headroom_gb * GIGA / facts.request_bytes)
        if fits > 0:
            fixes.append(
                Fix(
                    "Allow no longer requests than fit.", "max_model_len", levers.decimal(max_model_len), str(fits),
                    "Longer requests are refused at once instead of waiting for ever.",
                )
            )  # fmt: skip
    return fixes


def raised_utilization(facts: physics.MemoryFacts, current: Fraction, limit: Limit) -> Fraction | None:
    """The next step of gpu_memory_utilization at which the request fits; None where none up to the bound does."""
    if facts.vram_gb is None or facts.headroom_gb is None or facts.request_bytes is None:
        return None
    missing = (Fraction(facts.request_bytes) / GIGA - facts.headroom_gb) / facts.vram_gb
    step = Fraction(limit(levers.UTILIZATION_STEP))
    steps = max(1, -int(-missing // step)) if step > 0 else 1
    new = min(current + steps * step, Fraction(limit(UTILIZATION_MOST)))
    return new if new > current and new - current >= missing else None
