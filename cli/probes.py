"""``audit probes``: the probe table."""

from __future__ import annotations

import click

from gpuaudit.cli.output import json_option, print_json, print_line, print_table

LIBRARIES = ("cudart", "driver", "hip", "nccl", "rccl")


@click.command()
@click.option("--library", "only", type=click.Choice(LIBRARIES), help="The functions of this library alone.")
@json_option
def command(*, only: str | None, as_json: bool) -> None:
    """List every function that can be probed, in which libraries, and where its arguments are read from.

    \b
    Example:
      audit probes --library nccl
    """
    from gpuaudit.capture.probes import LIBRARIES as ALL
    from gpuaudit.capture.probes import describe

    chosen = [library for library in ALL if only in (None, library.name)]
    if as_json:
        print_json(describe(chosen))
        return
    for number, library in enumerate(chosen):
        if number:
            click.echo()
        note = f"; {library.note}" if library.note else ""
        print_line(f"{library.name} ({library.files}): {len(library.probes)} functions{note}")
        print_table(
            ["function", "table", "what is read"],
            [[_function(r), r["table"], _values(r["values"])] for r in describe([library])],
        )


def _function(row: dict[str, object]) -> str:
    return f"{row['op']} in {row['versions']}" if row["versions"] else str(row["op"])


def _values(values: object) -> str:
    return ", ".join(f"{name} = {place}" for name, place in values.items()) if isinstance(values, dict) else ""
