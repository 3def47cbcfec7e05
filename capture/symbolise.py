"""Addresses of native stacks → file, build id, offset and function, at once, while the process is still there.

The names are those of the file that the process has mapped, whatever stands at its path now; C++ names stay mangled.
Symbol tables are kept by file, so that a library that a hundred processes map is read once. They are not kept by build
id: a file can claim any, and would name the functions of another user's program.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass

from gpuaudit.capture.address_space import AddressSpace, Region
from gpuaudit.capture.elf_tables import ElfTables
from gpuaudit.capture.processes import CannotOpen, open_mapping
from gpuaudit.capture.return_address import CALL_BYTES, RESTORER, is_returned_to
from gpuaudit.capture.symbols import NotElf

MAX_FILES = 128
"""Files whose symbol tables are kept: 20 bytes per function and a descriptor each. libtorch_cuda has 0.4 M. ours"""

FileKey = tuple[int, int]
"""Device and inode of a mapping."""

NO_FILE = "code made at run time (JIT): it is in no file"
TRAMPOLINE = "the return address is the probe's own: the caller waits in another probed function"
OF_KERNEL = {
    "[uprobes]": TRAMPOLINE,
    "[vdso]": "code that the kernel lends to every process",
    "[vsyscall]": "code that the kernel lends to every process",
}
"""Executable regions that are of no file and that the kernel names; a program may name its own, as [anon:…]."""
NO_SYMBOL = "the file has no symbol for this place"
STRIPPED = "the file is stripped: it has no symbols"


@dataclass(frozen=True)
class NativeFrame:
    """One frame; ``offset`` is that of the return address in the file. ``reason``: why something is missing."""

    path: str | None = None
    build_id: str | None = None
    offset: int | None = None
    symbol: str | None = None
    symbol_offset: int | None = None
    reason: str | None = None


class _File:
    """What is kept of one mapped file."""

    def __init__(self, tables: ElfTables | None, reason: str | None) -> None:
        self.tables, self.reason = tables, reason

    def is_returned_to(self, offset: int) -> bool:
        if self.tables is None:
            return True
        code = self.tables.bytes_around(offset, CALL_BYTES, len(RESTORER))
        return code is None or is_returned_to(*code)

    def frame(self, region: Region, offset: int) -> NativeFrame:
        path = region.path
        if self.tables is None:
            return NativeFrame(path, None, offset, reason=self.reason)
        build_id = self.tables.build_id
        try:
            functions = self.tables.functions
            # The call stands before the return address, which may belong to the next function already.
            address = self.tables.address_of(offset - 1)
            found = functions.at(address) if functions is not None and address is not None else None
        except (NotElf, OSError) as e:
            return NativeFrame(path, build_id, offset, reason=f"the symbols cannot be read: {e}")
        if found is None:
            return NativeFrame(path, build_id, offset, reason=STRIPPED if functions is None else NO_SYMBOL)
        return NativeFrame(path, build_id, offset, found[0], found[1] + 1)


class Symboliser:
    """Symbol tables of mapped files."""

    def __init__(self) -> None:
        self._files: OrderedDict[FileKey, _File] = OrderedDict()

    def frame(self, pid: int, space: AddressSpace, address: int, *, certain: bool = True) -> NativeFrame | None:
        """The frame of a return address; None where no executable region holds it, so that it is none.

        ``certain`` false: it was found by a frame pointer that may be none, and stands behind a call or is none.
        """
        region = space.at(address)
        if region is None:
            return None
        if not region.inode:
            return NativeFrame(region.path or None, reason=OF_KERNEL.get(region.path, NO_FILE))
        file, offset = self._file(pid, region), address - region.start + region.offset
        return file.frame(region, offset) if certain or file.is_returned_to(offset) else None

    def _file(self, pid: int, region: Region) -> _File:
        key = region.device, region.inode
        file = self._files.get(key)
        if file is None:
            try:
                file = _File(self._open(pid, region), None)
            except (CannotOpen, NotElf) as e:
                return _File(None, str(e))  # not kept: another process may be more fortunate
            self._files[key] = file
            self._evict()
        self._files.move_to_end(key)
        return file

    def _open(self, pid: int, region: Region) -> ElfTables:
        fd = open_mapping(pid, region.mapping())
        try:
            return ElfTables(fd)
        finally:
            os.close(fd)

    def _evict(self) -> None:
        """Forget the file that was not asked for longest."""
        while len(self._files) > MAX_FILES:
            _, file = self._files.popitem(last=False)
            if file.tables is not None:
                file.tables.close()

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            if file.tables is not None:
                file.tables.close()
        self._files.clear()
