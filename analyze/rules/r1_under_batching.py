"""Rule R1: an engine that ran far fewer sequences than it may, while nothing waited.

A window fires where the running sequences are few of what the lowest wall allows: the configured seats, the ridge of
the GPU, or the sequences that the KV cache holds. With a known GPU its rate must be low as well (tokens/s of what the
configured seats could give); without one only a batch below a quarter counts, and with less confidence. Unit of the
impact: ns of the windows that fired. The gate is that of the reference profiler's newest generation; it has no
prefill gate, because R6 takes this finding as its evidence where prefill is the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from gpuaudit.analyze.context import Context, Outcome
from gpuaudit.analyze.finding import Declaration, Finding, Fix, Quantity, Threshold
from gpuaudit.analyze.inference import gates, persistence, physics
from gpuaudit.analyze.inference.gates import Look, Teller
from gpuaudit.analyze.inference.model import EngineRun, Number, Window
from gpuaudit.analyze.inference.persistence import Limit, declared

_SOURCE = "rules of the reference profiler for vLLM (2026-08), R1: "

EFFICIENCY = Threshold("config_efficiency", Fraction(60, 100), "share", _SOURCE + "below 60 % of the seats' ceiling")
OCCUPANCY = Threshold("occupancy", Fraction(75, 100), "share", _SOURCE + "below 75 % of the wall, GPU known")
OCCUPANCY_UNKNOWN = Threshold("occupancy_unknown", Fraction(25, 100), "share", _SOURCE + "below 25 %, GPU unknown")
WAITING = Threshold("waiting", 2, "count", _SOURCE + "fewer than 2 waiting: a queue has another reason")

IMPACT = 4
CONFIDENCE = Fraction(80, 100)
CONFIDENCE_UNKNOWN = Fraction(50, 100)

DECLARATION = Declaration(
    id="r1_under_batching",
    kind="rule",
    title="R1 under-batching",
    question="Did an engine run far fewer sequences at once than its settings, its GPU and its cache allow?",
    inputs=gates.INPUTS,
    thresholds=(EFFICIENCY, OCCUPANCY, OCCUPANCY_UNKNOWN, WAITING, *persistence.THRESHOLDS, *gates.SEVERITY),
    texts={
        "r1_under_batching": "Engine {engine} ran {running} sequences on average of the {effective} that {wall} "
        "allows "
        "({occupancy}), with {waiting} waiting: {idle} seats stood empty. The gate held in {fired} of {active} windows "
        "with traffic. Rate of what the configured seats could give: {efficiency}."
    },
    never_claims="That more requests were there to be had: the queue was empty, so only the clients can send more.",
    assumptions=(
        "Impact 4 of 5; confidence 0.80, or 0.50 where the GPU's ceiling is not known (reference profiler).",
        gates.SEVERITY_ASSUMPTION,
    ),
)

WALLS = {
    "memory": "the KV cache (as the engine reports it)",
    "ridge": "the ridge of the GPU (est)",
    "config": "max_num_seqs",
}


@dataclass(frozen=True)
class Gate:
    """Whether a window is under-batched, by what, and otherwise why not; None where input is missing."""

    fired: bool
    reason: str
    effective: Number | None = None
    wall: str = ""
    occupancy: Fraction | None = None
    idle: int | None = None
    confidence: Fraction = CONFIDENCE_UNKNOWN


def lowest_wall(cap: Number | None, ridge: Number | None, kv_sequences: Number | None) -> tuple[Number, str] | None:
    """``min(cap, ridge, floor(KV sequences))`` and its name; of equal ones memory, then ridge. None without a cap."""
    if cap is None or cap <= 0:
        return None
    memory = None if kv_sequences is None or kv_sequences < 1 else int(kv_sequences)
    walls = ((memory, "memory"), (ridge, "ridge"), (cap, "config"))
    return min(((v, name) for v, name in walls if v is not None and v > 0), key=lambda w: w[0])


def gate(
    *, running: Number | None, waiting: Number | None, cap: Number | None, efficiency: Number | None = None,
    ridge: Number | None = None, kv_sequences: Number | None = None, limit: Limit = declared,
) -> Gate:  # fmt: skip
    """The gate of one window. ``efficiency`` is tokens/s over what the configured seats could give, a share."""
    found = lowest_wall(cap, ridge, kv_sequences)
    if found is None:
        return Gate(False, "max_num_seqs is not known")
    if running is None or waiting is None:
        return Gate(False, "running or waiting was not exported")
    effective, wall = found
    occupancy = Fraction(running) / Fraction(effective)
    idle = max(0, int(effective - running))
    seen = Gate(False, "", effective, wall, occupancy, idle, CONFIDENCE_UNKNOWN if efficiency is None else CONFIDENCE)
    misses = (
        (running <= 0, "nothing ran"),
        (waiting >= limit(WAITING), "requests waited"),
        (occupancy >= limit(OCCUPANCY_UNKNOWN if efficiency is None else OCCUPANCY), "the batch was not small"),
        (efficiency is not None and efficiency >= limit(EFFICIENCY), "the rate was near what the seats could give"),
    )
    reason = next((why for missed, why in misses if missed), "")
    return replace(seen, fired=not reason, reason=reason)


def evaluate(context: Context) -> Outcome:
    """One finding per engine at most."""
    return gates.over_engines(context, DECLARATION, _look)


def _look(context: Context, run: EngineRun, limit: Limit) -> Look:
    cap = run.max_num_seqs
    if cap is None:
        return gates.unknown("max_num_seqs is not known")
    if (few := gates.too_few(run, limit) or gates.no_queue(run)) is not None:
        return few
    seen = {w.index: _gate(run, w, limit) for w in run.active_windows}
    fired = gates.fired_in(run, lambda w: seen[w.index].fired)
    if not persistence.persistent(len(fired), len(seen), limit):
        reasons = sorted({g.reason for g in seen.values() if g.reason})
        return Look(None, f"fired in {len(fired)} of {len(seen)} windows; otherwise {' or '.join(reasons)}")
    best = max(seen[w.index].confidence for w in fired)
    return Look(_finding(Teller(context, run, DECLARATION, limit, fired), best), "")


def _gate(run: EngineRun, window: Window, limit: Limit) -> Gate:
    return gate(
        running=window.running, waiting=window.waiting, cap=run.max_num_seqs,
        efficiency=physics.config_efficiency(run, window.generation_tps), ridge=physics.ridge(run),
        kv_sequences=physics.reported_kv_sequences(run), limit=limit,
    )  # fmt: skip


def _finding(tell: Teller, confidence: Fraction) -> Finding:
    run = tell.run
    totals, cap = run.totals, run.max_num_seqs
    found = lowest_wall(cap, physics.ridge(run), physics.reported_kv_sequences(run))
    assert found is not None and totals.running is not None  # noqa: S101, PT018 - the look refused it otherwise
    effective, wall = found
    by = "min(max_num_seqs, ridge, sequences that the KV cache holds)"
    allowed = (tell.estimated if wall == "ridge" else tell.measured)(effective, "count", by, "running")
    efficiency = physics.config_efficiency(run, totals.generation_tps)
    told = tell.estimated(
        efficiency, "share", "tokens/s / (decode ceiling × min(max_num_seqs, ridge))", "generation_tokens",
        reason="" if efficiency is not None else physics.why_no_ceiling(run),
    )  # fmt: skip
    return tell.finding(
        "r1_under_batching",
        {
            **tell.windows(),
            "running": tell.measured(totals.running, "count", "mean of active windows", "running"),
            "waiting": tell.measured(totals.waiting, "count", "mean of active windows", "waiting"),
            "effective": allowed,
            "wall": WALLS[wall],
            "occupancy": tell.measured(Fraction(totals.running) / effective, "share", "running / effective", "running"),
            "idle": tell.measured(max(0, int(effective - totals.running)), "count", "effective − running", "running"),
            "efficiency": told,
        },
        impact=IMPACT, confidence=confidence, fixes=(_fix(wall, allowed),),
    )  # fmt: skip


def _fix(wall: str, allowed: Quantity) -> Fix:
    return Fix(
        f"Send more requests at once (more client concurrency, or batches); the wall they reach is {WALLS[wall]}.",
        "client concurrency", "", "",
        "Each request takes longer per token as the batch grows; KV use grows with the batch.",
        {"up_to": allowed},
    )  # fmt: skip
