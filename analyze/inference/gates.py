"""What the rules on inference engines share: the walk over engines and windows, confidence, score and severity.

A rule judges every active window of an engine by its gate. The windows that fired decide whether it says anything
(``persistence.py``); what it says are the means and peaks of the run. Missing input never counts as evidence: a window
without it does not fire, and an engine without it is not evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

from gpuaudit.analyze.context import UNNUMBERED, Context, Found, NotEvaluated, Outcome
from gpuaudit.analyze.finding import Declaration, Finding, Fix, Quantity, Severity, Threshold
from gpuaudit.analyze.inference import persistence
from gpuaudit.analyze.inference.model import EngineRun, Number, Window
from gpuaudit.analyze.inference.persistence import Limit, declared
from gpuaudit.analyze.inference.rows import rows_of
from gpuaudit.analyze.inference.settings import METRIC
from gpuaudit.analyze.store import quoted

CRITICAL_SCORE = Threshold(
    "critical_score", 4, "ratio",
    "chosen: only an impact of 5 of 5 (or 4 without doubt) reaches it, which is worth waking somebody for",
)  # fmt: skip
WARNING_SCORE = Threshold(
    "warning_score", 2, "ratio", "chosen: an impact of 4 of 5 that is as likely as not, or one of 3 that is likely"
)
MAX_NAME = 200
"""Characters of a model's name or URL in a finding; the bundle has all of them."""

SEVERITY = (CRITICAL_SCORE, WARNING_SCORE)
"""Severity of these rules follows their score: no share of time says how much a queue or a full cache costs."""

SEVERITY_ASSUMPTION = (
    "Severity follows score = impact (1 to 5, from the rule) × confidence (0 to 1), because the time in which the "
    "condition held says nothing of what it cost."
)

TABLES = ("engine_scrapes", "engine_series", "engine_samples", "engine_config")
"""Tables whose quality grades these rules."""

INPUTS = (
    ("engines", ("engine", "op", "url", "state", "reason")),
    ("engine_config", ("engine", "op", "value", "source")),
    ("engine_scrapes", ("start_ns", "duration_ns", "engine", "op", "reset")),
    ("engine_series", ("engine", "series", "metric", "labels", "le")),
    ("engine_samples", ("start_ns", "engine", "series", "value")),
)


@dataclass(frozen=True)
class Look:
    """What a rule saw of one engine: a finding, or why there is none; ``evaluated`` False: it could not be judged."""

    finding: Finding | None
    reason: str
    evaluated: bool = True


def unknown(reason: str) -> Look:
    """The engine could not be judged, and why."""
    return Look(None, reason, False)


def over_engines(
    context: Context, declaration: Declaration, look: Callable[[Context, EngineRun, Limit], Look]
) -> Outcome:
    """The outcome of a rule over all engines. Clear only if every engine could be judged."""
    if not context.engine_runs:
        return NotEvaluated(context.quality.source_reason("engines") or "no inference engine was recorded")
    limit: Limit = partial(_limit, context, declaration.id)
    looks: list[tuple[EngineRun, Look]] = []
    for run in context.engine_runs:
        if run.state != "scraped":
            looks.append((run, unknown(f"was not scraped: {run.reason or run.state}")))
        else:
            looks.append((run, look(context, run, limit)))
    context.unjudged[declaration.id] = frozenset(run.engine for run, x in looks if not x.evaluated)
    items = [x.finding for _, x in looks if x.finding is not None]
    judged = sum(1 for _, x in looks if x.evaluated)
    told = f"{judged} of {len(looks)} engines evaluated"
    told += "".join(f"; engine {run.engine}: {x.reason}" for run, x in looks if x.reason)
    return Found(items, told) if items or judged == len(looks) else NotEvaluated(told)


def _limit(context: Context, rule: str, threshold: Threshold) -> int | Fraction:
    return context.policy.value(threshold, rule)


def too_few(run: EngineRun, limit: Limit) -> Look | None:
    """Not judged: fewer windows with traffic than a condition has to last."""
    active, needed = len(run.active_windows), int(limit(persistence.WINDOWS))
    if active >= needed:
        return None
    return unknown(f"{active} of {len(run.windows)} windows with traffic, {needed} are needed")


def no_queue(run: EngineRun) -> Look | None:
    """Not judged: the gauges of running and waiting requests were not both exported."""
    if run.totals.running is not None and run.totals.waiting is not None:
        return None
    return unknown("running or waiting was not exported")


def fired_in(run: EngineRun, gate: Callable[[Window], bool]) -> tuple[Window, ...]:
    """Active windows whose gate fires."""
    return tuple(w for w in run.active_windows if gate(w))


def severity_of(score: Fraction, limit: Limit = declared) -> Severity:
    """How grave a score is; both bounds are included."""
    if score >= limit(CRITICAL_SCORE):
        return "critical"
    return "warning" if score >= limit(WARNING_SCORE) else "notice"


@dataclass(frozen=True)
class Teller:
    """Makes the quantities and the finding of one rule about one engine, with their evidence."""

    context: Context
    run: EngineRun
    declaration: Declaration
    limit: Limit
    fired: Sequence[Window] = ()

    def measured(self, value: Number | None, unit: str, formula: str, *meanings: str, reason: str = "") -> Quantity:
        """A value that samples of the engine give, derived as ``formula`` says."""
        return Quantity(value, unit, "derived", rows_of(self.context, self.run, meanings), formula, reason)

    def estimated(self, value: Number | None, unit: str, formula: str, *meanings: str, reason: str = "") -> Quantity:
        """A value that a data sheet or catalogue has part in."""
        return Quantity(value, unit, "estimated", rows_of(self.context, self.run, meanings), formula, reason)

    def setting(self, value: Number | None, unit: str, key: str) -> Quantity:
        """A setting of the engine, with the rows that tell it."""
        found = self.run.config.get(key)
        formula = f"{key} from {found.source}" if found else f"{key}"
        return Quantity(
            value, unit, "measured" if found else "derived", settings_rows(self.context, self.run, key), formula,
            "" if value is not None else f"no source tells {key}",
        )  # fmt: skip

    def windows(self) -> dict[str, Quantity | str]:
        """``engine``, ``fired`` and ``active``: the values that every finding of these rules begins with."""
        rows = ("running", "waiting")
        return {
            "engine": name_of(self.run),
            "fired": self.measured(len(self.fired), "count", "active windows in which the gate fired", *rows),
            "active": self.measured(
                len(self.run.active_windows), "count", "evaluable windows that are not idle", *rows
            ),
        }

    def finding(
        self, text: str, values: dict[str, Quantity | str], *, impact: int, confidence: Number,
        fixes: Sequence[Fix] = (), lasting: bool = False, extra: Iterable[str] = (),
    ) -> Finding:  # fmt: skip
        """The finding, unnumbered. Its impact is the time of the windows that fired (of all evaluable: ``lasting``)."""
        score = impact * Fraction(confidence)
        chosen = [w for w in self.run.windows if w.evaluable] if lasting else self.fired
        time_ns = int(sum((w.weight_s for w in chosen), Fraction(0)) * 10**9)
        what = "all evaluable windows" if lasting else "the windows that fired"
        scrapes = (self._where("engine_scrapes"),)
        evidence = (*scrapes, *rows_of(self.context, self.run, ("running", "waiting")), *extra)
        return Finding(
            id=UNNUMBERED,
            rule=self.declaration.id,
            severity=severity_of(score, self.limit),
            text=text,
            values={
                **values,
                "impact_level": Quantity(impact, "count", "assumed", (), "impact of the rule, 1 to 5"),
                "confidence": Quantity(
                    Fraction(confidence), "share", "derived", evidence, "see the rule's declaration"
                ),
            },
            subject=subject_of(self.run),
            impact=Quantity(time_ns, "ns", "derived", evidence, f"duration of {what}"),
            grade=self.context.quality.grade_of(TABLES),
            evidence=tuple(dict.fromkeys(evidence)),
            fixes=tuple(fixes),
            score=score,
        )

    def _where(self, table: str) -> str:
        return self.context.book.where(table, self.run.where)


def settings_rows(context: Context, run: EngineRun, key: str = "") -> tuple[str, ...]:
    """The evidence ids of what sources say of a setting (of all: no ``key``): its rows, or the metric that tells it."""
    found = run.config.get(key)
    if found is not None and found.source == METRIC and key in run.metrics:
        return rows_of(context, run, (key,))
    condition = f"{run.where} AND op = {quoted(key)}" if key else run.where
    told = context.book.present(("engine_config",), condition)
    in_labels = f"{run.where} AND contains(labels, {quoted(key)})" if key else run.where
    return told or (context.book.where("engine_series", in_labels),)


def name_of(run: EngineRun) -> str:
    """The engine as a sentence names it."""
    model = f", {_short(run.model)}" if run.model else ""
    at = f" at {_short(run.url)}" if run.url else ""
    return f"{run.engine} ({_short(run.kind)}{model}{at})"


def subject_of(run: EngineRun) -> dict[str, str]:
    """What a finding about an engine is about."""
    out = {"engine": str(run.engine), "engine_kind": _short(run.kind), "engine_url": _short(run.url)}
    if run.pid is not None:
        out["pid"] = str(run.pid)
    if run.model:
        out["model"] = _short(run.model)
    return out


def _short(text: str) -> str:
    """A name that a server chose for itself, cut to what a sentence can hold."""
    return text if len(text) <= MAX_NAME else text[: MAX_NAME - 1] + "…"
