"""``audit explain``: what is in a bundle, in words."""

from __future__ import annotations

from pathlib import Path

import click

from gpuaudit.cli.output import print_line
from gpuaudit.cli.trust import key_option, trust_with


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@key_option
def command(*, bundle: Path, keys: tuple[Path, ...]) -> None:
    """Say in words what a bundle holds, what it can support, and what it cannot.

    \b
    Example:
      audit explain train.db
    """
    from gpuaudit.analyze.explain import explain

    for line in explain(bundle, trust=trust_with(keys)).splitlines():
        print_line(line)
