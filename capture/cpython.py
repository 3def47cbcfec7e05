"""Finding the CPython interpreter of a process: where its runtime lies, which version it is, how its frames are read.

The interpreter is a shared library (libpython3.x.so) or the executable itself, position-independent or not; in either,
``_PyRuntime`` is found through the symbol tables, or as the section ``.PyRuntime`` of a stripped file.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from gpuaudit.capture.address_space import AddressSpace, Region
from gpuaudit.capture.cpython_offsets import COOKIE, Layout, Unsupported, debug_offsets_bytes, layout_from, layout_of
from gpuaudit.capture.elf_tables import ElfTables
from gpuaudit.capture.process_memory import Memory, ProcessMemory, Unreadable
from gpuaudit.capture.processes import PROC, CannotOpen, file_name, open_mapping, with_memory
from gpuaudit.capture.symbols import NotElf

RUNTIME, VERSION = "_PyRuntime", "Py_Version"
RUNTIME_SECTION = b".PyRuntime"

_LIBRARY = re.compile(r"libpython3(\.\d+)?[a-z]*\.so")
_VERSION_IN_NAME = re.compile(r"python3\.(\d+)")

NO_FIELD = 0xFFFFFFFF
"""PYTHON_NO_FIELD of capture/bpf/python.h."""
_PARAMETERS = struct.Struct("<QQ14I")
"""``struct python_process`` there."""

ADDRESS_BITS_OF_CODE = ~7 & (1 << 64) - 1
"""Objects are aligned to 16 bytes; 3.14 keeps tags in the lowest bits of a frame's executable."""
FIRST_HIDDEN_OWNER = 3
"""FRAME_OWNED_BY_CSTACK of 3.12 and 3.13, FRAME_OWNED_BY_INTERPRETER of 3.14: frames between C and Python."""


@dataclass(frozen=True)
class Interpreter:
    """A CPython in a process, and how to read it."""

    path: str
    layout: Layout
    runtime: int
    """Address of ``_PyRuntime``."""

    def parameters(self) -> bytes:
        """What the BPF programs need: ``struct python_process``."""
        at = self.layout
        by_index = at.code_bytecode is None
        fields = [at.frame_previous, at.frame_code, at.frame_instruction]
        frame_bytes = max(*(f + 8 for f in fields), 0 if at.frame_owner is None else at.frame_owner + 1)
        return _PARAMETERS.pack(
            self.runtime + at.runtime_interpreters, ADDRESS_BITS_OF_CODE, at.interpreter_next, at.interpreter_threads,
            at.thread_next, at.thread_id, at.thread_frame, _or_none(at.cframe_frame), -(-frame_bytes // 8) * 8,
            at.frame_previous, at.frame_code, at.frame_instruction, _or_none(at.frame_owner), FIRST_HIDDEN_OWNER,
            4 if by_index else 8, at.code_line_table,
        )  # fmt: skip


def _or_none(offset: int | None) -> int:
    return NO_FIELD if offset is None else offset


class _Found:
    """One file that may be an interpreter: addresses of its symbols, as the file numbers them."""

    def __init__(self, fd: int) -> None:
        elf = ElfTables(fd)
        try:
            self.symbols = elf.find(frozenset((RUNTIME, VERSION)))
            if RUNTIME not in self.symbols:
                section = elf.section_address(RUNTIME_SECTION)
                if section:
                    self.symbols[RUNTIME] = section
            self.load_bias = elf.load_bias
        finally:
            elf.close()


class Finder:
    """Interpreters of processes; what was read of a file is kept, so that a second process costs little."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, int, int, int], _Found | None] = {}

    def interpreter_of(self, pid: int, space: AddressSpace) -> Interpreter | None:
        """The CPython of ``pid``; None where it has none. Unsupported where it has one that cannot be read."""
        for region in _candidates(pid, space):
            try:
                fd = open_mapping(pid, region.mapping())
            except CannotOpen as e:
                if _LIBRARY.match(region.mapping().file_name):
                    raise Unsupported(f"{region.path} cannot be looked at: {e}") from None
                continue
            try:
                found = self._file(fd)
            finally:
                os.close(fd)
            if found is not None and RUNTIME in found.symbols:
                return interpreter_in(
                    ProcessMemory(pid), region, found.symbols, found.load_bias(region.start, region.offset)
                )
        return None

    def _file(self, fd: int) -> _Found | None:
        status = os.fstat(fd)
        key = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        if key not in self._files:
            if len(self._files) >= 256:
                self._files.clear()
            try:
                self._files[key] = _Found(fd)
            except NotElf:
                self._files[key] = None
        return self._files[key]


def interpreter_in(memory: Memory, region: Region, symbols: dict[str, int], bias: int) -> Interpreter:
    """The interpreter whose file is mapped at ``region``; Unsupported where it cannot be read."""
    runtime = symbols[RUNTIME] + bias
    try:
        raw = memory.read(runtime, debug_offsets_bytes())
        if raw.startswith(COOKIE):
            return Interpreter(region.path, layout_from(raw), runtime)
        return Interpreter(region.path, layout_of(_minor(memory, region, symbols.get(VERSION), bias)), runtime)
    except Unreadable as e:
        raise Unsupported(f"the runtime of {region.path} cannot be read: {e}") from None


def _minor(memory: Memory, region: Region, version_at: int | None, bias: int) -> int:
    """Minor version: what the interpreter says (``Py_Version``, from 3.11 on), or what its file is called."""
    if version_at is not None:
        version = struct.unpack("<Q", memory.read(version_at + bias, 8))[0]
        if version >> 24 == 3:
            return int(version >> 16 & 0xFF)
    named = _VERSION_IN_NAME.search(region.mapping().file_name)
    if named is None:
        raise Unsupported(f"{region.path} holds a CPython that does not say its version")
    return int(named.group(1))


def libraries_in(space: AddressSpace) -> set[tuple[int, int]]:
    """Device and inode of each mapped file that is called like a CPython library: it may be loaded at any time."""
    return {(r.device, r.inode) for r in space.regions if r.inode and _LIBRARY.match(file_name(r.path))}


def _candidates(pid: int, space: AddressSpace) -> list[Region]:
    """First executable mapping of each file that may be an interpreter: libpython before the executable."""
    first: dict[tuple[int, int], Region] = {}
    for region in space.regions:
        if region.inode:
            first.setdefault((region.device, region.inode), region)
    libraries = [r for r in first.values() if _LIBRARY.match(r.mapping().file_name)]
    try:
        status = Path(f"{PROC}/{with_memory(pid)}/exe").stat()
        executable = first.get((status.st_dev, status.st_ino))
    except OSError:
        executable = None
    return [*libraries[:4], *([executable] if executable else [])]
