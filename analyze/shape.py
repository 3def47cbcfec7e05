"""Shapes of JSON that somebody hostile may have written: what a value must be, and where it is not.

A shape is a function ``(value, path) -> None`` that raises :class:`ShapeError` naming the place, what was got and
what was expected. Shapes are bounded: texts, lists and numbers have a largest size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

Shape = Callable[[Any, str], None]

MAX_TEXT = 65_536
"""Characters of one text; the longest of ours is a query of listed row ranges, about 16 kB."""

_DECIMAL = re.compile(r"(0|-?[1-9][0-9]{0,79})\Z")
"""80 digits: a price per GPU-hour times nanoseconds, as an exact ratio, has fewer than 50."""


class ShapeError(ValueError):
    """A value is not what it must be; the text says where and why."""


def fail(path: str, got: Any, expected: str) -> None:
    """Raise :class:`ShapeError`."""
    raise ShapeError(f"{path or 'document'}: got {got!r:.80}, expected {expected}")


def text(limit: int = MAX_TEXT) -> Shape:
    """A string of at most ``limit`` characters."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, str) or len(value) > limit:
            fail(path, value, f"text of at most {limit} characters")

    return check


def pattern(regex: str, what: str) -> Shape:
    """A string that ``regex`` matches as a whole."""
    compiled = re.compile(rf"(?:{regex})\Z")

    def check(value: Any, path: str) -> None:
        if not isinstance(value, str) or not compiled.match(value):
            fail(path, value, what)

    return check


def one_of(*allowed: str) -> Shape:
    """One of a few words."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, str) or value not in allowed:
            fail(path, value, f"one of {', '.join(allowed)}")

    return check


def decimal(value: Any, path: str) -> None:
    """An integer as a decimal string without leading zeros."""
    if not isinstance(value, str) or not _DECIMAL.match(value):
        fail(path, value, "an integer as a decimal string")


def number(value: Any, path: str) -> None:
    """An exact number of a quantity: decimal string, ``{"num", "den"}``, or null."""
    if isinstance(value, dict) and set(value) == {"num", "den"}:
        decimal(value["num"], f"{path}.num")
        decimal(value["den"], f"{path}.den")
        if int(value["den"]) < 2:
            fail(f"{path}.den", value["den"], "a denominator above 1")
    elif value is not None:
        decimal(value, path)


def integer(low: int = 0, high: int = 2**53 - 1) -> Shape:
    """A JSON integer between ``low`` and ``high``."""

    def check(value: Any, path: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            fail(path, value, f"an integer from {low} to {high}")

    return check


def boolean(value: Any, path: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        fail(path, value, "true or false")


def optional(shape: Shape) -> Shape:
    """The shape, or null."""

    def check(value: Any, path: str) -> None:
        if value is not None:
            shape(value, path)

    return check


def either(first: Shape, second: Shape) -> Shape:
    """One of two shapes; the message is that of the second."""

    def check(value: Any, path: str) -> None:
        try:
            first(value, path)
        except ShapeError:
            second(value, path)

    return check


def array(shape: Shape, limit: int) -> Shape:
    """A list of at most ``limit`` values of one shape."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, list) or len(value) > limit:
            fail(path, value, f"a list of at most {limit}")
        for i, item in enumerate(value):
            shape(item, f"{path}[{i}]")

    return check


def row(*shapes: Shape) -> Shape:
    """A list with exactly one value per shape."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, list) or len(value) != len(shapes):
            fail(path, value, f"a list of {len(shapes)}")
        for i, (item, shape) in enumerate(zip(value, shapes, strict=True)):
            shape(item, f"{path}[{i}]")

    return check


def mapping(shape: Shape, limit: int) -> Shape:
    """An object with any keys, at most ``limit``, and values of one shape."""
    key = text(256)

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict) or len(value) > limit:
            fail(path, value, f"an object of at most {limit} members")
        for name, item in value.items():
            key(name, f"{path} (a key)")
            shape(item, f"{path}.{name[:40]}")

    return check


def record(required: Mapping[str, Shape], extra: Mapping[str, Shape] | None = None) -> Shape:
    """An object with all of ``required`` and, where they are there, some of ``extra``; nothing else."""
    more = extra or {}

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            fail(path, value, "an object")
        _keys(value, required, more, path)
        for name, item in value.items():
            (required.get(name) or more[name])(item, f"{path}.{name}" if path else name)

    return check


def _keys(value: Mapping[str, Any], required: Collection[str], more: Collection[str], path: str) -> None:
    missing = sorted(set(required) - set(value))
    if missing:
        fail(path, sorted(value), f"the member {missing[0]!r}")
    unknown = sorted(set(value) - set(required) - set(more))
    if unknown:
        fail(path, unknown[0], "no member of that name")
