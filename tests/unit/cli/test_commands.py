"""Every subcommand: help with an example, JSON, a manual in step, and nothing loaded that it does not need."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from gpuaudit.cli.group import SUBCOMMANDS
from gpuaudit.cli.main import audit
from gpuaudit.cli.reference import TARGET, markdown

WITHOUT_JSON = {"keys export"}
"""Its result is a PEM file."""


def walk(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield path.strip(), command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        assert child is not None
        yield from walk(f"{path} {name}", child)


LEAVES = dict(walk("", audit))


def test_every_name_of_the_group_is_a_command() -> None:
    assert {path.partition(" ")[0] for path in LEAVES} == set(SUBCOMMANDS)


@pytest.mark.parametrize("path", LEAVES)
def test_help_holds_an_example_that_begins_with_the_command(path: str) -> None:
    text = LEAVES[path].help or ""
    assert "\b\n" in text
    assert "Example" in text
    assert f"audit {path}" in text.partition("Example")[2]


@pytest.mark.parametrize("path", sorted(set(LEAVES) - WITHOUT_JSON))
def test_json_is_an_option_of_every_command(path: str) -> None:
    assert "--json" in {name for p in LEAVES[path].params for name in p.opts}


@pytest.mark.parametrize("path", LEAVES)
def test_every_option_says_what_it_is_for(path: str) -> None:
    for option in (p for p in LEAVES[path].params if isinstance(p, click.Option)):
        assert option.help, option.name


def test_the_manual_is_in_step() -> None:
    assert TARGET.read_text(encoding="utf-8") == markdown()


HEAVY = ("duckdb", "pyarrow", "weasyprint", "jinja2", "pyhanko", "fontTools", "elftools", "pynvml")


def loaded_by(*args: str) -> set[str]:
    """Which of the heavy packages a command line loads, in a process of its own."""
    script = (
        "import sys\nfrom gpuaudit.cli.guard import run\nfrom gpuaudit.cli.main import audit\n"
        f"run(audit, {list(args)!r})\nprint(*(m for m in {HEAVY!r} if m in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "args", [("--help",), ("verify", "no.db"), ("keys", "show"), ("probes",), ("check", "--self")], ids=" ".join
)
def test_the_audited_host_needs_none_of_the_heavy_packages(args: tuple[str, ...]) -> None:
    assert loaded_by(*args) == set()


def test_loading_is_seen_where_it_happens() -> None:
    assert "duckdb" in loaded_by("explain", "no.db")
