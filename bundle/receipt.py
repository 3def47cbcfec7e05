"""The start receipt: what a second person keeps, so that a whole bundle cannot be forged later.

It is printed when a capture starts. Without it, whoever holds the identity key can make another bundle and claim that
it is this one; with it, verify says whether leaf 0 is the one that was begun then.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from gpuaudit.bundle.errors import InputUnusable

_TITLE = "gpu-audit start receipt v1"
_HEX32 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Receipt:
    """``origin``, ``challenge`` (may be empty); in hex: SHA-256 of the identity's SPKI, epoch key 0, hash of leaf 0."""

    origin: str
    challenge: str
    identity_sha256: str
    epoch0: str
    leaf0_hash: str

    def to_text(self) -> str:
        """Six lines, one ``name: value`` each after the title."""
        return "\n".join([_TITLE, *(f"{f.name}: {getattr(self, f.name)}" for f in fields(self))]) + "\n"

    @classmethod
    def from_text(cls, text: str) -> Receipt:
        """The inverse of :meth:`to_text`, white space at the ends forgiven; InputUnusable for anything else."""
        lines = text.strip().splitlines()
        names = [f.name for f in fields(cls)]
        pairs = [line.partition(":") for line in lines[1:]]
        if lines[:1] != [_TITLE] or [p[0].strip() for p in pairs] != names:
            raise InputUnusable(
                "not a start receipt", hint=f"it begins with “{_TITLE}” and has {len(names)} lines more"
            )
        values = {name: p[2].strip() for name, p in zip(names, pairs, strict=True)}
        for name in names[2:]:
            if not _HEX32.match(values[name]):
                raise InputUnusable(f"start receipt: {name} is {values[name]!r:.80}, expected 64 hex digits")
        return cls(**values)
