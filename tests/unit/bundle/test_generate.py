"""Files generated from the table definitions, and the C header against the numpy dtype."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from gpuaudit.bundle import generate
from gpuaudit.bundle.tables import TABLES, c_header


def test_generated_files_are_in_step() -> None:
    assert generate.stale() == []
    assert generate.main(["--check"]) == 0


def test_stale_and_missing_files_are_told_and_brought_into_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate.write(tmp_path) == list(generate.GENERATED)
    header = tmp_path / "capture" / "bpf" / "tables.h"
    header.write_text(header.read_text() + "\n")
    assert generate.stale(tmp_path) == ["capture/bpf/tables.h"]
    assert generate.write(tmp_path) == ["capture/bpf/tables.h"]
    assert generate.stale(tmp_path) == []
    monkeypatch.setattr(generate, "stale", lambda: ["docs/reference/tables.md"])
    assert generate.main(["--check"]) == 1
    assert "docs/reference/tables.md is out of step" in capsys.readouterr().err
    assert generate.main(["--wrong"]) == 2


def test_c_records_lie_as_numpy_reads_them(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("clang-16") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler")
    lines = ["#include <linux/types.h>", "#include <stddef.h>", "#include <stdio.h>"]
    (tmp_path / "tables.h").write_text(c_header())
    lines += ['#include "tables.h"', "int main(void) {"]
    for table in TABLES.values():
        for name, _, _ in table.record_fields() if table.ring else ():
            where = f"struct {table.name}_record"
            size = f"sizeof((({where} *)0)->{name})"
            lines.append(f'printf("[\\"{table.name}\\",\\"{name}\\",%zu,%zu]\\n", offsetof({where}, {name}), {size});')
    (tmp_path / "t.c").write_text("\n".join([*lines, "return 0; }"]))
    subprocess.run([compiler, "-std=gnu11", "-Werror", "-o", str(tmp_path / "t"), str(tmp_path / "t.c")], check=True)
    out = subprocess.run([str(tmp_path / "t")], check=True, capture_output=True, text=True).stdout
    got = [tuple(json.loads(line)) for line in out.splitlines()]
    wanted = [
        (t.name, n, at, np.dtype(d).itemsize) for t in TABLES.values() if t.ring for n, d, at in t.record_fields()
    ]
    assert got == wanted
    for table in TABLES.values():
        fields = table.record_dtype().fields
        assert fields is not None
        assert [(n, fields[n][1]) for n in fields] == [(n, at) for n, _, at in table.record_fields()]
