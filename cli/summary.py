"""What ``audit analyze`` prints: the head of a findings document, with the digits of the report.

It needs neither the typesetter nor its fonts, so that an installation without them can analyze.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice

from gpuaudit.analyze.finding import Chain, Document, Finding
from gpuaudit.analyze.words import counted, filled, said, together
from gpuaudit.bundle.rounding import duration

MOST_STATEMENTS = 20
"""Statements printed; a terminal page. The findings document has them all."""

SEVERITIES = ("critical", "warning", "notice")


def summary_lines(document: Document) -> Iterator[str]:
    """Origin and seal, grade with its reasons, every statement and section in one sentence, what was not evaluated."""
    yield from _head(document)
    yield from _statements(document)
    yield from _sections(document)
    yield from _outcomes(document)


def _head(document: Document) -> Iterator[str]:
    bundle, quality = document.bundle, document.quality
    if bundle["imported"]:
        yield "IMPORTED: read from files of other tools; the seal covers them from the import on"
    if bundle["synthetic"]:
        yield "SYNTHETIC: invented rows of an embedded scenario, not a recording of any host"
    yield f"bundle    {bundle['origin']}, {bundle['status']}"
    length = _length(document.window)
    yield f"host      {document.host['hostname']}, {counted(len(document.host['gpus']), 'GPU')}, {length} recorded"
    yield f"grade     {quality['grade']}"
    for reason in together(quality["reasons"]):
        yield f"          {reason}"


def _statements(document: Document) -> Iterator[str]:
    """Every statement, but not those that only support another: these are named with their group."""
    texts = {d["id"]: d["texts"] for d in document.appendix["declarations"]}
    held = {finding for g in document.groups for finding, _ in g.supporting}
    made: list[Finding | Chain] = [*document.chains, *(f for f in document.findings if f.id not in held)]
    made.sort(key=lambda s: SEVERITIES.index(s.severity))
    for statement in islice(made, MOST_STATEMENTS):
        yield f"{statement.severity:<9} {statement.id}: {_sentence(statement, texts)}"
    if len(made) > MOST_STATEMENTS:
        yield f"          and {len(made) - MOST_STATEMENTS} more, in the findings"
    for group in document.groups:
        if group.supporting:
            supporting = ", ".join(finding for finding, _ in group.supporting)
            yield f"group     {group.id} {group.kind}: {group.primary}, supported by {supporting}"


def _sections(document: Document) -> Iterator[str]:
    for section in document.sections:
        if section.state == "evaluated":
            told = filled(section.statements[0].text, section.statements[0].values) if section.statements else ""
            yield f"section   {section.title}{': ' if told else ''}{told}"


def _outcomes(document: Document) -> Iterator[str]:
    states = Counter(o.state for o in document.outcomes)
    found, clear, not_evaluated = (states[s] for s in ("finding", "clear", "not evaluated"))
    yield f"rules     {found} found something, {clear} clear, {not_evaluated} not evaluated"
    why: dict[str, list[str]] = {}
    for outcome in document.outcomes:
        if outcome.state == "not evaluated":
            why.setdefault(outcome.reason, []).append(outcome.id)
    for section in document.sections:
        if section.state != "evaluated":
            why.setdefault(section.reason, []).append(section.title)
    for reason, names in why.items():
        yield f"          {', '.join(names)} not evaluated: {reason}"


def _sentence(statement: Finding | Chain, texts: Mapping[str, Mapping[str, str]]) -> str:
    rule = statement.rule if isinstance(statement, Finding) else statement.detector
    return said(texts[rule][statement.text], statement.values)


def _length(window: Mapping[str, object]) -> str:
    start, end = window["start_ns"], window["end_ns"]
    if start is None or end is None:
        return "an unknown time"
    return duration(int(str(end)) - int(str(start)))
