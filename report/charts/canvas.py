"""What a chart is made of: a few shapes with a role each, in CSS pixels, printed with two decimals.

Colours are Okabe–Ito (Okabe & Ito 2008, "Color Universal Design"), and no meaning rests on colour alone: classes also
differ in height, place or outline. A role gives presentation attributes (WeasyPrint does not apply the document's
style sheet inside an SVG) and a CSS class of the same name, by which the HTML's dark mode recolours it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from gpuaudit.bundle.rounding import Exact
from gpuaudit.report.text import Text

WIDTH = 660
"""Width of every figure: the text width of an A4 page with 18 mm margins, in CSS pixels (174 mm × 96 / 25.4)."""

LABEL_SIZE = Fraction(19, 2)
"""Type size of labels, CSS pixels: 7.1 pt on paper, above the 6 pt floor of print accessibility guides."""

ROLES: dict[str, dict[str, str]] = {
    "busy": {"fill": "#009E73"},
    "idle": {"fill": "#8A8F98"},
    "sync": {"fill": "#56B4E9"},
    "collective": {"fill": "#0072B2"},
    "preempted": {"fill": "#D55E00"},
    "throttled": {"fill": "#E69F00"},
    "gap": {"fill": "#FFFFFF", "stroke": "#44484F", "stroke-width": "0.8", "stroke-dasharray": "2 1.5"},
    "finding": {"fill": "#A8447F"},
    "axis": {"stroke": "#44484F", "stroke-width": "0.8", "fill": "none"},
    "grid": {"stroke": "#D5D8DD", "stroke-width": "0.6", "fill": "none"},
    "lane": {"fill": "#F1F2F4"},
    "label": {"fill": "#1B1E23"},
    "quiet": {"fill": "#565B64"},
    "late": {"fill": "#D55E00"},
    "spot": {"fill": "#FFFFFF"},
    "missing": {"stroke": "#8A8F98", "stroke-width": "0.7", "fill": "none"},
    "heat0": {"fill": "#EDF1F5"},
    "heat1": {"fill": "#C6DBEC"},
    "heat2": {"fill": "#86B9DC"},
    "heat3": {"fill": "#2F82B7"},
    "line": {"stroke": "#0072B2", "stroke-width": "1.2", "fill": "none", "stroke-linejoin": "round"},
    "band": {"fill": "#BBD7EA"},
    "bar": {"fill": "#0072B2"},
    "roof": {"stroke": "#1B1E23", "stroke-width": "1.4", "fill": "none", "stroke-linejoin": "round"},
    "bound": {"stroke": "#44484F", "stroke-width": "0.9", "fill": "none", "stroke-dasharray": "4 3"},
    "spare": {"fill": "#C6DBEC"},
    "on-dark": {"fill": "#FFFFFF"},
    "on-light": {"fill": "#1B1E23"},
    "ring": {"fill": "#FFFFFF", "stroke": "#1B1E23", "stroke-width": "1"},
}
"""Role → presentation attributes. Okabe–Ito: 009E73 bluish green, 56B4E9 sky blue, 0072B2 blue, D55E00 vermilion,
E69F00 orange; the purple is CC79A7 darkened to 3:1 contrast on white; greys are neutral."""


@dataclass(frozen=True)
class Rect:
    x: Exact
    y: Exact
    width: Exact
    height: Exact
    role: str


@dataclass(frozen=True)
class Label:
    """Text at a baseline point. ``text`` is inert already (:func:`gpuaudit.report.text.inert`)."""

    x: Exact
    y: Exact
    text: str
    anchor: Literal["start", "middle", "end"] = "start"
    role: str = "label"
    bold: bool = False


@dataclass(frozen=True)
class Path:
    """Points joined by lines; ``closed`` fills it."""

    points: tuple[tuple[Exact, Exact], ...]
    role: str
    closed: bool = False

    @property
    def d(self) -> str:
        moves = " L".join(f"{coordinate(x)} {coordinate(y)}" for x, y in self.points)
        return f"M{moves}{'Z' if self.closed else ''}"


Shape = Rect | Label | Path


@dataclass
class Figure:
    """One chart: its shapes, the words that replace it for who cannot see it, and the caption below it."""

    title: str
    description: str
    height: Exact
    shapes: list[Shape] = field(default_factory=list)
    caption: Text = ()

    def rect(self, x: Exact, y: Exact, width: Exact, height: Exact, role: str) -> None:
        self.shapes.append(Rect(x, y, width, height, role))

    def label(
        self, x: Exact, y: Exact, text: str, anchor: Literal["start", "middle", "end"] = "start",
        role: str = "label", *, bold: bool = False,
    ) -> None:  # fmt: skip
        self.shapes.append(Label(x, y, text, anchor, role, bold))

    def path(self, points: list[tuple[Exact, Exact]], role: str, *, closed: bool = False) -> None:
        self.shapes.append(Path(tuple(points), role, closed))

    def line(self, x1: Exact, y1: Exact, x2: Exact, y2: Exact, role: str) -> None:
        self.path([(x1, y1), (x2, y2)], role)


def coordinate(value: Exact) -> str:
    """A coordinate with at most two decimals, half to even, without trailing zeros: the same digits anywhere."""
    hundredths = round(Fraction(value) * 100)
    whole, rest = divmod(abs(hundredths), 100)
    sign = "-" if hundredths < 0 else ""
    return f"{sign}{whole}.{rest:02d}".rstrip("0").rstrip(".")
