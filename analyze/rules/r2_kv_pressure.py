"""Rule R2: a KV cache that is full, and requests that suffer from it.

A window fires where KV use (mean or peak) is near full and there is harm: preemptions, swapped requests, or a queue. A
full cache without harm is a cache well used. Preemptions are counted from the engine's counter, over whole windows,
so that polls that came late lose none of them. Unit of the impact: ns of the windows that fired.

The gate is that of the reference profiler's newest generation; that a single window with preemptions is enough is its
first one's, which also says how sure such early evidence is (docs/decisions/0009-root-cause-groups.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.analyze.context import Context, Outcome
from gpuaudit.analyze.finding import Declaration, Finding, Fix, Threshold
from gpuaudit.analyze.inference import gates, levers, persistence, physics, seats
from gpuaudit.analyze.inference.gates import Look, Teller
from gpuaudit.analyze.inference.model import EngineRun, Number, Window
from gpuaudit.analyze.inference.persistence import Limit, declared

_SOURCE = "rules of the reference profiler for vLLM (2026-08), R2: "
_FIRST = "rules of the reference profiler for vLLM (2026-06), R2: "

NEAR_FULL = Threshold("kv_near_full", Fraction(88, 100), "share", _SOURCE + "88 % of the cache, mean or peak")
PREEMPTIONS = Threshold(
    "preemptions_per_s", Fraction(2, 100), "1/s",
    _SOURCE + "more than 0.02/s; inside a window of 10 s any event is more, so it decides over the run",
)  # fmt: skip
SWAPPED = Threshold("swapped", 2, "count", _SOURCE + "at least 2 requests swapped out (engines before version 1)")
WAITING = Threshold("waiting", 2, "count", _SOURCE + "more than 2 waiting")
EARLY_FULL = Threshold("kv_early_full", Fraction(95, 100), "share", _FIRST + "two windows at 95 % are enough")
EARLY_WINDOWS = Threshold("early_windows", 2, "count", _FIRST + "two windows at 95 % are enough", least=1)

IMPACT = 4
CONFIDENCE_PREEMPTED = Fraction(95, 100)
CONFIDENCE_FULL = Fraction(85, 100)
CONFIDENCE_NEAR = Fraction(70, 100)

DECLARATION = Declaration(
    id="r2_kv_pressure",
    kind="rule",
    title="R2 KV cache pressure",
    question="Was the KV cache so full that requests were preempted, swapped out or kept waiting?",
    inputs=gates.INPUTS,
    thresholds=(
        NEAR_FULL, PREEMPTIONS, SWAPPED, WAITING, EARLY_FULL, EARLY_WINDOWS, *persistence.THRESHOLDS,
        *levers.KV_THRESHOLDS, seats.MARGIN, seats.KV_NOISE, *gates.SEVERITY,
    ),
    texts={
        "r2_kv_pressure": "The KV cache of engine {engine} was {kv_mean} full on average and {kv_peak} at its peak; "
        "{preemptions} preemptions ({preemption_rate} while there was traffic), {waiting} requests waiting on average. "
        "The gate held in {fired} of {active} windows with traffic."
    },
    never_claims="Which requests were preempted, or how much longer each of them took.",
    assumptions=(
        "Impact 4 of 5 (chosen, as R5's: the reference names none). Confidence is fired / active windows; where the "
        "early gate decided, 0.95 with preemptions, 0.85 at 95 % and more, else 0.70 (reference profiler).",
        "Every preempted request is computed again from its beginning, unless its blocks were kept elsewhere.",
        gates.SEVERITY_ASSUMPTION,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Gate:
    """Whether a window shows KV pressure; ``full`` without ``harm`` is none."""

    fired: bool
    full: bool
    harm: bool
    early: bool = False
    """It is enough alone (preemptions) or with one more (95 %): the early gate counts it."""


def near_full(kv_mean: Number | None, kv_peak: Number | None, limit: Limit = declared) -> bool:
    """Mean or peak at the bound or above; what is missing is not."""
    return any(v is not None and v >= limit(NEAR_FULL) for v in (kv_mean, kv_peak))


def gate(
    *, kv_mean: Number | None = None, kv_peak: Number | None = None, preemptions_per_s: Number | None = None,
    swapped: Number | None = None, waiting: Number | None = None, limit: Limit = declared,
) -> Gate:  # fmt: skip
    """The gate of one window; KV use as shares."""
    full = near_full(kv_mean, kv_peak, limit)
    preempted = preemptions_per_s is not None and preemptions_per_s > limit(PREEMPTIONS)
    queued = waiting is not None and waiting > limit(WAITING)
    harm = preempted or queued or (swapped is not None and swapped >= limit(SWAPPED))
    early = preempted or near_full(kv_mean, kv_peak, lambda t: limit(EARLY_FULL) if t is NEAR_FULL else limit(t))
    return Gate(full and harm, full, harm, full and harm and early)


@dataclass(frozen=True)
class Evidence:
    """What the windows of a run add up to."""

    fired: int
    active: int
    preempted: int
    at_early_full: int


def significant(seen: Evidence, limit: Limit = declared) -> bool:
    """The persistence gate, or one fired window with preemptions, or two that fired at 95 % and more."""
    return persistence.persistent(seen.fired, seen.active, limit) or early(seen, limit)


def early(seen: Evidence, limit: Limit = declared) -> bool:
    """The first generation's early gate."""
    return seen.preempted >= 1 or seen.at_early_full >= limit(EARLY_WINDOWS)


def confidence(seen: Evidence, limit: Limit = declared) -> Fraction:
    """fired / active where the condition lasted; else what the early evidence is worth."""
    if persistence.persistent(seen.fired, seen.active, limit) or not seen.active:
        return density(seen.fired, seen.active)
    return early_confidence(preempted=seen.preempted > 0, full=seen.at_early_full > 0)


def density(fired: int, active: int) -> Fraction:
    """fired / active; 0 without active windows."""
    return Fraction(fired, active) if active else Fraction(0)


def early_confidence(*, preempted: bool, full: bool) -> Fraction:
    """0.95 with preemptions, 0.85 at 95 % of KV use and more, else 0.70."""
    if preempted:
        return CONFIDENCE_PREEMPTED
    return CONFIDENCE_FULL if full else CONFIDENCE_NEAR


def evaluate(context: Context) -> Outcome:
    """One finding per engine at most."""
    return gates.over_engines(context, DECLARATION, _look)


def _look(context: Context, run: EngineRun, limit: Limit) -> Look:
    if not run.active_windows:
        return gates.unknown(f"no traffic in {len(run.windows)} windows")
    if run.totals.kv_peak_share is None:
        return gates.unknown(_why_no_kv(run))
    fired = gates.fired_in(run, lambda w: window_gate(w, limit).fired)
    seen = Evidence(
        len(fired), len(run.active_windows), sum(1 for w in fired if w.preemptions),
        sum(1 for w in fired if near_full(w.kv_mean_share, w.kv_peak_share, lambda _: limit(EARLY_FULL))),
    )  # fmt: skip
    if significant(seen, limit):
        return Look(_finding(Teller(context, run, DECLARATION, limit, fired), confidence(seen, limit)), "")
    few = gates.too_few(run, limit)
    return few or Look(None, f"fired in {seen.fired} of {seen.active} windows")


def _why_no_kv(run: EngineRun) -> str:
    if "kv_use" in run.metrics:
        return f"{run.metrics['kv_use']} never told a share from 0 to 1 while the running gauge was there"
    return f"KV use was not exported: {run.absent.get('kv_use', 'the engine has no such metric')}"


def window_gate(window: Window, limit: Limit = declared) -> Gate:
    """The gate of a recorded window."""
    return gate(
        kv_mean=window.kv_mean_share, kv_peak=window.kv_peak_share, preemptions_per_s=window.preemptions_per_s,
        swapped=window.swapped, waiting=window.waiting, limit=limit,
    )  # fmt: skip


def _finding(tell: Teller, sure: Fraction) -> Finding:
    totals = tell.run.totals
    preempted = totals.deltas.get("preemptions")
    return tell.finding(
        "r2_kv_pressure",
        {
            **tell.windows(),
            "kv_mean": tell.measured(
                totals.kv_mean_share, "share", "mean KV use of the active windows, weighted by duration", "kv_use"
            ),
            "kv_peak": tell.measured(totals.kv_peak_share, "share", "highest KV use of any scrape", "kv_use"),
            "preemptions": tell.measured(
                preempted, "count", "growth of the counter from the first scrape to the last", "preemptions",
                reason="" if preempted is not None else tell.run.absent.get("preemptions", "not exported"),
            ),
            "preemption_rate": tell.measured(
                totals.preemptions_per_s, "1/s", "mean of the active windows, weighted by duration", "preemptions",
                reason="" if totals.preemptions_per_s is not None else "not exported",
            ),
            "waiting": tell.measured(
                totals.waiting, "count", "mean of the active windows, weighted by duration", "waiting",
                reason="" if totals.waiting is not None else "not exported",
            ),
        },
        impact=IMPACT, confidence=sure, fixes=_fixes(tell, preempted),
    )  # fmt: skip


def _fixes(tell: Teller, preempted: Number | None) -> Sequence[Fix]:
    """First what costs nothing, then what cuts throughput; a replica where no lever is left."""
    free = levers.present(
        levers.no_override(tell),
        levers.prefix_caching(tell),
        levers.more_memory(tell, physics.headroom_gb(tell.run)),
        levers.shorter_length(tell),
    )
    costly = levers.present(levers.fewer_seats(tell) if preempted else None, levers.fp8_kv(tell), levers.offload(tell))
    if free or costly:
        return (*free, *costly)
    return (levers.replica("every lever on this engine is used, or what it needs was not recorded"),)
