"""Plain tables out of evidence: rows grouped by something, sums of them, and for each number the rows it is of.

A table is told by data: which view, which condition, what it is grouped by, and for each column an SQL expression with
its unit and formula. Nothing is concluded; a value that evidence does not give is null with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.drafts import derived
from gpuaudit.analyze.finding import Quantity, SectionTable
from gpuaudit.analyze.store import is_text

Cell = Quantity | str | None

MAX_ROWS = 40
"""Rows of one table: the largest; the rest are counted, and stand in the bundle."""


MAX_TEXT = 512
"""Characters of a name from evidence in a cell; a stranger's bundle may hold megabytes (a cell may have 4,096)."""


def text(value: object) -> str:
    """A name from evidence, of bounded length."""
    told = str(value)
    return told if len(told) <= MAX_TEXT else told[: MAX_TEXT - 1] + "…"


@dataclass(frozen=True)
class Key:
    """A column that rows are grouped by: its name, heading, SQL, and how it is shown."""

    name: str
    heading: str
    sql: str
    show: Callable[[Any], str] = text


@dataclass(frozen=True)
class Value:
    """A number of the group: name, heading, SQL aggregate, unit, formula, and why there may be none."""

    name: str
    heading: str
    sql: str
    unit: str
    formula: str
    reason: str = "not recorded"


@dataclass(frozen=True)
class Grouped:
    """One table: ``view`` is the evidence, ``order`` an SQL expression over the values' names, the largest first."""

    id: str
    title: str
    view: str
    keys: tuple[Key, ...]
    values: tuple[Value, ...]
    order: str
    where: str = "true"
    notes: tuple[str, ...] = ()


def table(context: Context, g: Grouped) -> SectionTable | None:
    """The table; None where there is no row."""
    if not context.store.row_count(g.view):
        return None
    keys = ", ".join(f"{k.sql} AS k{i}" for i, k in enumerate(g.keys))
    values = ", ".join(f'{v.sql} AS "{v.name}"' for v in g.values)
    groups = ", ".join(str(i + 1) for i in range(len(g.keys)))
    rows = context.store.sql(
        f"SELECT {keys}, {values} FROM {g.view} WHERE {g.where} GROUP BY {groups} ORDER BY {g.order} DESC NULLS LAST, "
        f"{groups}"
    )
    if not rows:
        return None
    shown = tuple(_row(context, g, row) for row in rows[:MAX_ROWS])
    columns = (*((k.name, k.heading) for k in g.keys), *((v.name, v.heading) for v in g.values))
    return SectionTable(g.id, g.title, columns, shown, g.notes, max(0, len(rows) - MAX_ROWS))


def _row(context: Context, g: Grouped, row: Sequence[Any]) -> tuple[Cell, ...]:
    terms = [_equals(k.sql, value) for k, value in zip(g.keys, row, strict=False)]
    conditions = terms if g.where == "true" else [f"({g.where})", *terms]
    evidence = (context.book.where(g.view, " AND ".join(conditions)),)
    names: list[Cell] = ["not recorded" if v is None else k.show(v) for k, v in zip(g.keys, row, strict=False)]
    numbers = [
        derived(None if value is None else int(value), v.unit, evidence, v.formula, v.reason)
        for v, value in zip(g.values, row[len(g.keys) :], strict=True)
    ]
    return (*names, *numbers)


def _equals(sql: str, value: Any) -> str:
    if value is None or isinstance(value, str):
        return is_text(f"({sql})", value)
    return f"({sql}) = {int(value)}"


def process(context: Context) -> Callable[[Any], str]:
    """How a process id is shown: with its name."""

    def show(pid: Any) -> str:
        return text(f"{int(pid)} ({context.process_name(int(pid))})")

    return show
