"""Sections of the analysis: statements, tables and charts of one question, each number with where it comes from.

Nothing here knows what a section is about: a new file in ``analyze/sections`` is printed without a change here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from gpuaudit.analyze.finding import Document, Quantity, Section, SectionChart, SectionTable, Statement
from gpuaudit.bundle.rounding import absent, half_even
from gpuaudit.report.charts.bands import bands
from gpuaudit.report.charts.canvas import Figure
from gpuaudit.report.charts.roofline import roofline
from gpuaudit.report.charts.stack import stack
from gpuaudit.report.charts.strips import strips
from gpuaudit.report.side_by_side import Beside, numbered, side_by_side
from gpuaudit.report.statements import EvidenceLinks
from gpuaudit.report.tables import Cell, Column, Raw, Table, build
from gpuaudit.report.text import Text, data, fill, inert, join, listed, mark, marked, plain, prose, words

MOST_COLUMNS_WITH_EVIDENCE = 7
"""A table of more columns names its evidence below it: an A4 page is 174 mm wide."""

IDS_IN_A_CELL = 4
"""References in one cell; the others are counted, and `audit show` with the section's id gives all rows."""

TURNED_ROWS, TURNED_COLUMNS = 4, 8
"""A table of at most so many rows and more columns is printed turned: its columns become rows."""

GATHERED_ROWS = 3
"""From so many rows on that hold nothing but the same reason, they are told in one line below the table."""

NAMES_OF_A_FORMULA = 6
"""Columns, or cells, named before a formula."""

LONGEST_LABEL = 48
"""Characters of a label that is not broken where tables of its shape stand side by side."""

WIDE_TEXT = 28
"""Characters from which on a text column may break its lines."""


@dataclass(frozen=True)
class SectionTableView:
    """A table with what stands below it: why cells are empty, how its numbers were made, what was left out."""

    table: Table
    below: tuple[Text, ...]


@dataclass(frozen=True)
class SectionView:
    """One section as printed. ``anchor`` is made from its place, never from its id."""

    anchor: str
    title: Text
    id: Text
    question: Text
    sentences: tuple[Text, ...]
    tables: tuple[SectionTableView, ...]
    made: Text
    figures: tuple[Figure, ...]
    definitions: tuple[tuple[Text, Text], ...]
    notes: tuple[Text, ...]
    marks: bool


@dataclass(frozen=True)
class Sections:
    """Sections that could be evaluated, and a table of those that could not."""

    evaluated: tuple[SectionView, ...]
    others: Table


def sections(document: Document) -> Sections:
    """The sections of a document in their order."""
    links = EvidenceLinks(document)
    start_ns = int(document.window["start_ns"])
    evaluated = [s for s in document.sections if s.state == "evaluated"]
    others = [s for s in document.sections if s.state != "evaluated"]
    return Sections(
        tuple(_section(s, f"section-{n}", links, start_ns) for n, s in enumerate(evaluated, start=1)),
        build(
            "Questions that the evidence does not answer",
            [Column("question", wide=True), Column("why not", wide=True)],
            [[join(prose(s.title), words(": "), prose(s.question)), prose(s.reason)] for s in others],
            sortable=False,
        ),
    )


def _section(s: Section, anchor: str, links: EvidenceLinks, start_ns: int) -> SectionView:
    quantities = [*_of_statements(s.statements), *(q for t in s.tables for q in _of_table(t))]
    return SectionView(
        anchor, prose(s.title), data(s.id), prose(s.question),
        tuple(_sentence(x, links) for x in s.statements),
        tuple(_table(t, links) for t in side_by_side(s.tables)),
        _made(s.statements, links),
        tuple(f for c in s.charts for f in _figures(c, start_ns)),
        tuple((prose(term), prose(text)) for term, text in s.definitions),
        tuple(prose(n) for n in s.notes),
        any(q.value is not None and q.provenance in ("estimated", "assumed") for q in quantities),
    )  # fmt: skip


def _of_statements(statements: Iterable[Statement]) -> list[Quantity]:
    return [v for s in statements for v in s.values.values() if isinstance(v, Quantity)]


def _of_table(table: SectionTable) -> list[Quantity]:
    return [c for row in table.rows for c in row if isinstance(c, Quantity)]


def _sentence(s: Statement, links: EvidenceLinks) -> Text:
    """The sentence with its values, and the evidence that they rest on."""
    ids = _ids(v for v in s.values.values() if isinstance(v, Quantity))
    text = fill(s.text, s.values)
    return join(text, words(" ["), _few(ids, links), words("]")) if ids else text


def _ids(quantities: Iterable[Quantity]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(i for q in quantities for i in q.evidence))


def _few(ids: tuple[str, ...], links: EvidenceLinks, limit: int = IDS_IN_A_CELL) -> Text:
    if len(ids) <= limit + 1:
        return links.text(ids) if ids else words("–")
    return join(links.text(ids[:limit]), words(f" and {half_even(len(ids) - limit)} more"))


def _made(statements: tuple[Statement, ...], links: EvidenceLinks) -> Text:
    """How the numbers in the sentences were made, for those that were not simply read; each formula once."""
    told: dict[tuple[str, str], list[Quantity]] = {}
    for s in statements:
        for name, v in s.values.items():
            if isinstance(v, Quantity) and v.formula:
                told.setdefault((name, v.formula), []).append(v)
    return listed(
        (join(prose(name.replace("_", " ")), words(" "), listed(_with_evidence(v, links) for v in values),
              words(" = "), prose(formula)) for (name, formula), values in told.items()), " · ",
    )  # fmt: skip


def _with_evidence(v: Quantity, links: EvidenceLinks) -> Text:
    return join(marked(v), words(" ["), _few(v.evidence, links), words("]")) if v.evidence else marked(v)


def _table(beside: Beside, links: EvidenceLinks) -> SectionTableView:
    reasons: dict[str, int] = {}
    t, gathered = _gathered(beside.table)
    t, repeated = _repeated(t)
    per_row = len(t.columns) <= MOST_COLUMNS_WITH_EVIDENCE and bool(_ids(_of_table(t)))
    rows: list[list[Raw]] = []
    for row in t.rows:
        line = [_cell(c, reasons) for c in row]
        if per_row:
            line.append(_few(_ids(c for c in row if isinstance(c, Quantity)), links))
        rows.append(line)
    columns = [_column(heading, [row[at] for row in t.rows]) for at, (_, heading) in enumerate(t.columns)]
    if len(columns) > 1 and all(isinstance(row[0], str) and len(row[0]) <= LONGEST_LABEL for row in t.rows):
        columns[0] = replace(columns[0], whole=numbered(t), wide=False)
    below = [*(prose(n) for n in t.notes), *_why_not(reasons), *gathered, *repeated, *_same(beside)]
    if _formula_by_row(t):
        columns.append(Column("formula", widest=True))
        for line, row in zip(rows, t.rows, strict=True):
            line.insert(len(t.columns), prose(_formula(row)) if _formula(row) else words("–"))
    elif formulas := _formulas(t):
        below.append(listed(formulas, " · "))
    if per_row:
        columns.append(Column("evidence"))
    if not per_row and _ids(_of_table(t)):
        below.append(join(words("Evidence: "), _few(_ids(_of_table(t)), links, 24), words(".")))
    if len(columns) > TURNED_COLUMNS and 0 < len(rows) <= TURNED_ROWS:
        columns, rows = _turned(columns, rows)
    if t.omitted:
        below.append(words(f"{half_even(t.omitted)} more rows are not printed."))
    return SectionTableView(build(inert(t.title), columns, rows, empty="no row", marks=True), tuple(below))


def _turned(columns: list[Column], rows: list[list[Raw]]) -> tuple[list[Column], list[list[Raw]]]:
    """Columns as rows: the first column's cells head the new columns, as far as they are text."""
    texts = [[c.text if isinstance(c, Cell) else marked(c) if isinstance(c, Quantity) else c for c in r] for r in rows]
    heads = [Column(columns[0].title, whole=True), *(Column(plain(r[0]), wide=True) for r in texts)]
    return heads, [[words(c.title), *(r[at] for r in texts)] for at, c in enumerate(columns) if at > 0]


def _column(heading: str, cells: list[Quantity | str | None]) -> Column:
    known = [c for c in cells if c is not None]
    numeric = bool(known) and all(isinstance(c, Quantity) for c in known)
    wide = any(isinstance(c, str) and len(c) > WIDE_TEXT for c in known)
    return Column(inert(heading), numeric=numeric, wide=wide)


def _cell(cell: Quantity | str | None, reasons: dict[str, int]) -> Raw:
    """A cell; a number that is not there is a dash with the number of its reason, told once below the table."""
    if cell is None:
        return Cell(words("–"), -1)
    if isinstance(cell, str):
        return prose(cell)
    if cell.value is None:
        why = _absence(cell)
        return Cell(join(words("– "), mark(str(reasons.setdefault(why, len(reasons) + 1)))), -1)
    return cell


def _why_not(reasons: dict[str, int]) -> list[Text]:
    return [join(words("– "), mark(str(n)), words(" "), prose(why)) for why, n in reasons.items()]


def _gathered(t: SectionTable) -> tuple[SectionTable, list[Text]]:
    """The table without rows that hold nothing but one reason, and these rows told together, where they are many."""
    empty: dict[str, list[tuple[Quantity | str | None, ...]]] = {}
    for row in t.rows:
        missing = [c for c in row[1:] if isinstance(c, Quantity) and c.value is None]
        if missing and isinstance(row[0], str) and len(missing) == sum(c is not None for c in row[1:]):
            empty.setdefault(_absence(missing[0]), []).append(row)
    many = {why: rows for why, rows in empty.items() if len(rows) >= GATHERED_ROWS}
    gone = {id(row) for rows in many.values() for row in rows}
    told = [
        join(prose(why), words(": "), listed((prose(row[0]) for row in rows), ", "), words("."))
        for why, rows in many.items()
    ]
    return replace(t, rows=tuple(row for row in t.rows if id(row) not in gone)), told


def _repeated(t: SectionTable) -> tuple[SectionTable, list[Text]]:
    """The table without columns that hold one and the same long text in every row, and these texts told once."""
    told: dict[int, str] = {}
    for at in range(1, len(t.columns)):
        texts = {row[at] for row in t.rows}
        text = next(iter(texts), None)
        if len(t.rows) > 1 and len(texts) == 1 and isinstance(text, str) and len(text) > WIDE_TEXT:
            told[at] = text
    kept = [at for at in range(len(t.columns)) if at not in told]
    lines = [join(prose(t.columns[at][1]), words(" (of every row): "), prose(text)) for at, text in told.items()]
    rows = tuple(tuple(row[at] for at in kept) for row in t.rows)
    return replace(t, columns=tuple(t.columns[at] for at in kept), rows=rows), lines


def _absence(q: Quantity) -> str:
    return f"{absent(q.provenance)}, {q.reason}" if q.reason else absent(q.provenance)


def _same(beside: Beside) -> list[Text]:
    """What is the same of all that stand side by side, in one sentence."""
    if not beside.same:
        return []
    told = listed((join(prose(label), words(" "), prose(text)) for label, text in beside.same), "; ")
    return [join(words("The same of "), prose(beside.of), words(": "), told, words("."))]


def _formula_by_row(t: SectionTable) -> bool:
    """Whether the numbers of each row were made in one way: then a formula stands in its row."""
    per_row = [_formulas_of(row) for row in t.rows]
    return all(len(found) <= 1 for found in per_row) and len({f for found in per_row for f in found}) > 2


def _formulas_of(row: tuple[Quantity | str | None, ...]) -> set[str]:
    return {c.formula for c in row if isinstance(c, Quantity) and c.formula}


def _formula(row: tuple[Quantity | str | None, ...]) -> str:
    return next((c.formula for c in row if isinstance(c, Quantity) and c.formula), "")


def _formulas(t: SectionTable) -> list[Text]:
    """Each column's formulas, once; a column with more than one names the rows, and common formulas name all."""
    made = [
        (c.formula, heading, row[0])
        for row in t.rows
        for (_, heading), c in zip(t.columns, row, strict=True)
        if isinstance(c, Quantity) and c.value is not None and c.formula
    ]
    several = {h for h in {h for _, h, _ in made} if len({f for f, other, _ in made if other == h}) > 1}
    names: dict[str, dict[str, None]] = {}
    for formula, heading, label in made:
        by_row = heading in several and isinstance(label, str)
        names.setdefault(formula, {})[f"{heading} of {label}" if by_row else heading] = None
    return [
        join(listed((prose(n) for n in [*of][:NAMES_OF_A_FORMULA]), ", "),
             words(" and others = " if len(of) > NAMES_OF_A_FORMULA else " = "), prose(formula))
        for formula, of in names.items()
    ]  # fmt: skip


def _figures(c: SectionChart, start_ns: int) -> list[Figure]:
    title = inert(c.title)
    if c.kind == "roofline":
        made = roofline(c.data, title)
        return [made] if made else []
    if c.kind == "strips":
        return strips(c.data, title, start_ns)
    return stack(c.data, title) if c.kind == "stack" else bands(c.data, title, start_ns)
