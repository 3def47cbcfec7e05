"""``audit show``: the evidence rows behind one statement of a report."""

from __future__ import annotations

from pathlib import Path

import click

from gpuaudit.cli.output import json_option, print_json, print_line, print_table
from gpuaudit.cli.waiting import waiting


@click.command()
@click.argument("findings", type=click.Path(path_type=Path))
@click.argument("id_", metavar="ID")
@click.option(
    "--bundle", type=click.Path(path_type=Path), required=True, help="The bundle that the findings came from."
)
@json_option
def command(*, findings: Path, id_: str, bundle: Path, as_json: bool) -> None:
    """Print the sealed rows that finding, chain or evidence ID rests on, and the query that gives them.

    \b
    Example:
      audit show train.findings.json C1 --bundle train.db
    """
    from gpuaudit.analyze.load import load_document
    from gpuaudit.analyze.show import evidence_rows

    with waiting("reading the rows"):
        shown = evidence_rows(load_document(findings), id_, bundle)
    if as_json:
        print_json([
            {"evidence": e.id, "table": e.table, "query": e.query, "leaves": list(e.leaves), "columns": list(e.columns),
             "rows": [list(row) for row in e.rows]} for e in shown
        ])  # fmt: skip
        return
    for entry in shown:
        print_line(f"{entry.id}: {len(entry.rows)} rows of {entry.table}, leaves {', '.join(map(str, entry.leaves))}")
        print_line(f"  {entry.query}")
        print_table(entry.columns, entry.rows)
