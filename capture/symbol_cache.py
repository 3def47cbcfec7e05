"""Symbols of files that were read before: the same library in another container is not parsed again.

A build-id alone names a file, and whoever made the file chose it. So a file counts as known only when everything that
the parser looked at is the same, byte for byte: headers, notes, symbol and string tables. The first instructions lie
elsewhere, and are read from each file.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections import OrderedDict
from collections.abc import Iterator

from gpuaudit.capture.symbols import (
    MAX_NOTE_BYTES,
    MAX_SECTIONS,
    MAX_SEGMENTS,
    MAX_STRINGS_BYTES,
    MAX_SYMBOLS_BYTES,
    Symbols,
    read_symbols,
    with_instructions,
)

MAX_FILES = 256
"""Files whose symbols are kept; the one used least recently goes. ours"""

_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_PROGRAM = struct.Struct("<IIQQQQQQ")
"""Elf64_Ehdr, Elf64_Shdr, Elf64_Phdr (System V ABI)."""
_SYMTAB, _STRTAB, _DYNSYM = 2, 3, 11
_PT_NOTE = 4
_CHUNK = 1 << 20


class SymbolCache:
    """What :func:`gpuaudit.capture.symbols.read_symbols` found, by the digest of what it read."""

    def __init__(self, limit: int = MAX_FILES) -> None:
        self._limit = limit
        self._known: OrderedDict[tuple[bytes, frozenset[str], str], Symbols] = OrderedDict()
        self.parsed = 0
        """Files that had to be parsed."""

    def read(self, fd: int, names: frozenset[str], exports: str) -> Symbols:
        """As :func:`read_symbols`; NotElf as there, every time."""
        digest = digest_of(fd)
        key = (digest, names, exports)
        known = self._known.get(key) if digest else None
        if known is not None:
            self._known.move_to_end(key)
            return with_instructions(fd, known)
        self.parsed += 1
        found = read_symbols(fd, names, exports)
        if digest:
            self._known[key] = found
            while len(self._known) > self._limit:
                self._known.popitem(last=False)
        return found


def digest_of(fd: int) -> bytes:
    """SHA-256 of the size and of all that is parsed; empty for a file that breaks a limit, or is no ELF file."""
    size = os.fstat(fd).st_size
    digest = hashlib.sha256(struct.pack("<Q", size))
    try:
        for offset, length in _parsed_ranges(fd, size):
            digest.update(struct.pack("<QQ", offset, length))
            for at in range(offset, offset + length, _CHUNK):
                digest.update(os.pread(fd, min(_CHUNK, offset + length - at), at))
    except (struct.error, ValueError, OSError):
        return b""
    return digest.digest()


def _parsed_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of everything that the parser may read. ValueError where a limit is broken."""
    header = _ELF_HEADER.unpack(os.pread(fd, _ELF_HEADER.size, 0))
    if header[0][:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    program_at, section_at = header[5], header[6]
    program_size, programs, section_size, sections = header[9:13]
    if programs > MAX_SEGMENTS or not 0 < sections <= MAX_SECTIONS:
        raise ValueError("too many segments or sections")
    if section_size != _SECTION.size or (programs and program_size != _PROGRAM.size):
        raise ValueError("headers of another size")
    yield 0, _ELF_HEADER.size
    program_table = program_at, programs * _PROGRAM.size
    section_table = section_at, sections * _SECTION.size
    yield program_table
    yield section_table
    for segment in _PROGRAM.iter_unpack(_whole(fd, *program_table)):
        if segment[0] == _PT_NOTE and segment[5] <= MAX_NOTE_BYTES:
            yield segment[2], segment[5]
    limits = {_SYMTAB: MAX_SYMBOLS_BYTES, _DYNSYM: MAX_SYMBOLS_BYTES, _STRTAB: MAX_STRINGS_BYTES}
    for section in _SECTION.iter_unpack(_whole(fd, *section_table)):
        kind, offset, length = section[1], section[4], section[5]
        if kind in limits:
            if length > limits[kind] or offset + length > size:
                raise ValueError("a table that is too large")
            yield offset, length


def _whole(fd: int, offset: int, length: int) -> bytes:
    data = os.pread(fd, length, offset)
    if len(data) != length:
        raise ValueError("the file ends before its headers do")
    return data
