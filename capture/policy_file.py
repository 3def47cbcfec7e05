"""Reading a site's policy as hostile input: TOML with a section ``[capture]``, in which everything is understood.

The same file may hold thresholds for ``audit analyze`` in ``[thresholds]``; they are not looked at here, and said so.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from gpuaudit.bundle.errors import InputUnusable

MAX_FILE_BYTES = 1 << 20
"""A megabyte names every probe there is many times over."""

MAX_ITEMS, MAX_NAME_CHARS = 10_000, 255
SECTIONS = ("capture", "thresholds")
HINT = "docs/reference/site-policy.md says what a policy file holds"

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?(ms|s|min|m|h)\Z")
_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}


class PolicyFile:
    """The section ``[capture]`` of a file, and how to say what is wrong in it, with the line."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._lines: list[str] = []
        if len(data) > MAX_FILE_BYTES:
            self.refuse("", f"is larger than {MAX_FILE_BYTES} bytes")
        try:
            self.text = data.decode("utf-8")
        except UnicodeDecodeError as e:
            self.refuse("", f"is not UTF-8: byte {e.start}")
        self._lines = self.text.split("\n")
        try:
            body = tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as e:
            self.refuse("", f"is not TOML: {e}")
        except (RecursionError, ValueError):  # tomllib lets int() refuse a number of thousands of digits
            self.refuse("", "is nested too deeply, or holds a number that is too long")
        for key in body:
            if key not in SECTIONS:
                self.refuse(key, f"no section of that name; expected {' or '.join(SECTIONS)}")
        self.section = self.table(body, "capture")
        self.has_thresholds = "thresholds" in body

    @classmethod
    def open(cls, path: Path) -> PolicyFile:
        """The file at ``path``; InputUnusable for anything that is not wholly understood."""
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as f:  # noqa: PTH123
                if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
                    raise OSError(errno.EINVAL, "it is no ordinary file")
                data = f.read(MAX_FILE_BYTES + 1)
        except OSError as e:
            raise InputUnusable(f"{path}: cannot be read: {e.strerror}", hint="name a policy file") from None
        return cls(data, path.name)

    def refuse(self, key: str, what: str) -> NoReturn:
        """InputUnusable with the file, the first line that has ``key``, and the key."""
        shown = "".join(c if c.isprintable() else "?" for c in key[:80])
        line = next((i for i, text in enumerate(self._lines, 1) if key and key in text), None)
        raise InputUnusable(f"{self.name}{f':{line}' if line else ''}: {shown and shown + ': '}{what}", hint=HINT)

    def known_keys(self, table: Mapping[str, object], known: Iterable[str]) -> None:
        """Refuse a key that nobody reads."""
        names = tuple(known)
        for key in table:
            if key not in names:
                self.refuse(key, f"no key of that name; expected {', '.join(names)}")

    def table(self, of: Mapping[str, Any], key: str) -> dict[str, Any]:
        """A table within a table; an empty one where there is none."""
        found = of.get(key, {})
        if not isinstance(found, dict):
            self.refuse(key, f"got {type(found).__name__}, expected a table")
        return found

    def names(self, of: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
        """A list of names; None where there is none."""
        found = of.get(key)
        if found is None:
            return None
        if not isinstance(found, list) or not all(isinstance(n, str) for n in found):
            self.refuse(key, 'expected a list of names, like ["cuda"]')
        if len(found) > MAX_ITEMS:
            self.refuse(key, f"has {len(found)} names, expected at most {MAX_ITEMS}")
        for name in found:
            if not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():
                self.refuse(name or key, f"a name has 1 to {MAX_NAME_CHARS} printable characters")
        return tuple(dict.fromkeys(found))

    def flag(self, of: Mapping[str, Any], key: str, default: bool) -> bool:
        """true or false."""
        found = of.get(key, default)
        if not isinstance(found, bool):
            self.refuse(key, f"got {found!r:.40}, expected true or false")
        return found

    def duration_s(self, of: Mapping[str, Any], key: str) -> float | None:
        """A length of time in seconds; None where there is none."""
        found = of.get(key)
        if found is None:
            return None
        match = _DURATION.match(found) if isinstance(found, str) else None
        seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
        if not seconds > 0:
            self.refuse(key, f'got {found!r:.40}, expected a length of time like "90 s", "10 min" or "2 h"')
        return seconds
