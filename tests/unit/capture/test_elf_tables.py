"""Functions by address, compared with nm; files that are no ELF files, or bad ones."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuaudit.capture.elf_tables import ElfTables
from gpuaudit.capture.symbols import NotElf
from tests.doubles.build import compiler

SOURCE = """
int one(int x) { return x + 1; }
__attribute__((weak)) int two(int x) { return one(x) * 2; }
static __attribute__((noinline)) int hidden(int x) { return two(x) - 3; }
int two_again(int x) __attribute__((alias("two")));
int data_is_no_function = 7;
int main(int n, char **v) { (void)v; return hidden(n) + two_again(n); }
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        pytest.skip("gcc is not installed")
    folder = tmp_path_factory.mktemp("elf")
    (folder / "p.c").write_text(SOURCE, "ascii")
    command = ["gcc", "-O1", "-fno-inline", "-Wl,--build-id=0x0123456789abcdef", "-rdynamic"]
    subprocess.run([*command, "-o", folder / "p", folder / "p.c"], check=True)
    return folder / "p"


@pytest.fixture
def tables(program: Path) -> Iterator[ElfTables]:
    found = open_tables(program)
    yield found
    found.close()


def open_tables(path: Path) -> ElfTables:
    fd = os.open(path, os.O_RDONLY)
    try:
        return ElfTables(fd)
    finally:
        os.close(fd)


def nm(path: Path) -> dict[str, tuple[int, int]]:
    """Name → (address, size) of the functions, as nm says."""
    out = subprocess.run(["nm", "-S", path], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in out.splitlines()]
    return {r[3]: (int(r[0], 16), int(r[1], 16)) for r in rows if len(r) == 4 and r[2] in "tTwW"}


def test_every_byte_of_a_function_is_that_function(program: Path, tables: ElfTables) -> None:
    functions = tables.functions
    assert functions is not None
    known = nm(program)
    for name in ("one", "hidden", "main"):
        address, size = known[name]
        for distance in (0, 1, size - 1):
            assert functions.at(address + distance) == (name, distance)
        after = functions.at(address + size)
        assert after is None or after[0] != name
    address, size = known["two"]
    assert functions.at(address) in (("two", 0), ("two_again", 0))
    assert functions.at(0) is None
    assert functions.at((1 << 63) - 1) is None


def test_names_build_id_and_places(program: Path, tables: ElfTables) -> None:
    assert tables.build_id == "0123456789abcdef"
    known = nm(program)
    wanted = frozenset(("one", "data_is_no_function", "nobody", "ne"))  # "ne" is the end of another name
    found = tables.find(wanted)
    assert found.keys() == {"one", "data_is_no_function"}
    assert found["one"] == known["one"][0]
    assert tables.section_address(b".text") is not None
    assert tables.section_address(b".nothing") is None
    text = next(s for s in tables.segments if s.address <= found["one"] < s.address + s.size)
    offset = found["one"] - text.address + text.offset
    assert tables.address_of(offset) == found["one"]
    assert tables.address_of(1 << 40) is None
    assert tables.load_bias(0x7F0000000000 + (text.address & -4096), text.offset & -4096) == 0x7F0000000000


def test_a_stripped_file_has_its_exported_functions(program: Path, tmp_path: Path) -> None:
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "-o", stripped, program], check=True)
    tables = open_tables(stripped)
    functions = tables.functions
    assert functions is not None
    known = nm(program)
    assert functions.at(known["one"][0]) == ("one", 0)
    assert functions.at(known["hidden"][0]) is None
    assert tables.build_id == "0123456789abcdef"
    tables.close()


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"#!/bin/sh\n" * 50, b"\x7fELF\x02\x01" + b"\xff" * 200])
def test_what_is_no_elf_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(NotElf):
        open_tables(tmp_path / "f")


def test_damaged_files_end_as_not_elf(program: Path, tmp_path: Path) -> None:
    """Any byte of the headers changed: an answer or NotElf, and never a read outside the file."""
    good = program.read_bytes()
    choose = random.Random(1)
    sections_at = int.from_bytes(good[40:48], "little")
    for _ in range(300):
        raw = bytearray(good)
        for _ in range(choose.randrange(1, 6)):
            at = choose.choice(
                (choose.randrange(64), choose.randrange(64, 1200), choose.randrange(sections_at, len(good)))
            )
            raw[at] = choose.choice((0, 0xFF, choose.randrange(256)))
        (tmp_path / "f").write_bytes(raw)
        try:
            tables = open_tables(tmp_path / "f")
        except NotElf:
            continue
        try:
            tables.find(frozenset(("one",)))
            functions = tables.functions
            for address in (0, 0x1139, 1 << 47):
                if functions is not None:
                    functions.at(address)
                tables.address_of(address)
            assert tables.build_id is None or len(tables.build_id) <= 128
            tables.section_address(b".text")
        except NotElf:
            pass
        finally:
            tables.close()
