"""The lock files hold what pyproject.toml asks for, each file pinned by hash, and agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
NAMES = ("capture", "all", "dev", "torture")
Locked = dict[str, list[tuple[Requirement, int]]]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def locked(name: str) -> Locked:
    """Package → its pinned requirements (one per marker) with their number of hashes."""
    out: Locked = {}
    text = (ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8")
    for entry in re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"(?m)^#.*\n", "", text)):
        if entry.strip():
            requirement = Requirement(entry.partition(" \\\n")[0])
            out.setdefault(canonicalize_name(requirement.name), []).append((requirement, entry.count("--hash=sha256:")))
    return out


def asked() -> dict[str, list[Requirement]]:
    """What each lock must satisfy."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras, groups = project["project"]["optional-dependencies"], project["dependency-groups"]
    base = [*project["project"]["dependencies"], *groups["build"]]
    everything = [*base, *extras["analyze"], *extras["report"]]
    tools = [r for r in groups["dev"] if isinstance(r, str)]
    wanted = {"capture": base, "all": everything, "dev": [*everything, *tools, *groups["real-libraries"]]}
    wanted["torture"] = groups["torture"]
    return {name: [Requirement(r) for r in requirements] for name, requirements in wanted.items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_requirement_is_pinned_with_hashes(name: str) -> None:
    pins = locked(name)
    for requirement, hashes in (pin for entries in pins.values() for pin in entries):
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert hashes > 0, requirement


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", NAMES)
def test_what_the_project_asks_for_is_in_the_lock(name: str, python: str) -> None:
    here = {name: str(value) for name, value in default_environment().items()}
    environment = {**here, "python_version": python, "python_full_version": f"{python}.1"}
    pins = locked(name)
    for requirement in asked()[name]:
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        chosen = [
            pin for pin, _ in pins.get(canonicalize_name(requirement.name), [])
            if pin.marker is None or pin.marker.evaluate(environment)
        ]  # fmt: skip
        assert len(chosen) == 1, (requirement, python)
        (version,) = (s.version for s in chosen[0].specifier)
        assert requirement.specifier.contains(version), (requirement, version)


def test_the_locks_agree() -> None:
    dev = locked("dev")
    for name in ("capture", "all"):
        for package, pins in locked(name).items():
            assert {str(r.specifier) for r, _ in pins} <= {str(r.specifier) for r, _ in dev[package]}, package


def test_no_place_of_a_registry_is_named() -> None:
    for name in NAMES:
        text = (ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8")
        assert "://" not in text
        assert not re.search(r"--(index|extra-index|find|trusted)", text)
