"""What a run found, and its JSON form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.spread import Spread, ratios
from gpuaudit.bundle.errors import InputUnusable

FORMAT = 1
"""Version of the JSON form."""


@dataclass(frozen=True)
class Plan:
    """How much to do: ``repeats`` rounds, ``budget_s`` seconds a figure, ``scale`` of the sizes, an empty folder."""

    repeats: int
    budget_s: float
    scale: float
    folder: Path

    def size(self, full: int, least: int = 1) -> int:
        """``full`` things, scaled."""
        return max(least, round(full * self.scale))


@dataclass(frozen=True)
class Value:
    """One line of a figure. ``unit`` is "ratio" for a ratio; ``better`` says in which direction it is good."""

    what: str
    unit: str
    spread: Spread
    better: str = ""


def ratio(what: str, above: Iterable[float], below: Iterable[float], better: str = "") -> Value:
    """A line with the quotients, repeat by repeat; ``better``: "lower" or "higher"."""
    return Value(what, "ratio", ratios(above, below), f"{better} is better" if better else "")


def value(what: str, unit: str, values: Iterable[float]) -> Value:
    """A line with an absolute value of this machine."""
    return Value(what, unit, Spread.of(values))


@dataclass(frozen=True)
class Figure:
    """One figure: ratios first, then this machine's absolute values, and what was done exactly."""

    name: str
    title: str
    method: str
    values: tuple[Value, ...]
    parameters: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class NotMeasured:
    """A figure that this machine could not give, and why."""

    name: str
    title: str
    reason: str


@dataclass(frozen=True)
class Result:
    """A whole run. ``machine``: name → value; ``taken_utc``: when it began, ISO 8601."""

    command: str
    taken_utc: str
    seconds: float
    machine: dict[str, str]
    figures: tuple[Figure, ...]
    not_measured: tuple[NotMeasured, ...] = ()

    def to_json(self) -> str:
        """Indented JSON, sorted keys."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, name: str = "the result") -> Result:
        """Read what :meth:`to_json` wrote; InputUnusable for anything else."""
        try:
            raw = json.loads(text)
            if raw.pop("format") != FORMAT:
                raise InputUnusable(f"{name} is not of format {FORMAT}", hint="measure again: python -m bench --save")
            figures = tuple(_figure(f) for f in raw.pop("figures"))
            missing = tuple(NotMeasured(**n) for n in raw.pop("not_measured"))
            return cls(**raw, figures=figures, not_measured=missing)
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise InputUnusable(f"{name} is not the result of a run: {e}", hint="python -m bench --save") from None


def _figure(raw: Mapping[str, Any]) -> Figure:
    values = tuple(Value(**{**v, "spread": Spread(**v["spread"])}) for v in raw["values"])
    return Figure(**{**raw, "values": values, "remarks": tuple(raw["remarks"])})
