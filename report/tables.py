"""A table of the report: columns, rows of text cells, and the order in which a script may sort them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.analyze.finding import Quantity
from gpuaudit.report.text import Text, marked, number


@dataclass(frozen=True)
class Cell:
    """Content of one cell; ``rank`` orders cells of a numeric column (an index made here, never a value)."""

    text: Text
    rank: int | None = None
    anchor: str = ""


@dataclass(frozen=True)
class Column:
    title: str
    numeric: bool = False
    wide: bool = False
    whole: bool = False
    """Never broken into lines: a column of a few short words."""
    widest: bool = False
    """On paper it gets two fifths of the table, whatever the others ask for: formulas, reasons."""


@dataclass(frozen=True)
class Table:
    """``caption`` names it for a reader and a screen reader; ``empty`` is what stands there without rows."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    empty: str = "nothing recorded"
    sortable: bool = True


Raw = Text | Quantity | Cell


def build(caption: str, columns: Sequence[Column], rows: Sequence[Sequence[Raw]], *, empty: str = "nothing recorded",
          sortable: bool = True, marks: bool = False) -> Table:  # fmt: skip
    """A table from texts, quantities and cells; quantities get digits and a rank for sorting, and with ``marks`` how
    they were made where evidence alone does not give them.
    """
    out: list[list[Cell]] = [[] for _ in rows]
    for at in range(len(columns)):
        column = [row[at] for row in rows]
        order = {v: i for i, v in enumerate(sorted({_magnitude(c) for c in column if isinstance(c, Quantity)}))}
        for row, cell in zip(out, column, strict=True):
            if isinstance(cell, Cell):
                row.append(cell)
            elif isinstance(cell, Quantity):
                row.append(Cell(marked(cell) if marks else number(cell), order[_magnitude(cell)]))
            else:
                row.append(Cell(cell))
    return Table(caption, tuple(columns), tuple(tuple(row) for row in out), empty, sortable)


def _magnitude(q: Quantity) -> Fraction:
    return Fraction(-1) if q.value is None else Fraction(q.value)
