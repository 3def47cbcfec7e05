"""Numbers and sentences of a document as plain text for a terminal, in the digits of the report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from gpuaudit.analyze.finding import Chain, Declaration, Finding, Quantity
from gpuaudit.bundle.rounding import duration, told

__all__ = ["amount", "counted", "duration", "filled", "marked", "said", "sentence", "together"]

PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]{0,63})\}")
"""Where a value goes in a declared text; anything else in braces is text."""


_OF_A_SOURCE = re.compile(r"source ([a-z_0-9]+)( .*)\Z", re.S)


def together(reasons: Iterable[str]) -> list[str]:
    """Reasons of a grade that say the same of several sources said once, where the first of them stood."""
    names: dict[str, list[str]] = {}
    for r in reasons:
        match = _OF_A_SOURCE.match(r)
        names.setdefault(match[2] if match else r, []).append(match[1] if match else "")
    return [
        rest if n == [""] else f"source {n[0]}{rest}" if len(n) == 1 else f"sources {', '.join(n)}{rest}"
        for rest, n in names.items()
    ]


def counted(n: int, noun: str) -> str:
    """A number of things: "1 GPU", "2 GPUs"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


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


def said(template: str, values: Mapping[str, Quantity | str]) -> str:
    """The text of a rule with its values: what is assumed in it are the rule's own thresholds, which need no mark."""
    shown = {k: told(v) if isinstance(v, Quantity) and v.provenance == "assumed" else v for k, v in values.items()}
    return filled(template, shown)


def sentence(item: Finding | Chain, declaration: Declaration) -> str:
    """The declared sentence with its values; estimates are marked, declared thresholds (assumed) are not."""
    return said(declaration.texts[item.text], item.values)
