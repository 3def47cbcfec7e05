"""Which tool this is: name, version and a digest over its installed files, for leaf 0 and for every document."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import gpuaudit

NAME = "gpu-audit"
SUFFIXES = frozenset({".py", ".o"})
"""What decides how the tool behaves: Python files and BPF objects."""


@cache
def tool_digest() -> str:
    """Hex SHA-256 over ``sha256  path`` of every Python and BPF file, by path: the same wherever it is installed."""
    package = Path(gpuaudit.__file__).parent
    found: list[tuple[str, Path]] = [("__init__.py", package / "__init__.py")]
    for stage in sorted(p for p in package.iterdir() if p.is_dir() and not p.name.startswith("_")):
        found += [(str(p.relative_to(package)), p) for p in stage.rglob("*") if p.suffix in SUFFIXES]
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {name}\n" for name, p in sorted(found)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def tool_facts() -> dict[str, str]:
    """Name, version and digest."""
    return {"name": NAME, "version": gpuaudit.__version__, "digest": tool_digest()}
