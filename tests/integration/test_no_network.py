"""Where there is no engine nothing connects: seen by strace, and by working without even a loopback."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import audit, environment

CALLS = ("socket", "connect", "sendto", "sendmsg", "bind")
SOCKET = re.compile(rf"\b({'|'.join(CALLS)})\(")

ROAD: tuple[tuple[str, ...], ...] = (
    ("capture", "--synthetic", "late-rank", "--quiet", "--out", "a.db"),
    ("verify", "a.db"),
    ("analyze", "a.db"),
    ("export", "a.findings.json", "--out", "a.prom"),
    ("explain", "a.db"),
    ("query", "a.db", "SELECT count(*) FROM cuda_calls"),
    ("report", "a.findings.json", "--out", "packet"),
    ("verify", "packet", "--bundle", "a.db"),
)


@pytest.fixture
def strace() -> str:
    path = shutil.which("strace")
    if path is None:
        pytest.skip("strace is not installed")
    return path


def test_no_command_opens_a_socket_to_anywhere(tmp_path: Path, strace: str) -> None:
    """The whole road, in a network namespace without even a loopback where one can be made, and under strace."""
    env = environment(tmp_path / "keys")
    alone = ("unshare", "--user", "--map-root-user", "--net")
    prefix = alone if audit("--version", env=env, prefix=alone).returncode == 0 else ()
    for number, args in enumerate(ROAD):
        log = tmp_path / f"strace.{number}"
        watched = (*prefix, strace, "-f", "-qq", "--seccomp-bpf", "-e", f"trace={','.join(CALLS)}", "-o", str(log))
        done = audit(*args, env=env, cwd=tmp_path, prefix=watched)
        assert done.returncode == 0, (args, done.stderr)
        calls = [line for line in log.read_text(errors="replace").splitlines() if SOCKET.search(line)]
        if args[0] == "capture":  # attacher and recorder talk over a pair of their own, which no socket() makes
            calls = [c for c in calls if " sendmsg(" not in c and " sendto(" not in c]
        assert calls == [], args


def test_strace_would_see_a_socket(tmp_path: Path, strace: str) -> None:
    """The first test can fail: a connection made the same way is seen."""

    log = tmp_path / "log"
    script = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))"
    subprocess.run(
        [
            strace,
            "-f",
            "-qq",
            "--seccomp-bpf",
            "-e",
            "trace=socket,connect",
            "-o",
            str(log),
            sys.executable,
            "-c",
            script,
        ],
        check=True,
    )
    assert len([line for line in log.read_text().splitlines() if SOCKET.search(line)]) == 2
