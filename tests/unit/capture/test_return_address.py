"""Return addresses stand behind calls: every call of a disassembled library does, and few other places do."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gpuaudit.capture.return_address import RESTORER, follows_call, is_returned_to


@pytest.mark.parametrize(
    "call",
    [
        "e811223344",  # call rel32
        "ffd0", "41ffd4",  # call *%rax, *%r12
        "ff10", "ff1424", "ff14c5112233ff",  # call *(%rax), *(%rsp), *disp32(,%rax,8)
        "ff5008", "ff542408",  # call *8(%rax), *8(%rsp)
        "ff1511223344", "ff9011223344", "ff942411223344",  # call *disp32(%rip), *disp32(%rax), *disp32(%rsp)
    ],
)  # fmt: skip
def test_every_form_of_call(call: str) -> None:
    assert follows_call(bytes.fromhex("90" * 7 + call))


@pytest.mark.parametrize("code", ["90" * 7, "554889e54883ec10", "ff25112233449090", "c3" * 7, "", "e8"])
def test_other_instructions(code: str) -> None:
    assert not follows_call(bytes.fromhex(code))


def test_where_a_signal_handler_returns_to() -> None:
    assert is_returned_to(b"\x90" * 7, RESTORER + b"\x90")
    assert not is_returned_to(b"\x90" * 7, b"\x55\x48\x89\xe5")


def test_all_calls_of_a_library() -> None:
    """objdump says where the calls of the dynamic loader are, and where its other instructions end."""
    objdump, library = shutil.which("objdump"), loader()
    if objdump is None:
        pytest.skip("objdump is not installed")
    out = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", "-j", ".text", library], capture_output=True, text=True, check=True
    ).stdout
    raw = library.read_bytes()
    instructions = re.findall(r"^\s+([0-9a-f]+):\t(\S+)", out, re.MULTILINE)
    moved = text_offset(library)
    behind_calls = others = passed = 0
    for (_, name), (address, _) in itertools.pairwise(instructions):
        at = int(address, 16) + moved
        if name in ("call", "callq", "notrack"):
            assert name == "notrack" or follows_call(raw[at - 7 : at])
            behind_calls += 1
        else:
            others += 1
            passed += follows_call(raw[at - 7 : at])
    assert behind_calls > 500
    assert passed < others // 20


def loader() -> Path:
    for line in Path("/proc/self/maps").read_text("utf-8").splitlines():
        if "/ld-" in line:
            return Path(line.split()[-1])
    pytest.skip("no dynamic loader is mapped")


def text_offset(path: Path) -> int:
    out = subprocess.run(["readelf", "-SW", path], capture_output=True, text=True, check=True).stdout
    address, offset = re.search(r" \.text\s+PROGBITS\s+([0-9a-f]+) ([0-9a-f]+)", out).groups()  # type: ignore[union-attr]
    return int(offset, 16) - int(address, 16)
