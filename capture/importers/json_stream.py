"""A JSON document of any size, read piece by piece: members of its top level, and elements of one large array of it.

Values are decoded by the C scanner of :mod:`json` straight from a window of text that slides over the file, so memory
is bounded by the largest single value. Numbers with a fraction come as :class:`decimal.Decimal`, exact; NaN and the
infinities, which are no JSON but are written, come as None. A value that is not JSON inside, and whose end can be
found all the same, is one :class:`Malformed` value; what breaks the structure around it breaks the file.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from gpuaudit.bundle.errors import InputUnusable

MAX_ELEMENT_CHARS = 4 << 20
"""Longest element of the array: an event with a deep stack and the shapes of many tensors has some 100 kB."""

MAX_MEMBER_CHARS = 8 << 20
"""Longest member that is decoded: the process groups of 10,000 ranks have about 5 MB."""

MAX_MEMBERS = 10_000
"""Members of the top level; a trace has a dozen."""

_BLANK = re.compile(r"[ \t\r\n]*")
_NEXT = re.compile(r"[ \t\r\n]*,[ \t\r\n]*(?=[^ \t\r\n\]])")
"""From the end of an element to the begin of the next one, where both are in the window."""

_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{}]', re.DOTALL)
"""A whole string, the quotation mark of one whose end is not in the window, or a bracket."""

_MORE_OF_A_NUMBER = len("e+1")
"""So much text after a number tells that it is over: 1 may go on as 1.5 or as 1e+5."""

_SCALAR_END = re.compile(r"[,\]}\s]")


@dataclass(frozen=True)
class Malformed:
    """A value that could not be decoded, and why."""

    reason: str


@dataclass(frozen=True)
class Skipped:
    """A member that nobody asked for: passed over, however long."""


Value = Any
"""What :mod:`json` gives; Malformed or Skipped in its place."""


def members(name: str, blocks: Iterable[bytes], array: str, wanted: Collection[str]) -> Iterator[tuple[str, Value]]:
    """Each member of the top level in order, and each element of the member ``array`` (or of a document that is one).

    A member is decoded where it is ``wanted``. InputUnusable where the structure breaks off or a value is past its
    limit; ``name`` is the file's, for messages.
    """
    window = _Window(name, blocks)
    first = window.next_char()
    if first == "[":
        window.at += 1
        yield from ((array, v) for v in window.elements())
    elif first == "{":
        window.at += 1
        yield from _members(window, array, wanted)
    else:
        raise window.broken("neither an object nor an array")
    if window.next_char():
        raise window.broken("text follows its end")


def _members(window: _Window, array: str, wanted: Collection[str]) -> Iterator[tuple[str, Value]]:
    for _ in range(MAX_MEMBERS):
        char = window.next_char()
        if char == "}":
            window.at += 1
            return
        key = window.value(MAX_MEMBER_CHARS) if char == '"' else None
        if not isinstance(key, str) or window.next_char() != ":":
            raise window.broken("expected a member")
        window.at += 1
        if key == array and window.next_char() == "[":
            window.at += 1
            yield from ((key, v) for v in window.elements())
        else:
            yield key, window.value(MAX_MEMBER_CHARS) if key in wanted else window.skip()
        char = window.next_char()
        if char == ",":
            window.at += 1
        elif char != "}":
            raise window.broken("expected a comma or the end")
    raise window.broken(f"more than {MAX_MEMBERS} members")


class _Window:
    """The text at hand: ``at`` is how far of it was used."""

    def __init__(self, name: str, blocks: Iterable[bytes]) -> None:
        self.at = 0
        self._name = name
        self._blocks = iter(blocks)
        self._text = ""
        self._before = 0
        self._ended = False
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._scan = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_number).raw_decode
        self._fill()
        self._text = self._text.removeprefix("\ufeff")

    def broken(self, why: str) -> InputUnusable:
        """The error of a file whose structure is not what it should be."""
        return InputUnusable(
            f"{self._name}: no whole JSON document: {why} at character {self._before + self.at}",
            hint="write the trace again; it may have been cut off",
        )

    def next_char(self) -> str:
        """The next character that is not blank, not used up; empty at the end of the file."""
        while True:
            match = _BLANK.match(self._text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._fill():
                return ""

    def elements(self) -> Iterator[Value]:
        """Elements of the array whose bracket was used up, and its end."""
        char = self.next_char()
        while char != "]":
            yield self.value(MAX_ELEMENT_CHARS)
            while match := _NEXT.match(self._text, self.at):
                self.at = match.end()
                yield self._value_here(MAX_ELEMENT_CHARS)
            char = self.next_char()
            if char == ",":
                self.at += 1
                char = self.next_char()
            elif char != "]":
                raise self.broken("expected a comma or the end")
        self.at += 1

    def value(self, limit: int) -> Value:
        """The next value, of at most ``limit`` characters."""
        self.next_char()
        return self._value_here(limit)

    def _value_here(self, limit: int) -> Value:
        """The value that begins exactly here."""
        while True:
            try:
                value, end = self._scan(self._text, self.at)
                if end + _MORE_OF_A_NUMBER <= len(self._text) or self._ended:
                    self.at = end
                    return value
                reason = "cut off"
            except (ValueError, ArithmeticError, RecursionError) as e:
                reason = e.msg if isinstance(e, json.JSONDecodeError) else str(e)
                end = self._end_of_value()
                if end >= 0:
                    self.at = end
                    return Malformed(reason[:120])
            if len(self._text) - self.at > limit:
                raise self.broken(f"a value of more than {limit} characters, or one that is not JSON ({reason:.80}),")
            if not self._fill() and end < 0:
                raise self.broken("the file ends inside a value")

    def skip(self) -> Value:
        """Pass over the value here, of any length."""
        if self.next_char() not in {"[", "{"}:
            value = self.value(MAX_MEMBER_CHARS)
            return value if isinstance(value, Malformed) else Skipped()
        depth = 0
        while True:
            for token in _TOKEN.finditer(self._text, self.at):
                char = token[0][0]
                if char == '"' and token.end() - token.start() == 1:
                    self.at = token.start()
                    break
                depth += (char in "[{") - (char in "]}")
                self.at = token.end()
                if not depth:
                    return Skipped()
            else:
                self.at = len(self._text)
            if len(self._text) - self.at > MAX_MEMBER_CHARS:
                raise self.broken(f"a text of more than {MAX_MEMBER_CHARS} characters")
            if not self._fill():
                raise self.broken("the file ends inside a value")

    def _end_of_value(self) -> int:
        """Where a value that cannot be decoded ends, by its brackets; −1 where the window does not tell."""
        first = self._text[self.at : self.at + 1]
        if first not in {"[", "{", '"'}:
            match = _SCALAR_END.search(self._text, self.at)
            return match.start() if match and match.start() > self.at else -1
        depth = 0
        for token in _TOKEN.finditer(self._text, self.at):
            char = token[0][0]
            if char == '"' and token.end() - token.start() == 1:
                return -1
            depth += (char in "[{") - (char in "]}")
            if not depth:
                return token.end()
        return -1

    def _fill(self) -> bool:
        """Slide on by as much again as is held (at least a block); False at the end of the file."""
        if self._ended:
            return False
        held = len(self._text) - self.at
        parts = [self._text[self.at :]]
        more = 0
        while more <= held and not self._ended:
            block = next(self._blocks, None)
            self._ended = block is None
            part = self._decode(block or b"", self._ended)
            parts.append(part)
            more += len(part)
        self._before += self.at
        self._text, self.at = "".join(parts), 0
        return more > 0


def _no_number(name: str) -> None:  # noqa: ARG001 - NaN and infinities are what a division by 0 left in a trace
    return None
