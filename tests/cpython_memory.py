"""Memory as a CPython process would have it, put together here: constructed, not recorded.

For 3.14 no registry offers an interpreter, so its structures are laid out from the layout that its own header gives
(Include/internal/pycore_debug_offsets.h); the offsets are chosen here, and told through ``_Py_DebugOffsets`` as a real
3.14 tells its own.
"""

from __future__ import annotations

import bisect
import struct

from gpuaudit.capture.cpython_offsets import COOKIE, DEBUG_OFFSETS, Layout, layout_from
from gpuaudit.capture.process_memory import Unreadable

VERSION_3_14 = 0x030E00F0
"""PY_VERSION_HEX of 3.14.0 final."""

OFFSETS_3_14 = {
    "runtime_state.interpreters_head": 912, "interpreter_state.next": 7432, "interpreter_state.threads_head": 7512,
    "thread_state.next": 8, "thread_state.current_frame": 72, "thread_state.thread_id": 152,
    "thread_state.native_thread_id": 160, "interpreter_frame.previous": 8, "interpreter_frame.executable": 0,
    "interpreter_frame.instr_ptr": 56, "interpreter_frame.owner": 74, "code_object.filename": 112,
    "code_object.name": 120, "code_object.qualname": 128, "code_object.linetable": 136, "code_object.firstlineno": 68,
    "code_object.co_code_adaptive": 208, "pyobject.ob_type": 8, "type_object.tp_name": 24, "bytes_object.ob_size": 16,
    "bytes_object.ob_sval": 32, "unicode_object.state": 32, "unicode_object.length": 16,
    "unicode_object.asciiobject_size": 40,
}  # fmt: skip
"""Those that are read; plausible ones, a real 3.14 may have others."""


def debug_offsets(minor: int, *, version: int = VERSION_3_14, free_threaded: int = 0, **told: int) -> bytes:
    """``_Py_DebugOffsets`` of 3.``minor`` with these offsets (names with ``__`` for the dot) and 0 elsewhere."""
    at = {**OFFSETS_3_14, **{name.replace("__", "."): value for name, value in told.items()}}
    words = [at.get(f"{group}.{field}", 0) for group, fields in DEBUG_OFFSETS[minor] for field in fields.split()]
    return COOKIE + struct.pack(f"<{2 + len(words)}Q", version, free_threaded, *words)


def layout_3_14() -> Layout:
    """The layout that the constructed 3.14 tells."""
    return layout_from(debug_offsets(14))


class FakeMemory:
    """Pieces of memory at addresses; everything else cannot be read."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._pieces: list[bytearray] = []

    def write(self, address: int, content: bytes) -> None:
        """Put a new piece there, or change what is there."""
        i = bisect.bisect_right(self._starts, address) - 1
        if i >= 0 and address + len(content) <= self._starts[i] + len(self._pieces[i]):
            at = address - self._starts[i]
            self._pieces[i][at : at + len(content)] = content
            return
        self._starts.insert(i + 1, address)
        self._pieces.insert(i + 1, bytearray(content))

    def read(self, address: int, size: int) -> bytes:
        """As of a process: all of it, or Unreadable."""
        i = bisect.bisect_right(self._starts, address) - 1
        if i < 0 or address + size > self._starts[i] + len(self._pieces[i]):
            raise Unreadable(f"nothing lies at {address:#x}")
        at = address - self._starts[i]
        return bytes(self._pieces[i][at : at + size])


class Objects:
    """Python objects in a :class:`FakeMemory`, laid out as one version has them."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.memory = FakeMemory()
        self._next = 0x7F00_0000_0000
        self._types: dict[str, int] = {}

    def place(self, content: bytes) -> int:
        """Memory of its own for ``content``, followed by 64 bytes of zeros."""
        address = self._next
        self._next += len(content) + 4096 & -4096
        self.memory.write(address, content + bytes(64))
        return address

    def type(self, name: str) -> int:
        """A type object that is called so."""
        if name not in self._types:
            self._types[name] = self.place(self._fields({self.layout.type_name: self.place(name.encode() + b"\0")}))
        return self._types[name]

    def _fields(self, fields: dict[int, int], size: int = 0) -> bytes:
        raw = bytearray(max(max(fields) + 8, size))
        struct.pack_into("<Q", raw, 0, 2)  # the reference count
        for offset, value in fields.items():
            struct.pack_into("<Q", raw, offset, value)
        return bytes(raw)

    def text(self, value: str) -> int:
        """A compact str, as wide as its widest character needs."""
        at = self.layout
        widest = max(map(ord, value), default=0)
        kind, encoding = (1, "latin-1") if widest < 256 else (2, "utf-16-le") if widest < 65536 else (4, "utf-32-le")
        is_ascii = widest < 128
        state = kind << at.kind_shifts[0] | 1 << at.kind_shifts[0] + 3 | is_ascii << at.kind_shifts[0] + 4
        data = at.text_ascii_data if is_ascii else at.text_compact_data
        raw = bytearray(self._fields({at.object_type: self.type("str"), at.text_length: len(value)}, data))
        struct.pack_into("<I", raw, at.text_state, state)
        return self.place(bytes(raw) + value.encode(encoding))

    def code(self, path: str, name: str, first_line: int, lines: bytes, size: int = 64) -> tuple[int, int]:
        """(address, address of its line table) of a code object with ``size`` bytes of instructions."""
        at = self.layout
        table = self.place(
            self._fields({at.object_type: self.type("bytes"), at.bytes_size: len(lines)}, at.bytes_data) + lines
        )
        fields = {
            at.object_type: self.type("code"), at.code_filename: self.text(path), at.code_name: self.text(name),
            at.code_line_table: table,
        }  # fmt: skip
        if at.code_qualname is not None:
            fields |= {at.code_qualname: fields[at.code_name], at.code_name: self.text("not the qualified name")}
        raw = bytearray(self._fields(fields, (at.code_bytecode or 0) + size))
        struct.pack_into("<i", raw, at.code_first_line, first_line)
        return self.place(bytes(raw)), table

    def instruction(self, code: int, index: int) -> int:
        """What a frame of ``code`` holds while it executes the instruction with this index."""
        if self.layout.code_bytecode is None:
            return index
        return code + self.layout.code_bytecode + 2 * index
