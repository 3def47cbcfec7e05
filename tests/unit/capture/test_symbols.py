"""Functions of ELF files, the files being anything at all."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuaudit.capture import symbols
from gpuaudit.capture.channel import LINE_LIMIT_BYTES
from gpuaudit.capture.probed_files import MAX_NOT_OBSERVED, _some
from gpuaudit.capture.symbols import NotElf, instruction_kind, read_symbols
from tests.doubles.build import build, compiler

NAMES = frozenset({"cudaMalloc", "cudaFree", "cudaNothing"})


def read(path: Path) -> symbols.Symbols:
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_symbols(fd, NAMES, r"cuda[A-Z]\w*")
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        pytest.skip("gcc is not installed")
    return build("cudart", tmp_path_factory.mktemp("library"), flags=["-Wl,--build-id=0x00ff1234"])


def test_functions_of_a_real_library(library: Path) -> None:
    found = read(library)
    assert found.build_id == "00ff1234"
    assert set(found.functions) == {"cudaMalloc", "cudaFree"}
    code = library.read_bytes()
    for function in found.functions.values():
        assert function.instruction == "push"
        assert code[function.offset] == 0x55  # push rbp
    assert {"cudaStreamCreate", "cudaMemcpyAsync_ptsz"} <= set(found.exports)
    assert list(found.exports) == sorted(found.exports)
    assert "memcpy" not in found.exports


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be parsed"),
        (b"\x7fELF", "cannot be parsed"),
        (b"#!/bin/sh\n", "Magic number"),
        (b"\x7fELF\x01\x01\x01" + bytes(200), "not an x86-64 ELF file"),
        (b"\x7fELF\x02\x02\x01" + bytes(200), "not an x86-64 ELF file"),
    ],
)
def test_what_is_not_a_library(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(NotElf, match=reason):
        read(path)


def test_a_library_without_section_headers(library: Path, tmp_path: Path) -> None:
    blob = bytearray(library.read_bytes())
    blob[40:48] = bytes(8)
    blob[60:64] = bytes(4)
    path = tmp_path / "stripped"
    path.write_bytes(blob)
    with pytest.raises(NotElf, match="no symbol table"):
        read(path)


def test_a_function_that_the_loader_chooses_has_no_place() -> None:
    """At the address of an IFUNC lies what chooses: it is called once, and by the loader."""
    table = np.array([(1, 0x12, 0, 1, 16, 8), (12, 0x1A, 0, 1, 32, 8)], dtype=symbols.SYMBOL)
    strings = b"\0cudaMalloc\0cudaFree\0"
    assert symbols._defined(table, strings, NAMES, re.compile("cuda")) == {"cudaMalloc": 16, "cudaFree": None}


def test_a_function_of_several_versions_is_known_once_and_the_others_are_listed(tmp_path: Path) -> None:
    """A program that was linked long ago calls the old one: that nobody probes it must be said."""
    if compiler() is None:
        pytest.skip("gcc is not installed")
    source, script, path = tmp_path / "two.c", tmp_path / "two.map", tmp_path / "libcudart.so.12"
    source.write_text(
        "int first(void) { return 1; }\nint second(void) { return 2; }\nint cudaFree(void) { return 3; }\n"
        '__asm__(".symver first,cudaMalloc@V1\\n.symver second,cudaMalloc@@V2");\n'
    )
    script.write_text("V1 { global: cudaMalloc; }; V2 { global: cuda*; local: *; } V1;")
    subprocess.run(["gcc", "-shared", "-fPIC", f"-Wl,--version-script={script}", "-o", path, source], check=True)
    found = read(path)
    assert set(found.functions) == {"cudaMalloc", "cudaFree"}
    assert found.exports == ("cudaFree", "cudaMalloc", "cudaMalloc (another version)")


def test_limits(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, reason in (
        ("MAX_SECTIONS", "sections"), ("MAX_SEGMENTS", "segments"), ("MAX_SYMBOLS_BYTES", "bytes"),
        ("MAX_LIKELY_FUNCTIONS", "functions"),
    ):  # fmt: skip
        with monkeypatch.context() as m:
            m.setattr(symbols, limit, 1)
            with pytest.raises(NotElf, match=reason):
                read(library)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_files_are_refused_or_read_never_more(library: Path, data: st.DataObject) -> None:
    """Bytes of the headers changed at random: an answer or a reason, and never another exception."""
    blob = bytearray(library.read_bytes())
    headers = [*range(64), *range(64, 64 + 56 * 12), *range(len(blob) - 64 * 40, len(blob))]
    for at in data.draw(st.lists(st.sampled_from(headers), min_size=1, max_size=8)):
        blob[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(blob)) | st.just(len(blob)))
    fd = os.memfd_create("damaged", os.MFD_CLOEXEC)
    try:
        os.write(fd, bytes(blob[:cut]))
        try:
            found = read_symbols(fd, NAMES, r"cuda[A-Z]\w*")
        except NotElf:
            return
        assert set(found.functions) <= NAMES
        assert all(0 <= f.offset < cut for f in found.functions.values())
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("55", "push"),
        ("4154", "push"),
        ("0f1f440000", "nop5"),
        ("90", "nop"),
        ("6690", "nop"),
        ("488d0512", "single-stepped"),
        ("f30f1efa", "single-stepped"),
        ("4883ec08", "single-stepped"),
        ("41", "single-stepped"),
        ("", "single-stepped"),
    ],
)
def test_first_instruction(code: str, kind: str) -> None:
    assert instruction_kind(bytes.fromhex(code)) == kind


def test_a_library_that_exports_more_names_than_fit() -> None:
    """Its row must fit a message to the recorder; how many are left out is said."""
    assert _some(["a", "b"]) == ("a", "b")
    names = [f"cuda{n:0251d}" for n in range(MAX_NOT_OBSERVED + 3)]
    listed = _some(names)
    assert listed == (*names[:-3], "and 3 more")
    assert len(",".join(listed)) < LINE_LIMIT_BYTES // 2
