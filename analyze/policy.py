"""Thresholds as somebody's policy sets them: a JSON or TOML file that overrides what rules and detectors declare.

``{"thresholds": {"idle_allocation.idle_ns": "10 s", "throttling.throttled_share": "5 %"}}``: the key is the id of a
rule, chain detector or kind of effect, a dot, and the name of one of its thresholds; the value is an exact number with
its unit. What the file does not name keeps its declared value. The file is read as hostile input: whatever is not
understood whole is refused, with its place. Its SHA-256 stands in the findings document, and every threshold it sets
says so there.

A policy changes what is told of the evidence, never the evidence or its grade: thresholds of the quality grade cannot
be overridden, nor can constants of a definition (``Threshold.fixed``).
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

from gpuaudit.analyze.finding import Declaration, Threshold
from gpuaudit.bundle.errors import InputUnusable

MAX_FILE_BYTES = 1 << 20
"""A megabyte is a hundred times every threshold there is."""

MAX_NUMBER = 1 << 62
"""Largest absolute value of a threshold, in its base unit: sums of two stay within int64."""

SPELLINGS: dict[str, dict[str, Fraction]] = {
    "ns": {
        "ns": Fraction(1), "us": Fraction(10**3), "µs": Fraction(10**3), "ms": Fraction(10**6), "s": Fraction(10**9),
        "min": Fraction(60 * 10**9),
    },
    "share": {"share": Fraction(1), "%": Fraction(1, 100), "": Fraction(1)},
    "bytes": {
        "bytes": Fraction(1), "KiB": Fraction(1 << 10), "MiB": Fraction(1 << 20), "GiB": Fraction(1 << 30),
        "kB": Fraction(10**3), "MB": Fraction(10**6), "GB": Fraction(10**9),
    },
    "mW": {"mW": Fraction(1), "W": Fraction(1000)},
    "count": {"count": Fraction(1), "": Fraction(1)},
    "ratio": {"ratio": Fraction(1), "": Fraction(1)},
}  # fmt: skip
"""What may stand behind a number for a threshold of that unit; any other unit is written as it is declared."""

WHOLE = frozenset({"ns", "bytes", "mW", "count", "MHz", "°C", "gpu_ns", "bits", "mJ", "GPU", "token"})
"""Units in which a threshold that is declared as an integer has to stay one."""

_NUMBER = re.compile(r"(-?[0-9]{1,19}(?:\.[0-9]{1,18}|/[0-9]{1,19})?) ?([^0-9 ].{0,15})?\Z")
_HINT = "docs/reference/policy.md says what a policy file holds"


@dataclass(frozen=True)
class Policy:
    """Thresholds that were overridden, by (rule id, threshold name); ``sha256`` is that of the file, empty without."""

    overrides: Mapping[tuple[str, str], int | Fraction] = field(default_factory=dict)
    sha256: str = ""

    @classmethod
    def default(cls) -> Policy:
        """Nothing is overridden."""
        return cls()

    @classmethod
    def load(cls, path: Path | str) -> Policy:
        """The policy in a file; InputUnusable, with the place, for anything that is not wholly understood."""
        from gpuaudit.analyze.registry import declarations  # noqa: PLC0415 (rules import this module)

        path = Path(path)
        try:
            with path.open("rb") as f:
                data = f.read(MAX_FILE_BYTES + 1)
        except OSError as e:
            raise InputUnusable(f"{path}: cannot be read: {e.strerror}", hint="name a policy file") from None
        return cls.parse(data, path.name, declarations())

    @classmethod
    def parse(cls, data: bytes, name: str, declarations: Sequence[Declaration]) -> Policy:
        """The policy in the bytes of a file called ``name``, against what ``declarations`` declare."""
        file = _File(name, data)
        known = {d.id: {t.name: t for t in d.thresholds} for d in declarations}
        overrides = {}
        for key, value in file.thresholds():
            threshold = _named(file, key, known)
            overrides[key.partition(".")[0], threshold.name] = _number(file, key, value, threshold)
        return cls(overrides, hashlib.sha256(data).hexdigest())

    def value(self, threshold: Threshold, rule_id: str) -> int | Fraction:
        """What ``threshold`` is for the rule or detector ``rule_id``: the policy's value, else the declared one."""
        return self.overrides.get((rule_id, threshold.name), threshold.value)

    def applied(self, declaration: Declaration) -> Declaration:
        """The declaration with the values that hold, each one that was overridden naming its default."""
        return replace(declaration, thresholds=tuple(self._told(t, declaration.id) for t in declaration.thresholds))

    def _told(self, threshold: Threshold, rule_id: str) -> Threshold:
        if (rule_id, threshold.name) not in self.overrides:
            return threshold
        default = f"policy file; the default is {threshold.value} {threshold.unit}, {threshold.source}"
        return replace(threshold, value=self.value(threshold, rule_id), source=default)


class _File:
    """The bytes of a policy file, and how to say what is wrong where."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        if len(data) > MAX_FILE_BYTES:
            self.refuse("", f"is larger than {MAX_FILE_BYTES} bytes")
        try:
            self.text = data.decode("utf-8")
        except UnicodeDecodeError as e:
            self.refuse("", f"is not UTF-8: byte {e.start}")

    def refuse(self, key: str, what: str) -> NoReturn:
        """InputUnusable with the file, the line that has ``key``, and the key."""
        at = self.text.find(json.dumps(key, ensure_ascii=False)) if key else -1
        line = f":{self.text.count(chr(10), 0, at) + 1}" if at >= 0 else ""
        raise InputUnusable(f"{self.name}{line}: {_printable(key) + ': ' if key else ''}{what}", hint=_HINT)

    def thresholds(self) -> list[tuple[str, str]]:
        """(key, value as written) of every threshold."""
        toml = self.name.endswith(".toml")
        body = self._toml() if toml else self._json()
        if not isinstance(body, dict):
            self.refuse("", 'got something else than an object, expected {"thresholds": {…}}')
        known = ("thresholds", "capture") if toml else ("thresholds",)  # [capture] is for audit capture --policy
        for key in body:
            if key not in known:
                self.refuse(key, f"no member of that name; expected {' or '.join(known)}")
        found = body.get("thresholds", {} if "capture" in body else None)
        if not isinstance(found, dict):
            self.refuse("", 'expected an object as the member "thresholds"')
        for key, value in found.items():
            if not isinstance(value, str):
                self.refuse(key, f"got {value!r:.40}, expected a number, or text with a number and its unit")
        return list(found.items())

    def _json(self) -> Any:
        try:
            return json.loads(
                self.text, object_pairs_hook=self._object, parse_int=str, parse_float=str, parse_constant=str
            )
        except json.JSONDecodeError as e:
            raise InputUnusable(f"{self.name}:{e.lineno}: is not JSON: {e.msg}", hint=_HINT) from None
        except RecursionError:
            self.refuse("", "is nested too deeply")

    def _toml(self) -> Any:
        """A bare number as it was written, like JSON's: TOML's whole numbers would lose nothing, its floats would."""
        try:
            body = tomllib.loads(self.text, parse_float=str)
        except tomllib.TOMLDecodeError as e:
            self.refuse("", f"is not TOML: {e}")
        except (RecursionError, ValueError):
            self.refuse("", "is nested too deeply, or holds a number that is too long")
        found = body.get("thresholds")
        if isinstance(found, dict):
            body["thresholds"] = {k: str(v) if type(v) is int else v for k, v in _flat(found)}
        return body

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in pairs:
            if key in out:
                self.refuse(key, "stands twice in one object, expected once")
            out[key] = value
        return out


def _named(file: _File, key: str, known: Mapping[str, Mapping[str, Threshold]]) -> Threshold:
    rule, dot, name = key.partition(".")
    if not dot or rule not in known:
        rules = ", ".join(sorted(known))
        file.refuse(key, f"no rule or detector {_printable(rule)!r}; expected RULE.THRESHOLD with one of {rules}")
    threshold = known[rule].get(name)
    if threshold is None:
        file.refuse(key, f"{rule} has no threshold of that name; it has {', '.join(sorted(known[rule]))}")
    if threshold.fixed:
        file.refuse(key, f"is part of a definition and no choice: {threshold.source}")
    return threshold


def _number(file: _File, key: str, text: str, threshold: Threshold) -> int | Fraction:
    spellings = SPELLINGS.get(threshold.unit, {threshold.unit: Fraction(1)})
    units = ", ".join(s or "nothing" for s in spellings)
    match = _NUMBER.match(text)
    if match is None:
        file.refuse(key, f"got {_printable(text)!r}, expected a decimal number or a ratio, and its unit ({units})")
    if (match[2] or "") not in spellings:
        file.refuse(key, f"got the unit {_printable(match[2] or 'nothing')!r}, expected one of {units}")
    try:
        value = Fraction(match[1]) * spellings[match[2] or ""]
    except ZeroDivisionError:
        file.refuse(key, f"got {_printable(text)!r}, whose denominator is 0")
    low, high = allowed(threshold)
    if not low <= value <= high:
        file.refuse(key, f"got {_printable(text)!r}, expected {low} to {high} {threshold.unit}".rstrip())
    if value.denominator == 1:
        return value.numerator
    if threshold.unit in WHOLE and isinstance(threshold.value, int):
        file.refuse(key, f"got {_printable(text)!r}, expected a whole number of {threshold.unit}")
    return value


def allowed(threshold: Threshold) -> tuple[int | Fraction, int | Fraction]:
    """The least and the largest value that a policy may set."""
    low = -MAX_NUMBER if threshold.value < 0 else threshold.least
    return low, min(threshold.most, 1 if threshold.unit == "share" else MAX_NUMBER)


def _flat(thresholds: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """``rule.threshold`` as a key, which TOML makes a table of ``rule`` unless it is quoted."""
    for key, value in thresholds.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield key, value


def _printable(text: str) -> str:
    """Text of a stranger, short and without anything that could move a cursor or break a line."""
    return "".join(c if c.isprintable() else "?" for c in text[:80])
