"""The figures that a comparison of two runs of an engine shows, each before and after, with its change and its note.

Times are ns, rates tokens/s, energies mJ per token, efficiency a share with its change in percentage points. A figure
that one side lacks has no change, with the reason: nothing is filled in from the other side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Json, Provenance, Quantity
from gpuaudit.analyze.inference import compare, formulas, physics
from gpuaudit.analyze.inference.model import EngineRun, Number
from gpuaudit.analyze.inference.rows import rows_of

NS_PER_S = 10**9
MJ_PER_J = 1000
MW_PER_W = 1000
POINTS = 100
"""Percentage points of a share."""

NOTED = {n.metric for n in compare.NOTES}


@dataclass(frozen=True)
class Figure:
    """One figure of both sides. ``change`` is relative (a share), of the efficiency absolute (points).

    ``worse`` is for display; None where the figure has no such note, or one side is not known.
    """

    name: str
    before: Quantity
    after: Quantity
    change: Quantity
    worse: bool | None

    def to_json(self) -> Json:
        return {
            "name": self.name, "before": self.before.to_json(), "after": self.after.to_json(),
            "change": self.change.to_json(), "worse": self.worse,
        }  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """How a figure is read of a run: value or reason, its unit, formula, and the metrics behind it."""

    name: str
    unit: str
    formula: str
    meanings: tuple[str, ...]
    read: Callable[[EngineRun], tuple[Number | None, str]]
    provenance: Provenance = "derived"


def _plain(read: Callable[[EngineRun], Number | None], reason: str) -> Callable[[EngineRun], tuple[Number | None, str]]:
    def found(run: EngineRun) -> tuple[Number | None, str]:
        value = read(run)
        return value, "" if value is not None else reason

    return found


def _ns(seconds: Fraction | None) -> Fraction | None:
    return None if seconds is None else seconds * NS_PER_S


def _efficiency(run: EngineRun) -> tuple[Number | None, str]:
    value = physics.batch_efficiency(run)
    return value, "" if value is not None else physics.why_no_ceiling(run)


def _ttft_p99(run: EngineRun) -> tuple[Number | None, str]:
    p99 = run.totals.ttft.p99
    if p99 is None:
        return None, "no request got its first token in a window with traffic, or the histogram was not exported"
    if p99.clamped:
        return None, "it lies past the histogram's last finite bucket"
    return p99.value * NS_PER_S, ""


def _energy(run: EngineRun) -> tuple[Number | None, str]:
    watts = None if run.totals.power_mw is None else run.totals.power_mw / MW_PER_W
    joules = formulas.joules_per_token(run.totals.energy_generation_tps, watts)
    return (None if joules is None else joules * MJ_PER_J), "" if joules is not None else "no power beside tokens"


_MEAN = "sum / count of the histogram over active windows"
_WEIGHTED = "mean of the active windows, weighted by duration"

KINDS: tuple[Kind, ...] = (
    Kind("Efficiency", "share", "tokens/s / (decode ceiling × min(mean running, ridge))",
         ("generation_tokens", "running"), _efficiency, "estimated"),
    Kind("Throughput", "token/s", _WEIGHTED, ("generation_tokens",),
         _plain(lambda r: r.totals.generation_tps, "generated tokens were not exported")),
    Kind("TTFT p99", "ns", "p99 of the merged bucket deltas of active windows", ("ttft",), _ttft_p99),
    Kind("TTFT mean", "ns", _MEAN, ("ttft",), _plain(lambda r: _ns(r.totals.ttft.mean), "not exported")),
    Kind("TPOT mean", "ns", _MEAN, ("tpot",), _plain(lambda r: _ns(r.totals.tpot.mean), "not exported")),
    Kind("J/token", "mJ/token", "power / generated tokens/s of the windows that have both", ("generation_tokens",),
         _energy),
    Kind("Running", "count", _WEIGHTED, ("running",), _plain(lambda r: r.totals.running, "not exported")),
    Kind("Waiting", "count", _WEIGHTED, ("waiting",), _plain(lambda r: r.totals.waiting, "not exported")),
    Kind("Requests", "request/s", _WEIGHTED, ("completed",),
         _plain(lambda r: r.totals.requests_per_s, "not exported")),
    Kind("Preemptions", "1/s", _WEIGHTED, ("preemptions",),
         _plain(lambda r: r.totals.preemptions_per_s, "not exported")),
    Kind("Prompt mean", "token", "sum / count of the histogram over evaluable windows", ("prompt_size",),
         _plain(lambda r: r.totals.prompt_size.mean, "no request finished, or not exported")),
    Kind("Generated mean", "token", "sum / count of the histogram over evaluable windows", ("generation_size",),
         _plain(lambda r: r.totals.generation_size.mean, "no request finished, or not exported")),
    Kind("KV peak", "share", "highest KV use of any scrape", ("kv_use",),
         _plain(lambda r: r.totals.kv_peak_share, "not exported")),
    Kind("Active windows", "count", "evaluable windows that are not idle", ("running", "waiting"),
         lambda r: (r.totals.active, "")),
)  # fmt: skip
"""In the order they are shown."""


def figures(
    before: Context, run_before: EngineRun, after: Context, run_after: EngineRun,
    price: tuple[Fraction, str] | None = None,
) -> dict[str, Figure]:  # fmt: skip
    """Every figure by its name; cost only with a ``price`` per GPU-hour and its currency."""
    kinds = KINDS if price is None else (*KINDS, _cost(*price))
    return {k.name: _figure(k, before, run_before, after, run_after) for k in kinds}


def _cost(per_hour: Fraction, currency: str) -> Kind:
    """Price of a million generated tokens, where the requests that ran were replaced at least once."""

    def read(run: EngineRun) -> tuple[Number | None, str]:
        gpus = run.ceiling.tp if run.ceiling else len(run.gpus)
        if not gpus:
            return None, "the engine's GPUs are not known"
        if not formulas.turned_over(run.totals.deltas.get("completed"), run.totals.running):
            return None, "fewer requests finished than ran on average"
        value = formulas.cost_per_mtoken(per_hour * gpus, run.totals.generation_tps)
        return value, "" if value is not None else "nothing was generated"

    formula = "rate × GPUs / generated tokens/s"
    return Kind("Cost/1M", f"{currency}/Mtoken", formula, ("generation_tokens",), read, "assumed")


def _figure(kind: Kind, before: Context, run_before: EngineRun, after: Context, run_after: EngineRun) -> Figure:
    a, b = _side(kind, before, run_before), _side(kind, after, run_after)
    absolute = kind.name == "Efficiency"
    change, formula = compare.change_share(a.value, b.value), "(after − before) / before"
    worse_before, worse_after = a.value, b.value
    if absolute:
        told = a.value is not None and b.value is not None
        change = (Fraction(b.value or 0) - Fraction(a.value or 0)) * POINTS if told else None
        formula = "(after − before) × 100"
        worse_before = None if a.value is None else a.value * POINTS
        worse_after = None if b.value is None else b.value * POINTS
    reason = "" if change is not None else "one side is not known, or the side before is 0"
    unit = "points" if absolute else "share"
    noted = kind.name in NOTED and a.value is not None and b.value is not None
    return Figure(
        kind.name, a, b, Quantity(change, unit, a.provenance, (), formula, reason),
        compare.worse(kind.name, worse_before, worse_after) if noted else None,
    )  # fmt: skip


def _side(kind: Kind, context: Context, run: EngineRun) -> Quantity:
    value, reason = kind.read(run)
    return Quantity(value, kind.unit, kind.provenance, rows_of(context, run, kind.meanings), kind.formula, reason)
