"""Compare every installed file of this package with the wheel's RECORD.

What it proves: no file differs from what the wheel brought, none is missing, none was added, and the compiled byte
code that Python would run is that of the sources. What it cannot prove: that whoever changed the files did not change
this one too, or that the wheel was the right one. For that, compare ``sha256sum`` of the wheel with a published one.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import marshal
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import CodeType

from gpuaudit.bundle.canonical import loads
from gpuaudit.bundle.errors import HostUnfit

DISTRIBUTION = "gpu-audit"
PACKAGE = "gpuaudit"
_PYC_HEADER_BYTES = 16
"""Magic, flags, and either mtime and size or a hash of the source (PEP 552)."""


@dataclass(frozen=True)
class SelfCheck:
    """``problems``: a sentence per file that is not as the wheel brought it; ``editable``: nothing to compare with."""

    version: str
    location: str
    editable: bool
    files: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True only if files were compared and all agreed: could-not-compare is not a pass."""
        return not self.editable and self.files > 0 and not self.problems


def check_installed(distribution: metadata.Distribution | None = None) -> SelfCheck:
    """Compare the installed files of ``distribution`` (default: this package's) with its RECORD.

    Raises HostUnfit when the package runs from a folder that no installer put there.
    """
    if distribution is None:
        try:
            distribution = metadata.distribution(DISTRIBUTION)
        except metadata.PackageNotFoundError:
            raise HostUnfit(
                f"{DISTRIBUTION} is not installed: it runs from a source tree, which has no RECORD to compare with",
                hint="install the wheel with pip",
            ) from None
    site = Path(str(distribution.locate_file("")))
    if _is_editable(distribution):
        return SelfCheck(distribution.version, str(site), True, 0, ())
    problems: list[str] = []
    recorded: set[Path] = set()
    compared = 0
    for file in distribution.files or []:
        path = Path(str(file.locate()))
        recorded.add(path)
        if file.hash is None:
            continue
        compared += 1
        problem = _compare(path, file.hash.mode, file.hash.value)
        if problem:
            problems.append(f"{file}: {problem}")
    for path in sorted((site / PACKAGE).rglob("*")):
        if path.is_dir():
            continue
        if path.parent.name == "__pycache__":
            problem = _stale_bytecode(path)
            if problem:
                problems.append(f"{path.relative_to(site)}: {problem}")
        elif path not in recorded:
            problems.append(f"{path.relative_to(site)}: is not part of the wheel")
    return SelfCheck(distribution.version, str(site), False, compared, tuple(problems))


def _is_editable(distribution: metadata.Distribution) -> bool:
    direct = distribution.read_text("direct_url.json")
    if direct is None:
        return False
    info = loads(direct.encode()).get("dir_info", {})
    return bool(info.get("editable"))


def _compare(path: Path, algorithm: str, expected: str) -> str:
    try:
        digest = hashlib.new(algorithm, path.read_bytes()).digest()
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    got = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    return "" if got == expected else f"{algorithm} is {got}, RECORD says {expected}"


def _stale_bytecode(path: Path) -> str:
    """What is wrong with a ``.pyc`` that Python might run instead of its source; empty if nothing is."""
    if path.suffix != ".pyc":
        return "is not part of the wheel"
    tag = importlib.util.cache_from_source("x.py").rpartition("/")[2].removeprefix("x.")
    if not path.name.endswith(tag):
        return ""  # of another interpreter: this one never reads it
    source = path.parent.parent / (path.name.removesuffix(f".{tag}") + ".py")
    data = path.read_bytes()
    if data[:4] != importlib.util.MAGIC_NUMBER:
        return ""
    if not source.exists():
        return "has no source in the wheel"
    try:
        code = marshal.loads(data[_PYC_HEADER_BYTES:])  # noqa: S302 - never executed, only compared
    except (ValueError, EOFError, TypeError):
        return "is damaged"
    expected = compile(source.read_bytes(), str(source), "exec", dont_inherit=True)
    return "" if isinstance(code, CodeType) and code == expected else "is not the byte code of its source"
