"""The command group: each subcommand is a module of this package, imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
import keyword

import click

SUBCOMMANDS = (
    "capture", "import", "analyze", "report", "diff", "export", "verify", "check", "explain", "show", "query", "roi",
    "catalog", "probes", "keys",
)  # fmt: skip
"""In the order of the help: the road first, then what looks at it. ``gpuaudit/cli/<name>.py`` holds ``command``
(``import_.py`` for ``import``, which Python keeps for itself)."""


class LazyGroup(click.Group):
    """A group that imports ``gpuaudit.cli.<name>`` only for the subcommand at hand, and suggests a near name.

    So ``audit verify`` loads no database and no typesetter, and a host without them can verify.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        if cmd_name not in SUBCOMMANDS:
            return None
        module = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        command = importlib.import_module(f"gpuaudit.cli.{module}").command
        assert isinstance(command, click.Command)  # noqa: S101 - a defect of ours, seen by the conformance test
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name.startswith("-") or name in SUBCOMMANDS:
            return super().resolve_command(ctx, args)
        near = difflib.get_close_matches(name, SUBCOMMANDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(SUBCOMMANDS)}"
        raise click.UsageError(f"unknown command {name!r}; {hint}", ctx)
