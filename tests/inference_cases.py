"""The worked examples of inference formulas, rules and windows (``tests/data/inference-cases.json``).

A module named ``test_*_cases.py`` below ``tests/unit/analyze`` takes the examples whose id starts with one of its
prefixes, ``@pytest.mark.parametrize("case", cases("dec", "rid"), ids=str)``, and drives each through the real
function. ``test_every_case.py`` reads the parametrisations of all such modules: every example that is to be followed
has to be in exactly one of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "data" / "inference-cases.json"


@dataclass(frozen=True, eq=False)
class Case:
    """One worked example; numbers in ``inputs`` and ``expected`` are as in the file (int, float, None, str, list)."""

    id: str
    area: str
    era: str
    inputs: dict[str, Any]
    expected: Any
    tolerance: Fraction | None
    note: str

    @property
    def prefix(self) -> str:
        """What stands before the number: ``dec`` of ``dec-03``, ``mdl`` of ``mdl-neg-01``."""
        return self.id.split("-")[0]

    def __str__(self) -> str:
        return self.id

    def agrees(self, got: Fraction | int | None, expected: Any) -> bool:
        """Whether a number is the expected one, within the case's tolerance (1e-6 of it where the file names none)."""
        if expected is None or got is None:
            return got is None and expected is None
        want = exact(expected)
        slack = self.tolerance if self.tolerance is not None else abs(want) / 10**6
        return abs(Fraction(got) - want) <= slack


def exact(value: float | int) -> Fraction:
    """A number of the file as the decimal that is written there, not as the nearest binary one."""
    return Fraction(repr(value))


@cache
def followed() -> tuple[Case, ...]:
    """Every example with ``follow: true``, in the order of the file."""
    return tuple(_read())


def cases(*prefixes: str) -> list[Case]:
    """The examples to follow whose id starts with one of ``prefixes`` and a dash; every prefix has to have some."""
    found = [c for c in followed() if c.prefix in prefixes]
    missing = set(prefixes) - {c.prefix for c in found}
    assert not missing, f"no example with prefix {sorted(missing)}"
    return found


def _read() -> Iterator[Case]:
    for row in json.loads(FILE.read_text("utf-8")):
        if row["follow"]:
            tolerance = row.get("tolerance")
            yield Case(
                row["id"],
                row["area"],
                row["era"],
                row["inputs"],
                row["expected"],
                None if tolerance is None else exact(tolerance),
                row.get("note", ""),
            )
