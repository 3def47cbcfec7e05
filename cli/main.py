"""The ``audit`` command."""

from __future__ import annotations

import sys

import click

import gpuaudit
from gpuaudit.cli.group import LazyGroup
from gpuaudit.cli.guard import run


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(gpuaudit.__version__, "--version", "-V", prog_name="gpu-audit")
def audit() -> None:
    """Record what a GPU host really did, seal it, and write a report every number of which can be traced.

    Nothing here talks to a network. Results go to stdout, everything else to stderr.

    \b
    Exit status: 0 done · 1 the answer is no · 2 usage · 3 unusable input · 4 the host lacks something
    5 done but incomplete under --strict · 70 internal · 130 interrupted · 141 the reader of stdout went away
    `audit capture -- command` ends with the status of the command.
    """


def main() -> None:
    """Run the command line of this process and end it with the exit status."""
    sys.exit(run(audit, sys.argv[1:]))


if __name__ == "__main__":
    main()
