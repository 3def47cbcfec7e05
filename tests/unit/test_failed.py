"""Names of failed tests, as pytest's cache has them, are such as pytest selects tests by."""

from __future__ import annotations

import json
from pathlib import Path

from tests.failed import failed


def test_the_group_of_a_test_is_no_part_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "v" / "cache" / "lastfailed"
    path.parent.mkdir(parents=True)
    names = ["tests/a.py::test_x[a@b]@tests/a.py", "tests/a.py::test_x[c@tests/b.py]", "tests/b.py::test_y"]
    path.write_text(json.dumps(dict.fromkeys(names, True)), "utf-8")
    assert failed(tmp_path) == ["tests/a.py::test_x[a@b]", "tests/a.py::test_x[c@tests/b.py]", "tests/b.py::test_y"]


def test_a_run_in_which_nothing_failed_has_none(tmp_path: Path) -> None:
    assert failed(tmp_path) == []
