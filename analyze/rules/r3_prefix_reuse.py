"""Rule R3: many prompt tokens that are computed although a prefix cache could have held them, or it is off.

A window fires where prompts are long and many enough to matter and either prefix caching is confirmed off, or it found
few of the tokens it was asked for. Where nothing tells whether it is on, a hit rate has to be recorded. Hits and
queries are deltas of the counters (tokens) over the window, so that what was cached before the capture does not count.
Unit of the impact: ns of the windows that fired.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.analyze.context import Context, Outcome
from gpuaudit.analyze.finding import Declaration, Finding, Fix, Threshold
from gpuaudit.analyze.inference import gates, persistence
from gpuaudit.analyze.inference.gates import Look, Teller
from gpuaudit.analyze.inference.model import EngineRun, Number, Window
from gpuaudit.analyze.inference.persistence import Limit, declared

_SOURCE = "rules of the reference profiler for vLLM (2026-08), R3: "

HITS = Threshold("hit_share", Fraction(35, 100), "share", _SOURCE + "below 35 % of the queried tokens")
PROMPT = Threshold("prompt_mean", 20, "token", _SOURCE + "prompts of at least 20 tokens on average")
RUNNING = Threshold("running", Fraction(75, 100), "count", _SOURCE + "more than 0.75 running")
VOLUME = Threshold("prompt_volume", 1000, "token/s", _SOURCE + "requests/s × mean prompt of at least 1,000 tokens/s")
REQUESTS = Threshold(
    "requests", 0, "request/s",
    "no bound: the first generation of those rules (2026-06) asked for 5 requests/s instead of a volume of tokens",
)  # fmt: skip

IMPACT_OFF = 3
CONFIDENCE_OFF = Fraction(95, 100)
IMPACT_LOW = 2
CONFIDENCE_LOW = Fraction(90, 100)

DECLARATION = Declaration(
    id="r3_prefix_reuse",
    kind="rule",
    title="R3 low prefix reuse",
    question="Were many prompt tokens computed that a prefix cache could have held?",
    inputs=gates.INPUTS,
    thresholds=(HITS, PROMPT, RUNNING, VOLUME, REQUESTS, *persistence.THRESHOLDS, *gates.SEVERITY),
    texts={
        "r3_prefix_reuse": "Engine {engine} computed prompts of {prompt_mean} on average at {volume}, and prefix "
        "caching "
        "{caching}: {hits} of the tokens asked for were found. The gate held in {fired} of {active} windows with "
        "traffic."
    },
    never_claims="That the prompts share a beginning: only their text would tell, and it is not recorded.",
    assumptions=(
        "Impact 3 of 5 and confidence 0.95 where caching is confirmed off, else 2 and 0.90 (reference profiler).",
        gates.SEVERITY_ASSUMPTION,
    ),
)


@dataclass(frozen=True)
class Gate:
    """Whether a window fires, with what impact and confidence, or why not."""

    fired: bool
    reason: str = ""
    impact: int = IMPACT_LOW
    confidence: Fraction = CONFIDENCE_LOW


def gate(
    *, hit_share: Number | None, prompt_mean: Number | None, running: Number | None, requests_per_s: Number | None,
    caching: bool | None = None, limit: Limit = declared,
) -> Gate:  # fmt: skip
    """The gate of one window; ``caching`` None: nothing tells whether prefix caching is on."""
    if prompt_mean is None or running is None or requests_per_s is None:
        return Gate(False, "prompt size, requests or running was not exported")
    off = caching is False
    found = hit_share is not None and hit_share >= limit(HITS)
    misses = (
        (not off and hit_share is None, "no hit rate was recorded"),
        (prompt_mean < limit(PROMPT) or running <= limit(RUNNING), "prompts were short, or next to nothing ran"),
        (
            requests_per_s * prompt_mean < limit(VOLUME) or requests_per_s < limit(REQUESTS),
            "there were few prompt tokens per second",
        ),
        (not off and found, "the cache found what it was asked for"),
    )
    reason = next((why for missed, why in misses if missed), "")
    if reason:
        return Gate(False, reason)
    return Gate(True, "", IMPACT_OFF, CONFIDENCE_OFF) if off else Gate(True)


def evaluate(context: Context) -> Outcome:
    """One finding per engine at most."""
    return gates.over_engines(context, DECLARATION, _look)


def _look(context: Context, run: EngineRun, limit: Limit) -> Look:
    caching = run.switch("enable_prefix_caching")
    if caching is not False and run.totals.prefix_hit_share is None:
        return gates.unknown(f"no hit rate: {run.absent.get('prefix_hits', 'no prompt was looked up in the cache')}")
    if run.totals.prompt_size.mean is None or run.totals.requests_per_s is None:
        return gates.unknown("prompt sizes or finished requests were not exported, or none finished")
    if (few := gates.too_few(run, limit)) is not None:
        return few
    seen = {w.index: _gate(run, w, limit) for w in run.active_windows}
    fired = gates.fired_in(run, lambda w: seen[w.index].fired)
    if not persistence.persistent(len(fired), len(seen), limit):
        reasons = sorted({g.reason for g in seen.values() if g.reason})
        return Look(None, f"fired in {len(fired)} of {len(seen)} windows; otherwise {' or '.join(reasons)}")
    return Look(_finding(Teller(context, run, DECLARATION, limit, fired), seen[fired[0].index]), "")


def _gate(run: EngineRun, w: Window, limit: Limit) -> Gate:
    return gate(
        hit_share=w.prefix_hit_share, prompt_mean=w.prompt_size.mean, running=_running(w),
        requests_per_s=w.requests_per_s, caching=run.switch("enable_prefix_caching"), limit=limit,
    )  # fmt: skip


def _running(w: Window) -> Number | None:
    return w.running_mean if w.running_mean is not None else w.running


def _finding(tell: Teller, seen: Gate) -> Finding:
    run, totals = tell.run, tell.run.totals
    caching = run.switch("enable_prefix_caching")
    volume = None
    if totals.requests_per_s is not None and totals.prompt_size.mean is not None:
        volume = totals.requests_per_s * totals.prompt_size.mean
    return tell.finding(
        "r3_prefix_reuse",
        {
            **tell.windows(),
            "prompt_mean": tell.measured(
                totals.prompt_size.mean, "token", "mean prompt tokens per finished request", "prompt_size"
            ),
            "volume": tell.measured(volume, "token/s", "finished requests/s × mean prompt", "completed", "prompt_size"),
            "caching": {True: "is on", False: "is off", None: "may be on or off"}[caching],
            "hits": tell.measured(
                totals.prefix_hit_share, "share", "hit tokens / queried tokens, deltas over evaluable windows",
                "prefix_hits", "prefix_queries",
                reason="" if totals.prefix_hit_share is not None else "nothing was looked up",
            ),
        },
        impact=seen.impact, confidence=seen.confidence, fixes=(_switch_on() if caching is False else _share_first(),),
    )  # fmt: skip


def _switch_on() -> Fix:
    return Fix(
        "Switch prefix caching on, so that prompts with the same beginning share its blocks.",
        "enable_prefix_caching", "False", "True",
        "Blocks of finished requests stay in the cache until they are needed; a lookup per request costs little time.",
    )  # fmt: skip


def _share_first() -> Fix:
    return Fix(
        "Put what prompts have in common first: one template, instructions and documents before the question, no ids "
        "or times at the start.", "prompt layout", "", "",
        "Answers may change with the order of the prompt; measure them.",
    )  # fmt: skip
