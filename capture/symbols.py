"""Finding functions in an ELF file that nobody vouches for: exported names, file offsets, first instructions.

The file belongs to the audited workload, so it may be anything. pyelftools reads the headers, under limits; the
symbol table itself is decoded with numpy and bounded by the section's size. Whatever is wrong with the file ends as
:class:`NotElf`, with a reason for the ``libraries`` table.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

MAX_SECTIONS = 4096
MAX_SYMBOLS_BYTES = 256 << 20
MAX_STRINGS_BYTES = 512 << 20
MAX_SEGMENTS = 256
MAX_NOTE_BYTES = 1 << 16
MAX_LIKELY_FUNCTIONS = 1 << 16
"""Functions called cuda… or nccl…: NVIDIA's libraries export some hundreds, libtorch some thousands. ours"""
"""Limits on what is read of one file. libnccl 2.32 has 2 MB of symbols, libtorch_cuda about 60 MB."""

SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("shndx", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
STT_FUNC, STT_GNU_IFUNC = 2, 10
STB_GLOBAL, STB_WEAK = 1, 2
"""Elf64_Sym and the values of its ``info`` (System V ABI)."""

ENDBR64 = b"\xf3\x0f\x1e\xfa"
NOP5 = b"\x0f\x1f\x44\x00\x00"

SINGLE_STEPPED = "single-stepped"
ANOTHER_VERSION = " (another version)"
"""Behind the name of a function that a library exports in several versions (``.symver``)."""


class NotElf(Exception):
    """The file cannot be probed; the message says why, in words for the ``libraries`` table."""


@dataclass(frozen=True)
class Function:
    """One function: file offset of the probe, and how the kernel will execute the instruction that stands there."""

    name: str
    offset: int
    instruction: str
    symbol_offset: int
    """Where the symbol itself leads: before ``offset`` when an ``endbr64`` is passed over."""


@dataclass(frozen=True)
class Symbols:
    """What was found in one file. ``functions``: name → function, for the names that were asked for."""

    build_id: str | None
    functions: dict[str, Function] = field(default_factory=dict)
    exports: tuple[str, ...] = ()
    """Every exported function whose name matches the interface of the library, sorted."""


@dataclass(frozen=True)
class _Segment:
    address: int
    offset: int
    size: int


def read_symbols(fd: int, names: frozenset[str], exports: str) -> Symbols:
    """Look for ``names``, and for every exported function that matches the regular expression ``exports``.

    NotElf when the file is not an x86-64 ELF library, has no dynamic symbols, or breaks a limit.
    """
    size = os.fstat(fd).st_size
    try:
        # A stream of its own: the descriptor's position is shared with nobody, and closing it leaves the fd open.
        with io.BufferedReader(io.FileIO(os.dup(fd)), 1 << 16) as stream:
            elf = ELFFile(stream)
            if elf.elfclass != 64 or elf["e_machine"] != "EM_X86_64" or not elf.little_endian:
                raise NotElf("not an x86-64 ELF file")
            segments = _segments(elf)
            build_id = _build_id(elf, size)
            tables = [t for t in (_symbol_table(elf, fd, size, kind) for kind in ("SHT_DYNSYM", "SHT_SYMTAB")) if t]
    except (ELFError, ConstructError, struct.error, ValueError, KeyError, IndexError, TypeError, OverflowError,
            AttributeError, MemoryError, OSError) as e:  # fmt: skip
        raise NotElf(f"cannot be parsed as ELF: {type(e).__name__}: {str(e)[:120]}") from None
    if not tables:
        raise NotElf("no symbol table: the library is stripped of its names")
    found: dict[str, Function] = {}
    listed: set[str] = set()
    pattern = re.compile(exports)
    for dynamic, table, strings in tables:
        for name, address in _defined(table, strings, names, pattern).items():
            if dynamic and pattern.fullmatch(name.removesuffix(ANOTHER_VERSION)):
                listed.add(name)
            if name in names and name not in found and address is not None:
                offset = _file_offset(segments, address, size)
                if offset is not None:
                    found[name] = _function(fd, name, offset)
    return Symbols(build_id, found, tuple(sorted(listed)))


def _segments(elf: ELFFile) -> list[_Segment]:
    if elf.num_segments() > MAX_SEGMENTS:
        raise NotElf(f"{elf.num_segments()} segments, more than {MAX_SEGMENTS}")
    headers = [elf.get_segment(i).header for i in range(elf.num_segments())]
    executable = [h for h in headers if h["p_type"] == "PT_LOAD" and h["p_flags"] & 1]
    return [_Segment(h["p_vaddr"], h["p_offset"], h["p_filesz"]) for h in executable]


def _build_id(elf: ELFFile, size: int) -> str | None:
    for i in range(elf.num_segments()):
        segment = elf.get_segment(i)
        if not isinstance(segment, NoteSegment) or segment["p_filesz"] > MAX_NOTE_BYTES or segment["p_offset"] > size:
            continue
        for note in segment.iter_notes():
            if note["n_type"] == "NT_GNU_BUILD_ID" and re.fullmatch("[0-9a-f]{2,128}", str(note["n_desc"])):
                return str(note["n_desc"])
    return None


def _symbol_table(elf: ELFFile, fd: int, size: int, kind: str) -> tuple[bool, np.ndarray, bytes] | None:
    """(is it the dynamic one, symbols, strings) of the first section of that kind."""
    if elf.num_sections() > MAX_SECTIONS:
        raise NotElf(f"{elf.num_sections()} sections, more than {MAX_SECTIONS}")
    for i in range(elf.num_sections()):
        header = elf._get_section_header(i)  # the section object would read its name and linked sections as well
        if header["sh_type"] != kind:
            continue
        linked = elf._get_section_header(header["sh_link"])
        symbols = _section(fd, size, header, MAX_SYMBOLS_BYTES)
        strings = _section(fd, size, linked, MAX_STRINGS_BYTES)
        whole = len(symbols) // SYMBOL.itemsize * SYMBOL.itemsize
        return kind == "SHT_DYNSYM", np.frombuffer(symbols[:whole], SYMBOL), strings
    return None


def _section(fd: int, size: int, header: Mapping[str, int], limit: int) -> bytes:
    offset, length = header["sh_offset"], header["sh_size"]
    if length > limit:
        raise NotElf(f"a symbol or string table of {length} bytes, more than {limit}")
    if offset + length > size:
        raise NotElf("a symbol or string table lies outside the file")
    return os.pread(fd, length, offset)


def _defined(
    table: np.ndarray, strings: bytes, names: frozenset[str], pattern: re.Pattern[str]
) -> dict[str, int | None]:
    """Name → address of the defined functions that are asked for; only names with a likely first part are decoded.

    None for one that the loader chooses (IFUNC): at its address lies what chooses, and not what is called. None too for
    :data:`ANOTHER_VERSION` of a name that leads to several places: the first of them is the one that is known by it.
    """
    kind, binding = table["info"] & 0xF, table["info"] >> 4
    is_function = ((kind == STT_FUNC) | (kind == STT_GNU_IFUNC)) & (table["shndx"] != 0) & (binding <= STB_WEAK)
    chosen = table[is_function & (table["name"] < len(strings))]
    starts = {n[:4].encode() for n in names} | {_literal_start(pattern)}
    codes = np.frombuffer(strings + b"\0" * 4, "u1")
    at = chosen["name"].astype(np.int64)
    likely = np.zeros(len(chosen), dtype=bool)
    for start in starts:
        likely |= np.all([codes[at + i] == c for i, c in enumerate(start)], axis=0) if start else True
    if (count := int(np.count_nonzero(likely))) > MAX_LIKELY_FUNCTIONS:
        raise NotElf(f"{count} functions with names like those in the probe table, more than {MAX_LIKELY_FUNCTIONS}")
    out: dict[str, int | None] = {}
    for symbol in chosen[likely].tolist():
        name = strings[symbol[0] : strings.find(b"\0", symbol[0], symbol[0] + 256)].decode("ascii", "replace")
        if name in names or pattern.fullmatch(name):
            address = None if symbol[1] & 0xF == STT_GNU_IFUNC else symbol[4]
            if out.setdefault(name, address) != address:
                out[name + ANOTHER_VERSION] = None
    return out


def _literal_start(pattern: re.Pattern[str]) -> bytes:
    found = re.match(r"[A-Za-z_]{0,4}", pattern.pattern)
    return found.group().encode() if found else b""


def _file_offset(segments: list[_Segment], address: int, size: int) -> int | None:
    for s in segments:
        if s.address <= address < s.address + s.size and s.offset + (address - s.address) < size:
            return address - s.address + s.offset
    return None


def _function(fd: int, name: str, offset: int) -> Function:
    """Read the first instruction. A probe behind ``endbr64`` sees the same registers and stack, and costs less."""
    code = os.pread(fd, 16, offset)
    skip = len(ENDBR64) if code.startswith(ENDBR64) else 0
    kind = instruction_kind(code[skip:])
    if skip and kind == SINGLE_STEPPED:
        skip = 0  # nothing is gained; stay at the symbol's own address
    return Function(name, offset + skip, f"{kind} after endbr64" if skip else kind, offset)


def with_instructions(fd: int, symbols: Symbols) -> Symbols:
    """The same symbols for a file whose tables are the same: its first instructions are read anew."""
    fresh = {name: _function(fd, name, f.symbol_offset) for name, f in symbols.functions.items()}
    return replace(symbols, functions=fresh)


def instruction_kind(code: bytes) -> str:
    """``push``, ``nop5`` or ``nop`` where the kernel emulates the instruction under a uprobe, else single-stepped.

    From arch/x86/kernel/uprobes.c: push of a register (50–57, with REX.B 41), and nop.
    """
    if code[:1] and (0x50 <= code[0] <= 0x57 or (code[0] == 0x41 and len(code) > 1 and 0x50 <= code[1] <= 0x57)):
        return "push"
    if code.startswith(NOP5):
        return "nop5"
    if code.startswith((b"\x90", b"\x66\x90")):
        return "nop"
    return SINGLE_STEPPED
