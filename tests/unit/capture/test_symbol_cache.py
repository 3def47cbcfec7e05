"""What was parsed once is known again: by every byte that was looked at, never by a build-id alone."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import pytest

from gpuaudit.capture.symbol_cache import SymbolCache, digest_of
from gpuaudit.capture.symbols import NotElf, Symbols, read_symbols
from tests.doubles.build import build, compiler

NAMES = frozenset({"cudaMalloc", "cudaFree"})
EXPORTS = r"cuda[A-Z]\w*"
BUILD_ID = "-Wl,--build-id=0x00ff1234"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        pytest.skip("gcc is not installed")
    return build("cudart", tmp_path_factory.mktemp("library"), flags=[BUILD_ID])


def read(cache: SymbolCache, path: Path, names: frozenset[str] = NAMES) -> Symbols:
    fd = os.open(path, os.O_RDONLY)
    try:
        found = cache.read(fd, names, EXPORTS)
        assert found == read_symbols(fd, names, EXPORTS)
        return found
    finally:
        os.close(fd)


def test_a_copy_is_not_parsed_again(library: Path, tmp_path: Path) -> None:
    cache = SymbolCache()
    first = read(cache, library)
    assert read(cache, Path(shutil.copy(library, tmp_path))) == first
    assert cache.parsed == 1
    read(cache, library, frozenset({"cudaFree"}))
    assert cache.parsed == 2, "other names were asked for"


def test_a_forged_build_id_is_another_file(library: Path, tmp_path: Path) -> None:
    """Same build-id, other symbols: the functions found are this file's own."""
    cache = SymbolCache()
    ours = read(cache, library)
    forged = read(cache, build("nested", tmp_path, flags=[BUILD_ID]))
    assert forged.build_id == ours.build_id == "00ff1234"
    assert cache.parsed == 2
    assert forged.functions["cudaMalloc"].offset != ours.functions["cudaMalloc"].offset


def test_every_byte_that_is_parsed_counts(library: Path, tmp_path: Path) -> None:
    """A file that differs in one byte of any header or table has another digest."""
    blob = library.read_bytes()
    sections = struct.unpack_from("<Q", blob, 40)[0]
    headers = [struct.unpack_from("<IIQQQQIIQQ", blob, sections + 64 * i) for i in range(blob[60])]
    places = {"entry": 24, "section header": sections + 64 * 2 + 16, "program header": 64 + 8}
    places |= {f"section of type {h[1]}": h[4] + h[5] // 2 for h in headers if h[1] in (2, 3, 11)}
    digests = {digest(library)}
    for place in places.values():
        changed = bytearray(blob)
        changed[place] ^= 1
        (tmp_path / "changed").write_bytes(changed)
        digests.add(digest(tmp_path / "changed"))
    assert len(digests) == 1 + len(places)


def digest(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return digest_of(fd)
    finally:
        os.close(fd)


def test_first_instructions_are_read_from_each_file(library: Path, tmp_path: Path) -> None:
    """They are not in the digest: of two files with the same tables each has its own."""
    cache = SymbolCache()
    offset = read(cache, library).functions["cudaMalloc"].offset
    blob = bytearray(library.read_bytes())
    blob[offset : offset + 5] = b"\x0f\x1f\x44\x00\x00"
    other = tmp_path / "other.so"
    other.write_bytes(blob)
    assert read(cache, other).functions["cudaMalloc"].instruction == "nop5"
    assert read(cache, library).functions["cudaMalloc"].instruction == "push"
    assert cache.parsed == 1


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF", b"\x7fELF\x02\x01\x01" + bytes(57), b"\x7fELF\x02\x01" + b"\xff" * 62]
)
def test_what_is_no_library_is_refused_every_time(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    cache = SymbolCache()
    for tried in (1, 2):
        with pytest.raises(NotElf):
            read(cache, path)
        assert cache.parsed == tried
    assert digest(path) == b""


def test_the_cache_is_bounded(library: Path, tmp_path: Path) -> None:
    """The file that was used least recently is the one that goes."""
    cache = SymbolCache(limit=2)
    blob = library.read_bytes()
    files = [tmp_path / f"{i}.so" for i in range(3)]
    for i, file in enumerate(files):
        file.write_bytes(blob + bytes(i))
    for i in (0, 1, 0, 2):
        read(cache, files[i])
    assert cache.parsed == 3
    read(cache, files[0])
    assert cache.parsed == 3
    read(cache, files[1])
    assert cache.parsed == 4
