"""Tables of one shape printed as one: what was told of engine 0 and of engine 1, or of every GPU, side by side.

The findings keep one table for each; a reader compares them, and the page holds them once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpuaudit.analyze.finding import Quantity, SectionTable

BESIDE = 4
"""Tables side by side: an A4 page has room for four columns of values between a label and its evidence."""

SAME_ROWS = 4
"""From so many rows on that say the same words of all, they are told in one sentence below the table."""

SPARSE = 4
"""A column that holds something in at most one of so many rows is told as rows of its own."""

Cell = Quantity | str | None
Row = tuple[Cell, ...]

_NUMBERED = re.compile(r".+_[0-9]+\Z")


@dataclass(frozen=True)
class Beside:
    """One table as printed; ``same`` are label and text of rows that say the same of all, named by ``of``."""

    table: SectionTable
    same: tuple[tuple[str, str], ...] = ()
    of: str = ""


def side_by_side(tables: Iterable[SectionTable]) -> list[Beside]:
    """The tables in their order; those named ``x_0``, ``x_1``, … with the same columns stand where the first stood."""
    groups: dict[tuple[Any, ...], list[SectionTable]] = {}
    for n, t in enumerate(tables):
        key: tuple[Any, ...] = (t.id.rpartition("_")[0], t.columns) if numbered(t) else (n,)
        groups.setdefault(key, []).append(t)
    out: list[Beside] = []
    for key, members in groups.items():
        if len(key) == 1:
            out += [Beside(t) for t in members]
        else:
            folded = _folded(members)
            out += [_joined(folded[at : at + BESIDE]) for at in range(0, len(folded), BESIDE)]
    return out


def numbered(t: SectionTable) -> bool:
    """Whether the table is one of several of its shape, or stands for them: its first column labels its rows."""
    return bool(_NUMBERED.match(t.id)) and _labelled(t)


def _labelled(t: SectionTable) -> bool:
    """Whether each row has a label of its own, by which rows of two tables can be told to be the same."""
    labels = [row[0] for row in t.rows]
    return len(t.columns) > 1 and all(isinstance(x, str) for x in labels) and len(set(labels)) == len(labels)


def _folded(members: list[SectionTable]) -> list[SectionTable]:
    """Columns that are nearly empty in all tables as rows: "errors, within the capture"."""
    rows = [row for t in members for row in t.rows]
    sparse = [
        at for at in range(2, len(members[0].columns)) if SPARSE * sum(r[at] is not None for r in rows) <= len(rows)
    ]
    return [_fold(t, sparse) for t in members] if sparse else members


def _fold(t: SectionTable, sparse: list[int]) -> SectionTable:
    kept = [at for at in range(len(t.columns)) if at not in sparse]
    rows: list[Row] = []
    for row in t.rows:
        rows.append(tuple(row[at] for at in kept))
        for at in sparse:
            if row[at] is not None:
                label = f"{row[0]}, {t.columns[at][1][:1].lower()}{t.columns[at][1][1:]}"
                rows.append((label, row[at], *(None for _ in kept[2:])))
    return replace(t, columns=tuple(t.columns[at] for at in kept), rows=tuple(rows))


def _joined(members: list[SectionTable]) -> Beside:
    if len(members) == 1:
        return Beside(members[0])
    title, names = _names([t.title for t in members])
    by_label = [{row[0]: row for row in t.rows} for t in members]
    labels = list(dict.fromkeys(label for rows in by_label for label in rows))
    grid = [[rows.get(label) for rows in by_label] for label in labels]
    own = [at for at in range(1, len(members[0].columns)) if at == 1 or not _shared(grid, at)]
    columns = [members[0].columns[0]]
    for n, name in enumerate(names):
        for at in own:
            key, heading = members[0].columns[at]
            columns.append((f"{key}_{n}", name if len(own) == 1 else f"{heading}, {name}"))
    rest = [at for at in range(1, len(members[0].columns)) if at not in own]
    columns += [members[0].columns[at] for at in rest]
    rows: list[Row] = []
    same: list[tuple[str, str]] = []
    for label, line in zip(labels, grid, strict=True):
        cells = [row[at] if row else None for row in line for at in own]
        common = None if rest else _common(cells)
        if common:
            same.append((str(label), common))
        rows.append((label, *cells, *(_told([row[at] if row else None for row in line], line, names) for at in rest)))
    if SAME_ROWS <= len(same) < len(rows):
        gone = {label for label, _ in same}
        rows = [row for row in rows if row[0] not in gone]
    else:
        same = []
    table = SectionTable(
        members[0].id,
        title,
        tuple(columns),
        tuple(rows),
        tuple(_notes(members, names)),
        sum(t.omitted for t in members),
    )
    return Beside(table, tuple(same), ", ".join(names))


def _names(titles: Sequence[str]) -> tuple[str, list[str]]:
    """The title of all, and of each what tells it apart, with the word before: "engine 0"."""
    split = [t.split() for t in titles]
    shortest = min(len(s) for s in split)
    before = next((i for i in range(shortest) if len({s[i] for s in split}) > 1), shortest)
    room = shortest - before
    after = next((i for i in range(room) if len({s[-1 - i] for s in split}) > 1), room)
    apart = [s[before : len(s) - after] for s in split]
    lead = split[0][before - 1 : before] if before else []
    names = [" ".join([*lead, *words[:1]]).rstrip(",") or str(n) for n, words in enumerate(apart)]
    comma = "," if any(words and words[-1].endswith(",") for words in apart) else ""
    whole = ", ".join(" ".join(words).rstrip(",") for words in apart if words) + comma
    return " ".join([*split[0][:before], whole, *split[0][len(split[0]) - after :]]), names


def _shared(grid: list[list[Row | None]], at: int) -> bool:
    """Whether a column holds text that is the same of all in at least every other row, so that it can stand once."""
    cells = [[row[at] for row in line if row] for line in grid]
    if any(isinstance(c, Quantity) for line in cells for c in line):
        return False
    return 2 * sum(len(set(line)) == 1 for line in cells) >= len(cells)


def _told(cells: list[Cell], line: list[Row | None], names: list[str]) -> Cell:
    """One cell for all: what they share, or what each says with its name."""
    if len({c for c, row in zip(cells, line, strict=True) if row}) == 1:
        return next(c for c, row in zip(cells, line, strict=True) if row)
    return "; ".join(f"{c} ({name})" for c, name in zip(cells, names, strict=True) if isinstance(c, str))


def _common(cells: list[Cell]) -> str | None:
    """The text that all of them hold; None where they differ, or hold a number, which keeps its evidence in a row."""
    return cells[0] if len(set(cells)) == 1 and isinstance(cells[0], str) else None


def _notes(members: list[SectionTable], names: list[str]) -> list[str]:
    """Notes of all tables once; one that only some of them have begins with their names."""
    notes: dict[str, list[str]] = {}
    for t, name in zip(members, names, strict=True):
        for note in t.notes:
            notes.setdefault(note, []).append(name)
    return [
        note if len(of) == len(members) or of[0] in note else f"{', '.join(of)}: {note}" for note, of in notes.items()
    ]
