"""The CPython interpreters of this machine, for tests of how their frames are read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gpuaudit.capture.cpython_offsets import NEWEST, OLDEST

_ASK = "import sys, os; print(sys.version_info[1], os.path.realpath(sys.executable))"


@dataclass(frozen=True)
class Python:
    """One interpreter: its minor version and its executable."""

    minor: int
    path: Path

    @property
    def label(self) -> str:
        """For a test's name; tells two of the same version apart."""
        return f"3.{self.minor} {'shared' if self.is_shared else 'static'}"

    @property
    def is_shared(self) -> bool:
        """Whether the interpreter is a shared library beside the executable, as pyenv's are here."""
        return any((self.path.parent.parent / "lib").glob(f"libpython3.{self.minor}.so*"))


@cache
def interpreters() -> tuple[Python, ...]:
    """pyenv's, and the distribution's own, of the versions that the capture reads."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    paths = [d / "bin" / "python3" for d in sorted(versions.glob("3.*")) if _wanted(d.name)]
    distribution = shutil.which("python3", path=os.defpath)
    found: dict[Path, Python] = {}
    for path in (*paths, *([Path(distribution)] if distribution else [])):
        try:
            said = subprocess.run([path, "-c", _ASK], capture_output=True, text=True, check=True).stdout.split()
        except (OSError, subprocess.CalledProcessError):
            continue
        if OLDEST <= int(said[0]) <= NEWEST:
            found[Path(said[1])] = Python(int(said[0]), Path(said[1]))
    return tuple(found.values())


def _wanted(name: str) -> bool:
    minor = re.match(r"3\.(\d+)", name)
    return minor is not None and OLDEST <= int(minor.group(1)) <= NEWEST
