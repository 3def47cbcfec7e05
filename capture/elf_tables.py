"""Segments, build id and symbol tables of an ELF file that nobody vouches for, for looking addresses up.

Headers are read with struct and symbol tables with numpy, each under a limit; whatever is wrong with the file ends as
:class:`NotElf`. Nothing here follows an offset that the file gives without checking it against the file's size.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gpuaudit.capture.symbols import MAX_NOTE_BYTES, MAX_SECTIONS, MAX_SEGMENTS, SYMBOL, NotElf

MAX_NAME_BYTES = 512
"""Of a symbol's name; mangled C++ names in libtorch reach some thousand and are cut. ours"""
MAX_SEARCHED_STRINGS_BYTES = 64 << 20
"""String tables longer than this are not searched for a name: CPython's has 0.2 MB. ours"""

MAX_TABLE_BYTES = 64 << 20
"""A longer symbol table is not used: 2.8 million symbols take a second to sort. LLVM's has 9 MB. ours"""

PT_LOAD, PT_NOTE = 1, 4
SHT_SYMTAB, SHT_STRTAB, SHT_DYNSYM = 2, 3, 11
EM_X86_64 = 62
NT_GNU_BUILD_ID = 3
STT_FUNC, STT_GNU_IFUNC = 2, 10
STB_GLOBAL = 1
"""System V ABI and its GNU additions."""

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")


@dataclass(frozen=True)
class Segment:
    """A part of the file that is mapped: ``size`` bytes from ``offset`` lie at ``address``."""

    address: int
    offset: int
    size: int


@dataclass(frozen=True)
class _Section:
    name: int
    kind: int
    address: int
    offset: int
    size: int
    link: int


class ElfTables:
    """One file. ``fd`` is duplicated, and closed by :meth:`close`."""

    def __init__(self, fd: int) -> None:
        self._fd = os.dup(fd)
        try:
            self._size = os.fstat(self._fd).st_size
            self._read_headers()
        except (struct.error, OSError, ValueError, OverflowError) as e:
            self.close()
            raise NotElf(f"cannot be parsed as ELF: {e}") from None
        except NotElf:
            self.close()
            raise

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _pread(self, size: int, offset: int) -> bytes:
        if offset + size > self._size:
            raise NotElf("a table lies outside the file")
        raw = os.pread(self._fd, size, offset)
        if len(raw) != size:
            raise NotElf("the file became shorter while it was read")
        return raw

    def _read_headers(self) -> None:
        h = _HEADER.unpack(self._pread(_HEADER.size, 0))
        ident, machine, segments_at, sections_at = h[0], h[2], h[5], h[6]
        if ident[:6] != b"\x7fELF\x02\x01" or machine != EM_X86_64:
            raise NotElf("not an x86-64 ELF file")
        segment_bytes, segment_count, section_bytes, section_count = h[9], h[10], h[11], h[12]
        if segment_count > MAX_SEGMENTS or section_count > MAX_SECTIONS:
            raise NotElf(f"{segment_count} segments and {section_count} sections are too many")
        known = segment_bytes in (0, _SEGMENT.size) and section_bytes in (0, _SECTION.size)
        if (segment_count or section_count) and not known:
            raise NotElf("its headers have an unknown size")
        raw = self._pread(segment_count * _SEGMENT.size, segments_at)
        rows = list(_SEGMENT.iter_unpack(raw))  # type, flags, offset, address, physical, file size, memory size, align
        self.segments = [Segment(r[3], r[2], r[5]) for r in rows if r[0] == PT_LOAD]
        self._notes = [Segment(r[3], r[2], r[5]) for r in rows if r[0] == PT_NOTE]
        raw = self._pread(section_count * _SECTION.size, sections_at) if section_count else b""
        self._sections = [_Section(r[0], r[1], r[3], r[4], r[5], r[6]) for r in _SECTION.iter_unpack(raw)]
        self._names_index = h[13]

    @cached_property
    def build_id(self) -> str | None:
        """GNU build id, hex; None if the file has none."""
        for note in self._notes:
            if note.size <= MAX_NOTE_BYTES and note.offset + note.size <= self._size:
                found = _build_id(os.pread(self._fd, note.size, note.offset))
                if found:
                    return found
        return None

    def address_of(self, offset: int) -> int | None:
        """Address in the file's own numbering of a byte at a file offset; None if it is not mapped."""
        for s in self.segments:
            if s.offset <= offset < s.offset + s.size:
                return s.address + offset - s.offset
        return None

    def bytes_around(self, offset: int, before: int, after: int) -> tuple[bytes, bytes] | None:
        """So many bytes of the file before ``offset``, and from it on; None where it has not so many."""
        if offset < before or offset + after > self._size:
            return None
        raw = os.pread(self._fd, before + after, offset - before)
        return raw[:before], raw[before:]

    def load_bias(self, start: int, offset: int) -> int:
        """What is added to the file's own addresses where the page at ``offset`` is mapped at ``start``."""
        for s in self.segments:
            first = s.offset & -4096
            if first <= offset < s.offset + s.size:
                return start - (s.address - s.offset + offset)
        raise NotElf("no segment of the file begins where it is mapped")

    def _tables(self) -> list[tuple[_Section, _Section]]:
        """Symbol tables with their strings, the complete one first."""
        out = []
        for kind in (SHT_SYMTAB, SHT_DYNSYM):
            for section in self._sections:
                if section.kind == kind and section.link < len(self._sections):
                    strings = self._sections[section.link]
                    if strings.kind == SHT_STRTAB and section.size <= MAX_TABLE_BYTES:
                        out.append((section, strings))
                    break
        return out

    def _symbols(self, section: _Section) -> np.ndarray:
        whole = section.size // SYMBOL.itemsize * SYMBOL.itemsize
        return np.frombuffer(self._pread(whole, section.offset), SYMBOL)

    def find(self, names: frozenset[str]) -> dict[str, int]:
        """Name → address of defined symbols that are called exactly so."""
        out: dict[str, int] = {}
        for section, strings in self._tables():
            if strings.size > MAX_SEARCHED_STRINGS_BYTES or names <= out.keys():
                continue
            text = self._pread(strings.size, strings.offset)
            symbols = self._symbols(section)
            defined = symbols[symbols["shndx"] != 0]
            for name in names - out.keys():
                hits = np.flatnonzero(np.isin(defined["name"], _places(text, name.encode() + b"\0")))
                if hits.size:
                    out[name] = int(defined["value"][hits[0]])
        return out

    def section_address(self, name: bytes) -> int | None:
        """Where the section called ``name`` lies; None if there is none."""
        if self._names_index >= len(self._sections):
            return None
        names = self._sections[self._names_index]
        if names.size > MAX_NOTE_BYTES:
            return None
        text = self._pread(names.size, names.offset)
        for s in self._sections:
            if text[s.name : text.find(b"\0", s.name)] == name:
                return s.address
        return None

    @cached_property
    def functions(self) -> Functions | None:
        """The functions of the most complete symbol table; None for a stripped file."""
        for section, strings in self._tables():
            symbols = self._symbols(section)
            kind = symbols["info"] & 0xF
            chosen = symbols[((kind == STT_FUNC) | (kind == STT_GNU_IFUNC)) & (symbols["shndx"] != 0)]
            if len(chosen):
                return Functions(chosen, self, strings.offset, strings.size)
        return None


class Functions:
    """Functions by address. Only numbers are kept; names are read from the file when they are asked for."""

    def __init__(self, symbols: np.ndarray, file: ElfTables, strings_at: int, strings_bytes: int) -> None:
        local = (symbols["info"] >> 4) != STB_GLOBAL
        order = np.lexsort(
            (symbols["name"], local, symbols["value"])
        )  # of aliases the global one, by place of the name
        chosen = symbols[order]
        first = np.ones(len(chosen), dtype=bool)
        first[1:] = chosen["value"][1:] != chosen["value"][:-1]
        self._address = chosen["value"][first].copy()
        self._size = chosen["size"][first].copy()
        self._name = chosen["name"][first].copy()
        self._file, self._strings_at, self._strings_bytes = file, strings_at, strings_bytes

    def at(self, address: int) -> tuple[str, int] | None:
        """(name, distance from its start) of the function that ``address`` lies in; None if it lies in none."""
        i = int(np.searchsorted(self._address, np.uint64(address), side="right")) - 1
        if i < 0:
            return None
        distance, size = address - int(self._address[i]), int(self._size[i])
        if distance >= size > 0 or (not size and i + 1 == len(self._address)):
            return None
        return self._name_of(int(self._name[i])), distance

    def _name_of(self, place: int) -> str:
        length = min(MAX_NAME_BYTES, self._strings_bytes - place)
        raw = self._file._pread(length, self._strings_at + place) if length > 0 else b""
        return raw.split(b"\0")[0].decode("utf-8", "backslashreplace").partition("@")[0]


def _places(text: bytes, wanted: bytes) -> list[int]:
    """Every place of ``wanted``: names may share their ends, so any of them may be the symbol's."""
    out: list[int] = []
    at = text.find(wanted)
    while at >= 0 and len(out) < 64:
        out.append(at)
        at = text.find(wanted, at + 1)
    return out


def _build_id(notes: bytes) -> str | None:
    at = 0
    while at + 12 <= len(notes):
        name_bytes, size, kind = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + name_bytes]
        value_at = at + 12 + (name_bytes + 3 & ~3)
        if kind == NT_GNU_BUILD_ID and name == b"GNU\0" and 0 < size <= 64:
            return notes[value_at : value_at + size].hex()
        at = value_at + (size + 3 & ~3)
    return None
