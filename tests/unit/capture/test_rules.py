"""Rules that choose processes: what can be asked for, and the verdict on a process."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from gpuaudit.bundle.errors import UsageError
from gpuaudit.capture import cgroups, rules
from gpuaudit.capture.cgroups import Properties
from gpuaudit.capture.rules import MAX_RULES, Rule, judge, parse_rules

ROOT = pwd.getpwuid(0).pw_name


@pytest.fixture
def hierarchy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a mounted version 2 hierarchy with /a and /a/b."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a" / "b"):
        (folder / "cgroup.procs").touch()
    (tmp_path / "plain").mkdir()
    for module in (cgroups, rules):
        monkeypatch.setattr(module, "cgroup_mount", lambda: str(tmp_path))
    return tmp_path


def test_what_can_be_asked_for(hierarchy: Path) -> None:
    parsed, pids = parse_rules(
        (ROOT, "4711"), ("python",), ("/a", str(hierarchy / "a" / "b")),
        (f"pid={os.getpid()}", "comm=a=b", "user=0", "cgroup=a/b/"),
    )  # fmt: skip
    assert parsed == (
        Rule("user", ROOT, 0), Rule("user", "4711", 4711), Rule("comm", "python"),
        Rule("cgroup", str(hierarchy / "a")), Rule("cgroup", str(hierarchy / "a/b")),
        Rule("comm", "a=b", excludes=True), Rule("user", "0", 0, excludes=True),
        Rule("cgroup", str(hierarchy / "a/b"), excludes=True),
    )  # fmt: skip
    assert pids == {os.getpid()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((("no-such-user",), (), (), ()), "there is no such user"),
        (((str((1 << 32) - 1),), (), (), ()), "there is no such user"),
        ((("",), (), (), ()), "there is no such user"),
        ((("a\0b",), (), (), ()), "there is no such user"),
        (((), ("x" * 16,), (), ()), "1 to 15 bytes"),
        (((), ("",), (), ()), "1 to 15 bytes"),
        (((), ("\u00e9" * 8,), (), ()), "1 to 15 bytes"),
        (((), (), ("/nowhere",), ()), "there is no such cgroup"),
        (((), (), ("/plain",), ()), "there is no such cgroup"),
        (((), (), ("/../../etc",), ()), "there is no such cgroup"),
        (((), (), ("/a\0",), ()), "there is no such cgroup"),
        (((), (), (), ("pid=0",)), "--exclude 'pid=0'"),
        (((), (), (), ("pid=2147483647",)), "no such process"),
        (((), (), (), ("pid=x",)), "--exclude 'pid=x'"),
        (((), (), (), ("python",)), "--exclude 'python'"),
        (((), (), (), ("comm=",)), "--exclude 'comm='"),
        (((), (), (), ("name=python",)), "--exclude 'name=python'"),
        (((), tuple(f"p{i}" for i in range(MAX_RULES)), (), ()), f"at most {MAX_RULES - 1}"),
    ],
)
def test_what_names_nothing(hierarchy: Path, options: tuple[tuple[str, ...], ...], message: str) -> None:
    users, comms, groups, excludes = options
    with pytest.raises(UsageError, match=message) as refused:
        parse_rules(users, comms, groups, excludes)
    assert "\n" not in refused.value.message


def test_a_host_without_version_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "cgroup_mount", lambda: None)
    with pytest.raises(UsageError, match="no cgroup version 2 hierarchy"):
        parse_rules((), (), ("/a",), ())


@pytest.mark.parametrize(
    ("asked", "process", "verdict"),
    [
        (((), (), (), ()), (0, "x", "/"), ""),
        (((), ("x", "y"), (), ()), (0, "y", "/"), "selected"),
        (((), ("x", "y"), (), ()), (0, "z", "/"), ""),
        ((("0",), ("x",), (), ()), (0, "x", "/"), "selected"),
        ((("0",), ("x",), (), ()), (1, "x", "/"), ""),
        ((("0",), (), (), ()), (None, "x", "/"), ""),
        (((), (), ("/a",), ()), (0, "x", "/a"), "selected"),
        (((), (), ("/a",), ()), (0, "x", "/a/b/c"), "selected"),
        (((), (), ("/a",), ()), (0, "x", "/ab"), ""),
        (((), (), ("/a",), ()), (0, "x", "/"), ""),
        (((), (), ("/",), ()), (0, "x", "/"), "selected"),
        (((), (), ("/",), ()), (0, "x", "/a"), "selected"),
        (((), (), ("/a",), ()), (0, "x", None), ""),
        (((), ("x",), (), ("comm=x",)), (0, "x", "/"), "excluded"),
        (((), (), (), ("user=1", "cgroup=/a")), (0, "x", "/a/b"), "excluded"),
        (((), (), (), ("user=1", "cgroup=/a")), (0, "x", "/b"), ""),
    ],
)
def test_the_verdict(
    hierarchy: Path, asked: tuple[tuple[str, ...], ...], process: tuple[int | None, str, str | None], verdict: str
) -> None:
    users, comms, groups, excludes = asked
    chosen, _ = parse_rules(users, comms, groups, excludes)
    assert judge(chosen, Properties(*process)) == verdict
