"""What ``audit analyze`` prints: the head of a findings document, with the digits of the report.

It needs neither the typesetter nor its fonts, so that an installation without them can analyze.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice

from gpuaudit.analyze.finding import Chain, Document, Finding
from gpuaudit.analyze.words import filled
from gpuaudit.bundle.rounding import duration

MOST_STATEMENTS = 20
"""Statements printed; a terminal page. The findings document has them all."""

SEVERITIES = ("critical", "warning", "notice")


def summary_lines(document: Document) -> Iterator[str]:
    """Origin and seal, grade with its reasons, every statement in one sentence, and what was not evaluated."""
    bundle, quality, window = document.bundle, document.quality, document.window
    if bundle["synthetic"]:
        yield "SYNTHETIC: invented rows of an embedded scenario, not a recording of any host"
    yield f"bundle    {bundle['origin']}, {bundle['status']}"
    yield f"host      {document.host['hostname']}, {len(document.host['gpus'])} GPUs, {_length(window)} recorded"
    yield f"grade     {quality['grade']}"
    for reason in quality["reasons"]:
        yield f"          {reason}"
    texts = {d["id"]: d["texts"] for d in document.appendix["declarations"]}
    made: list[Finding | Chain] = [*document.chains, *document.findings]
    made.sort(key=lambda s: SEVERITIES.index(s.severity))
    for statement in islice(made, MOST_STATEMENTS):
        yield f"{statement.severity:<9} {statement.id}: {_sentence(statement, texts)}"
    if len(made) > MOST_STATEMENTS:
        yield f"          and {len(made) - MOST_STATEMENTS} more, in the findings"
    states = Counter(o.state for o in document.outcomes)
    found, clear, not_evaluated = (states[s] for s in ("finding", "clear", "not evaluated"))
    yield f"rules     {found} found something, {clear} clear, {not_evaluated} not evaluated"
    for outcome in document.outcomes:
        if outcome.state == "not evaluated":
            yield f"          {outcome.id} not evaluated: {outcome.reason}"


def _sentence(statement: Finding | Chain, texts: Mapping[str, Mapping[str, str]]) -> str:
    rule = statement.rule if isinstance(statement, Finding) else statement.detector
    return filled(texts[rule][statement.text], statement.values)


def _length(window: Mapping[str, object]) -> str:
    start, end = window["start_ns"], window["end_ns"]
    if start is None or end is None:
        return "an unknown time"
    return duration(int(str(end)) - int(str(start)))
