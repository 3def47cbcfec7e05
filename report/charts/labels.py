"""Labels that never lie on each other: each takes the first of its places that is free, or none."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from gpuaudit.bundle.rounding import Exact
from gpuaudit.report.charts.canvas import LABEL_SIZE, Figure
from gpuaudit.report.fonts import text_width

Anchor = Literal["start", "middle", "end"]
Place = tuple[Exact, Exact, Anchor]
"""Baseline point and anchor of a label."""

Box = tuple[Fraction, Fraction, Fraction, Fraction]
"""Left, right, top, bottom."""

ASCENT, DESCENT = 8, 3
"""Height of a label above and below its baseline, with a pixel of air."""


def label_box(text: str, place: Place) -> Box:
    """What a label covers."""
    x, y, anchor = place
    width = text_width(text, LABEL_SIZE)
    left = Fraction(x) - {"start": Fraction(0), "middle": width / 2, "end": width}[anchor]
    return left, left + width, Fraction(y) - ASCENT, Fraction(y) + DESCENT


class Labels:
    """Labels of one figure inside ``frame``; ``taken`` are places that something else has."""

    def __init__(self, figure: Figure, frame: Box) -> None:
        self.figure, self.frame = figure, frame
        self.taken: list[Box] = []

    def keep_free(self, box: Box) -> None:
        """No label may lie there."""
        self.taken.append(box)

    def place(self, text: str, places: Sequence[Place], role: str = "label") -> bool:
        """Print ``text`` at the first free place; False when there is none."""
        for place in places:
            box = label_box(text, place)
            if self._inside(box) and not any(_overlap(box, other) for other in self.taken):
                self.taken.append(box)
                self.figure.label(place[0], place[1], text, place[2], role)
                return True
        return False

    def _inside(self, box: Box) -> bool:
        left, right, top, bottom = self.frame
        return left <= box[0] and box[1] <= right and top <= box[2] and box[3] <= bottom


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]
