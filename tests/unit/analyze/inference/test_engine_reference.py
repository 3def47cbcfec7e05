"""The page on engines names every metric that is read, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import gpuaudit
from gpuaudit.analyze.inference.names import KINDS

PAGE = Path(gpuaudit.__file__).parent.parent / "docs" / "reference" / "engines.md"
COLUMNS = ("vllm", "sglang", "tgi", "triton", "llama_cpp")


def _told() -> dict[str, set[str]]:
    out: dict[str, set[str]] = {kind: set() for kind in COLUMNS}
    section = PAGE.read_text("utf-8").split("## Metrics")[1].split("\n## ")[0]
    for line in section.splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 1 + len(COLUMNS):
            for kind, cell in zip(COLUMNS, cells[1:], strict=True):
                out[kind] |= set(re.findall(r"`([a-z_]+:?[a-z_0-9]+)`", cell)) - {"finished_reason"}
    return out


def test_every_name_that_is_read_is_told() -> None:
    read = {kind: {m for options in KINDS[kind].values() for o in options for m in o.metrics} for kind in COLUMNS}
    assert set(KINDS) == set(COLUMNS)
    assert _told() == read
