"""A bundle in words, for somebody who has to act on it at three in the morning: ``audit explain``.

First whether it can be believed, then what is wrong and what to do next, then what could not be seen. Every share is
printed with what it is a share of. Tables are printed only of the section that is asked for: a screen is short.
"""

from __future__ import annotations

import shlex
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuaudit.analyze import explain_chain
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.drawn_lanes import draw
from gpuaudit.analyze.explain_chain import Line
from gpuaudit.analyze.finding import Chain, Document, Finding, Quantity, Section, SectionTable
from gpuaudit.analyze.lanes import drawing
from gpuaudit.analyze.load import quantity
from gpuaudit.analyze.registry import plugins
from gpuaudit.analyze.run import AnalyzeOptions, examine, read_evidence
from gpuaudit.analyze.words import amount, counted, duration, filled, marked, sentence, together
from gpuaudit.bundle.display import printable
from gpuaudit.bundle.errors import UsageError

if TYPE_CHECKING:
    from gpuaudit.bundle.keys import Identity

WIDTHS = (60, 120)
"""Narrowest and widest text: shorter lines break numbers from their units, longer ones are hard to follow."""

OPERATIONS_SHOWN = 8
"""Operations with the most time; the document has all."""

ROWS_SHOWN = 12
"""Rows of a section's table; the document has all."""

_SEVERITY = {"critical": "CRITICAL", "warning": "WARNING", "notice": "NOTICE"}


@dataclass(frozen=True)
class Asked:
    """What to say: all of a bundle or the finding, chain or section of one ``id``, with ``timeline`` also drawn.

    ``width`` is that of the terminal unless given; ``colour`` is for lanes alone, which have their role as a word too.
    """

    id: str = ""
    timeline: bool = False
    width: int | None = None
    colour: bool = False


def explain(path: Path | str, asked: Asked | None = None, *, trust: Sequence[Identity] = ()) -> str:
    """The text for a bundle; errors are those of :func:`gpuaudit.analyze.run.analyze`, UsageError for an unknown id."""
    asked = asked or Asked()
    verification, store = read_evidence(Path(path), trust)
    document, context = examine(store, verification, AnalyzeOptions(trust=trust))
    columns = asked.width if asked.width is not None else shutil.get_terminal_size((100, 24)).columns
    width = min(max(columns, WIDTHS[0]), WIDTHS[1])
    text = explain_item(document, asked.id, width) if asked.id else explain_document(document, width)
    text += _rows(Path(path), asked.id)
    return text + _drawn(context, document, asked, width) if asked.timeline else text


def _drawn(context: Context, d: Document, asked: Asked, width: int) -> str:
    """The lanes of the chain that is asked for, or of every chain."""
    chosen = [c for c in d.chains if asked.id in ("", c.id)]
    if not chosen:
        return "\nNo chain to draw: " + (f"{asked.id} is none.\n" if asked.id else "none was found.\n")
    origin = int(d.window["start_ns"])
    return "".join(
        f"\n{c.id} {c.detector}\n{draw(drawing(context, c), origin, width, colour=asked.colour)}" for c in chosen
    )


def explain_document(document: Document, width: int) -> str:
    """The same for a document that is at hand; names from evidence are made inert."""
    return _set(_paragraphs(document), width)


def explain_item(document: Document, id: str, width: int) -> str:
    """One finding, chain or section by its id, below what the evidence is; UsageError where there is none of it."""
    made: list[Finding | Chain] = [*document.chains, *document.findings]
    items = {x.id: x for x in made}
    sections = {s.id: s for s in document.sections if s.state == "evaluated"}
    if id in items:
        told = _item(document, items[id], 0)
    elif id in sections:
        told = chain(_section(sections[id]), *(_table(t) for t in sections[id].tables))
    else:
        known = ", ".join((*items, *sections)) or "nothing was found, and no section has an answer"
        raise UsageError(
            f"the bundle has no finding, chain or section {printable(id, 40)!r}", hint=f"there are: {known}"
        )
    return _set(chain(_what(document), [(0, "")], told), width)


def _rows(path: Path, id: str) -> str:
    """The commands that lead on to the rows, each on a line of its own so that it can be copied whole."""
    bundle, findings = (
        printable(shlex.quote(x)) for x in (str(path), path.name.removesuffix(".db") + ".findings.json")
    )
    return (
        f"\nThe rows behind {id or 'any of it, by its id'}:\n  audit analyze {bundle} --out {findings}\n"
        f"  audit show {findings} {id or 'ID'} --bundle {bundle}\n"
    )


def _set(paragraphs: Iterable[Line], width: int) -> str:
    lines: list[str] = []
    for indent, text in paragraphs:
        shown = printable(text, 4000)
        lines += textwrap.wrap(
            shown, width, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2), break_on_hyphens=False
        ) or [""]
    return "\n".join(lines) + "\n"


def _paragraphs(d: Document) -> Iterator[Line]:
    yield from _what(d)
    yield 0, ""
    yield from _found(d)
    yield 0, ""
    sections = [s for s in d.sections if s.state == "evaluated"]
    for section in sections:
        yield from _section(section)
        yield 0, ""
    if sections:
        yield 0, f"One of these with its tables: audit explain BUNDLE and its name, such as {sections[0].id}"
        yield 0, ""
    yield from _unseen(d)
    yield 0, ""
    yield from _time(d)


def _what(d: Document) -> Iterator[Line]:
    if d.bundle["imported"]:
        yield 0, "IMPORTED: this evidence was read from files of other tools; the seal covers it from the import on."
    if d.bundle["synthetic"]:
        yield 0, "SYNTHETIC: this evidence was made up by a scenario, it was not recorded on a GPU host."
    start, end = int(d.window["start_ns"]), int(d.window["end_ns"])
    when = _utc(d.window["start_utc_ns"])
    gpus = counted(len(d.host["gpus"]), "GPU")
    yield 0, f"Host: {d.host['hostname']}, kernel {d.host['kernel']}, {gpus} listed"
    yield 0, f"Recorded: {duration(end - start)} from {when}"
    yield 0, f"Seal: {d.bundle['status']}, {d.bundle['size']} leaves, origin {d.bundle['origin']}"
    for notice in d.bundle["notices"]:
        if not (d.bundle["imported"] and notice.startswith("IMPORTED")):  # the first line says so
            yield 2, notice
    yield 0, f"Completeness: grade {d.quality['grade']}"
    for reason in together(d.quality["reasons"]):
        yield 2, f"- {reason}"


def _utc(ns: str | None) -> str:
    if ns is None:
        return "a time that is not known in UTC"
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(ns) // 1000)
    return at.strftime("%Y-%m-%d %H:%M:%S UTC")


def _found(d: Document) -> Iterator[Line]:
    items: list[Finding | Chain] = [*d.chains, *d.findings]
    items.sort(key=lambda x: list(_SEVERITY).index(x.severity))
    if not items:
        asked = [o for o in d.outcomes if o.state != "not evaluated"]
        clear = f"{len(asked)} of {len(d.outcomes)} rules and detectors could be evaluated, without a finding"
        yield 0, f"Found: nothing. {clear}." if asked else "Found: nothing, because no rule could be evaluated."
    else:
        severities = Counter[str](x.severity for x in items)
        yield 0, f"Found: {', '.join(f'{severities[s]} {s}' for s in _SEVERITY if severities[s])}"
    for x in items:
        yield from _item(d, x, 2)


def _item(d: Document, x: Finding | Chain, indent: int) -> Iterator[Line]:
    declaration = {p.declaration.id: p.declaration for p in plugins()}[x.detector if isinstance(x, Chain) else x.rule]
    held = {f: (g.primary, reason) for g in d.groups for f, reason in g.supporting}
    yield indent, f"{x.id} {_SEVERITY[x.severity]} {declaration.title} (evidence grade {x.grade})"
    indent += 2
    yield indent, sentence(x, declaration)
    if isinstance(x, Chain):
        yield from explain_chain.lines(x, indent)
    else:
        yield from _fixes(x)
        if x.id in held:
            yield indent, f"It only supports {held[x.id][0]}: {held[x.id][1]}"
    yield indent, f"It does not say: {declaration.never_claims}"


def _fixes(f: Finding) -> Iterator[Line]:
    for fix in f.fixes:
        change = f": {fix.setting} from {fix.current or 'unknown'} to {fix.new or 'another'}" if fix.setting else ""
        yield 4, f"Could be changed: {filled(fix.action, fix.values)}{change}"
        for name, value in fix.values.items():
            yield 6, f"{name.replace('_', ' ')}: {_made(value)}"
        if fix.side_effects:
            yield 6, f"side effects: {filled(fix.side_effects, fix.values)}"


def _made(value: Quantity | str | None) -> str:
    """A value of a table or fix, marked where a catalogue or a person gave part of it."""
    return marked(value) if isinstance(value, Quantity) else value or "–"


def _section(s: Section) -> Iterator[Line]:
    yield 0, f"{s.title} ({s.id}): {s.question}"
    for statement in s.statements:
        yield 2, filled(statement.text, statement.values)


def _table(t: SectionTable) -> Iterator[Line]:
    yield 2, f"{t.title}:"
    for row in t.rows[:ROWS_SHOWN]:
        cells = (
            f"{heading} {_made(c)}" for (_, heading), c in zip(t.columns[1:], row[1:], strict=True) if c is not None
        )
        yield 4, ": ".join(filter(None, (_made(row[0]), "; ".join(cells))))
    left = len(t.rows) - ROWS_SHOWN + t.omitted if len(t.rows) > ROWS_SHOWN else t.omitted
    if left:
        yield 4, f"and {left:,} more rows in the findings"


def _unseen(d: Document) -> Iterator[Line]:
    yield 0, "Rules and detectors:"
    alike: dict[tuple[str, str], list[str]] = {}
    for o in d.outcomes:
        alike.setdefault((o.state, o.reason), []).append(o.id)
    for section in d.sections:
        if section.state != "evaluated":
            alike.setdefault((section.state, section.reason), []).append(section.title)
    for state in ("finding", "clear", "not evaluated"):
        for (of, reason), names in alike.items():
            if of == state:
                yield 2, f"{state}, {reason}: {', '.join(names)}" if reason else f"{state}: {', '.join(names)}"
    yield 0, "Records:"
    for t in d.quality["tables"]:
        if int(t["seen"]) or int(t["rows"]):
            yield 2, f"{t['table']}: {int(t['rows']):,} rows of {int(t['seen']):,} seen, {int(t['lost']):,} lost"


def _time(d: Document) -> Iterator[Line]:
    observed = quantity(d.waste["observed"])
    yield 0, f"GPU time: {amount(observed)}" if observed.value is None else f"GPU time, of {amount(observed)} observed:"
    for row in d.waste["by_key"]:
        yield 2, f"{row['key'].replace('_', ' ')}: {_of(row, 'gpu_time')} ({_of(row, 'share')})"
    shown = d.operations[:OPERATIONS_SHOWN]
    yield 0, f"Operations, {len(shown)} of {len(d.operations)} by total time:"
    for o in shown:
        yield 2, f"{o['op']}: {_operation(o)}"
    if d.cost["rows"]:
        yield 0, "The recording itself cost:"
        for r in d.cost["rows"]:
            yield 2, f"{r['name'].replace('_', ' ')}: {amount(quantity(r['quantity']))}"


def _operation(o: dict[str, Any]) -> str:
    q: dict[str, Quantity] = {k: quantity(o[k]) for k in ("count", "total", "p50", "p99", "max", "errors")}
    nested = amount(quantity(o["nested"])) if "nested" in o else ""
    counted_only = f", {amount(quantity(o['aggregated']))} of them counted in the kernel" if "aggregated" in o else ""
    if nested and not q["count"].value:
        return f"{nested} calls, each inside another call{counted_only}"
    failed = f", {q['errors'].value} failed" if q["errors"].value else ""
    failed += f", and {nested} inside other calls" if nested else ""
    tail = f"p99 {amount(q['p99'])}" if q["p99"].value is not None else "p99 not given"
    times = f"{amount(q['total'])} in all, p50 {amount(q['p50'])}, {tail}, max {amount(q['max'])}"
    return f"{amount(q['count'])} calls{failed}{counted_only}, {times}"


def _of(row: dict[str, Any], key: str) -> str:
    return amount(quantity(row[key]))
