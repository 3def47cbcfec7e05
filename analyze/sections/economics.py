"""Economics of inference engines: energy and money per token, and what could be recovered.

Every figure names its denominator, and money names whose price it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Provenance, Quantity, Section, SectionTable, Statement
from gpuaudit.analyze.inference import economics
from gpuaudit.analyze.inference.formulas import RECOVERABLE_TARGET
from gpuaudit.analyze.inference.model import EngineRun
from gpuaudit.analyze.inference.rows import rows_of
from gpuaudit.analyze.store import quoted

ORDER = 60

MAX_ENGINES = 16
"""Engines with a table of their own; the largest servers have 16 GPUs."""

TITLE = "Economics of the engines"
QUESTION = "How much energy and money did a token take, and what of it could be recovered?"

DEFINITIONS = (
    ("tokens per joule", "Generated tokens per second ÷ power of all GPUs of the engine, in windows in which both are "
     "of the same time. The same number is tokens per second per watt."),
    ("batch-relative efficiency", "Generated tokens per second ÷ (decode ceiling × the smaller of mean running "
     "requests and ridge); of a mixture, what its batch could reach reading the experts it touches. It says how well "
     "the batch that ran used the memory bandwidth."),
    ("decode MFU", "Generated tokens per second ÷ (decode ceiling × ridge), which is the compute roof: 2 FLOP per "
     "parameter and token. It says how far the engine is from what the tensor cores could do."),
    ("turnover", "Money per token is said only where at least as many requests were completed as ran at once on the "
     "mean."),
    ("recoverable", "Price per hour × (80 % − batch-relative efficiency). That a well-run engine reaches 80 % of its "
     "ceiling is an assumption. It is of active time: idle time is in the waste ledger."),
)  # fmt: skip


@dataclass(frozen=True)
class _Line:
    label: str
    quantity: Quantity
    basis: str


def evaluate(context: Context) -> Section:
    """The section; not evaluated where no engine was active."""
    runs = [r for r in context.engine_runs if r.totals.active]
    if not runs:
        reason = "no inference engine had an active window" if context.engine_runs else "no inference engine was found"
        return Section("economics", TITLE, QUESTION, "not evaluated", reason)
    names = _names(context)
    told = [_Told(context, run, names) for run in runs[:MAX_ENGINES]]
    if not any(t.anything for t in told):
        reason = "; ".join(f"engine {t.run.engine}: {t.why}" for t in told)
        return Section("economics", TITLE, QUESTION, "not evaluated", reason, definitions=DEFINITIONS)
    lost = len(runs) - len(told)
    return Section(
        "economics", TITLE, QUESTION, "evaluated", "",
        statements=tuple(s for t in told for s in t.statements()), tables=tuple(t.table() for t in told),
        definitions=DEFINITIONS, notes=(f"{lost} more engines were active and have no table here.",) if lost else (),
    )  # fmt: skip


def _names(context: Context) -> dict[str, str]:
    """Names of GPUs by UUID, as leaf 0 tells them."""
    told: Any = context.store.open_body.get("gpus")
    return {str(g.get("uuid")): str(g.get("name")) for g in told or () if isinstance(g, dict)}


class _Told:
    """What is said of one engine."""

    def __init__(self, context: Context, run: EngineRun, names: dict[str, str]) -> None:
        self.run = run
        self.energy = economics.energy(run, context.engine_runs)
        self.price = economics.engine_price(run, context.prices, names, context.engine_runs)
        self.cost = economics.cost(run, self.price)
        self.efficiency = economics.efficiency(run)
        self.recoverable = economics.recoverable_per_hour(self.price, self.efficiency.batch)
        self._scrapes = rows_of(context, run, ("generation_tokens", "running", "completed"))
        listed = ", ".join(quoted(u) for u in run.gpus)
        self._gpus = (context.book.where("nvml_samples", f"gpu_uuid IN ({listed})"),) if run.gpus else self._scrapes

    @property
    def anything(self) -> bool:
        """Whether any figure could be computed."""
        return any(
            value is not None
            for value in (self.energy.tokens_per_joule, self.cost.active, self.efficiency.mfu, self.price.per_hour)
        )

    @property
    def why(self) -> str:
        """Why none could."""
        reasons = (
            f"energy: {self.energy.reason}",
            f"money: {self.price.reason}",
            f"ceilings: {self.efficiency.reason}",
        )
        return ", ".join(reasons)

    def table(self) -> SectionTable:
        """One row per figure."""
        rows = tuple((x.label, x.quantity, x.basis) for x in (*self._energy(), *self._money(), *self._shares()))
        columns = (("figure", "figure"), ("value", "value"), ("basis", "of"))
        notes = [f"Price: {self.price.label}." if self.price.per_hour is not None else f"Price: {self.price.reason}."]
        if self.price.gpus > len(self.run.gpus):
            notes.append("More GPUs are paid for by the recorded parallel degrees than were observed.")
        if self.run.ceiling is not None:
            b = self.run.ceiling
            notes.append(
                f"Ceilings: {b.source('gpu')}; weights {b.source('bits')}; parameters {b.source('active')}; "
                f"computed in {b.compute}; tensor parallel: {b.source('tp')}."
            )
        return SectionTable(
            f"economics_{self.run.engine}", f"Energy and money of engine {self.run.engine}", columns, rows, tuple(notes)
        )

    def statements(self) -> Iterator[Statement]:
        """What the reader has to know first; nothing where nothing could be computed."""
        engine = str(self.run.engine)
        if self.energy.tokens_per_joule is not None:
            lines = {x.label: x.quantity for x in self._energy()}
            yield Statement(
                "Engine {engine} generated {per_joule}, which is {per_token}.",
                {"engine": engine, "per_joule": lines[PER_JOULE], "per_token": lines[PER_TOKEN]},
            )
        money = {x.label: x.quantity for x in self._money()}
        if self.cost.active is not None:
            yield Statement(
                "A million output tokens of engine {engine} took {cost} at {price} for its {gpus} ({label}).",
                {"engine": engine, "cost": money[COST], "price": money[PRICE], "gpus": money[GPUS],
                 "label": self.price.label},
            )  # fmt: skip
        if self.recoverable is not None:
            yield Statement(
                "{recoverable} of active time of engine {engine} could be recovered if its batch reached {target} of "
                "its ceiling, which is an assumption; it reached {reached}.",
                {"engine": engine, "recoverable": money[RECOVERABLE], "target": TARGET,
                 "reached": {x.label: x.quantity for x in self._shares()}[BATCH]},
            )  # fmt: skip

    def _energy(self) -> Iterator[_Line]:
        e, both = self.energy, tuple(dict.fromkeys((*self._gpus, *self._scrapes)))
        basis, reason = "windows with power of the same time", self.energy.reason
        yield _Line("power of its GPUs", _q(e.power_mw, "mW", "derived", self._gpus, "Σ over GPUs of mean power × "
                    "length ÷ Σ length", reason), basis)  # fmt: skip
        yield _Line("generated tokens per second", _q(e.generation_tps, "token/s", "derived", self._scrapes,
                    "Σ rate × length ÷ Σ length", reason), basis)  # fmt: skip
        yield _Line(PER_JOULE, _q(e.tokens_per_joule, "token/J", "derived", both, "tokens/s ÷ W", reason), basis)
        yield _Line(PER_TOKEN, _q(e.mj_per_token, "mJ/token", "derived", both, "mW ÷ tokens/s", reason), basis)

    def _money(self) -> Iterator[_Line]:
        p, both = self.price, tuple(dict.fromkeys((*self._gpus, *self._scrapes)))
        known = p.per_hour is not None
        degrees = self.run.given("tensor_parallel_size", "pipeline_parallel_size")
        paid: Provenance = "assumed" if degrees else "derived"
        yield _Line(GPUS, _q(p.gpus if known else None, "GPU", paid, self._gpus, "the larger of GPUs observed and "
                    "tensor × pipeline × data parallel degree", p.reason), "the engine")  # fmt: skip
        yield _Line(PRICE, _q(p.per_hour, f"{p.currency}/h", p.provenance, self._gpus, "Σ price of its GPUs",
                    p.reason), p.label or "no price")  # fmt: skip
        formula = "price per hour × 1e6 ÷ (tokens/s × 3600)"
        yield _Line(COST, _q(self.cost.active, f"{p.currency}/Mtoken", p.provenance, both, formula, self.cost.reason),
                    "active windows")  # fmt: skip
        yield _Line("a million output tokens, idle time included", _q(self.cost.whole, f"{p.currency}/Mtoken",
                    p.provenance, both, formula, self.cost.reason), "evaluable windows")  # fmt: skip
        reason = p.reason or self.efficiency.reason or "the batch's efficiency is at the assumed target or above it"
        yield _Line(RECOVERABLE, _q(self.recoverable, f"{p.currency}/h", "assumed", both, "price per hour × (0.80 − "
                    "batch-relative efficiency)", reason), "active time, at 80 % of the ceiling")  # fmt: skip

    def _shares(self) -> Iterator[_Line]:
        e, b = self.efficiency, self.run.ceiling
        made: Provenance = b.provenance if b is not None else "estimated"
        seats = e.reason or "max_num_seqs is not known"
        kv = (
            e.reason
            or (b.reason("batch_tps") or b.reason("kv_token_bytes") if b is not None else "")
            or "the length of requests is not known"
        )
        of_seats: Provenance = "assumed" if self.run.given("max_num_seqs") else made
        for label, value, formula, basis, reason, sort in (
            (BATCH, e.batch, _over("mean running", self.run), "ceiling of the batch", e.reason, made),
            ("decode MFU", e.mfu, "tokens/s ÷ (ceiling × ridge)", "compute roof", e.reason, made),
            ("of the seats' ceiling", e.seats, _over("max_num_seqs", self.run), "seats", seats, of_seats),
            ("of the KV-aware ceiling", e.kv, "tokens/s ÷ min(B·BW ÷ (weights + B·length·KV per token), ceiling × "
             "ridge)", "batch that reads its KV cache", kv, made),
        ):  # fmt: skip
            yield _Line(label, _q(value, "share", sort, self._scrapes, formula, reason), basis)


def _over(batch: str, run: EngineRun) -> str:
    """The formula of a share of what a batch could reach."""
    if run.ceiling is not None and run.ceiling.mixture:
        return f"tokens/s ÷ min(B·BW ÷ weights of the experts that B touch, ceiling × ridge), B = {batch}"
    return f"tokens/s ÷ (ceiling × min({batch}, ridge))"


PER_JOULE, PER_TOKEN = "tokens per joule (tokens/s per W)", "energy per token"
GPUS, PRICE, COST, RECOVERABLE = "GPUs paid for", "price of its GPUs", "a million output tokens", "recoverable"
BATCH = "batch-relative efficiency"
TARGET = Quantity(RECOVERABLE_TARGET, "share", "assumed")


def _q(
    value: int | Fraction | None, unit: str, provenance: Provenance, evidence: tuple[str, ...], *told: str
) -> Quantity:  # fmt: skip
    """``told``: the formula, and why the value is absent where it is."""
    formula, reason = told
    return Quantity(value, unit, provenance, evidence, formula, "" if value is not None else reason or "not known")
