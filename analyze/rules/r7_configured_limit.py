"""Rule R7: seats that are configured far below what GPU and cache could hold, and are half taken.

A window fires where ``max_num_seqs`` is well below the seat target (that of R5: a margin under the lower of ridge and
KV bound), at least half of the seats are taken, and next to nothing waits: the next rise of traffic meets the setting
before it meets the hardware. Over the whole run the target has to be above the seats as well. Unit of the impact: ns
of the windows that fired.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.analyze.context import Context, Outcome
from gpuaudit.analyze.finding import Declaration, Finding, Fix, Threshold
from gpuaudit.analyze.inference import gates, levers, persistence, physics, seats
from gpuaudit.analyze.inference.gates import Look, Teller
from gpuaudit.analyze.inference.model import EngineRun, Number, Window
from gpuaudit.analyze.inference.persistence import Limit, declared
from gpuaudit.analyze.inference.seats import SeatTarget

_SOURCE = "rules of the reference profiler for vLLM (2026-08), R7: "

BELOW = Threshold("below_target", Fraction(90, 100), "share", _SOURCE + "seats below 90 % of the target")
OCCUPANCY = Threshold("occupancy", Fraction(50, 100), "share", _SOURCE + "at least 50 % of the seats taken")
WAITING = Threshold("waiting", 1, "count", _SOURCE + "at most 1 waiting: a queue at the seats is R5's")

IMPACT = 3
CONFIDENCE = Fraction(80, 100)
CONFIDENCE_DERIVED = Fraction(60, 100)
CONFIDENCE_TRAFFIC = Fraction(50, 100)

DECLARATION = Declaration(
    id="r7_configured_limit",
    kind="rule",
    title="R7 configured limit",
    question="Is the configured number of seats far below what the GPU and the cache could hold?",
    inputs=gates.INPUTS,
    thresholds=(BELOW, OCCUPANCY, WAITING, *seats.TARGET_THRESHOLDS, *persistence.THRESHOLDS, *gates.SEVERITY),
    texts={
        "r7_configured_limit": "Engine {engine} has {seats} seats and could have {target} ({wall}{doubt}): {running} "
        "were taken on average ({occupancy}). The gate held in {fired} of {active} windows with traffic."
    },
    never_claims="That more seats would be taken: that depends on the traffic.",
    assumptions=(
        "Impact 3 of 5; confidence 0.80 for a wall that is the ridge or reported by the server, 0.60 for a computed KV "
        "bound, 0.50 where only the traffic seen bounds it (reference profiler).",
        gates.SEVERITY_ASSUMPTION,
    ),
)

WALLS = {
    "memory": "by the sequences that the KV cache holds",
    "ridge": "by the ridge of the GPU (est)",
    "traffic": "by the KV use that this traffic had",
}


@dataclass(frozen=True)
class Gate:
    """Whether a window shows seats that are configured too low."""

    fired: bool
    reason: str = ""
    target: SeatTarget | None = None


def gate(
    *, running: Number | None, waiting: Number | None, cap: Number | None, target: SeatTarget | None,
    limit: Limit = declared,
) -> Gate:  # fmt: skip
    """The gate of one window."""
    if running is None or waiting is None or cap is None or cap <= 0 or target is None:
        return Gate(False, "running, waiting, the seats or every wall are not known", target)
    if cap >= limit(BELOW) * target.target:
        return Gate(False, "the seats are near the target", target)
    if Fraction(running) / Fraction(cap) < limit(OCCUPANCY):
        return Gate(False, "fewer than half of the seats were taken", target)
    if waiting > limit(WAITING):
        return Gate(False, "requests waited", target)
    return Gate(True, "", target)


def confidence(target: SeatTarget) -> Fraction:
    """By what the wall is known from."""
    if target.kind == "traffic":
        return CONFIDENCE_TRAFFIC
    if target.kind == "memory" and target.bound is not None and target.bound.source == "derived":
        return CONFIDENCE_DERIVED
    return CONFIDENCE


def evaluate(context: Context) -> Outcome:
    """One finding per engine at most."""
    return gates.over_engines(context, DECLARATION, _look)


def _look(context: Context, run: EngineRun, limit: Limit) -> Look:
    cap = run.max_num_seqs
    whole = None if cap is None else physics.seat_target(run, cap, limit)
    if cap is None or whole is None:
        why = f"no wall is known: no KV bound, and no ridge ({physics.why_no_ceiling(run)})"
        return gates.unknown("max_num_seqs is not known" if cap is None else why)
    if (few := gates.too_few(run, limit) or gates.no_queue(run)) is not None:
        return few
    fired = gates.fired_in(run, lambda w: _gate(run, w, cap, limit).fired)
    if not persistence.persistent(len(fired), len(run.active_windows), limit):
        return Look(None, f"fired in {len(fired)} of {len(run.active_windows)} windows")
    if whole.target <= cap:
        return Look(None, "over the whole run the target is not above the seats")
    return Look(_finding(Teller(context, run, DECLARATION, limit, fired), cap, whole), "")


def _gate(run: EngineRun, w: Window, cap: int, limit: Limit) -> Gate:
    target = physics.seat_target(run, cap, limit, running_mean=w.running, kv_peak=w.kv_peak_share)
    return gate(running=w.running, waiting=w.waiting, cap=cap, target=target, limit=limit)


def _finding(tell: Teller, cap: int, target: SeatTarget) -> Finding:
    run, totals = tell.run, tell.run.totals
    told = levers.target_quantity(tell, target)
    occupancy = None if totals.running is None else Fraction(totals.running) / cap
    fix = Fix(
        "Raise the seats to the target.", seats.SEAT_SETTING.get(run.kind, ""), str(cap // run.data_parallel),
        str(target.target // run.data_parallel),
        "Each sequence gets slower as the batch grows" + seats.watch(target),
    )  # fmt: skip
    return tell.finding(
        "r7_configured_limit",
        {
            **tell.windows(),
            "seats": tell.setting(cap, "count", "max_num_seqs"),
            "target": told,
            "wall": WALLS[target.kind],
            "doubt": f"; {target.doubt}" if target.doubt else "",
            "running": tell.measured(totals.running, "count", "mean of active windows", "running"),
            "waiting": tell.measured(totals.waiting, "count", "mean of active windows", "waiting"),
            "occupancy": tell.measured(occupancy, "share", "running / seats", "running"),
        },
        impact=IMPACT, confidence=confidence(target), fixes=(fix,),
    )  # fmt: skip
