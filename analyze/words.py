"""Numbers and sentences of a document as plain text for a terminal, in the digits of the report."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gpuaudit.analyze.finding import Chain, Declaration, Finding, Quantity
from gpuaudit.bundle.rounding import duration, told

__all__ = ["amount", "duration", "filled", "sentence"]

PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]{0,63})\}")
"""Where a value goes in a declared text; anything else in braces is text."""


def amount(q: Quantity) -> str:
    """A quantity with its unit; what is not there is told with its reason."""
    return told(q)


def filled(template: str, values: Mapping[str, Quantity | str]) -> str:
    """A text with its ``{name}`` placeholders filled; KeyError where a value is missing."""
    return PLACEHOLDER.sub(lambda m: v if isinstance(v := values[m[1]], str) else told(v), template)


def sentence(item: Finding | Chain, declaration: Declaration) -> str:
    """The declared sentence with its values."""
    return filled(declaration.texts[item.text], item.values)
