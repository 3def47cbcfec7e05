"""The view: the only place where a findings document becomes words and display numbers.

HTML and PDF are two prints of one :class:`View`. Everything in it is inert text already (see ``report/text.py``) or a
laid-out figure; templates decide only where it stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuaudit.analyze.finding import Document
from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.bundle.rounding import duration, utc
from gpuaudit.report import appendix as appendices
from gpuaudit.report import ledgers
from gpuaudit.report import statements as said
from gpuaudit.report.charts.canvas import Figure
from gpuaudit.report.charts.latency import latency
from gpuaudit.report.charts.nvml_strips import nvml_strips
from gpuaudit.report.charts.rank_heat import rank_heat
from gpuaudit.report.charts.timeline import timeline
from gpuaudit.report.completeness import Completeness, completeness, totals
from gpuaudit.report.sections import Sections, sections
from gpuaudit.report.tables import Table
from gpuaudit.report.text import Text, data, inert, join, words

SECTIONS_HERE = ("unanswered", "Questions without an answer")
"""Where the analysis' own sections stand, and the heading over those that could not be evaluated."""

POLICY_SOURCE = "policy file;"
"""How the source of a threshold begins that a policy file has set (``analyze/policy.py``)."""

CONTENTS = (
    ("completeness", "Completeness of the evidence"), ("verdict", "Verdict"), ("findings", "Findings and chains"),
    ("outcomes", "What was asked, and what became of it"), SECTIONS_HERE, ("timeline", "Incident timeline"),
    ("ranks", "Ranks and collectives"), ("latency", "Latency of operations"), ("nvml", "GPU readings"),
    ("operations", "Operations"), (said.WASTE_ANCHOR, said.WASTE_TITLE), ("cost", "What the recording cost the host"),
    ("appendix", "Technical appendix"), ("evidence", "Evidence"), ("verify", "How to verify this report"),
)  # fmt: skip
"""Anchor and title of every section in order, the analysis' own sections in their place."""


@dataclass(frozen=True)
class Mark:
    """A word on every page of a report that is not about a host as we recorded it, and what it means."""

    word: str
    short: str
    text: str


MARKS = {
    "synthetic": Mark(
        "SYNTHETIC", "made from a scenario, not from a host",
        "This report was made from an embedded scenario by the same recorder, analysis and printer as a real one. It "
        "says nothing about any host.",
    ),
    "imported": Mark(
        "IMPORTED", "recorded by other tools, not by this one",
        "The evidence was read from files that other tools had written. The seal proves that it has not changed since "
        "the import; it proves nothing about how the files came to be. What the import could not carry stands among "
        "the reasons of the grade.",
    ),
}  # fmt: skip
"""Marks by the key of ``bundle`` that calls for them."""


@dataclass(frozen=True)
class View:
    """Everything a template prints, in the order of the report."""

    title: str
    marks: tuple[Mark, ...]
    contents: tuple[tuple[str, Text], ...]
    host: Text
    identity: Text
    created: str
    cover: tuple[tuple[str, Text], ...]
    verdict: tuple[Text, ...]
    statements: tuple[said.Statement, ...]
    headlines: tuple[said.Statement, ...]
    outcomes: Table
    sections: Sections
    totals: Text
    completeness: Completeness
    timeline: tuple[Figure, ...]
    heat: tuple[Figure, ...]
    nvml: tuple[Figure, ...]
    latency: tuple[Figure, ...]
    operations: Table
    operation_notes: tuple[Text, ...]
    waste: ledgers.Waste
    cost: Table
    appendix: appendices.Appendix
    evidence: Table


def build_view(document: Document) -> View:
    """The view of one document; InputUnusable, naming the section, when its shape is not the schema's."""
    try:
        return _build(document)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise InputUnusable(
            f"findings: a section has not the shape of schema gpu-audit/findings/1 ({type(error).__name__}: "
            f"{inert(str(error))[:160]})",
            hint="make the findings again with `audit analyze`",
        ) from error


def _build(document: Document) -> View:
    made = said.statements(document)
    asked = sections(document)
    parts = appendices.appendix(document)
    start_ns = int(document.window["start_ns"])
    charts = document.charts
    return View(
        title="GPU audit report",
        marks=tuple(mark for key, mark in MARKS.items() if document.bundle[key]),
        contents=_contents(asked),
        host=data(document.host["hostname"], 64),
        identity=data(document.bundle["root"], 64),
        created=_created(document),
        cover=_cover(document),
        verdict=said.verdict(document, made),
        statements=made,
        headlines=tuple(s for s in made if not s.held),
        outcomes=said.outcomes(document),
        sections=asked,
        totals=totals(document),
        completeness=completeness(document),
        timeline=tuple(timeline(charts["timeline"])),
        heat=tuple(figure for one in charts["rank_heat"] for figure in rank_heat(one)),
        nvml=tuple(figure for one in charts["nvml"] for figure in nvml_strips(one, start_ns)),
        latency=tuple(latency(charts["latency"], _marks(document))),
        operations=ledgers.operations(document),
        operation_notes=ledgers.operation_notes(document),
        waste=ledgers.waste(document),
        cost=ledgers.cost(document),
        appendix=parts,
        evidence=appendices.evidence_index(parts.evidence),
    )


def _contents(asked: Sections) -> tuple[tuple[str, Text], ...]:
    out: list[tuple[str, Text]] = []
    for anchor, title in CONTENTS:
        if (anchor, title) != SECTIONS_HERE:
            out.append((anchor, words(title)))
            continue
        out += [(s.anchor, s.title) for s in asked.evaluated]
        if asked.others.rows:
            out.append((anchor, words(title)))
    return tuple(out)


def _created(document: Document) -> str:
    """End of the capture as a W3C date, the report's date: a report has no clock of its own."""
    end = document.window["end_utc_ns"]
    return utc(int(end) if end is not None else 0)[:19].replace(" ", "T") + "Z"


def _cover(document: Document) -> tuple[tuple[str, Text], ...]:
    bundle, host, window = document.bundle, document.host, document.window
    lines: list[tuple[str, Text]] = [
        ("Host", _host(host)),
        ("GPUs", _gpus(host["gpus"])),
        ("Recorded", _recorded(window)),
        ("Bundle", data(bundle["origin"])),
        ("Merkle root", join(data(bundle["root"]), words(f", {int(bundle['size'])} leaves"))),
        ("File SHA-256", data(bundle["file_sha256"])),
        ("Identity key SHA-256", data(bundle["identity_sha256"])),
        *_asked(document),
        ("Analysed by", join(data(document.tool["name"]), words(" "), data(document.tool["version"]))),
    ]  # fmt: skip
    return tuple(lines)


def _host(host: dict[str, Any]) -> Text:
    """A host without a CPU is one that nobody recorded: of an import, only its name may be known."""
    if not int(host["cpus"]):
        return data(host["hostname"])
    return join(data(host["hostname"]), words(", "), data(host["machine"]),
                words(f", {int(host['cpus'])} CPUs, kernel "), data(host["kernel"]))  # fmt: skip


def _asked(document: Document) -> list[tuple[str, Text]]:
    """What was set by whoever asked: a policy that overrides thresholds belongs on page 1, with its digest."""
    digest = document.options.get("policy_sha256", "")
    if not digest:
        return []
    declared = [t for d in document.appendix["declarations"] for t in d["thresholds"]]
    n = sum(str(t["source"]).startswith(POLICY_SOURCE) for t in declared)
    text = words(f"{n} of {len(declared)} thresholds are set by a policy file, each says so in the appendix; SHA-256 ")
    return [("Policy", join(text, data(digest)))]


def _gpus(gpus: list[dict[str, Any]]) -> Text:
    """GPUs of one name and driver on one line: "4 × NVIDIA H100, driver 560.35"."""
    if not gpus:
        return words("none was listed")
    kinds: dict[tuple[str, str], int] = {}
    for gpu in gpus:
        kind = (str(gpu["name"]), str(gpu["driver"]))
        kinds[kind] = kinds.get(kind, 0) + 1
    out: Text = ()
    for (name, driver), n in kinds.items():
        out = join(out, words("; ") if out else (), words(f"{n} × "), data(name), words(", driver "), data(driver))
    return out


def _recorded(window: dict[str, Any]) -> Text:
    length = duration(int(window["end_ns"]) - int(window["start_ns"]))
    if window["start_utc_ns"] is None or window["end_utc_ns"] is None:
        return words(f"{length}; the clock was not recorded, so no date is known")
    text = f"{utc(int(window['start_utc_ns']))} to {utc(int(window['end_utc_ns']))}, {length}"
    if int(window["utc_uncertainty_ns"] or 0):
        text += f"; wall-clock times are uncertain by {duration(int(window['utc_uncertainty_ns']))}"
    return words(text)


def _marks(document: Document) -> dict[tuple[str, str], dict[str, int]]:
    marks: dict[tuple[str, str], dict[str, int]] = {}
    for o in document.operations:
        values = {n: ledgers.quantity(o[n]).value for n in ("p50", "p99", "max")}
        marks[(o["table"], o["op"])] = {n: int(v) for n, v in values.items() if v is not None}
    return marks
