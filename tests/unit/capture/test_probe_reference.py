"""The reference page of the probe table is made from the rows, and says when it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gpuaudit.capture import reference
from gpuaudit.capture.probes import LIBRARIES


def test_every_function_stands_under_its_library() -> None:
    sections = {part.splitlines()[0]: part for part in reference.markdown().split("\n## ")[1:]}
    assert list(sections) == [library.name for library in LIBRARIES]
    for library in LIBRARIES:
        assert all(f"`{p.op}`" in sections[library.name] for p in library.probes)
        assert ("not on the real library" in sections[library.name]) is (library.name in ("hip", "rccl"))


def test_values_are_told_where_they_lie() -> None:
    lines = [line for line in reference.markdown().splitlines() if "`cudaMemPrefetchAsync`" in line]
    assert [("rdx >> 32" in line, "so\\.(9\\|10\\|11\\|12)" in line) for line in lines] == [
        (False, True),
        (True, False),
    ]
    (malloc,) = [line for line in reference.markdown().splitlines() if "`cudaMallocPitch`" in line]
    assert malloc.endswith(" device_pointer = \\*rdi at return, size_bytes = rcx × \\*rsi at return |")


def test_check_says_when_the_page_is_out_of_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reference, "TARGET", tmp_path / "probes.md")
    monkeypatch.setattr(sys, "argv", ["reference", "--check"])
    assert reference.main() == 1
    assert "out of step" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["reference"])
    assert reference.main() == 0
    monkeypatch.setattr(sys, "argv", ["reference", "--check"])
    assert reference.main() == 0
