"""Rule R5: every seat taken while requests wait.

A window fires where in at least one of its scrapes the running sequences stand at the limit of seats while requests
wait, and much of the load waits. The limit is ``max_num_seqs``; where no source tells it, it is the number of sequences
that was never exceeded while others waited and the KV cache had room (a plateau, said as such, with less confidence).
More running than seats is chunked prefill and says nothing. Unit of the impact: ns of the windows that fired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from gpuaudit.analyze.context import Context, Outcome
from gpuaudit.analyze.finding import Declaration, Finding, Fix, Quantity, Threshold
from gpuaudit.analyze.inference import gates, levers, persistence, physics
from gpuaudit.analyze.inference import seats as seating
from gpuaudit.analyze.inference.gates import Look, Teller
from gpuaudit.analyze.inference.model import EngineRun, Number, Window
from gpuaudit.analyze.inference.persistence import Limit, declared
from gpuaudit.analyze.inference.seats import Seats

_SOURCE = "rules of the reference profiler for vLLM (2026-08), R5: "

QUEUE = Threshold("queue_share", Fraction(30, 100), "share", _SOURCE + "at least 30 % of running + waiting wait")
WAITING = Threshold("waiting", 2, "count", _SOURCE + "at least 2 waiting, in the scrape and in the window")
TOLERANCE = Threshold("tolerance", Fraction(1, 2), "count", _SOURCE + "within half a sequence of the seats")
SLACK_S = Threshold(
    "slack_seconds", Fraction(1, 4), "ratio",
    _SOURCE + "as many seats may be empty as requests end in a quarter of a second, at least one",
)  # fmt: skip
SLACK_SHARE = Threshold("slack_share", Fraction(1, 100), "share", _SOURCE + "and at most 1 % of the seats, or one")

IMPACT = 4
CONFIDENCE = Fraction(90, 100)
CONFIDENCE_PARTLY = Fraction(60, 100)
CONFIDENCE_INFERRED = Fraction(50, 100)

DECLARATION = Declaration(
    id="r5_concurrency_saturation",
    kind="rule",
    title="R5 concurrency saturation",
    question="Were all seats of an engine taken while requests waited for one?",
    inputs=gates.INPUTS,
    thresholds=(
        QUEUE, WAITING, TOLERANCE, SLACK_S, SLACK_SHARE, *seating.TARGET_THRESHOLDS, *seating.PLATEAU_THRESHOLDS,
        *seating.LENGTH_THRESHOLDS, *persistence.THRESHOLDS, *gates.SEVERITY,
    ),
    texts={
        "r5_concurrency_saturation": "Engine {engine} ran {running} sequences on average on {seats} seats "
        "({seats_from}) while {waiting} requests waited ({queue} of the load); KV use peaked at {kv_peak}, time to "
        "first token was {ttft} on average. The gate held in {fired} of {active} windows with traffic. Seats "
        "to set: {target}{doubt}."
    },
    never_claims="Where the seats were not told by a setting, which setting held them: only that something did.",
    assumptions=(
        "Impact 4 of 5; confidence 0.90, 0.60 where time to first token or KV use is not known, 0.50 where the seats "
        "are a plateau (reference profiler).",
        "The target is 80 % of the lower of ridge (est) and full-length sequences that the KV cache holds; where the "
        "ridge is not known, at most twice the present seats.",
        gates.SEVERITY_ASSUMPTION,
    ),
)  # fmt: skip


def scrape_flag(
    running: np.ndarray, waiting: np.ndarray, cap: Number, completed_per_s: Number | None, limit: Limit = declared
) -> bool | None:
    """Whether any scrape of a window stands at the seats with requests waiting; None where no scrape tells both."""
    told = np.isfinite(running) & np.isfinite(waiting)
    if not told.any():
        return None
    slack = float(slack_of(cap, completed_per_s, limit))
    full = (running >= float(cap) - slack) & (running <= float(cap + limit(TOLERANCE)))
    return bool((told & full & (waiting >= float(limit(WAITING)))).any())


def slack_of(cap: Number, completed_per_s: Number | None, limit: Limit = declared) -> Fraction:
    """Seats that may be empty between two requests: ``completions/s × 0.25``, from 1 to 1 % of the seats (or 1)."""
    ended = Fraction(completed_per_s or 0) * limit(SLACK_S)
    return min(max(ended, Fraction(1)), max(Fraction(limit(SLACK_SHARE)) * cap, Fraction(1)))


@dataclass(frozen=True)
class Gate:
    """Whether a window is saturated, and the share of the load that waits."""

    fired: bool
    queue_share: Fraction | None = None


def gate(
    *, running: Number | None, waiting: Number | None, cap: Number | None, flag: bool | None = None,
    limit: Limit = declared,
) -> Gate:  # fmt: skip
    """The gate of one window; ``flag`` is :func:`scrape_flag`, None where scrapes were not recorded one by one."""
    if running is None or waiting is None or cap is None or running + waiting <= 0:
        return Gate(False)
    queue = Fraction(waiting) / (running + waiting)
    at_cap = abs(Fraction(running) - Fraction(cap)) <= limit(TOLERANCE) if flag is None else flag
    return Gate(at_cap and waiting >= limit(WAITING) and queue >= limit(QUEUE), queue)


def confidence(*, ttft: bool, kv: bool, inferred: bool = False) -> Fraction:
    """By what is known beside the queue, and whether the seats were told or inferred."""
    if inferred:
        return CONFIDENCE_INFERRED
    return CONFIDENCE if ttft and kv else CONFIDENCE_PARTLY


def evaluate(context: Context) -> Outcome:
    """One finding per engine at most."""
    return gates.over_engines(context, DECLARATION, _look)


def _look(context: Context, run: EngineRun, limit: Limit) -> Look:
    seats = seating.seats_of(run, limit)
    if seats is None:
        return gates.unknown("max_num_seqs is not known, and running sequences show no plateau with requests waiting")
    if (few := gates.too_few(run, limit) or gates.no_queue(run)) is not None:
        return few
    fired = gates.fired_in(run, lambda w: window_gate(w, seats.seats, limit).fired)
    if not persistence.persistent(len(fired), len(run.active_windows), limit):
        return Look(None, f"fired in {len(fired)} of {len(run.active_windows)} windows")
    return Look(_finding(Teller(context, run, DECLARATION, limit, fired), seats), "")


def window_gate(w: Window, cap: int, limit: Limit = declared) -> Gate:
    """The gate of a recorded window."""
    flag = scrape_flag(w.running_polls, w.waiting_polls, cap, w.requests_per_s, limit)
    return gate(running=w.running, waiting=w.waiting, cap=cap, flag=flag, limit=limit)


def _finding(tell: Teller, seats: Seats) -> Finding:
    run, totals = tell.run, tell.run.totals
    sure = confidence(ttft=totals.ttft.mean is not None, kv=totals.kv_peak_share is not None, inferred=seats.inferred)
    target = physics.seat_target(run, seats.seats, tell.limit)
    return tell.finding(
        "r5_concurrency_saturation",
        {
            **tell.windows(),
            "running": tell.measured(totals.running, "count", "mean of active windows", "running"),
            "waiting": tell.measured(totals.waiting, "count", "mean of active windows", "waiting"),
            "queue": tell.measured(totals.queue_share, "share", "waiting / (running + waiting)", "running", "waiting"),
            "seats": _seats(tell, seats),
            "seats_from": "inferred: " + seats.source if seats.inferred else seats.source,
            "kv_peak": tell.measured(
                totals.kv_peak_share, "share", "highest KV use of any scrape", "kv_use",
                reason="" if totals.kv_peak_share is not None else "not exported",
            ),
            "ttft": tell.measured(
                levers.nanoseconds(totals.ttft.mean), "ns", "sum / count of the histogram over active windows", "ttft",
                reason="" if totals.ttft.mean is not None else "not exported, or no request got a token",
            ),
            "target": levers.target_quantity(tell, target),
            "doubt": f" ({target.doubt})" if target is not None and target.doubt else "",
        },
        impact=IMPACT, confidence=sure, fixes=fixes(tell, seats, target),
    )  # fmt: skip


def _seats(tell: Teller, seats: Seats) -> Quantity:
    if not seats.inferred:
        return tell.setting(seats.seats, "count", "max_num_seqs")
    formula = "highest number running, where it stands in a quarter of the scrapes with requests waiting and KV room"
    return tell.measured(seats.seats, "count", formula, "running", "waiting", "kv_use")


def fixes(tell: Teller, seats: Seats, target: seating.SeatTarget | None) -> Sequence[Fix]:
    """Raise the seats while the KV cache has room and the wall is above them; else another replica."""
    kv_peak = tell.run.totals.kv_peak_share
    return fixes_of(kv_peak, seats, target, tell.run.data_parallel, limit=tell.limit, kind=tell.run.kind)


def fixes_of(
    kv_peak: Number | None, seats: Seats, target: seating.SeatTarget | None, engines: int = 1, *,
    limit: Limit = declared, kind: str = "vllm",
) -> Sequence[Fix]:  # fmt: skip
    """The fixes of one situation; ``engines`` data-parallel engines share the seats evenly."""
    setting = seating.SEAT_SETTING.get(kind, "")
    if kv_peak is None:
        return (levers.replica("KV use is not known, so raising the seats cannot be advised"),)
    if kv_peak >= limit(seating.KV_FULL):
        return (levers.replica("the KV cache is too full for more seats; never raise them"),)
    if target is None:
        return (
            Fix(
                "Raise the seats step by step while KV use stays low: no wall is known, so there is no number.",
                setting, "" if seats.inferred else str(seats.seats // engines), "",
                "Each sequence gets slower as the batch grows; a full KV cache preempts requests.",
            ),
        )  # fmt: skip
    if target.target <= seats.seats:
        what = "ridge" if target.kind == "ridge" else "KV cache's bound"
        return (levers.replica(f"the seats are within the margin of the {what}, no raise"),)
    side = "Each sequence gets slower as the batch grows" + seating.watch(target)
    current = str(seats.seats // engines)
    return (
        Fix(
            "Raise the seats to the target." if not seats.inferred else
            "Raise the seats to the target, after checking that this setting is what held them.",
            setting, current + (" (inferred)" if seats.inferred else ""), str(target.target // engines), side,
        ),
    )  # fmt: skip
