"""The layouts and numbers of capture/bpf that user space repeats are those of the C headers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from gpuaudit.capture import cpython, cpython_offsets, loading, stack_records, stack_source
from gpuaudit.capture.cpython import Interpreter
from gpuaudit.capture.stack_records import KNOWN_STACK, RAW_STACK, decode
from tests.doubles.build import compiler

HEADERS = {name: (loading.OBJECTS / name).read_text("utf-8") for name in ("raw_stacks.h", "stacks.h", "python.h")}
ALL = "\n".join(HEADERS.values())


def struct(name: str) -> str:
    found = re.search(rf"^struct {name} \{{.*?^\}};", ALL, re.MULTILINE | re.DOTALL)
    assert found, name
    return found.group()


def number(name: str) -> int:
    found = re.search(rf"^#define {name} (0x[0-9a-f]+|\d+)", ALL, re.MULTILINE)
    assert found, name
    return int(found.group(1), 0)


def fields(name: str) -> list[str]:
    return re.findall(r"^\t__(?:u|s)\d+ (\w+)(?:\[\w+\])?;", struct(name), re.MULTILINE)


def offsets(tmp_path: Path, name: str) -> dict[str, int]:
    """Field → offset, and the size as ``""``; what the compiler says of the struct in the header."""
    if compiler() is None:
        pytest.skip("gcc is not installed")
    constants = "".join(f"#define {c} {number(c)}\n" for c in ("PYTHON_FRAMES", "PYTHON_FRAME_WORDS"))
    prints = "".join(f'printf("{f} %zu\\n", offsetof(struct {name}, {f}));' for f in fields(name))
    (tmp_path / "s.c").write_text(
        "#include <stddef.h>\n#include <stdio.h>\ntypedef unsigned __u32; typedef unsigned long long __u64;\n"
        f"{constants}#define RAW_WORDS (PYTHON_FRAMES * PYTHON_FRAME_WORDS)\n{struct(name)}\n"
        f'int main(void) {{ {prints} printf("size %zu\\n", sizeof(struct {name})); return 0; }}\n',
        "utf-8",
    )
    subprocess.run(["gcc", "-o", tmp_path / "s", tmp_path / "s.c"], check=True)
    out = subprocess.run([tmp_path / "s"], check=True, capture_output=True, text=True).stdout
    return {field: int(at) for field, at in (line.split() for line in out.splitlines())}


@pytest.mark.parametrize(("name", "dtype"), [("raw_stack", RAW_STACK), ("known_stack", KNOWN_STACK)])
def test_records(tmp_path: Path, name: str, dtype: np.dtype[np.void]) -> None:
    found = offsets(tmp_path, name)
    assert dtype.fields is not None
    assert {**{f: at for f, (_, at, *_) in dtype.fields.items()}, "size": dtype.itemsize} == found


def test_parameters_of_an_interpreter(tmp_path: Path) -> None:
    """Each field of the struct, from the packed bytes, is what the layout says."""
    layout = cpython_offsets.layout_of(11)
    raw = Interpreter("", layout, 0x10000).parameters()
    found = offsets(tmp_path, "python_process")
    assert len(raw) == found.pop("size") == stack_source._PYTHON_PROCESS_BYTES
    ends = [*list(found.values())[1:], len(raw)]
    told = {f: int.from_bytes(raw[at:end], "little") for (f, at), end in zip(found.items(), ends, strict=True)}
    for name in ("interpreter_next", "interpreter_threads", "thread_next", "thread_id", "thread_frame", "cframe_frame",
                 "frame_previous", "frame_code", "frame_instruction", "frame_owner", "code_line_table"):  # fmt: skip
        assert told[name] == getattr(layout, name)
    assert told["interpreters"] == 0x10000 + layout.runtime_interpreters
    assert told["instruction_bytes"] == 8
    assert told["frame_bytes"] >= max(layout.frame_instruction + 8, (layout.frame_owner or 0) + 1)
    assert told["frame_bytes"] <= number("PYTHON_FRAME_BYTES")


def test_numbers() -> None:
    frames = stack_records.MAX_FRAMES
    assert frames == {stack_records.NATIVE: number("NATIVE_FRAMES"), stack_records.PYTHON: number("PYTHON_FRAMES")}
    assert number("MAX_STACKS") == stack_records.MAX_STACKS
    assert number("PYTHON_NO_FIELD") == cpython.NO_FIELD
    assert number("PYTHON_FRAME_BYTES") - 8 == cpython_offsets.MAX_FRAME_OFFSET
    for text in ("RAW_NATIVE = 0", "RAW_PYTHON = 1", "END_WHOLE = 0", "END_CUT = 1", "END_UNREADABLE = 2",
                 "END_THREADS = 3", f"STACK_LOST = {stack_records.STACK_LOST}"):  # fmt: skip
        assert f"\t{text}," in ALL
    ends = (stack_records.END_WHOLE, stack_records.END_CUT, stack_records.END_UNREADABLE, stack_records.END_THREADS)
    assert ends == (0, 1, 2, 3)


def test_a_record_says_no_more_than_it_holds() -> None:
    """Counts and kinds are bounded, whatever the bytes are."""
    record = np.zeros(1, RAW_STACK)[0]
    record["word"] = np.arange(stack_records.RAW_WORDS)
    record["count"] = 1 << 31
    for kind, words in ((stack_records.NATIVE, 64), (stack_records.PYTHON, 96), (7, 0)):
        record["kind"] = kind
        assert len(decode(record).words) == words
    record["kind"], record["count"] = stack_records.PYTHON, 2
    assert decode(record).frames == [(0, 1, 2), (3, 4, 5)]
