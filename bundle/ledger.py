"""A file of the roots that were verified here before: a bundle that is presented twice, or forked, is noticed.

One line per root: ``<root, base64> <size> <sealed or open> <origin>``. Lines are only ever added.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from gpuaudit.bundle.errors import InputUnusable


class Ledger:
    """The ledger in one file, which is made when it is missing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def record(self, origin: str, size: int, root_b64: str, sealed: bool) -> list[str]:
        """Look a root up and add it; the sentences to tell, none for a root of a new capture."""
        line = f"{root_b64} {size} {'sealed' if sealed else 'open'} {origin}"
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "r+", encoding="utf-8") as f:
                fcntl.flock(fd, fcntl.LOCK_EX)
                before = f.read().splitlines()
                if line not in before:
                    f.write(line + "\n")
        except (OSError, UnicodeDecodeError) as e:
            raise InputUnusable(f"cannot keep the ledger {self.path}: {e}") from None
        if line in before:
            return [f"This root was verified here before (line {before.index(line) + 1} of the ledger)."]
        others = [entry.split(" ") for entry in before if entry.endswith(f" {origin}")]
        if sealed and any(entry[2] == "sealed" for entry in others):
            return ["Another sealed bundle of the same origin was verified here before, with a different root."]
        return []
