"""The held workload: limits, environment, user, exit status, and what is said when it cannot run."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from gpuaudit.bundle.errors import UsageError
from gpuaudit.capture.launch import (
    Command,
    InvokingUser,
    Workload,
    describe_status,
    invoking_user,
    own_limits,
    resolve_command,
)  # fmt: skip
from gpuaudit.capture.linked import linked_files, programs
from gpuaudit.capture.privileges import Credentials

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: changes the user")
SHELL = Path("/bin/sh")


def run(script: str, user: InvokingUser | None = None, limits: dict[str, tuple[int, int]] | None = None) -> int:
    workload = Workload(Command(SHELL, ("sh", "-c", script)), user, limits or own_limits())
    workload.release()
    return workload.wait()


def user(environment: dict[str, str], limits: dict[str, tuple[int, int]] | None = None) -> InvokingUser:
    return InvokingUser(Credentials(NOBODY, NOBODY), (NOBODY, 4), environment, limits or own_limits())


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", -9), ("kill -TERM $$", -15)]
)
def test_exit_status(script: str, status: int) -> None:
    assert run(script) == status


def test_it_is_held_until_released(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    workload = Workload(Command(SHELL, ("sh", "-c", f"touch {mark}")), None, own_limits())
    assert workload.poll() is None
    assert not mark.exists()
    born = Path(f"/proc/{workload.pid}/stat").read_text().split()[21]
    assert born  # the process exists already, under the number it keeps
    workload.release()
    assert workload.wait() == 0
    assert mark.exists()


def test_a_held_process_never_runs_when_it_is_killed(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    workload = Workload(Command(SHELL, ("sh", "-c", f"touch {mark}")), None, own_limits())
    workload.kill_held()
    assert workload.poll() is not None
    assert not mark.exists()


def test_environment_is_the_users_alone(tmp_path: Path) -> None:
    out = tmp_path / "environment"
    me = InvokingUser(Credentials(os.getuid(), os.getgid()), tuple(os.getgroups()), {"ONLY": "this"}, own_limits())
    if os.geteuid() == 0:
        assert run(f"/usr/bin/env > {out}", me) == 0
        names = {line.partition("=")[0] for line in out.read_text().splitlines()}
        assert names <= {"ONLY", "PWD", "_", "SHLVL", "OLDPWD"}
        assert "ONLY" in names
    else:
        assert run(f"/usr/bin/env > {out}") == 0
        assert "OPENBLAS_NUM_THREADS=1" not in out.read_text().splitlines()


def test_bytes_that_are_not_text_reach_the_program(tmp_path: Path) -> None:
    out = tmp_path / "argument"
    argument = b"\xff\xfe".decode("utf-8", "surrogateescape")
    workload = Workload(Command(SHELL, ("sh", "-c", f'printf %s "$1" > {out}', "sh", argument)), None, own_limits())
    workload.release()
    assert workload.wait() == 0
    assert out.read_bytes() == b"\xff\xfe"


def test_limits_are_those_that_were_given(tmp_path: Path) -> None:
    out = tmp_path / "limits"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = {
        **own_limits(),
        "RLIMIT_NOFILE": (200, hard),
        "RLIMIT_CORE": (0, resource.getrlimit(resource.RLIMIT_CORE)[1]),
    }
    assert run(f"ulimit -n > {out}", limits=limits) == 0
    assert out.read_text().strip() == "200"


def test_signals_are_as_a_shell_would_leave_them(tmp_path: Path) -> None:
    out = tmp_path / "status"
    assert run(f"cat /proc/self/status > {out}") == 0
    ignored = int(next(x for x in out.read_text().splitlines() if x.startswith("SigIgn")).split()[1], 16)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        assert not ignored >> (number - 1) & 1


@as_root
def test_user_and_groups_are_the_invoking_ones(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    out = tmp_path / "id"
    for parent in tmp_path.parents:
        if parent.stat().st_uid == 0 and parent != Path("/") and not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 0o011)
    assert (
        run(f"id -u > {out}; id -G >> {out}; grep CapEff /proc/self/status >> {out}", user({"PATH": os.defpath})) == 0
    )
    uid, groups, capabilities = out.read_text().splitlines()
    assert uid == str(NOBODY)
    assert set(groups.split()) == {str(NOBODY), "4"}
    assert int(capabilities.split()[1], 16) == 0
    assert out.stat().st_uid == NOBODY


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not found in PATH") as e:
        resolve_command(["no-such-program-anywhere"], None)
    assert e.value.hint
    with pytest.raises(UsageError, match="not an executable file"):
        resolve_command([str(tmp_path / "absent")], None)
    assert resolve_command(["sh", "-c", "x"], None).executable.name == "sh"


def test_a_program_that_the_kernel_refuses(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF not really")
    broken.chmod(0o755)
    workload = Workload(Command(broken, ("broken",)), None, own_limits())
    with pytest.raises(UsageError, match="could not be executed"):
        workload.release()
    assert workload.poll() is not None


@as_root
def test_sudo_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_UID", raising=False)
    assert invoking_user() is None
    monkeypatch.setenv("SUDO_UID", str(NOBODY))
    monkeypatch.setenv("SUDO_GID", str(NOBODY))
    monkeypatch.setenv("SUDO_COMMAND", "audit")
    found = invoking_user()
    assert found is not None
    assert found.credentials == Credentials(NOBODY, NOBODY)
    assert NOBODY in found.groups
    assert found.environment["USER"] == "nobody"
    assert not any(name.startswith("SUDO_") for name in found.environment)
    for bad in ("root", "-1", "", "1e3", "٣", str(1 << 32)):
        monkeypatch.setenv("SUDO_UID", bad)
        with pytest.raises(UsageError, match="SUDO_UID"):
            invoking_user()
    monkeypatch.setenv("SUDO_UID", "0")
    assert invoking_user() is None


def test_linked_libraries_are_listed_without_running_the_program() -> None:
    listed = linked_files(Command(Path(sys.executable).resolve(), ("python",)), None)
    assert listed[0] == str(Path(sys.executable).resolve())
    assert any(Path(p).name.startswith("libc.so") for p in listed)


def test_interpreters_of_scripts_are_followed(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.write_text("#!/usr/bin/env -S sh -e\n")
    outer = tmp_path / "outer"
    outer.write_text(f"#!{inner}\n")
    loop = tmp_path / "loop"
    loop.write_text(f"#!{loop}\n")
    for script in (inner, outer, loop):
        script.chmod(0o755)
    found = programs(Command(outer, ("outer",)), os.defpath)
    assert found[:3] == [outer, inner, Path("/usr/bin/env")]
    assert found[3].name == "sh"
    assert programs(Command(loop, ("loop",)), os.defpath) == [loop]


def test_status_in_words() -> None:
    assert describe_status(3) == "exit code 3"
    assert describe_status(-9) == "signal 9 (SIGKILL)"
    assert json.dumps(describe_status(-200)) == '"signal 200"'
