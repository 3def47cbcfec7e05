"""Recordings of other tools from their files to the printed page: imported, analysed twice, reported, and marked."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.commands import audit, environment
from tests.recorded_engines import DATA
from tests.unit.capture.importers.test_dcgmi import LOG as DMON
from tests.unit.capture.importers.test_nvidia_smi import LOG as SMI


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="needs poppler-utils")
def test_all_formats_end_in_a_report_that_says_imported_on_every_page(tmp_path: Path) -> None:
    env = environment(tmp_path / "keys")
    (tmp_path / "smi.csv").write_text(SMI, encoding="utf-8")
    (tmp_path / "dmon.log").write_text(DMON, encoding="utf-8")

    def run(*args: str | Path, seed: str = "0") -> str:
        done = audit(*args, env={**env, "PYTHONHASHSEED": seed}, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    times = ("--start", "2026-11-22T05:00:00Z", "--interval", "1s")
    said = run("import", "smi.csv", "dmon.log", DATA / "light.jsonl.gz", *times, "--out", "all.db")
    assert said.splitlines()[0].endswith("all.db (IMPORTED)")
    assert "IMPORTED" in run("analyze", "all.db", "--out", "one.json")
    run("analyze", "all.db", "--out", "two.json", seed="7")
    one, two = ((tmp_path / f"{n}.json").read_bytes() for n in ("one", "two"))
    assert one == two
    told = json.loads(one)
    assert told["bundle"]["imported"] is True
    assert [g["uuid"] for g in told["host"]["gpus"]] == ["GPU-aa", "GPU-bb"]
    run("report", "one.json", "--out", "packet")
    assert run("report", "one.json", "--out", "packet").count("there already, and the same") == 1
    text = subprocess.run(
        ["pdftotext", "-layout", tmp_path / "packet" / "report.pdf", "-"], capture_output=True, text=True, check=True
    ).stdout
    pages = text.split("\f")[:-1]
    assert len(pages) > 5
    assert [i for i, page in enumerate(pages, 1) if "IMPORTED" not in page] == []
    assert "2 × NVIDIA H100 80GB HBM3" in pages[0]
