"""Run ``audit`` as a person does, in a process of its own or here, and say what came out."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

from gpuaudit.cli.guard import run
from gpuaudit.cli.main import audit as command

ROOT = Path(__file__).parent.parent
AUDIT = [sys.executable, "-m", "gpuaudit.cli.main"]


def environment(keys: Path, **more: str) -> dict[str, str]:
    """This process's environment with the key folder ``keys``, and the tree on Python's path from any folder."""
    return {**os.environ, "GPU_AUDIT_KEYS": str(keys), "PYTHONPATH": str(ROOT), **more}


def audit(
    *args: str | Path, env: Mapping[str, str], cwd: Path | None = None, prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """``prefix``: a program to run it under (strace, unshare, setpriv) with its arguments."""
    line = [*prefix, *AUDIT, *map(str, args)]
    return subprocess.run(line, env=dict(env), cwd=cwd, capture_output=True, text=True, check=False)


def audit_here(*args: str | Path, env: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """The same in this process, for what only reads: a Python of its own takes half a second of CPU to start.

    Not for ``capture`` nor for what signs, which change the process that they run in.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    words = list(map(str, args))
    with (
        contextlib.chdir(cwd), patch.dict(os.environ, env, clear=True), contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):  # fmt: skip
        status = run(command, words)
    return subprocess.CompletedProcess(words, status, _said(out), _said(err))


def _said(stream: io.TextIOWrapper[io.BytesIO]) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode("utf-8")


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
