"""The same findings print the same bytes: other process, folder, hash seed, time zone, locale and user fonts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gpuaudit.bundle.canonical import dumps
from tests.documents import document

ROOT = Path(__file__).resolve().parents[2]

RENDER = """
import hashlib, sys
from pathlib import Path
from gpuaudit.analyze.load import parse_document
from gpuaudit.report.html import render
from gpuaudit.report.pdf import print_pdf
from gpuaudit.report.view import build_view
raw = Path(sys.argv[1]).read_bytes()
view = build_view(parse_document(raw))
page = render(view)
printed = print_pdf(render(view, "pdf"), findings=raw, content={"schema": "test"}, date=view.created,
                    identifier=hashlib.sha256(page).digest()[:16])
Path("report.html").write_bytes(page)
Path("report.pdf").write_bytes(printed.pdf)
"""


def rendered(folder: Path, **environment: str) -> tuple[bytes, bytes]:
    folder.mkdir(parents=True)
    findings = folder / "findings.json"
    findings.write_bytes(dumps(document().to_json()))
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment}
    subprocess.run([sys.executable, "-c", RENDER, findings], cwd=folder, env=env, check=True, timeout=300)
    return (folder / "report.html").read_bytes(), (folder / "report.pdf").read_bytes()


def test_two_renders_are_byte_equal(tmp_path: Path) -> None:
    one = rendered(tmp_path / "a", PYTHONHASHSEED="1", TZ="Pacific/Kiritimati", LC_ALL="C", HOME="/nonexistent")
    two = rendered(
        tmp_path / "b" / "deeper ü", PYTHONHASHSEED="4242", TZ="America/St_Johns", LC_ALL="C.UTF-8",
        SOURCE_DATE_EPOCH="1", FONTCONFIG_FILE="/dev/null", HOME=str(tmp_path),
    )  # fmt: skip
    assert one[0] == two[0]
    assert one[1] == two[1]
    assert one[1].startswith(b"%PDF-1.7")
