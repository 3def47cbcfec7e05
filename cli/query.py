"""``audit query``: read-only SQL over the evidence."""

from __future__ import annotations

from pathlib import Path

import click

from gpuaudit.cli.output import json_option, print_csv, print_json, print_table
from gpuaudit.cli.waiting import waiting


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("sql")
@click.option(
    "--csv", "as_csv", is_flag=True, help="Print CSV; cells that a spreadsheet could execute are neutralised."
)
@json_option
def command(*, bundle: Path, sql: str, as_csv: bool, as_json: bool) -> None:
    """Run one SELECT over the evidence: a view per table (docs/reference/tables.md), each row with its sealed leaf.

    The query runs in a process of its own that reads no file, writes none, and ends by itself.

    \b
    Examples:
      audit query train.db "SELECT op, count(*) AS calls FROM cuda_calls GROUP BY op ORDER BY calls DESC"
      audit query train.db "SELECT * FROM gaps" --json
    """
    from gpuaudit.analyze.query import run_query

    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other; give one of them")
    with waiting("reading and querying"):
        result = run_query(bundle, sql)
    if as_json:
        print_json([dict(zip(result.columns, row, strict=True)) for row in result.rows])
    elif as_csv:
        print_csv(result.columns, result.rows)
    else:
        print_table(result.columns, result.rows)
