"""Which printer made a report: the digest of everything that decides the bytes of its HTML."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

from gpuaudit import report, templates

_SUFFIXES = {".py", ".j2", ".css", ".js", ".ttf", ".woff2"}


def printer_digest() -> str:
    """SHA-256 over the sources of ``report/`` and ``templates/`` and the versions of Jinja2 and MarkupSafe, hex.

    Two installations with the same digest print the same HTML from the same findings.
    """
    total = hashlib.sha256()
    for name, root in (("report", Path(report.__file__).parent), ("templates", Path(templates.__file__).parent)):
        for path in sorted(root.rglob("*"), key=lambda p: p.relative_to(root).as_posix()):
            if path.is_file() and path.suffix in _SUFFIXES:
                body = hashlib.sha256(path.read_bytes()).hexdigest()
                total.update(f"{body}  {name}/{path.relative_to(root).as_posix()}\n".encode())
    for package in ("jinja2", "markupsafe"):
        total.update(f"{package} {version(package)}\n".encode())
    return total.hexdigest()
