"""Text of a report in pieces, so that evidence and our own words never mix: words, prose, data and numbers.

Only ``words`` are literals of this program. Everything that comes out of a findings document is made by :func:`data`,
:func:`prose` or :func:`number`: inert through :func:`gpuaudit.bundle.display.printable`, with every character outside
the bundled fonts escaped, and set in an isolated ``<bdi>`` by the template.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from gpuaudit.analyze.finding import Quantity
from gpuaudit.bundle import rounding
from gpuaudit.bundle.display import LIMIT_CHARACTERS, printable
from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.report.fonts import glyphs

BREAK_EVERY = 12
"""Characters between two possible breaks of a long word: the width of the narrowest column."""

LONGEST_WORD = 26
"""Longest word that is never broken: the longest API name probed (``cudaStreamSynchronize_ptsz``)."""

_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]{0,63})\}")


@dataclass(frozen=True)
class Piece:
    """A run of text: ``words`` (ours), ``prose`` (a sentence of the document), ``data`` (a name), ``number``, ``link``,
    or ``mark`` (small, ours: how a number was made, or which note explains it).

    ``exact`` is the unrounded value of a number. ``target`` is an anchor made by this program, never taken from data.
    """

    kind: Literal["words", "prose", "data", "number", "link", "mark"]
    text: str
    exact: str = ""
    target: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        """The text cut where a line may break inside a word longer than :data:`LONGEST_WORD`.

        CSS could allow that by itself (``overflow-wrap: anywhere``), and WeasyPrint 70 then takes over a second for
        one word of 512 characters in a table or grid: a hostile name would stop the report. Marked breaks take 50 ms.
        """
        cuts: list[str] = [""]
        for word in re.split(r"(?<= )", self.text):
            step = BREAK_EVERY if len(word) > LONGEST_WORD else max(len(word), 1)
            pieces = [word[at : at + step] for at in range(0, len(word), step)] or [""]
            cuts[-1] += pieces[0]
            cuts += pieces[1:]
        return tuple(cuts)


Text = tuple[Piece, ...]


def words(text: str) -> Text:
    """A literal of this program."""
    return (Piece("words", text),)


def data(text: object, limit: int = LIMIT_CHARACTERS) -> Text:
    """A name, path, id or query from the evidence."""
    return (Piece("data", printable(str(text), limit, glyphs=glyphs(mono=True))),)


def prose(text: object) -> Text:
    """A sentence of the findings document: a reason, a definition, a declared text."""
    return (Piece("prose", printable(str(text), glyphs=glyphs())),)


def number(q: Quantity) -> Text:
    """A quantity in digits; a null one is "not recorded" (measured) or "not known", with its reason."""
    if q.value is None:
        return join(words(rounding.absent(q.provenance)), bracket(prose(q.reason)) if q.reason else ())
    shown = rounding.shown(q)
    return (Piece("number", inert(shown.text), inert(shown.exact)),)


MARKS = {"estimated": "est", "assumed": "assumed"}
"""What stands behind a number that evidence alone does not give: a catalogue's, or a person's, value is in it."""


def mark(text: str) -> Text:
    """A small mark of ours behind a number."""
    return (Piece("mark", text),)


def marked(q: Quantity) -> Text:
    """A quantity with its mark; measured ones, and those derived from measured ones, have none."""
    if q.value is None or q.provenance not in MARKS:
        return number(q)
    return join(number(q), words(" "), mark(MARKS[q.provenance]))


def value(q: Quantity | str, *, assumed: bool = True) -> Text:
    """A value of a sentence: a quantity or a name; without ``assumed`` only estimates are marked."""
    if not isinstance(q, Quantity):
        return data(q)
    return marked(q) if assumed or q.provenance != "assumed" else number(q)


def of(part: Quantity, whole: Quantity, ratio: Quantity) -> Text:
    """Part of whole (ratio): a share never stands without its denominator."""
    return join(number(part), words(" of "), number(whole), bracket(number(ratio)))


def bracket(text: Text) -> Text:
    """``text`` in round brackets, after a space."""
    return join(words(" ("), text, words(")"))


def link(text: str, target: str) -> Text:
    """A reference within the report; ``target`` is one of our own anchors."""
    return (Piece("link", inert(text), target=target),)


def join(*texts: Text) -> Text:
    """One text after the other."""
    return tuple(piece for text in texts for piece in text)


def listed(texts: Iterable[Text], separator: str = ", ") -> Text:
    """Texts with a separator between them."""
    out: Text = ()
    for text in texts:
        out = join(out, words(separator), text) if out else text
    return out


def fill(
    template: str, values: Mapping[str, Quantity | str], *, assumed: bool = True, phrases: Container[str] = ()
) -> Text:  # fmt: skip
    """A declared sentence with its ``{name}`` placeholders filled; InputUnusable when a value is missing.

    Without ``assumed`` what is assumed has no mark: in the text of a rule these are the rule's own thresholds.
    ``phrases`` are values that are words of a sentence, and not names.
    """
    out: Text = ()
    at = 0
    for match in _PLACEHOLDER.finditer(template):
        if match[1] not in values:
            raise InputUnusable(
                f"findings: the text {printable(template, 80)!r} asks for a value {match[1]!r} that the finding lacks",
                hint="make the findings again with `audit analyze`",
            )
        found = values[match[1]]
        shown = prose(found) if match[1] in phrases and isinstance(found, str) else value(found, assumed=assumed)
        out = join(out, _prose_between(template[at : match.start()]), shown)
        at = match.end()
    return join(out, _prose_between(template[at:]))


def plain(text: Text) -> str:
    """The same text without structure: for a title, a chart label or an alternative text."""
    return "".join(piece.text for piece in text)


def inert(text: str) -> str:
    """A text for chart labels and titles, inert as :func:`prose`, with the cap of a name."""
    return printable(text, glyphs=glyphs())


def _prose_between(text: str) -> Text:
    return prose(text) if text else ()
