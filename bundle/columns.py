"""Rows of one table, held as columns: what the recorder writes and what analysis reads.

``Rows`` maps a column name to its :class:`ColumnData`, in the order of the table. A text column holds codes into its
dictionary. A null has ``valid`` False and the value 0, so that equal rows have equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gpuaudit.bundle.table import NUMPY_DTYPE, Column, Table


@dataclass(frozen=True)
class ColumnData:
    """Values of one column, shape (rows,); ``valid`` is a bool array or None when there is no null.

    ``dictionary`` is there for a text column only: ``values`` are ``<u4`` codes into it.
    """

    values: np.ndarray
    valid: np.ndarray | None = None
    dictionary: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def is_null(self, row: int) -> bool:
        """Whether the value in ``row`` is absent."""
        return self.valid is not None and not self.valid[row]

    def to_list(self) -> list[int | float | str | None]:
        """The column as Python values, None where absent."""
        out: list[int | float | str | None]
        if self.dictionary is None:
            out = self.values.tolist()
        elif self.dictionary:
            out = np.array(self.dictionary, dtype=object)[self.values].tolist()
        else:
            out = [None] * len(self.values)
        if self.valid is not None:
            for i in np.flatnonzero(~self.valid).tolist():
                out[i] = None
        return out


Rows = dict[str, ColumnData]


def null_column(column: Column, count: int) -> ColumnData:
    """A column without any value; however long, it takes the room of one row."""
    values = np.broadcast_to(np.zeros(1, NUMPY_DTYPE[column.type]), (count,))
    return ColumnData(values, np.broadcast_to(np.zeros(1, bool), (count,)), () if column.type == "text" else None)


def _is_null_column(data: ColumnData) -> bool:
    """Whether it was made by :func:`null_column`; False says nothing."""
    return data.valid is not None and len(data) > 1 and data.valid.strides == (0,) and not data.valid[0]


def row_count(rows: Rows) -> int:
    """Number of rows; ValueError when the columns differ in length."""
    lengths = {len(c) for c in rows.values()}
    if len(lengths) > 1:
        raise ValueError(f"columns differ in length: { {n: len(c) for n, c in rows.items()} }")
    return lengths.pop() if lengths else 0


def text_column(values: Sequence[str | None]) -> ColumnData:
    """Dictionary-encode text, in order of first appearance.

    What is not Unicode text (a lone surrogate, as the OS functions give for bytes that are not UTF-8) is kept
    readable as ``\\udcNN``: a hostile process name must not stop a capture.
    """
    codes: dict[str, int] = {}
    out = np.zeros(len(values), dtype=NUMPY_DTYPE["text"])
    nulls: list[int] = []
    for i, value in enumerate(values):
        if value is None:
            nulls.append(i)
        elif isinstance(value, str):
            out[i] = codes.setdefault(value, len(codes))
        else:
            raise ValueError(f"text column: row {i} holds a {type(value).__name__}, expected text")
    valid = None
    if nulls:
        valid = np.ones(len(values), dtype=bool)
        valid[nulls] = False
    return ColumnData(out, valid, tuple(readable(v) for v in codes))


def readable(text: str) -> str:
    """``text`` with a lone surrogate as ``\\udcNN``: what UTF-8, and so canonical JSON, can hold."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def from_records(table: Table, rows: Sequence[Mapping[str, object]]) -> Rows:
    """Columns from one mapping per row. None is null, and so is a nullable column that a row lacks.

    ValueError for a column the table does not have, a null where none is allowed, or a value that does not fit.
    """
    known = {c.name for c in table.columns}
    used: set[str] = set()
    for i, row in enumerate(rows):
        if not used.issuperset(row):
            used.update(row)
            unknown = row.keys() - known
            if unknown:
                raise ValueError(f"{table.name}: row {i} has unknown columns {sorted(unknown)}")
    return {
        c.name: _column(table, c, [row.get(c.name) for row in rows])
        if c.name in used or not c.nullable
        else null_column(c, len(rows))
        for c in table.columns
    }


def _column(table: Table, column: Column, values: list[object]) -> ColumnData:
    if not column.nullable and None in values:
        raise ValueError(f"{table.name}.{column.name}: null in row {values.index(None)}, and the column has no nulls")
    if column.type == "text":
        return text_column(values)  # type: ignore[arg-type]
    allowed = (int, float, np.integer, np.floating) if column.type == "f64" else (int, np.integer)
    kinds = set(map(type, values)) - {type(None)}  # few, where rows are many
    if not all(issubclass(kind, allowed) for kind in kinds):
        i, v = next((i, v) for i, v in enumerate(values) if v is not None and not isinstance(v, allowed))
        raise ValueError(f"{table.name}.{column.name}: row {i} holds {v!r:.60}, expected {column.type}")
    valid = None
    if None in values:
        valid = np.array([v is not None for v in values], dtype=bool)
        values = [0 if v is None else v for v in values]
    try:
        array = np.array(values, dtype=NUMPY_DTYPE[column.type])
    except OverflowError:
        raise ValueError(f"{table.name}.{column.name}: a value does not fit {column.type}") from None
    return ColumnData(array, valid)


def check_rows(table: Table, rows: Rows) -> int:
    """Number of rows, once every column has been found to be what ``table`` declares; ValueError otherwise."""
    names = [c.name for c in table.columns]
    if list(rows) != names:
        raise ValueError(f"{table.name}: columns are {list(rows)}, expected {names}")
    count = row_count(rows)
    for c in table.columns:
        data = rows[c.name]
        where = f"{table.name}.{c.name}"
        if data.values.dtype != np.dtype(NUMPY_DTYPE[c.type]) or data.values.ndim != 1:
            raise ValueError(f"{where}: dtype is {data.values.dtype}, expected {NUMPY_DTYPE[c.type]}, one dimension")
        if (data.dictionary is not None) != (c.type == "text"):
            raise ValueError(f"{where}: a dictionary is for text columns, and every text column has one")
        if data.valid is not None:
            if data.valid.dtype != np.dtype(bool) or data.valid.shape != data.values.shape:
                raise ValueError(f"{where}: valid must be one bool per row")
            if not c.nullable and not data.valid.all():
                raise ValueError(f"{where}: has nulls, and the column has none")
        if data.dictionary is not None:
            codes = data.values if data.valid is None else data.values[data.valid]
            if len(codes) and int(codes.max()) >= len(data.dictionary):
                raise ValueError(f"{where}: a code is past the dictionary of {len(data.dictionary)}")
    return count


def concat(parts: Iterable[Rows]) -> Rows:
    """The rows of ``parts`` one after the other; ValueError when their columns differ."""
    todo = list(parts)
    if not todo:
        return {}
    names = list(todo[0])
    if any(list(p) != names for p in todo):
        raise ValueError("concat: the parts have different columns")
    return {n: _concat_column([p[n] for p in todo]) for n in names}


def _concat_column(parts: list[ColumnData]) -> ColumnData:
    if len(parts) == 1:
        return parts[0]
    if all(_is_null_column(p) for p in parts):
        shape = (sum(len(p) for p in parts),)
        return ColumnData(
            np.broadcast_to(parts[0].values[:1], shape), np.broadcast_to(np.zeros(1, bool), shape), parts[0].dictionary
        )
    valid = None
    if any(p.valid is not None for p in parts):
        valid = np.concatenate([np.ones(len(p), dtype=bool) if p.valid is None else p.valid for p in parts])
    if parts[0].dictionary is None:
        return ColumnData(np.concatenate([p.values for p in parts]), valid)
    codes: dict[str, int] = {}
    arrays = []
    for p in parts:
        recode = np.array([codes.setdefault(t, len(codes)) for t in p.dictionary or ()] or [0], dtype=p.values.dtype)
        arrays.append(recode[p.values] if p.valid is None else np.where(p.valid, recode[p.values * p.valid], 0))
    return ColumnData(np.concatenate(arrays).astype(NUMPY_DTYPE["text"]), valid, tuple(codes))
