"""How results reach stdout: JSON, tables and lines, with every string from evidence made inert first."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence

import click

from gpuaudit.bundle.display import csv_cell, printable

LIMIT_CHARACTERS = 4096
"""Of a printed sentence; its names were cut to 512 before."""

PIECE_BYTES = 1 << 15
"""Half of what a pipe of Linux holds (pipe(7)), so that a write is taken whole or refused."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
force_option = click.option("--force", is_flag=True, help="Replace an existing output that has other content.")


def coloured() -> bool:
    """Whether stdout may have colours: a terminal that knows them, and NO_COLOR not set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def print_json(value: object) -> None:
    """``value`` as indented JSON in ASCII, members in their own order: lossless, and inert in a terminal."""
    _emit(json.dumps(value, indent=2, ensure_ascii=True).encode("ascii") + b"\n")


def print_raw(data: bytes) -> None:
    """A JSON document of ours, byte for byte, and a line end; canonical JSON escapes control characters itself."""
    _emit(data.rstrip(b"\n") + b"\n")


def _emit(data: bytes) -> None:
    """Write in pieces: an unbuffered stdout may take part of one large write and not tell that its reader went away."""
    for at in range(0, len(data), PIECE_BYTES):
        click.echo(data[at : at + PIECE_BYTES], nl=False)


def sentence(text: str) -> str:
    """A sentence on one line, made inert here and nowhere before: what raises an error leaves its names as they are."""
    return printable(text, LIMIT_CHARACTERS)


def print_line(text: str) -> None:
    """One line of result."""
    click.echo(sentence(text))


def note(text: str) -> None:
    """One line on stderr: progress and remarks, never a result."""
    click.echo(sentence(text), err=True)


def cell(value: object) -> str:
    """One value of a row as inert text; None is shown as a dash, never as 0 or an empty field."""
    return "–" if value is None else printable(str(value))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows in aligned columns, numbers to the right, without any wrapping: one row, one line."""
    body = [list(row) for row in rows]
    shown = [[cell(c) for c in columns], *([cell(v) for v in row] for row in body)]
    widths = [max(len(row[i]) for row in shown) for i in range(len(columns))]
    right = [bool(body) and all(isinstance(r[i], int | float | None) for r in body) for i in range(len(columns))]
    for row in shown:
        parts = [t.rjust(w) if r else t.ljust(w) for t, w, r in zip(row, widths, right, strict=True)]
        click.echo("  ".join(parts).rstrip())


def print_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """RFC 4180 with a header; text cells neutralised against spreadsheet formulas, null is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow([csv_cell(c) for c in columns])
    for row in rows:
        writer.writerow(["" if v is None else v if isinstance(v, int | float) else csv_cell(str(v)) for v in row])
    _emit(out.getvalue().encode("utf-8"))
