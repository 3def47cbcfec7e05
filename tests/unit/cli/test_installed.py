"""``audit check --self``: every way in which installed files can differ from the wheel is named."""

from __future__ import annotations

import base64
import hashlib
import marshal
import py_compile
from importlib import metadata
from pathlib import Path

import pytest

from gpuaudit.cli.installed import check_installed


def _install(site: Path) -> metadata.Distribution:
    """A small installation of our package's name, as pip leaves it."""
    files = {"gpuaudit/__init__.py": b"x = 1\n", "gpuaudit/bundle/a.py": b"def f():\n    return 1\n"}
    lines = []
    for name, data in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(data)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}")
    info = site / "gpu_audit-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gpu-audit\nVersion: 9\n")
    (info / "RECORD").write_text("\n".join([*lines, "gpu_audit-9.dist-info/RECORD,,"]) + "\n")
    py_compile.compile(str(site / "gpuaudit/bundle/a.py"))
    return metadata.Distribution.at(info)


def test_an_untouched_installation_is_ok(tmp_path: Path) -> None:
    found = check_installed(_install(tmp_path))
    assert found.ok
    assert found.files == 2


def test_a_changed_a_missing_and_an_added_file_are_each_named(tmp_path: Path) -> None:
    installed = _install(tmp_path)
    (tmp_path / "gpuaudit/__init__.py").write_bytes(b"x = 2\n")
    (tmp_path / "gpuaudit/bundle/a.py").unlink()
    (tmp_path / "gpuaudit/bundle/smuggled.py").write_bytes(b"")
    found = check_installed(installed)
    assert not found.ok
    text = "\n".join(found.problems)
    assert "gpuaudit/__init__.py: sha256 is" in text
    assert "gpuaudit/bundle/a.py: is missing" in text
    assert "gpuaudit/bundle/smuggled.py: is not part of the wheel" in text


def test_byte_code_that_is_not_its_sources_is_named(tmp_path: Path) -> None:
    installed = _install(tmp_path)
    (pyc,) = (tmp_path / "gpuaudit/bundle/__pycache__").glob("*.pyc")
    evil = compile("def f():\n    return 2\n", "a.py", "exec")
    pyc.write_bytes(pyc.read_bytes()[:16] + marshal.dumps(evil))
    (problem,) = check_installed(installed).problems
    assert "is not the byte code of its source" in problem
    pyc.write_bytes(pyc.read_bytes()[:20])
    (problem,) = check_installed(installed).problems
    assert "is damaged" in problem


def test_an_editable_installation_is_said_to_be_one_and_is_no_pass(tmp_path: Path) -> None:
    installed = _install(tmp_path)
    (tmp_path / "gpu_audit-9.dist-info/direct_url.json").write_text('{"url":"file:///x","dir_info":{"editable":true}}')
    found = check_installed(installed)
    assert found.editable
    assert not found.ok


@pytest.mark.parametrize("record", ["", "gpu_audit-9.dist-info/RECORD,,\n"])
def test_a_record_that_vouches_for_nothing_is_no_pass(tmp_path: Path, record: str) -> None:
    installed = _install(tmp_path)
    (tmp_path / "gpu_audit-9.dist-info/RECORD").write_text(record)
    assert not check_installed(installed).ok
