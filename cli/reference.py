"""Write or check ``docs/reference/cli.md``, the manual of the command line, from the commands themselves.

``python -m gpuaudit.cli.reference`` writes it, ``--check`` says whether it is out of step (status 1).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

import gpuaudit
from gpuaudit.cli.main import audit

TARGET = Path(gpuaudit.__file__).parent.parent / "docs" / "reference" / "cli.md"


def markdown() -> str:
    """The manual: every command with its synopsis, what it does, and its options."""
    out = ["# The command line", "", "Generated from `cli/`; do not edit (`python -m gpuaudit.cli.reference`).", ""]
    for path, command in _walk("audit", audit):
        out += [f"## {path}", "", f"    {_synopsis(path, command)}", "", *_help(command), ""]
        rows = [_option(p) for p in command.params if isinstance(p, click.Option) and not p.hidden]
        if rows:
            out += ["| option | meaning |", "|---|---|", *rows, ""]
    return "\n".join(out).rstrip() + "\n"


def _walk(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None:
                yield from _walk(f"{path} {name}", child)


def _synopsis(path: str, command: click.Command) -> str:
    context = click.Context(command, info_name=path)
    return " ".join([path, *command.collect_usage_pieces(context)])


def _help(command: click.Command) -> list[str]:
    """The docstring; paragraphs that click must not wrap (marked with a backspace) become blocks of code."""
    out: list[str] = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if not paragraph.startswith("\b\n"):
            out += [paragraph, ""]
            continue
        lines = paragraph.removeprefix("\b\n").splitlines()
        if lines[0].startswith("Example"):
            out += [lines[0], "", *(f"    {line.strip()}" for line in lines[1:]), ""]
        else:
            out += [*(f"    {line}" for line in lines), ""]
    return out[:-1]


def _option(option: click.Option) -> str:
    names = ", ".join(f"`{n}`" for n in (*option.opts, *option.secondary_opts))
    kind = "" if option.is_flag else f" {option.metavar or option.type.name.upper()}"
    default = f" (default {option.default})" if option.show_default and option.default is not None else ""
    return f"| {names}{kind} | {(option.help or '').replace('|', chr(92) + '|')}{default} |"


def main() -> int:
    """Write the manual, or with ``--check`` compare it; returns the exit status."""
    text = markdown()
    if "--check" in sys.argv[1:]:
        same = TARGET.exists() and TARGET.read_text(encoding="utf-8") == text
        if not same:
            click.echo(
                f"{TARGET.name} is out of step with the commands; run python -m gpuaudit.cli.reference", err=True
            )
        return 0 if same else 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
