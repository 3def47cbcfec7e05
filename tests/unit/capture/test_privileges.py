"""Giving up privileges, seen from outside: in a process of its own, because it is for good."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpuaudit.capture.child import child_environment
from gpuaudit.capture.privileges import missing_for_bpf

PROGRAM = """
import json, os, resource, socket, sys
from pathlib import Path
from gpuaudit.capture import privileges
directory = Path(sys.argv[1])
os.chdir(directory)
credentials = privileges.recorder_credentials()
view = privileges.private_view(directory)
privileges.drop(credentials)
def attempt(what):
    try:
        what()
    except OSError as e:
        return e.strerror
    return "done"
status = dict(line.rstrip().partition(":")[::2] for line in open("/proc/self/status"))
interfaces = [name for _, name in socket.if_nameindex()]
def connect():
    with socket.socket() as s:
        s.settimeout(1)
        s.connect(("192.0.2.1", 9))
print(json.dumps({
    "uid": os.getresuid(), "capabilities": [status["Cap" + s].strip() for s in ("Inh", "Prm", "Eff", "Amb", "Bnd")],
    "no_new_privs": status["NoNewPrivs"].strip(), "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
    "write": attempt(lambda: (view / "file").write_text("x")), "back": attempt(lambda: os.setuid(0)),
    "root_file": attempt(lambda: open("/etc/shadow").close()), "connect": attempt(connect), "interfaces": interfaces,
}))
"""


def dropped(directory: Path) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(directory)],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


def test_nothing_is_left_after_the_drop(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 65534, 65534)
    state = dropped(tmp_path)
    assert state["capabilities"][:4] == ["0" * 16] * 4  # type: ignore[index]
    assert state["no_new_privs"] == "1"
    assert state["core"] == 0
    assert state["write"] == "done"
    assert state["back"] != "done"
    assert state["root_file"] != "done"
    if os.geteuid() == 0:
        assert 0 not in state["uid"]  # type: ignore[operator]
        assert state["capabilities"][4] == "0" * 16  # type: ignore[index]
        assert state["interfaces"] == ["lo"]
        assert state["connect"] != "done"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a home directory closed to the recorder's user")
def test_a_directory_under_a_closed_home_can_be_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    inner = home / "work" / "out.partial"
    inner.mkdir(parents=True)
    home.chmod(0o700)
    os.chown(inner, 65534, 65534)
    assert dropped(inner)["write"] == "done"
    assert (inner / "file").read_text() == "x"
    assert (inner / "file").stat().st_uid == 65534


def test_missing_capabilities_are_named() -> None:
    assert missing_for_bpf(["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"]) == []
    assert missing_for_bpf(["CAP_SYS_ADMIN", "CAP_SYS_PTRACE"]) == []
    assert missing_for_bpf(["CAP_BPF"]) == ["CAP_PERFMON", "CAP_SYS_PTRACE"]
    assert missing_for_bpf([]) == ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"]
