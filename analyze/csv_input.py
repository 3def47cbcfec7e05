"""Reading a CSV file that a person gives (prices, catalogue overlays): bounded, strict, every refusal with its line.

The file is hostile input: at most a megabyte of UTF-8 without control characters, a header that is exactly one of
those expected, and cells of at most 400 characters. The SHA-256 of its bytes goes into the findings, so that whoever
has the file can tell that it is the one.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from gpuaudit.bundle.errors import InputUnusable

MAX_BYTES = 1 << 20
MAX_ROWS = 10_000
MAX_CELL = 400

_NUMBER = re.compile(r"\d{1,15}(\.\d{1,9})?\Z", re.ASCII)
_DATE = re.compile(r"\d{4}-\d{2}(-\d{2})?\Z", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Row:
    """One line of a file: its cells by column, and where it stands."""

    file: str
    line: int
    cells: dict[str, str]

    def refuse(self, what: str, hint: str = "") -> InputUnusable:
        """The error that says what is wrong with this line."""
        return InputUnusable(f"{self.file}, line {self.line}: {what}", hint=hint)

    def text(self, column: str, *, required: bool = True) -> str:
        """A cell without spaces around it."""
        value = self.cells[column].strip()
        if not value and required:
            raise self.refuse(f"{column} is empty")
        return value

    def number(self, column: str) -> Fraction | None:
        """A decimal number of 0 or more, exact; None where the cell is empty."""
        value = self.text(column, required=False)
        if not value:
            return None
        if not _NUMBER.match(value):
            raise self.refuse(
                f"{column} is {value!r}, expected a plain decimal number such as 2.99",
                "no sign, exponent, currency sign, NaN or Infinity; at most 9 decimals",
            )
        return Fraction(Decimal(value))

    def positive(self, column: str) -> Fraction | None:
        """A decimal number above 0; None where the cell is empty."""
        value = self.number(column)
        if value == 0:
            raise self.refuse(f"{column} is 0, expected a number above 0 (leave it empty where it is not known)")
        return value

    def count(self, column: str) -> int | None:
        """A whole number above 0; None where the cell is empty."""
        value = self.positive(column)
        if value is not None and value.denominator != 1:
            raise self.refuse(f"{column} is {self.cells[column].strip()!r}, expected a whole number")
        return None if value is None else int(value)

    def flag(self, column: str) -> bool:
        """0 or 1."""
        value = self.text(column)
        if value not in {"0", "1"}:
            raise self.refuse(f"{column} is {value!r}, expected 0 or 1")
        return value == "1"

    def day(self, column: str) -> str:
        """A date as YYYY-MM-DD or a month as YYYY-MM."""
        value = self.text(column)
        try:
            if not _DATE.match(value):
                raise ValueError(value)
            date.fromisoformat(value if len(value) == len("2026-08-13") else f"{value}-01")
        except ValueError:
            raise self.refuse(f"{column} is {value!r}, expected a date as 2026-08-13") from None
        return value


@dataclass(frozen=True)
class Sheet:
    """A file that was read: name, SHA-256 of its bytes, the columns it has, and its rows."""

    name: str
    sha256: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def read_sheet(path: Path, *headers: Sequence[str]) -> Sheet:
    """The rows of a CSV file whose first line is one of ``headers``; InputUnusable on anything else."""
    try:
        with path.open("rb") as f:
            data = f.read(MAX_BYTES + 1)
    except OSError as e:
        raise InputUnusable(f"{path.name}: cannot be read ({e.strerror or e})") from None
    return parse_sheet(path.name, data, *headers)


def parse_sheet(name: str, data: bytes, *headers: Sequence[str]) -> Sheet:
    """The same of bytes that are in memory already."""
    if len(data) > MAX_BYTES:
        raise InputUnusable(f"{name}: more than {MAX_BYTES} bytes, no price list or catalogue is as long")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise InputUnusable(f"{name}, line {line}: not UTF-8", hint="save the file as UTF-8") from None
    rows = _rows(name, text)
    if not rows or tuple(rows[0][1]) not in {tuple(h) for h in headers}:
        expected = " or ".join(",".join(h) for h in headers)
        raise InputUnusable(f"{name}, line 1: the first line is not the header that is expected", hint=expected)
    columns = tuple(rows[0][1])
    out = []
    for line, cells in rows[1:]:
        if len(cells) != len(columns):
            raise InputUnusable(f"{name}, line {line}: {len(cells)} cells, expected {len(columns)}")
        out.append(Row(name, line, dict(zip(columns, cells, strict=True))))
    return Sheet(name, hashlib.sha256(data).hexdigest(), columns, tuple(out))


def _rows(name: str, text: str) -> list[tuple[int, list[str]]]:
    """(line, cells) of every line that has any; a cell never reaches over a line end."""
    out: list[tuple[int, list[str]]] = []
    for line, raw in enumerate(io.StringIO(text, newline=None), start=1):
        bare = raw.rstrip("\n")
        if not bare.strip():
            continue
        if len(out) > MAX_ROWS:
            raise InputUnusable(f"{name}, line {line}: more than {MAX_ROWS} rows")
        if _CONTROL.search(bare):
            raise InputUnusable(f"{name}, line {line}: a control character")
        try:
            cells = next(csv.reader([bare], strict=True))
        except csv.Error as e:
            raise InputUnusable(f"{name}, line {line}: not CSV ({e})") from None
        if any(len(c) > MAX_CELL for c in cells):
            raise InputUnusable(f"{name}, line {line}: a cell of more than {MAX_CELL} characters")
        out.append((line, cells))
    return out
