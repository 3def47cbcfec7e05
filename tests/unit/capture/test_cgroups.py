"""Ids of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuaudit.capture import cgroups


def test_a_cgroup_beyond_the_root_of_a_namespace_has_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path leads out of the hierarchy: what lies there is a folder, and its inode number is no id of a cgroup."""
    mount = tmp_path / "cgroup"
    (mount / "..own").mkdir(parents=True)
    monkeypatch.setattr(cgroups, "cgroup_mount", lambda: str(mount))
    assert cgroups.cgroup_id("/") == mount.stat().st_ino
    assert cgroups.cgroup_id("/..own") == (mount / "..own").stat().st_ino
    assert [cgroups.cgroup_id(path) for path in ("/..", "/../cgroup", "/../..")] == [None] * 3
