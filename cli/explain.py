"""``audit explain``: what is in a bundle, in words."""

from __future__ import annotations

from pathlib import Path

import click

from gpuaudit.cli.output import json_option, print_raw
from gpuaudit.cli.trust import key_option, trust_with
from gpuaudit.cli.waiting import waiting


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@key_option
@json_option
def command(*, bundle: Path, keys: tuple[Path, ...], as_json: bool) -> None:
    """Say in words what a bundle holds, what it can support, and what it cannot.

    With --json it prints the findings document itself, and writes no file.

    \b
    Example:
      audit explain train.db
    """
    from gpuaudit.analyze.explain import explain
    from gpuaudit.analyze.run import AnalyzeOptions, analyze, document_bytes

    trust = trust_with(keys)
    with waiting("verifying and analyzing"):
        if as_json:
            data = document_bytes(analyze(bundle, AnalyzeOptions(trust=trust)))
        else:  # made inert there: twice would escape the escapes
            data = explain(bundle, trust=trust).encode()
    print_raw(data)
