"""Code objects in memory that may hold anything."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuaudit.capture.cpython_code import (
    MAX_LINE_TABLE_BYTES,
    MAX_TEXT,
    NOT_CODE,
    REPLACED,
    CodeReader,
    NotReadable,
    line_3_10,
    line_of,
)
from gpuaudit.capture.cpython_offsets import Layout, layout_of
from gpuaudit.capture.process_memory import Unreadable
from tests.cpython_memory import FakeMemory, Objects, layout_3_14

LAYOUTS = [layout_of(10), layout_of(11), layout_of(12), layout_3_14()]
LINES = bytes([0x80 | 13 << 3 | 0, 0, 0x80 | 13 << 3 | 0, 2, 0x80 | 13 << 3 | 7, 0x06])  # +0, +1, +3 for 16 bytes
LINES_3_10 = bytes([2, 0, 2, 1, 16, 3])


def reader(layout: Layout) -> tuple[CodeReader, Objects]:
    objects = Objects(layout)
    return CodeReader(objects.memory, layout), objects


def line_table(layout: Layout) -> bytes:
    return LINES_3_10 if layout.minor == 10 else LINES


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda v: f"3.{v.minor}")
@pytest.mark.parametrize(
    ("path", "name"),
    [("train.py", "forward"), ("entraîné.py", "forward"), ("训练.py", "前向"), ("🚂.py", "Zug.fahren"), ("", "")],
)
def test_a_code_object(layout: Layout, path: str, name: str) -> None:
    """The names in each of the widths of str, and the lines of three instructions."""
    codes, objects = reader(layout)
    address, table = objects.code(path, name, 142, line_table(layout))
    for index, line in ((0, 142), (1, 143), (2, 146), (8, 146)):
        code, found = codes.frame(address, objects.instruction(address, index), table)
        assert (code.path, code.name, found) == (path, name, line)
    assert codes.frame(address, objects.instruction(address, 10), table)[1] is None
    assert codes.frame(address, objects.instruction(address, -1), table)[1] is None


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda v: f"3.{v.minor}")
def test_what_is_no_code_object(layout: Layout) -> None:
    codes, objects = reader(layout)
    address, table = objects.code("a.py", "f", 1, line_table(layout))
    with pytest.raises(NotReadable, match=REPLACED):
        codes.frame(address, 0, table + 16)
    for freed in (0, 0x7F0012345670, 0xDDDDDDDDDDDDDDDD):  # the last free block, another one, a debug allocator's
        objects.memory.write(address, struct.pack("<Q", freed))
        with pytest.raises(NotReadable, match=REPLACED):
            codes.frame(address, 0, table)
    objects.memory.write(address, struct.pack("<Q", 0xFFFFFFFF))  # immortal
    objects.memory.write(address + layout.object_type, struct.pack("<Q", objects.type("frame")))
    with pytest.raises(NotReadable, match=NOT_CODE):
        codes.frame(address, 0, table)
    with pytest.raises(NotReadable, match="cannot be read"):
        codes.frame(0xDEAD_BEEF_0000, 0, table)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda v: f"3.{v.minor}")
def test_lengths_are_limited(layout: Layout) -> None:
    codes, objects = reader(layout)
    address, table = objects.code("x" * (MAX_TEXT + 10), "f", 1, line_table(layout))
    assert codes.frame(address, 0, table)[0].path == "x" * MAX_TEXT
    address, table = objects.code("a.py", "f", 1, line_table(layout))
    objects.memory.write(table + layout.bytes_size, struct.pack("<Q", MAX_LINE_TABLE_BYTES + 1))
    with pytest.raises(NotReadable, match="more than 1048576"):
        codes.frame(address, 0, table)
    objects.memory.write(table + layout.bytes_size, struct.pack("<q", -1))
    with pytest.raises(NotReadable, match="more than 1048576"):
        codes.frame(address, 0, table)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda v: f"3.{v.minor}")
def test_a_name_that_is_no_text(layout: Layout) -> None:
    codes, objects = reader(layout)
    address, table = objects.code("a.py", "f", 1, line_table(layout))
    pointer = struct.unpack("<Q", objects.memory.read(address + layout.code_filename, 8))[0]
    for state in (0, 7 << 2 | 1 << 5, 1 << 2):  # no kind, a kind that there is not, not compact
        objects.memory.write(pointer + layout.text_state, struct.pack("<I", state))
        with pytest.raises(NotReadable, match="no text"):
            codes.frame(address, 0, table)


@given(st.binary(max_size=400), st.integers(-(2**31), 2**31), st.integers(-(2**63), 2**64))
def test_any_bytes_as_a_line_table(table: bytes, first: int, offset: int) -> None:
    """Ends, and gives a number or nothing."""
    for line in (line_3_10, line_of):
        found = line(table, first, offset)
        assert found is None or isinstance(found, int)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(LAYOUTS))
def test_garbage_as_an_interpreter(seed: int, layout: Layout) -> None:
    """Every pointer leads to random bytes, half of them small numbers or pointers back into the same memory."""
    choose = random.Random(seed)
    memory = FakeMemory()
    base, size = 0x10000, 1 << 14

    def word() -> int:
        return choose.choice((choose.getrandbits(64), choose.randrange(64), base + choose.randrange(size)))

    words = [word() for _ in range(size // 8)]
    memory.write(base, struct.pack(f"<{len(words)}Q", *words))
    codes = CodeReader(memory, layout)
    for _ in range(50):
        address = base + choose.randrange(size)
        table = struct.unpack("<Q", memory.read(base + choose.randrange(size - 8), 8))[0]
        try:
            codes.frame(address, choose.getrandbits(64), table)
        except NotReadable:
            continue


def test_memory_that_is_not_there() -> None:
    with pytest.raises(Unreadable):
        FakeMemory().read(0, 1)
