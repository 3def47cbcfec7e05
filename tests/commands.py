"""Run ``audit`` as a person does, in a process of its own, and say what came out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
AUDIT = [sys.executable, "-m", "gpuaudit.cli.main"]


def environment(keys: Path, **more: str) -> dict[str, str]:
    """This process's environment with the key folder ``keys``, and the tree on Python's path from any folder."""
    return {**os.environ, "GPU_AUDIT_KEYS": str(keys), "PYTHONPATH": str(ROOT), **more}


def audit(
    *args: str | Path, env: Mapping[str, str], cwd: Path | None = None, prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """``prefix``: a program to run it under (strace, unshare, setpriv) with its arguments."""
    command = [*prefix, *AUDIT, *map(str, args)]
    return subprocess.run(command, env=dict(env), cwd=cwd, capture_output=True, text=True, check=False)


def check_refused(done: subprocess.CompletedProcess[str], status: int, *says: str) -> None:
    """Ended with ``status``, nothing on stdout, and one line on stderr that holds each of ``says``; no traceback."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    for text in says:
        assert text in lines[0]
