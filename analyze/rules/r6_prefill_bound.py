"""Rule R6: an engine that computes prompts most of the time, so that decoding starves.

A window fires where the prompt tokens that had to be computed (cache hits taken off) are many times the generated ones,
while decoding reaches little of the GPU's compute roof; it is muted where tokens still come nearly as fast as the floor
allows, for then prefill is in nobody's way. Unit of the impact: ns of the windows that fired.

Without a known ceiling (GPU or model unknown) the rule is not evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.analyze.context import Context, Outcome
from gpuaudit.analyze.finding import Declaration, Finding, Fix, Threshold
from gpuaudit.analyze.inference import gates, levers, persistence, physics
from gpuaudit.analyze.inference.gates import Look, Teller
from gpuaudit.analyze.inference.model import EngineRun, Number, Window
from gpuaudit.analyze.inference.persistence import Limit, declared

_SOURCE = "rules of the reference profiler for vLLM (2026-08), R6: "

MILD = Threshold("ratio_mild", 5, "ratio", _SOURCE + "5 computed prompt tokens per generated one")
MODERATE = Threshold("ratio_moderate", 10, "ratio", _SOURCE + "10 of them are moderate")
SEVERE = Threshold("ratio_severe", 20, "ratio", _SOURCE + "20 of them are severe")
DECODE_MFU = Threshold("decode_mfu", Fraction(40, 100), "share", _SOURCE + "decoding below 40 % of the compute roof")
FLOOR_TIMES = Threshold("floor_times", 4, "ratio", _SOURCE + "muted while TPOT is below 4 times its floor")
SKEW = Threshold("prompt_skew", 5, "ratio", _SOURCE + "p99 of the prompts at 5 times their mean: a few long ones")

CONFIDENCE_BLIND = Fraction(50, 100)
GRADES: tuple[tuple[Threshold, str, int, Fraction], ...] = (
    (SEVERE, "severe", 5, Fraction(85, 100)),
    (MODERATE, "moderate", 4, Fraction(75, 100)),
    (MILD, "mild", 3, Fraction(65, 100)),
)
"""From which ratio on, the word, the impact and the confidence (reference profiler)."""

DECLARATION = Declaration(
    id="r6_prefill_bound",
    kind="rule",
    title="R6 prefill-bound",
    question="Did computing prompts keep an engine from generating?",
    inputs=gates.INPUTS,
    thresholds=(
        MILD, MODERATE, SEVERE, DECODE_MFU, FLOOR_TIMES, SKEW, levers.BATCHED_TOKENS, *persistence.THRESHOLDS,
        *gates.SEVERITY,
    ),
    texts={
        "r6_prefill_bound": "Engine {engine} computed {ratio} prompt tokens per generated one ({grade}), and decoding "
        "reached {mfu} of the compute roof; a token took {tpot}, its floor is {floor}. Prompts: {skew}. The "
        "gate "
        "held in {fired} of {active} windows with traffic."
    },
    never_claims="That the prompts are longer than they need to be.",
    assumptions=(
        "Impact 3, 4 or 5 and confidence 0.65, 0.75 or 0.85 from 5, 10 or 20 tokens on; at most 0.50 where the time "
        "per token or its floor is not known (reference profiler).",
        "Decoding is measured against the compute roof of the GPU (decode MFU, est).",
        gates.SEVERITY_ASSUMPTION,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Ratio:
    """Computed prompt tokens per generated one; ``value`` None: nothing was generated, it is without bound."""

    value: Fraction | None

    def at_least(self, bound: Number) -> bool:
        return self.value is None or self.value >= bound


def effective_ratio(prompt_tps: Number | None, hit_share: Number | None, gen_tps: Number | None) -> Ratio | None:
    """``prompt_tps · (1 − hits) / gen_tps``; None where an input is missing or no prompt token was computed."""
    if prompt_tps is None or hit_share is None or gen_tps is None:
        return None
    computed = Fraction(prompt_tps) * (1 - Fraction(hit_share))
    if computed <= 0:
        return None
    return Ratio(computed / gen_tps if gen_tps > 0 else None)


@dataclass(frozen=True)
class Gate:
    """Whether a window is prefill-bound, and how much."""

    fired: bool
    reason: str = ""
    word: str = ""
    impact: int = 0
    confidence: Fraction = Fraction(0)


def gate(
    ratio: Ratio | None, decode_mfu: Number | None, tpot_ms: Number | None = None, floor_ms: Number | None = None,
    limit: Limit = declared,
) -> Gate:  # fmt: skip
    """The gate of one window; ``decode_mfu`` is a share."""
    if ratio is None or decode_mfu is None:
        return Gate(False, "token rates, cache hits or the ceiling are not known")
    seen = graded(ratio, limit)
    if seen is None:
        return Gate(False, "few prompt tokens had to be computed")
    if decode_mfu >= limit(DECODE_MFU):
        return Gate(False, "decoding was near the compute roof")
    blind = tpot_ms is None or floor_ms is None
    if tpot_ms is not None and floor_ms is not None and tpot_ms < limit(FLOOR_TIMES) * floor_ms:
        return Gate(False, "tokens came nearly as fast as the floor allows")
    return Gate(True, "", seen.word, seen.impact, min(seen.confidence, CONFIDENCE_BLIND) if blind else seen.confidence)


def graded(ratio: Ratio, limit: Limit = declared) -> Gate | None:
    """Word, impact and confidence of a ratio; None below the mildest."""
    for bound, word, impact, confidence in GRADES:
        if ratio.at_least(limit(bound)):
            return Gate(True, "", word, impact, confidence)
    return None


def evaluate(context: Context) -> Outcome:
    """One finding per engine at most."""
    return gates.over_engines(context, DECLARATION, _look)


def _look(context: Context, run: EngineRun, limit: Limit) -> Look:
    if physics.ridge(run) is None or physics.decode_ceiling(run) is None:
        return gates.unknown(f"no ceiling: {physics.why_no_ceiling(run)}")
    if (speculative := physics.speculation(run)) is not None:
        return gates.unknown(f"decoding is faster than its ceiling ({speculative.detector}): speculative decoding")
    if (few := gates.too_few(run, limit)) is not None:
        return few
    seen = {w.index: _gate(run, w, limit) for w in run.active_windows}
    fired = gates.fired_in(run, lambda w: seen[w.index].fired)
    if not persistence.persistent(len(fired), len(seen), limit):
        reasons = sorted({g.reason for g in seen.values() if g.reason})
        return Look(None, f"fired in {len(fired)} of {len(seen)} windows; otherwise {' or '.join(reasons)}")
    totals = run.totals
    whole = effective_ratio(totals.prompt_tps, _hits(run, totals.prefix_hit_share), totals.generation_tps)
    mildest = min((seen[w.index] for w in fired), key=lambda g: g.impact)
    tell = Teller(context, run, DECLARATION, limit, fired)
    return Look(_finding(tell, whole, (graded(whole, limit) if whole else None) or mildest, mildest), "")


def _gate(run: EngineRun, w: Window, limit: Limit) -> Gate:
    ratio = effective_ratio(w.prompt_tps, _hits(run, w.prefix_hit_share), w.generation_tps)
    mean = w.tpot.window_mean
    tpot_ms = None if mean is None else mean * MS
    return gate(ratio, physics.decode_mfu(run, w.generation_tps), tpot_ms, physics.tpot_floor_ms(run), limit)


MS = 1000
"""Milliseconds in a second."""
NS_PER_MS = 10**6


def _hits(run: EngineRun, hits: Fraction | None) -> Fraction | None:
    """The hit share; 0 where caching is not on. With caching on and nothing told, it is missing."""
    if hits is None and run.switch("enable_prefix_caching") is not True:
        return Fraction(0)
    return hits


def _finding(tell: Teller, whole: Ratio | None, seen: Gate, fired: Gate) -> Finding:
    run, totals = tell.run, tell.run.totals
    ratio = whole.value if whole else None
    mfu, floor = physics.decode_mfu(run, totals.generation_tps), physics.tpot_floor_ms(run)
    floor_ns = None if floor is None else floor * NS_PER_MS
    return tell.finding(
        "r6_prefill_bound",
        {
            **tell.windows(),
            "ratio": tell.measured(
                ratio, "ratio", "prompt tokens/s × (1 − hits) / generated tokens/s", "prompt_tokens",
                "generation_tokens", "prefix_hits", reason="" if ratio is not None else "nothing was generated",
            ),
            "grade": seen.word,
            "mfu": tell.estimated(
                mfu, "share", "tokens/s / (decode ceiling × ridge)", "generation_tokens",
                reason="" if mfu is not None else "nothing was generated",
            ),
            "tpot": tell.measured(
                levers.nanoseconds(totals.tpot.mean), "ns", "sum / count of the histogram over active windows", "tpot",
                reason="" if totals.tpot.mean is not None else "not exported",
            ),
            "floor": tell.estimated(floor_ns, "ns", "1 / decode ceiling", "tpot"),
            "skew": "a few are much longer than the mean" if skewed(run, tell.limit) else "of like length, or unknown",
        },
        impact=seen.impact, confidence=min(seen.confidence, fired.confidence), fixes=_fixes(tell, seen),
    )  # fmt: skip


def skewed(run: EngineRun, limit: Limit = declared) -> bool:
    """Whether the p99 of the prompts is far above their mean; unknown is no."""
    mean, p99 = run.totals.prompt_size.mean, run.totals.prompt_size.p99
    return bool(mean) and mean is not None and p99 is not None and p99.value >= limit(SKEW) * mean


def _fixes(tell: Teller, seen: Gate) -> Sequence[Fix]:
    run = tell.run
    fixes: list[Fix] = list(levers.present(levers.prefix_caching(tell)))
    if levers.unset(run, "enable_chunked_prefill"):
        fixes.append(
            Fix(
                "Cut prompts into chunks that run beside decoding.", "enable_chunked_prefill", "False", "True",
                "The first token of a long prompt comes later.",
            )
        )  # fmt: skip
    tokens = run.number("max_num_batched_tokens")
    if tokens is not None and tokens < tell.limit(levers.BATCHED_TOKENS):
        fixes.append(
            Fix(
                "Let a step take more prompt tokens.", "max_num_batched_tokens", levers.decimal(tokens),
                levers.decimal(tell.limit(levers.BATCHED_TOKENS)), "A step with a long prompt delays tokens of others.",
            )
        )  # fmt: skip
    if seen.word == "severe" or not fixes:
        fixes.append(
            Fix(
                "Compute prompts on other GPUs than tokens (disaggregated prefill), or add a replica.", "", "", "",
                "Takes more GPUs; disaggregation moves the KV cache over a link.",
            )
        )  # fmt: skip
    return fixes
