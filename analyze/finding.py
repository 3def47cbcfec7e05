"""What analysis hands to a report: the findings document and its parts, and nothing about how it will look.

``findings.json`` is canonical JSON (RFC 8785) of :meth:`Document.to_json`. Integers that may pass 2^53 are decimal
strings, exact ratios are ``{"num": "…", "den": "…"}``; there is no float anywhere in it. Words are not made here: a
finding names a text of its rule's declaration and the values that go into it (``report/view.py`` writes them out).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

SCHEMA = "gpu-audit/findings/1"

Provenance = Literal["measured", "derived", "estimated", "assumed"]
Severity = Literal["critical", "warning", "notice"]
Grade = Literal["A", "B", "C", "D"]
RuleState = Literal["finding", "clear", "not evaluated"]

UNITS = (
    "ns", "count", "bytes", "share", "ratio", "mW", "MHz", "°C", "gpu_ns",
    "flop/s", "flop/byte", "bytes/s", "token", "token/s", "request/s", "prompt/s", "1/s", "bits", "mJ", "mJ/token",
    "token/J", "points", "GPU",
)  # fmt: skip
"""Units of a quantity, in their base: a share is 0–1, ``gpu_ns`` is GPU-nanoseconds, ``points`` percentage points."""

MAX_VALUE = 4_096
"""Characters of a text among the values of a chain, or in its subject: names in evidence may have any length."""

Json = Any
"""A value that canonical JSON can hold."""


@dataclass(frozen=True)
class Quantity:
    """One number with its unit and provenance; ``value`` None means not recorded, and ``reason`` says why.

    ``unit`` is one of :data:`UNITS`, or a currency code, alone or as ``USD/h``, ``USD/year`` or ``USD/Mtoken``.
    ``evidence`` names entries of the document's evidence table; ``formula`` how a derived value was made.
    """

    value: int | Fraction | None
    unit: str
    provenance: Provenance
    evidence: tuple[str, ...] = ()
    formula: str = ""
    reason: str = ""

    def to_json(self) -> Json:
        out: dict[str, Json] = {"value": number_to_json(self.value), "unit": self.unit, "provenance": self.provenance}
        if self.evidence:
            out["evidence"] = list(self.evidence)
        if self.formula:
            out["formula"] = self.formula
        if self.reason:
            out["reason"] = self.reason
        return out


def number_to_json(value: int | Fraction | None) -> Json:
    """An exact number as canonical JSON: decimal string for an integer, num/den strings for a ratio."""
    if value is None:
        return None
    if isinstance(value, Fraction) and value.denominator != 1:
        return {"num": str(value.numerator), "den": str(value.denominator)}
    return str(int(value))


def number_from_json(value: Json) -> int | Fraction | None:
    """The inverse of :func:`number_to_json`; ValueError on anything else."""
    if value is None:
        return None
    if isinstance(value, dict) and set(value) == {"num", "den"}:
        return Fraction(int(value["num"]), int(value["den"]))
    if isinstance(value, str):
        return int(value)
    raise ValueError(f"not a number of a findings document: {value!r:.80}")


@dataclass(frozen=True)
class Evidence:
    """Where a number can be looked up: table, sealed leaves it reads, rows, and the query that gives them."""

    id: str
    table: str
    leaves: tuple[int, ...]
    rows: int
    query: str

    def to_json(self) -> Json:
        return {"id": self.id, "table": self.table, "leaves": list(self.leaves), "rows": self.rows, "query": self.query}


@dataclass(frozen=True)
class Threshold:
    """A number a rule decides by, with the source that justifies it.

    A policy file may set another value, from ``least`` to ``most`` (for a share, 1), unless it is ``fixed``: part of a
    definition.
    """

    name: str
    value: int | Fraction
    unit: str
    source: str
    least: int | Fraction = 0
    most: int | Fraction = 1 << 62
    fixed: bool = False

    def to_json(self) -> Json:
        return {"name": self.name, "value": number_to_json(self.value), "unit": self.unit, "source": self.source}


@dataclass(frozen=True)
class Declaration:
    """What a rule, a chain detector or a kind of effect says of itself; the registry, the appendix and the reference
    docs come from it.

    ``texts`` maps a text key to a sentence with ``{name}`` placeholders for the values of a finding.
    """

    id: str
    kind: Literal["rule", "chain", "effect"]
    title: str
    question: str
    inputs: tuple[tuple[str, tuple[str, ...]], ...]
    thresholds: tuple[Threshold, ...]
    texts: dict[str, str]
    never_claims: str
    window: str = "whole capture"
    assumptions: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()

    def to_json(self) -> Json:
        return {
            "id": self.id, "kind": self.kind, "title": self.title, "question": self.question, "window": self.window,
            "inputs": [{"table": t, "columns": list(c)} for t, c in self.inputs],
            "thresholds": [t.to_json() for t in self.thresholds], "texts": dict(self.texts),
            "never_claims": self.never_claims, "assumptions": list(self.assumptions), "controls": list(self.controls),
        }  # fmt: skip


@dataclass(frozen=True)
class Fix:
    """What could be changed: ``setting`` from ``current`` to ``new`` (empty where not known), and what it would cost.

    ``action`` and ``side_effects`` are sentences without numbers; the numbers stand in ``values``.
    """

    action: str
    setting: str = ""
    current: str = ""
    new: str = ""
    side_effects: str = ""
    values: dict[str, Quantity | str] = field(default_factory=dict)

    def to_json(self) -> Json:
        return {
            "action": self.action, "setting": self.setting, "current": self.current, "new": self.new,
            "side_effects": self.side_effects,
            "values": {k: v if isinstance(v, str) else v.to_json() for k, v in self.values.items()},
        }  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One statement a rule makes. ``subject`` tells what about (gpu, pid, comm, rank …), for sorting and filters.

    ``score`` is impact times confidence where the rule's reference gives both (inference rules), else None.
    """

    id: str
    rule: str
    severity: Severity
    text: str
    values: dict[str, Quantity | str]
    subject: dict[str, str]
    impact: Quantity
    grade: Grade
    evidence: tuple[str, ...]
    fixes: tuple[Fix, ...] = ()
    score: Fraction | None = None

    def to_json(self) -> Json:
        return {
            "id": self.id, "rule": self.rule, "severity": self.severity, "text": self.text,
            "values": {k: v if isinstance(v, str) else v.to_json() for k, v in self.values.items()},
            "subject": dict(self.subject), "impact": self.impact.to_json(), "grade": self.grade,
            "evidence": list(self.evidence), "fixes": [x.to_json() for x in self.fixes],
            "score": number_to_json(self.score),
        }  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Findings with one root: the primary one, and the others as supporting evidence, each with why it is held.

    ``kind`` is memory, concurrency or prefill; ``engine`` the subject the findings share.
    """

    id: str
    kind: str
    engine: str
    primary: str
    supporting: tuple[tuple[str, str], ...]

    def to_json(self) -> Json:
        return {
            "id": self.id, "kind": self.kind, "engine": self.engine, "primary": self.primary,
            "supporting": [{"finding": f, "reason": r} for f, r in self.supporting],
        }  # fmt: skip


@dataclass(frozen=True)
class Link:
    """One step of a chain: effect intervals, cause intervals, and what of the effect they cover, exactly.

    ``explained`` and ``unexplained`` are shares of ``effect``; both are printed with the denominator.
    """

    effect: str
    cause: str
    effect_ns: Quantity
    overlap_ns: Quantity
    explained: Quantity
    evidence: tuple[str, ...]

    def to_json(self) -> Json:
        return {
            "effect": self.effect, "cause": self.cause, "effect_ns": self.effect_ns.to_json(),
            "overlap_ns": self.overlap_ns.to_json(), "explained": self.explained.to_json(),
            "evidence": list(self.evidence),
        }  # fmt: skip


@dataclass(frozen=True)
class Share:
    """A row of a table that adds up to an effect: a cause or ``unexplained``, its time, and that over the effect's."""

    label: str
    time: Quantity
    share: Quantity

    def to_json(self) -> Json:
        return {"label": self.label, "time": self.time.to_json(), "share": self.share.to_json()}


@dataclass(frozen=True)
class Gain:
    """What could be saved had the cause not been: at least ``low``, at most ``high``."""

    low: Quantity
    high: Quantity

    def to_json(self) -> Json:
        return {"low": self.low.to_json(), "high": self.high.to_json()}


@dataclass(frozen=True)
class Chain:
    """A causal chain; ``against`` lists what speaks against it, ``refuted_by`` the observation that would refute it.

    ``experiment`` would test it, ``gain`` is what it would bring. ``shares`` adds up to the effect that the last links
    explain (that of a late rank: its lateness); ``code`` are lines of the programs, of the effect and of the culprit,
    where frames were recorded ("cudaMalloc from train.py:142 in forward()").
    """

    id: str
    detector: str
    severity: Severity
    text: str
    values: dict[str, Quantity | str]
    subject: dict[str, str]
    links: tuple[Link, ...]
    impact: Quantity
    confidence: Literal["high", "medium", "low"]
    grade: Grade
    against: tuple[str, ...]
    refuted_by: str
    next_step: str
    evidence: tuple[str, ...]
    experiment: str = ""
    gain: Gain | None = None
    shares: tuple[Share, ...] = ()
    code: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        bounded = {k: v[:MAX_VALUE] if isinstance(v, str) else v for k, v in self.values.items()}
        object.__setattr__(self, "values", bounded)
        object.__setattr__(self, "subject", {k: v[:MAX_VALUE] for k, v in self.subject.items()})

    @property
    def shared_effect(self) -> str:
        """The effect that the shares add up to: that of the last link of as much time; empty where none has."""
        if any(s.time.value is None for s in self.shares):
            return ""
        total = sum((Fraction(s.time.value) for s in self.shares if s.time.value is not None), Fraction(0))
        return next((x.effect for x in reversed(self.links) if self.shares and x.effect_ns.value == total), "")

    def to_json(self) -> Json:
        return {
            "id": self.id, "detector": self.detector, "severity": self.severity, "text": self.text,
            "values": {k: v if isinstance(v, str) else v.to_json() for k, v in self.values.items()},
            "subject": dict(self.subject), "links": [x.to_json() for x in self.links],
            "impact": self.impact.to_json(), "confidence": self.confidence, "grade": self.grade,
            "against": list(self.against), "refuted_by": self.refuted_by, "next_step": self.next_step,
            "evidence": list(self.evidence), "experiment": self.experiment,
            "gain": None if self.gain is None else self.gain.to_json(),
            "shares": [x.to_json() for x in self.shares], "code": list(self.code),
        }  # fmt: skip


@dataclass(frozen=True)
class RuleOutcome:
    """What became of one rule or detector: it found something, was clear, or could not be evaluated, and why."""

    id: str
    state: RuleState
    reason: str

    def to_json(self) -> Json:
        return {"id": self.id, "state": self.state, "reason": self.reason}


@dataclass(frozen=True)
class SectionTable:
    """A table of a section: ``columns`` are (name, heading), every row has one cell per column.

    A cell is a quantity, a text, or None where the row has none. ``omitted`` counts rows left out at the end.
    """

    id: str
    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Quantity | str | None, ...], ...]
    notes: tuple[str, ...] = ()
    omitted: int = 0

    def to_json(self) -> Json:
        return {
            "id": self.id, "title": self.title, "columns": [list(c) for c in self.columns],
            "rows": [[c.to_json() if isinstance(c, Quantity) else c for c in r] for r in self.rows],
            "notes": list(self.notes), "omitted": self.omitted,
        }  # fmt: skip


@dataclass(frozen=True)
class SectionChart:
    """A chart of a section; ``kind`` (roofline, strips, stack or bands) says what ``data`` holds (findings.md)."""

    kind: str
    id: str
    title: str
    data: dict[str, Json]

    def to_json(self) -> Json:
        return {"kind": self.kind, "id": self.id, "title": self.title, "data": self.data}


@dataclass(frozen=True)
class Statement:
    """A sentence with ``{name}`` placeholders, and the values that go into it."""

    text: str
    values: dict[str, Quantity | str] = field(default_factory=dict)

    def to_json(self) -> Json:
        return {
            "text": self.text,
            "values": {k: v if isinstance(v, str) else v.to_json() for k, v in self.values.items()},
        }


@dataclass(frozen=True)
class Section:
    """One question the analysis answers with tables and charts; ``reason`` says why where it could not."""

    id: str
    title: str
    question: str
    state: Literal["evaluated", "not evaluated"]
    reason: str
    statements: tuple[Statement, ...] = ()
    tables: tuple[SectionTable, ...] = ()
    charts: tuple[SectionChart, ...] = ()
    definitions: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> Json:
        return {
            "id": self.id, "title": self.title, "question": self.question, "state": self.state, "reason": self.reason,
            "statements": [x.to_json() for x in self.statements], "tables": [x.to_json() for x in self.tables],
            "charts": [x.to_json() for x in self.charts],
            "definitions": [{"term": t, "text": x} for t, x in self.definitions], "notes": list(self.notes),
        }  # fmt: skip


@dataclass
class Document:
    """The findings document. Section shapes, all plain JSON already, are told in ``docs/reference/findings.md``.

    ``bundle``: origin, root, size, status, file_sha256, identity_sha256, synthetic, notices.
    ``host``: hostname, kernel, cpus, machine, gpus (index, uuid, name, driver).
    ``window``: start_ns, end_ns, start_utc_ns, end_utc_ns, utc_uncertainty_ns.
    ``quality``: grade, reasons, tables (table, seen, written, lost, rows, leaves), gaps, sources (source,
    state, reason).
    ``operations``: table, op, count, open, errors, total, p50, p99, max (each a Quantity).
    ``waste``: rows (key, gpu, pid, gpu_time, share, money?, provenance, definition), observed, currency, rate, notes.
    ``cost``: rows (name, quantity, definition): what the recording cost the host.
    ``groups``: findings with one root cause put together. ``sections``: everything else the analysis tells, each from
    one file of ``analyze/sections`` (roofline, engines, VRAM, economics …); see ``analyze/section.py``.
    ``charts``: timeline, rank_heat, nvml, latency; bounded, each saying what it left out.
    ``appendix``: declarations, probes, libraries, definitions, assumptions, windows, clock.
    """

    tool: dict[str, Json]
    options: dict[str, Json]
    bundle: dict[str, Json]
    host: dict[str, Json]
    window: dict[str, Json]
    quality: dict[str, Json]
    operations: list[dict[str, Json]]
    outcomes: list[RuleOutcome]
    findings: list[Finding]
    chains: list[Chain]
    waste: dict[str, Json]
    cost: dict[str, Json]
    charts: dict[str, Json]
    appendix: dict[str, Json]
    groups: list[Group] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)

    def to_json(self) -> Json:
        return {
            "schema": SCHEMA, "tool": self.tool, "options": self.options, "bundle": self.bundle, "host": self.host,
            "window": self.window, "quality": self.quality, "operations": self.operations,
            "outcomes": [o.to_json() for o in self.outcomes], "findings": [f.to_json() for f in self.findings],
            "chains": [c.to_json() for c in self.chains], "waste": self.waste, "cost": self.cost,
            "charts": self.charts, "appendix": self.appendix,
            "groups": [g.to_json() for g in self.groups], "sections": [x.to_json() for x in self.sections],
            "evidence": [e.to_json() for e in self.evidence],
        }  # fmt: skip
