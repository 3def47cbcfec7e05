"""Where CPython keeps things: the recorded offsets are the headers' own, and what an interpreter tells is checked."""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuaudit.capture.address_space import Region
from gpuaudit.capture.cpython import Interpreter, interpreter_in
from gpuaudit.capture.cpython_offsets import (
    DEBUG_OFFSETS,
    Unsupported,
    debug_offsets_bytes,
    layout_from,
    layout_of,
    recorded,
)
from tests.cpython_memory import OFFSETS_3_14, VERSION_3_14, FakeMemory, debug_offsets
from tests.interpreters import Python, interpreters

SCRIPT = Path(__file__).parents[3] / "scripts" / "cpython-offsets"
RECORDED = [p for p in interpreters() if p.minor in recorded()]
TELLING = [p for p in interpreters() if p.minor in DEBUG_OFFSETS]


@pytest.mark.parametrize("python", RECORDED, ids=lambda p: p.label)
def test_recorded_offsets_are_those_of_the_headers(python: Python) -> None:
    run = subprocess.run([SCRIPT, python.path], capture_output=True, text=True, check=False)
    if "Python.h" in run.stderr:
        pytest.skip(f"{python.path} has no headers here")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == vars(layout_of(python.minor))


FIELDS = """
#define Py_BUILD_CORE 1
#include <Python.h>
#include <stdio.h>
#include "internal/pycore_runtime.h"
int main(void) { struct _Py_DebugOffsets d; printf("%zu", sizeof(d) / 8);
"""


@pytest.mark.parametrize("python", TELLING, ids=lambda p: p.label)
def test_the_words_of_debug_offsets_are_those_of_the_header(python: Python, tmp_path: Path) -> None:
    """Place of every word, compared with offsetof in the interpreter's own header."""
    names = [f"{group}.{field}" for group, fields in DEBUG_OFFSETS[python.minor] for field in fields.split()]
    prints = "".join(f'printf(" %zu", offsetof(struct _Py_DebugOffsets, {name}) / 8);' for name in names)
    (tmp_path / "words.c").write_text(FIELDS + prints + "return 0; }\n", "ascii")
    ask = "import sysconfig as s; print(s.get_path('include'))"
    include = subprocess.run([python.path, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    if not (Path(include) / "Python.h").exists():
        pytest.skip(f"{python.path} has no headers here")
    subprocess.run(["gcc", f"-I{include}", "-o", tmp_path / "words", tmp_path / "words.c"], check=True)
    _, *words = map(int, subprocess.run([tmp_path / "words"], capture_output=True, check=True).stdout.split())
    assert words == list(range(3, 3 + len(names)))


def test_what_3_14_tells() -> None:
    """Constructed: no registry offers an interpreter of 3.14. The order of the words is its header's."""
    layout = layout_from(debug_offsets(14))
    at = OFFSETS_3_14
    assert layout.minor == 14
    assert layout.thread_id == at["thread_state.thread_id"]
    assert layout.frame_owner == at["interpreter_frame.owner"]
    assert layout.code_qualname == at["code_object.qualname"]
    assert layout.code_bytecode == at["code_object.co_code_adaptive"]
    assert layout.bytes_data == at["bytes_object.ob_sval"]
    assert layout.text_compact_data == at["unicode_object.asciiobject_size"] + 16
    assert layout.kind_shifts == (16, 2)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"xdebugpX" + bytes(1000), "does not begin with"),
        (debug_offsets(14, version=0x030F00F0), "CPython 3.15 is not supported: 3.10 to 3.14 are"),
        (debug_offsets(14, version=0x040E00F0), "CPython 4.14 is not supported"),
        (debug_offsets(14, version=0x030E00A3), "before its release candidate"),
        (debug_offsets(14, free_threaded=1), "free-threaded"),
        (debug_offsets(14)[:200], "cut short"),
        (debug_offsets(14, interpreter_frame__owner=1000), "frame_owner lies at 1000, more than 120"),
        (debug_offsets(14, code_object__filename=1 << 40), "code_filename lies at 1099511627776"),
    ],
)
def test_what_is_not_believed(raw: bytes, why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        layout_from(raw)


@given(st.binary(max_size=900))
def test_any_bytes(raw: bytes) -> None:
    for told in (raw, debug_offsets(14)[:24] + raw):
        with contextlib.suppress(Unsupported):
            layout_from(told)


REGION = Region(0x400000, 0x500000, 0, 1, 2, "/usr/bin/python3.11")


def at_runtime(content: bytes, **more: bytes) -> FakeMemory:
    memory = FakeMemory()
    memory.write(0x1000, content.ljust(debug_offsets_bytes(), b"\0"))
    for address, value in more.items():
        memory.write(int(address[1:], 16), value)
    return memory


def test_the_version_is_what_the_interpreter_says() -> None:
    version = struct.pack("<Q", 0x030C01F0)
    found = interpreter_in(at_runtime(b"", x2000=version), REGION, {"_PyRuntime": 0x800, "Py_Version": 0x1800}, 0x800)
    assert found == Interpreter(REGION.path, layout_of(12), 0x1000)
    assert interpreter_in(at_runtime(b""), REGION, {"_PyRuntime": 0x1000}, 0).layout == layout_of(11)  # by its name
    assert interpreter_in(at_runtime(debug_offsets(14)), REGION, {"_PyRuntime": 0x1000}, 0).layout.minor == 14


def test_interpreters_that_cannot_be_read() -> None:
    symbols = {"_PyRuntime": 0x1000, "Py_Version": 0x2000}
    old = struct.pack("<Q", 0x030906F0)
    nameless = Region(0x400000, 0x500000, 0, 1, 2, "/opt/program")
    for memory, region, told, why in (
        (FakeMemory(), REGION, symbols, "cannot be read"),
        (at_runtime(b""), REGION, symbols, "cannot be read"),
        (at_runtime(b"", x2000=old), REGION, symbols, "CPython 3.9 is not supported"),
        (at_runtime(b"", x2000=bytes(8)), nameless, symbols, "does not say its version"),
        (at_runtime(debug_offsets(14, version=VERSION_3_14, free_threaded=1)), REGION, symbols, "free-threaded"),
    ):
        with pytest.raises(Unsupported, match=why):
            interpreter_in(memory, region, told, 0)
