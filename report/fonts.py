"""The bundled fonts: which characters they can draw, how wide a text is, and their bytes.

IBM Plex (SIL Open Font License 1.1), three static cuts. The ``.ttf`` serve WeasyPrint and the measuring of chart
labels; the ``.woff2``, of the same release, are what the HTML file carries.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

from fontTools.ttLib import TTFont  # type: ignore[import-untyped]

from gpuaudit import templates

FOLDER = Path(templates.__file__).parent / "fonts"

ELLIPSIS = "…"


@dataclass(frozen=True)
class Face:
    """One cut: CSS family and weight, and the stem of its files in ``templates/fonts``."""

    family: str
    weight: int
    stem: str


FACES = (
    Face("IBM Plex Sans", 400, "IBMPlexSans-Regular"),
    Face("IBM Plex Sans", 600, "IBMPlexSans-SemiBold"),
    Face("IBM Plex Mono", 400, "IBMPlexMono-Regular"),
)


def font_bytes(face: Face, suffix: str) -> bytes:
    """The font file of ``face`` as ``ttf`` or ``woff2``."""
    return (FOLDER / f"{face.stem}.{suffix}").read_bytes()


@cache
def glyphs(*, mono: bool = False) -> frozenset[int]:
    """Code points that the sans cuts (or the mono one) can draw; anything else is shown as an escape."""
    drawn = [set(_advances(face)) for face in FACES if ("Mono" in face.family) == mono]
    return frozenset(set.intersection(*drawn))


def text_width(text: str, size: Fraction, *, bold: bool = False) -> Fraction:
    """Advance width of ``text`` at ``size``, without kerning (which only narrows Plex), in the unit of ``size``."""
    advances = _advances(FACES[1] if bold else FACES[0])
    return size * sum(advances.get(ord(c), 1000) for c in text) / 1000


def fitted(text: str, size: Fraction, room: Fraction) -> str:
    """``text``, or its beginning and an ellipsis, no wider than ``room``."""
    if text_width(text, size) <= room:
        return text
    while text and text_width(text + ELLIPSIS, size) > room:
        text = text[:-1]
    return text.rstrip() + ELLIPSIS


@cache
def _advances(face: Face) -> dict[int, int]:
    """Advance width by code point, in thousandths of an em (1000 units per em in all three faces)."""
    with TTFont(FOLDER / f"{face.stem}.ttf", lazy=True) as font:
        widths = font["hmtx"]
        return {code: widths[name][0] for code, name in font.getBestCmap().items()}
