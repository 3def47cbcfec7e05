"""``audit explain``: what is in a bundle, in words."""

from __future__ import annotations

from pathlib import Path

import click

from gpuaudit.bundle.errors import UsageError
from gpuaudit.cli.output import coloured, json_option, print_raw
from gpuaudit.cli.trust import key_option, trust_with
from gpuaudit.cli.waiting import waiting


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("id_", metavar="[ID]", required=False, default="")
@click.option("--timeline", is_flag=True, help="Draw the chain, or every chain: effect, causes and peers as lanes.")
@key_option
@json_option
def command(*, bundle: Path, id_: str, timeline: bool, keys: tuple[Path, ...], as_json: bool) -> None:
    """Say in words what a bundle holds, what it can support, and what it cannot; or one finding, chain or section.

    Of a chain: what to do next, effect and cause with the exact share, where the rest of the time went, lines of code,
    the experiment that would test it and what that could bring. Of a section: its sentences and its tables. With --json
    it prints the findings document itself, and writes no file. Lanes have colours on a terminal, unless NO_COLOR is
    set.

    \b
    Examples:
      audit explain train.db
      audit explain train.db C1 --timeline
      audit explain train.db causes
    """
    from gpuaudit.analyze.explain import Asked, explain
    from gpuaudit.analyze.run import AnalyzeOptions, analyze, document_bytes

    if as_json and (id_ or timeline):
        raise UsageError("--json prints the whole document", hint="leave out ID and --timeline")
    trust = trust_with(keys)
    with waiting("verifying and analyzing"):
        if as_json:
            data = document_bytes(analyze(bundle, AnalyzeOptions(trust=trust)))
        else:  # made inert there: twice would escape the escapes
            data = explain(bundle, Asked(id_, timeline, colour=coloured()), trust=trust).encode()
    print_raw(data)
