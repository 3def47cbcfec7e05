"""Ways to change bytes, from one flipped bit to spliced blocks; the same draw of numbers gives the same change."""

from __future__ import annotations

import random
from collections.abc import Callable

INTERESTING = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\x00" * 8,
    b"\xff" * 8,
    b'"',
    b"{",
    b"9" * 20,
    b"\\u0000",
)
"""Bytes that decoders tend to treat specially: extremes of integers, and delimiters of the texts in a bundle."""


def _flip(data: bytearray, draw: random.Random) -> None:
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _overwrite(data: bytearray, draw: random.Random) -> None:
    piece = draw.choice(INTERESTING)
    at = draw.randrange(len(data))
    data[at : at + len(piece)] = piece[: len(data) - at]


def _insert(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data) + 1)
    data[at:at] = draw.choice(INTERESTING)


def _delete(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data))
    del data[at : at + draw.randint(1, 64)]


def _truncate(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def _append(data: bytearray, draw: random.Random) -> None:
    data += draw.randbytes(draw.randint(1, 4096))


def _splice(data: bytearray, draw: random.Random) -> None:
    """Copy a block to another place: structures that are valid, where they do not belong."""
    length = min(draw.randint(1, 4096), len(data))
    source = draw.randrange(len(data) - length + 1)
    target = draw.randrange(len(data) - length + 1)
    data[target : target + length] = data[source : source + length]


_CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip, _flip, _overwrite, _insert, _delete, _truncate, _append, _splice,
)  # fmt: skip


def mutate(data: bytes, draw: random.Random) -> bytes:
    """``data`` after one to four changes; may by chance be equal to it. ``data`` must not be empty."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        if changed:
            draw.choice(_CHANGES)(changed, draw)
    return bytes(changed)
