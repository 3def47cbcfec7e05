"""Numbers and sentences of a document as plain text for a terminal, in the digits of the report."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gpuaudit.analyze.finding import Chain, Declaration, Finding, Quantity
from gpuaudit.bundle.rounding import duration, told

__all__ = ["amount", "duration", "filled", "marked", "sentence"]

PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]{0,63})\}")
"""Where a value goes in a declared text; anything else in braces is text."""


def amount(q: Quantity) -> str:
    """A quantity with its unit; what is not there is told with its reason."""
    return told(q)


MADE = {"estimated": " (est)", "assumed": " (assumed)"}
"""What stands behind a number that evidence alone does not give: a catalogue's, or a person's, value is in it."""


def marked(q: Quantity) -> str:
    """A quantity with how it was made, where that is neither measured nor derived from measured values."""
    return told(q) if q.value is None else told(q) + MADE.get(q.provenance, "")


def filled(template: str, values: Mapping[str, Quantity | str]) -> str:
    """A text with its ``{name}`` placeholders filled; KeyError where a value is missing."""
    return PLACEHOLDER.sub(lambda m: v if isinstance(v := values[m[1]], str) else marked(v), template)


def sentence(item: Finding | Chain, declaration: Declaration) -> str:
    """The declared sentence with its values."""
    return filled(declaration.texts[item.text], item.values)
