"""Where the files of a process's control groups lie, in version 2 and in version 1 of the hierarchy.

Read once from /proc/self/mountinfo: a hierarchy that is mounted later is not seen. A cgroup can be gone at any moment:
then its files give None, never an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_BYTES = 1 << 16
"""The longest of these files, /proc/PID/cgroup, has a path of at most 4,096 bytes per hierarchy."""

_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Hierarchy:
    """One mounted hierarchy. ``controllers`` are those of version 1 that lie on it; empty for version 2."""

    version: int
    mount: Path
    root: str
    """Cgroup that is seen at the mount point: / except in a container."""
    controllers: frozenset[str]

    def directory(self, cgroup: str) -> Path | None:
        """Directory of a cgroup, given as in /proc/PID/cgroup; None where the mount does not show it."""
        root = self.root.rstrip("/")
        if ".." in cgroup.split("/") or not (cgroup == root or cgroup.startswith(f"{root}/")):
            return None
        return self.mount / cgroup[len(root) :].lstrip("/")


def hierarchies(mountinfo: Path = Path("/proc/self/mountinfo")) -> list[Hierarchy]:
    """Every hierarchy that is mounted, the first mount of each; a list without rows where none is."""
    found: dict[tuple[int, frozenset[str]], Hierarchy] = {}
    for line in (read_text(mountinfo, 1 << 22) or "").splitlines():
        place, _, kind = line.partition(" - ")
        fields, details = place.split(" "), kind.split(" ")
        if len(fields) < 5 or len(details) < 3 or details[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if details[0] == "cgroup2" else 1
        controllers = frozenset(details[2].split(",")) - {"rw", "ro"} if version == 1 else frozenset[str]()
        hierarchy = Hierarchy(version, Path(plain(fields[4])), plain(fields[3]), controllers)
        known = found.get((version, controllers))
        if known is None or (known.root != "/" and hierarchy.root == "/"):
            found[version, controllers] = hierarchy
    return list(found.values())


def plain(text: str) -> str:
    """A text of mountinfo without its octal escapes."""
    return _ESCAPED.sub(lambda m: chr(int(m[1], 8)), text)


def cgroups_of(pid: int, proc: Path | str = "/proc") -> dict[str, str]:
    """Cgroup of a process by controller of version 1, and under the empty name in version 2; empty when it is gone."""
    found: dict[str, str] = {}
    for line in (read_text(f"{proc}/{pid}/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if path.startswith("/"):
            found |= dict.fromkeys(names.split(","), path)
    return found


def with_ancestors(cgroups: Iterable[str]) -> set[str]:
    """The cgroups and those above them, without the root, which is the whole host: a limit may be set at any height."""
    found: set[str] = set()
    for cgroup in cgroups:
        above = cgroup
        while len(above) > 1 and above not in found:
            found.add(above)
            above = above.rpartition("/")[0]
    return found


def read_text(path: Path | str, limit_bytes: int = MAX_FILE_BYTES) -> str | None:
    """A file of the kernel, read at once; None when it cannot be read. Bytes that are not UTF-8 are lone surrogates."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        while limit_bytes > 0 and (part := os.read(fd, limit_bytes)):  # /proc gives a long file page by page
            parts.append(part)
            limit_bytes -= len(part)
        return os.fsdecode(b"".join(parts))
    except OSError:
        return None
    finally:
        os.close(fd)


def read_number(path: Path) -> int | None:
    """The one number in a file; None when it cannot be read or is none."""
    text = (read_text(path) or "").strip()
    return int(text) if re.fullmatch(r"-?[0-9]{1,20}", text) else None


def read_counters(path: Path) -> dict[str, int]:
    """Lines "name number" of a file; empty when it cannot be read."""
    lines = (line.split() for line in (read_text(path) or "").splitlines())
    return {f[0]: int(f[1]) for f in lines if len(f) == 2 and re.fullmatch(r"[0-9]{1,20}", f[1])}
