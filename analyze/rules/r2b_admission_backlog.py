"""Rule R2b: requests that wait although seats are free, because their prompts do not fit into the KV cache.

A window fires where much of the load waits, fewer sequences run than may, the cache is near full, and the free tokens
of the cache are fewer than the waiting requests' prompts need. Seats, blocks, block size and the mean prompt are all
needed: without one of them nothing is said. Unit of the impact: ns of the windows that fired.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.analyze.context import Context, Outcome
from gpuaudit.analyze.finding import Declaration, Finding, Threshold
from gpuaudit.analyze.inference import gates, levers, persistence, physics
from gpuaudit.analyze.inference.gates import Look, Teller
from gpuaudit.analyze.inference.model import EngineRun, Number, Window
from gpuaudit.analyze.inference.persistence import Limit, declared

_SOURCE = "rules of the reference profiler for vLLM (2026-08), R2b: "

QUEUE = Threshold("queue_share", Fraction(30, 100), "share", _SOURCE + "at least 30 % of running + waiting wait")
NEAR_FULL = Threshold("kv_near_full", Fraction(88, 100), "share", _SOURCE + "88 % of the cache, mean or peak")

IMPACT = 4
CONFIDENCE = Fraction(85, 100)

DECLARATION = Declaration(
    id="r2b_admission_backlog",
    kind="rule",
    title="R2b admission backlog",
    question="Did requests wait, with seats free, because their prompts did not fit into the KV cache?",
    inputs=gates.INPUTS,
    thresholds=(QUEUE, NEAR_FULL, *persistence.THRESHOLDS, *levers.KV_THRESHOLDS, *gates.SEVERITY),
    texts={
        "r2b_admission_backlog": "Engine {engine} kept {waiting} requests waiting on average while {running} of "
        "{seats} seats were taken: in window {worst} the waiting prompts needed {demand} and {free} were free. "
        "The gate held in {fired} of {active} windows with traffic."
    },
    never_claims="That every waiting prompt is as long as the mean one, or that prompts share nothing in the cache.",
    assumptions=(
        "Impact 4 of 5 (chosen, as R2's: the reference names none); confidence 0.85 (reference profiler).",
        "A waiting request needs as many tokens as the mean prompt of the finished ones.",
        gates.SEVERITY_ASSUMPTION,
    ),
)


@dataclass(frozen=True)
class Gate:
    """Whether prompts wait for room; tokens free and needed, and the share of the load that waits."""

    fired: bool
    reason: str = ""
    free_tokens: Fraction | None = None
    demand_tokens: Fraction | None = None
    queue_share: Fraction | None = None


def gate(
    *, running: Number | None, waiting: Number | None, cap: Number | None, blocks: Number | None,
    block_size: Number | None, prompt_mean: Number | None, kv_use: Number | None, kv_peak: Number | None = None,
    limit: Limit = declared,
) -> Gate:  # fmt: skip
    """The gate of one window. ``kv_use`` is the share at its last scrape, ``kv_peak`` the highest of the window."""
    given = (running, waiting, cap, blocks, block_size, prompt_mean, kv_use)
    if running is None or waiting is None or cap is None or blocks is None or None in given:
        return Gate(False, "an input is missing")
    if block_size is None or prompt_mean is None or kv_use is None or running + waiting <= 0:
        return Gate(False, "nothing ran or waited")
    free = Fraction(blocks) * block_size * (1 - Fraction(kv_use))
    demand = Fraction(waiting) * prompt_mean
    queue = Fraction(waiting) / (running + waiting)
    full = any(v is not None and v >= limit(NEAR_FULL) for v in (kv_use, kv_peak))
    fired = queue >= limit(QUEUE) and running < cap and full and free < demand
    return Gate(fired, "", free, demand, queue)


def evaluate(context: Context) -> Outcome:
    """One finding per engine at most."""
    return gates.over_engines(context, DECLARATION, _look)


def _look(context: Context, run: EngineRun, limit: Limit) -> Look:
    needed = {
        "max_num_seqs": run.max_num_seqs, "num_gpu_blocks": physics.blocks(run), "block_size": run.number("block_size"),
        "a mean prompt": run.totals.prompt_size.mean, "KV use": run.totals.kv_peak_share,
    }  # fmt: skip
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        return gates.unknown(f"not known: {', '.join(missing)}")
    if (few := gates.too_few(run, limit)) is not None:
        return few
    fired = gates.fired_in(run, lambda w: _gate(run, w, limit).fired)
    if not persistence.persistent(len(fired), len(run.active_windows), limit):
        return Look(None, f"fired in {len(fired)} of {len(run.active_windows)} windows")
    return Look(_finding(Teller(context, run, DECLARATION, limit, fired)), "")


def _gate(run: EngineRun, w: Window, limit: Limit) -> Gate:
    prompt = w.prompt_size.mean
    return gate(
        running=w.running, waiting=w.waiting, cap=run.max_num_seqs, blocks=physics.blocks(run),
        block_size=run.number("block_size"), kv_use=w.kv_last_share, kv_peak=w.kv_peak_share,
        prompt_mean=prompt if prompt is not None else run.totals.prompt_size.mean, limit=limit,
    )  # fmt: skip


def _finding(tell: Teller) -> Finding:
    run = tell.run
    gated = [(w, _gate(run, w, tell.limit)) for w in tell.fired]
    window, worst = max(gated, key=lambda g: (g[1].demand_tokens or 0) - (g[1].free_tokens or 0))
    fixes = levers.present(
        levers.no_override(tell), levers.more_memory(tell, physics.headroom_gb(run)), levers.fp8_kv(tell),
        levers.shorter_length(tell), levers.offload(tell),
    )  # fmt: skip
    return tell.finding(
        "r2b_admission_backlog",
        {
            **tell.windows(),
            "running": tell.measured(run.totals.running, "count", "mean of active windows", "running"),
            "waiting": tell.measured(run.totals.waiting, "count", "mean of active windows", "waiting"),
            "seats": tell.setting(run.max_num_seqs, "count", "max_num_seqs"),
            "worst": tell.measured(window.index, "count", "index of the window with the largest shortage", "running"),
            "free": tell.measured(
                worst.free_tokens, "token", "num_gpu_blocks × block_size × (1 − KV use)", "kv_use", "waiting"
            ),
            "demand": tell.measured(
                worst.demand_tokens, "token", "waiting × mean prompt tokens", "waiting", "prompt_size"
            ),
            "queue_share": tell.measured(
                worst.queue_share, "share", "waiting / (running + waiting)", "running", "waiting"
            ),
        },
        impact=IMPACT, confidence=CONFIDENCE,
        fixes=fixes or (levers.replica("the pool of blocks cannot be made larger on this GPU"),),
    )  # fmt: skip
