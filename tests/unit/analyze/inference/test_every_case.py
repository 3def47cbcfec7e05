"""Every worked example that is to be followed is driven by exactly one test."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path

import tests
from tests.inference_cases import Case, followed

ROOT = Path(tests.__file__).parent


def _claimed() -> Counter[str]:
    """Ids in the parametrisations of all test modules for examples, read from pytest's own marks."""
    out: Counter[str] = Counter()
    for path in sorted((ROOT / "unit" / "analyze").rglob("test_*_cases.py")):
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        for attribute, value in sorted(vars(importlib.import_module(name)).items()):
            if attribute.startswith("test_"):
                out.update(_ids(value))
    return out


def _ids(function: object) -> list[str]:
    marks = [m for m in getattr(function, "pytestmark", []) if m.name == "parametrize"]
    return [v.id for m in marks for v in m.args[1] if isinstance(v, Case)]


def test_every_example_is_driven_once() -> None:
    claimed = _claimed()
    assert set(claimed) == {c.id for c in followed()}
    assert {i for i, n in claimed.items() if n > 1} == set()


def test_the_file_is_whole() -> None:
    """As many examples as the file had when the project took it over: none is lost by editing it."""
    assert len(followed()) == 197
    assert len({c.id for c in followed()}) == 197
