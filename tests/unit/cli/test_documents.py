"""The documents at the root are true: tests they name exist, commands they show are commands, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from gpuaudit.cli.main import audit

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_every_threat_names_a_test_that_exists() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [line for line in text.partition("| attack |")[2].splitlines()[2:] if line.startswith("|")]
    assert len(rows) > 20
    defined: dict[str, str] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        defined[path.name] = defined.get(path.name, "") + path.read_text(encoding="utf-8")
    for row in rows:
        tests = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row.rpartition(" | ")[2])
        scripts = re.findall(r"`(scripts/[\w-]+)[^`]*`", row.rpartition(" | ")[2])
        assert tests or scripts, row
        for file, function in tests:
            assert f"def {function}(" in defined[file], (file, function)
        for script in scripts:
            assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_within_the_tree_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def shown_commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S))
    return [line.partition("#")[0].strip() for line in blocks.splitlines() if re.match(r"(sudo )?audit ", line)]


@pytest.mark.parametrize("line", shown_commands())
def test_commands_of_the_readme_are_understood(line: str) -> None:
    """Their names and options exist; they are parsed, not run."""
    words = shlex.split(line.removeprefix("sudo ").partition(" > ")[0])[1:]
    command: click.Command = audit
    while isinstance(command, click.Group):
        child = command.get_command(click.Context(command), words.pop(0))
        assert child is not None
        command = child
    command.make_context("audit", words)
