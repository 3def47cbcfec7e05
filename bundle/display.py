"""Evidence text as a reader may safely see it: one way for terminal, HTML, PDF and CSV.

Names in evidence (processes, paths, command lines) are chosen by whoever is audited. What a terminal or a typesetter
would obey instead of showing is written as ``\\u{hex}``: control, format and bidirectional characters, line and exotic
spaces, private, surrogate and unassigned code points, blank letters, right-to-left letters (they would reorder the
numbers beside them) and combining marks past :data:`COMBINING_RUN`. A backslash that would look like such an escape
is escaped itself, so that two different texts under the cap never look the same. Call it once, where text is shown.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Container

LIMIT_CHARACTERS = 512
"""Longest shown text; longer ones end in "… (+n characters)". Long enough for a path, short enough for a table cell."""

COMBINING_RUN = 2
"""Combining marks shown on one base character: Vietnamese and polytonic Greek need two; a "Zalgo" stack has dozens."""

_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})
_RIGHT_TO_LEFT = frozenset({"R", "AL", "AN", "RLE", "RLO", "RLI"})
_BLANK_LETTERS = frozenset({0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0})
"""Assigned characters without ink (Unicode: Default_Ignorable_Code_Point, and BRAILLE PATTERN BLANK)."""

_FORMULA_PREFIXES = frozenset("=+-@\t\r\n|%＝＋－＠")
"""First characters that a spreadsheet may take for a formula or a DDE call (OWASP, CSV injection; full-width too)."""


def printable(text: str, limit: int = LIMIT_CHARACTERS, *, glyphs: Container[int] | None = None) -> str:
    """``text`` on one line, inert, at most ``limit`` characters and a tail that counts the rest.

    ``glyphs`` are the code points of the fonts at hand; what they lack is escaped too (None: no such check).
    """
    shown: list[str] = []
    room = limit
    marks = 0
    for at, char in enumerate(text):
        marks = marks + 1 if unicodedata.category(char)[0] == "M" else 0
        escape = _must_escape(char, glyphs) or marks > COMBINING_RUN or (char == "\\" and text[at + 1 : at + 3] == "u{")
        piece = f"\\u{{{ord(char):x}}}" if escape else char
        if len(piece) > room:
            return f"{''.join(shown)}… (+{len(text) - at} characters)"
        room -= len(piece)
        shown.append(piece)
    return "".join(shown)


def csv_cell(text: str, limit: int = LIMIT_CHARACTERS) -> str:
    """``text`` as the content of one CSV cell (quoting is the csv module's): inert, and never a formula.

    A text that starts like a formula, blanks skipped, is preceded by an apostrophe, which spreadsheets hide.
    """
    shown = printable(text, limit)
    return f"'{shown}" if text.lstrip(" ")[:1] in _FORMULA_PREFIXES and text.strip(" ") else shown


def _must_escape(char: str, glyphs: Container[int] | None) -> bool:
    code = ord(char)
    if 0x20 <= code < 0x7F:
        return False
    return (
        unicodedata.category(char) in _HIDDEN_CATEGORIES
        or unicodedata.bidirectional(char) in _RIGHT_TO_LEFT
        or code in _BLANK_LETTERS
        or (glyphs is not None and code not in glyphs)
    )
