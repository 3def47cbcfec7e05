"""Line tables give the lines that the interpreter itself gives, for every range of instructions of real code."""

from __future__ import annotations

import json
import subprocess

import pytest

from gpuaudit.capture.cpython_code import line_3_10, line_of
from tests.interpreters import Python, interpreters

# What each interpreter says of code it compiled: first line, table, and (start, end, line) of every range. The two
# modules are long, and have decorators, multi-line calls, comprehensions, generators, try and with.
ASK = """
import dataclasses, inspect, json, types, typing
def codes(code):
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)
for module in (dataclasses, typing):
    for code in codes(compile(inspect.getsource(module), module.__name__, "exec")):
        table = code.co_linetable
        print(json.dumps([code.co_firstlineno, table.hex(), len(code.co_code), list(code.co_lines())]))
"""


@pytest.mark.parametrize("python", interpreters(), ids=lambda p: p.label)
def test_lines_of_every_instruction(python: Python) -> None:
    line = line_3_10 if python.minor == 10 else line_of
    out = subprocess.run([python.path, "-c", ASK], capture_output=True, text=True, check=True).stdout
    checked = without = 0
    for first, table_hex, size, ranges in map(json.loads, out.splitlines()):
        table = bytes.fromhex(table_hex)
        for start, end, expected in ranges:
            for offset in {start, end - 2}:
                assert line(table, first, offset) == expected
                checked += 1
                without += expected is None
        assert line(table, first, size) is None
        assert line(table, first, -2) is None
    assert checked > 2_000
    assert python.minor == 10 or without > 0


def test_there_are_interpreters_to_test() -> None:
    """At least the one that runs the tests, or the parametrised tests would pass by running nothing."""
    assert interpreters()
