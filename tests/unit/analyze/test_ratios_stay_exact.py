"""A policy may set a share or a ratio to any fraction: no code rounds one, as it may a count or a time."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gpuaudit.analyze
from gpuaudit.analyze.finding import Threshold
from gpuaudit.analyze.policy import WHOLE

ROOT = Path(str(gpuaudit.analyze.__file__)).parent
READERS = sorted(p for p in ROOT.rglob("*.py") if "int(context.policy.value(" in p.read_text("utf-8"))


def thresholds(tree: ast.AST, known: dict[str, Any]) -> Iterator[Threshold]:
    """Those that are read from a policy within ``int(…)``, by their names in the module or in a loop's tuple."""
    loops = {
        ast.unparse(n.target): n.iter.elts
        for n in ast.walk(tree) if isinstance(n, ast.comprehension) and isinstance(n.iter, ast.Tuple)
    }  # fmt: skip
    for cut in ast.walk(tree):
        if not isinstance(cut, ast.Call) or ast.unparse(cut.func) != "int":
            continue
        for call in ast.walk(cut):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("policy.value"):
                first = call.args[0]
                for named in loops.get(ast.unparse(first), [first]):
                    owner, _, name = ast.unparse(named).rpartition(".")
                    found = getattr(known[owner], name) if owner else known[name]
                    assert isinstance(found, Threshold)
                    yield found


@pytest.mark.parametrize("path", READERS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_only_thresholds_that_are_whole_numbers_are_cut_to_one(path: Path) -> None:
    name = ".".join(("gpuaudit.analyze", *path.relative_to(ROOT).with_suffix("").parts))
    known = vars(importlib.import_module(name))
    found = list(thresholds(ast.parse(path.read_text("utf-8")), known))
    assert found
    assert [t.name for t in found if t.unit not in WHOLE] == []
