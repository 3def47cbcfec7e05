"""What a command cost: seconds, CPU seconds, peak memory, the children it waited for included.

The command is started by a small process made for it (``usage_child.py``): on exec the kernel carries the peak memory
of the process that forked into that of its child, so a large parent would measure itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuaudit.bundle.errors import AuditError

LAUNCHER = Path(__file__).with_name("usage_child.py")

LIMIT_S = 240
"""A command that takes longer is given up."""


@dataclass(frozen=True)
class Usage:
    """Wall-clock and CPU time (user and system, of the command and all it waited for); ``peak_bytes`` is the largest
    resident set of any single one of those processes (wait4, ``ru_maxrss``)."""

    seconds: float
    cpu_s: float
    peak_bytes: int


def run(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, folder: Path | None = None,
    accept: Sequence[int] = (0,), limit_s: float = LIMIT_S,
) -> Usage:  # fmt: skip
    """Run a command to its end, its output discarded; AuditError with its last words for a status not accepted."""
    launcher = [sys.executable, "-I", "-S", str(LAUNCHER), *command]
    try:
        done = subprocess.run(
            launcher, cwd=folder, env=dict(os.environ if environment is None else environment), capture_output=True,
            text=True, timeout=limit_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise AuditError(f"{command[0]} took more than {limit_s:g} s") from None
    if done.returncode not in accept:
        said = done.stderr.strip().rpartition("\n")[2]
        raise AuditError(f"{' '.join(command)[:120]} ended with status {done.returncode}: {said[:200]}")
    return Usage(**json.loads(done.stdout))
