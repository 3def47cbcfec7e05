"""Code objects of a CPython process: file, function, and the line of an instruction.

The memory belongs to the audited workload and may hold anything: lengths are limited, types are checked, and whatever
is wrong ends as a reason, never as an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from gpuaudit.capture.cpython_offsets import Layout
from gpuaudit.capture.process_memory import Memory, Unreadable, read_word

MAX_TEXT = 4096
"""Characters of a file name or function name (PATH_MAX of Linux); longer ones are cut."""
MAX_LINE_TABLE_BYTES = 1 << 20
"""A line table has about two bytes per instruction; a megabyte is a function of 100,000 lines. ours"""
MAX_CODES = 20_000
"""Code objects remembered per process: a large program has some ten thousand functions. ours"""

CODE_TYPE = b"code\0"

REPLACED = "the code object was freed or replaced before it could be read"
NOT_CODE = "the frame does not point to a code object"


class NotReadable(Exception):
    """The frame has no name; the message says why."""


@dataclass(frozen=True)
class Code:
    """What is needed of one code object."""

    path: str
    name: str
    first_line: int
    line_table: bytes
    bytecode: int | None
    """Address of its first instruction; None where frames count instructions instead."""


class CodeReader:
    """Code objects of one process, each read once."""

    def __init__(self, memory: Memory, layout: Layout) -> None:
        self._memory = memory
        self._layout = layout
        self._codes: dict[tuple[int, int], Code] = {}
        self._code_types: set[int] = set()

    def frame(self, address: int, instruction: int, line_table: int) -> tuple[Code, int | None]:
        """The code object of a frame and the line it executes, None if the instruction has none; or NotReadable.

        ``line_table``: address of the line table when the frame was seen, which tells whether it is the same object.
        """
        key = address, line_table
        code = self._codes.get(key)
        if code is None:
            try:
                code = self._read(address, line_table)
            except Unreadable as e:
                raise NotReadable(f"the code object cannot be read: {e}") from None
            if len(self._codes) >= MAX_CODES:
                self._codes.clear()
            self._codes[key] = code
        return code, self._line(code, instruction)

    def _line(self, code: Code, instruction: int) -> int | None:
        if code.bytecode is None:
            return line_3_10(code.line_table, code.first_line, instruction * 2)
        return line_of(code.line_table, code.first_line, instruction - code.bytecode)

    def _read(self, address: int, line_table: int) -> Code:
        at = self._layout
        fields = (at.code_filename, at.code_name, at.code_qualname or 0, at.code_line_table, at.code_first_line)
        head = self._object(address, max(fields) + 8)
        self._check_type(_word(head, at.object_type))
        if _word(head, at.code_line_table) != line_table:
            raise NotReadable(REPLACED)
        name = self._text(_word(head, at.code_name if at.code_qualname is None else at.code_qualname))
        return Code(
            self._text(_word(head, at.code_filename)), name, struct.unpack_from("<i", head, at.code_first_line)[0],
            self._bytes(line_table), None if at.code_bytecode is None else address + at.code_bytecode,
        )  # fmt: skip

    def _check_type(self, address: int) -> None:
        """``type(x).__name__ == "code"``: the type's own name is the one thing that every build has."""
        if address in self._code_types:
            return
        name = self._memory.read(read_word(self._memory, address + self._layout.type_name), len(CODE_TYPE))
        if name != CODE_TYPE:
            raise NotReadable(NOT_CODE)
        self._code_types = {address}

    def _object(self, address: int, size: int) -> bytes:
        """The first bytes of an object that is in use; NotReadable when it was freed.

        A freed block begins with the address of the next free one, or with 0; a reference count is not 0 and leaves
        bits 32 to 47 empty (those above are flags from 3.14 on).
        """
        head = self._memory.read(address, size)
        count = _word(head, 0)
        if not count & 0xFFFFFFFF or count >> 32 & 0xFFFF:
            raise NotReadable(REPLACED)
        return head

    def _text(self, address: int) -> str:
        """A str object; NotReadable if it is none."""
        at = self._layout
        head = self._object(address, max(at.text_state, at.text_length) + 8)
        state = struct.unpack_from("<I", head, at.text_state)[0]
        length = min(_word(head, at.text_length), MAX_TEXT)
        for shift in at.kind_shifts:
            kind, compact, is_ascii = state >> shift & 7, state >> shift + 3 & 1, state >> shift + 4 & 1
            if kind in _ENCODINGS and compact and (kind == 1 or not is_ascii):
                data = address + (at.text_ascii_data if is_ascii else at.text_compact_data)
                raw = self._memory.read(data, length * kind)
                return raw.decode(_ENCODINGS[kind], "backslashreplace")
        raise NotReadable("a name of the code object is no text")

    def _bytes(self, address: int) -> bytes:
        size = _word(self._object(address, self._layout.bytes_size + 8), self._layout.bytes_size)
        if size > MAX_LINE_TABLE_BYTES:
            raise NotReadable(f"the line table says it has {size} bytes, more than {MAX_LINE_TABLE_BYTES}")
        return self._memory.read(address + self._layout.bytes_data, size)


_ENCODINGS = {1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}
"""Kind of a str (PEP 393) → how its characters lie in memory."""


def _word(raw: bytes, offset: int) -> int:
    return int(struct.unpack_from("<Q", raw, offset)[0])


def line_3_10(table: bytes, first_line: int, offset: int) -> int | None:
    """Line of the instruction at ``offset``, from a line table of 3.10 (PEP 626): pairs of (bytes, signed lines)."""
    line, end = first_line, 0
    for step, delta in zip(table[::2], table[1::2], strict=False):
        end += step
        has_line = delta != 0x80
        if has_line:
            line += delta - 256 if delta > 0x7F else delta
        if offset < end:
            return line if has_line and offset >= 0 else None
    return None


_NO_LINE, _LONG, _NO_COLUMNS, _ONE_LINE_FIRST = 15, 14, 13, 10
"""Codes of a location entry (PyCodeLocationInfoKind, Objects/locations.md)."""


def line_of(table: bytes, first_line: int, offset: int) -> int | None:
    """Line of the instruction at ``offset``, from a location table of 3.11 and later.

    Each entry has a first byte (the only one with bit 7 set) with its code and length, and what the code asks for.
    """
    line, end = first_line, 0
    items = iter(table)
    for first in items:
        code, length = first >> 3 & 0xF, (first & 7) + 1
        line += _lines(code, items)
        end += 2 * length
        if offset < end:
            return None if code == _NO_LINE or offset < 0 else line
    return None


def _lines(code: int, items: Iterator[int]) -> int:
    """Lines an entry goes on by; its other bytes are passed over."""
    if code == _NO_LINE:
        return 0
    if code in (_LONG, _NO_COLUMNS):
        value = _number(items)
        for _ in range(3 if code == _LONG else 0):  # end line, column, end column
            _number(items)
        return -(value >> 1) if value & 1 else value >> 1
    next(items, None)
    if code < _ONE_LINE_FIRST:
        return 0
    next(items, None)
    return code - _ONE_LINE_FIRST


def _number(items: Iterator[int]) -> int:
    """A number in groups of six bits, the lowest first; bit 6 says that more follow."""
    value = shift = 0
    for item in items:
        value |= (item & 0x3F) << shift
        shift += 6
        if not item & 0x40 or shift > 30:
            break
    return value
