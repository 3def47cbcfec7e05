"""Names of failed tests, as pytest's cache has them, are such as pytest selects tests by."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.failed import failed

FOLDERS = ("unit/bundle", "unit/capture", "unit/report", "unit/cli", "unit/analyze", "unit/bench", "property", "golden",
           "hostile")  # fmt: skip
"""That scripts/test names."""


def test_the_group_of_a_test_is_no_part_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "v" / "cache" / "lastfailed"
    path.parent.mkdir(parents=True)
    names = ["tests/a.py::test_x[a@b]@tests/a.py", "tests/a.py::test_x[c@tests/b.py]", "tests/b.py::test_y"]
    path.write_text(json.dumps(dict.fromkeys(names, True)), "utf-8")
    assert failed(tmp_path) == ["tests/a.py::test_x[a@b]", "tests/a.py::test_x[c@tests/b.py]", "tests/b.py::test_y"]


def test_a_run_in_which_nothing_failed_has_none(tmp_path: Path) -> None:
    assert failed(tmp_path) == []


LIVE = """
from pathlib import Path
import pytest

def times(name):
    path = Path(name)
    path.write_text(f"{path.read_text() if path.exists() else ''}x")
    return len(path.read_text())

@pytest.mark.alone
def test_once(): assert times("once") > 1

@pytest.mark.alone
def test_always(): assert times("always") > ALWAYS

def test_beside(): assert times("beside") > 1
"""


@pytest.mark.parametrize(("always", "status"), [(1, 0), (9, 1)])
def test_what_failed_once_is_unsteady_and_what_fails_twice_has_failed(tmp_path: Path, always: int, status: int) -> None:
    """scripts/test itself, in a tree of its own with three experiments of one file and a unit test."""
    root = Path(__file__).parents[2]
    for folder in ("scripts", ".venv/bin", "tests/integration", *(f"tests/{f}" for f in FOLDERS)):
        (tmp_path / folder).mkdir(parents=True)
    for file, text in {
        "scripts/test": (root / "scripts/test").read_text("utf-8"), "scripts/setup": "#!/bin/sh\n",
        ".venv/bin/python": f'#!/bin/sh\nexec {sys.executable} "$@"\n', "tests/__init__.py": "",
        "tests/failed.py": (root / "tests/failed.py").read_text("utf-8"),
        "tests/unit/test_x.py": "def test_x(): pass\n",
        "tests/integration/test_live.py": LIVE.replace("ALWAYS", str(always)),
        "pyproject.toml": '[tool.pytest.ini_options]\nmarkers = ["alone: one by one"]\n',
    }.items():  # fmt: skip
        (tmp_path / file).write_text(text, "utf-8")
        (tmp_path / file).chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [tmp_path / "scripts/test", "-q"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    if status:
        assert "2 failed, 1 unsteady, 1 passed" in last
    else:
        assert "3 unsteady, 1 passed" in last
        assert "  failed, and passed by itself: tests/integration/test_live.py::test_once" in done.stdout
