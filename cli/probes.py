"""``audit probes``: the probe table."""

from __future__ import annotations

import click

from gpuaudit.cli.output import json_option, print_json, print_table


@click.command()
@json_option
def command(*, as_json: bool) -> None:
    """List every function that can be probed, in which libraries, and where its arguments are read from.

    \b
    Example:
      audit probes --json
    """
    from gpuaudit.capture.probes import describe

    rows = describe()
    if as_json:
        print_json(rows)
        return
    print_table(
        ["library", "function", "table", "what is read"],
        [[r["library"], r["op"], r["table"], _values(r["values"])] for r in rows],
    )


def _values(values: object) -> str:
    return ", ".join(f"{name} = {place}" for name, place in values.items()) if isinstance(values, dict) else ""
