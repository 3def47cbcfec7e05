"""Figures: nothing outside the drawing, no label on another, every class told apart without colour."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuaudit.report.charts.axis import TimeAxis
from gpuaudit.report.charts.canvas import LABEL_SIZE, ROLES, WIDTH, Figure, Label, Path, Rect, coordinate
from gpuaudit.report.charts.rank_heat import rank_heat, shade
from gpuaudit.report.charts.timeline import CLASSES, LANES_PER_FIGURE, timeline
from gpuaudit.report.fonts import fitted, text_width
from gpuaudit.report.view import build_view
from tests.documents import document
from tests.engine_documents import engine_document


def figures() -> list[Figure]:
    view = build_view(document())
    waste = [view.waste.figure] if view.waste.figure else []
    asked = [f for s in build_view(engine_document()).sections.evaluated for f in s.figures]
    return [*view.timeline, *view.heat, *view.latency, *view.nvml, *waste, *asked]


def box(label: Label) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    width = text_width(label.text, LABEL_SIZE, bold=label.bold)
    left = Fraction(label.x) - {"start": Fraction(0), "middle": width / 2, "end": width}[label.anchor]
    return left, left + width, Fraction(label.y) - 7, Fraction(label.y) + 2


@pytest.mark.parametrize("figure", figures(), ids=lambda f: f.title)
def test_labels_lie_inside_and_apart(figure: Figure) -> None:
    boxes = [(s.text, box(s)) for s in figure.shapes if isinstance(s, Label)]
    for text, (left, right, top, bottom) in boxes:
        assert left >= -1, text
        assert right <= WIDTH + 1, text
        assert top >= 0, text
        assert bottom <= Fraction(figure.height), text
    for i, (one, a) in enumerate(boxes):
        for other, b in boxes[i + 1 :]:
            apart = a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]
            assert apart, f"{one!r} on {other!r}"


@pytest.mark.parametrize("figure", figures(), ids=lambda f: f.title)
def test_shapes_lie_inside_and_have_a_role(figure: Figure) -> None:
    for shape in figure.shapes:
        assert shape.role in ROLES
        if isinstance(shape, Rect):
            assert shape.width >= 0
            assert shape.height >= 0
            assert -5 <= shape.x <= WIDTH
            assert shape.x + shape.width <= WIDTH + 1
            assert shape.y + shape.height <= figure.height
        if isinstance(shape, Path):
            assert all(-5 <= x <= WIDTH + 5 and -2 <= y <= figure.height for x, y in shape.points)


@pytest.mark.parametrize("figure", figures(), ids=lambda f: f.title)
def test_figures_have_words_instead(figure: Figure) -> None:
    assert figure.title
    assert len(figure.description) > 20
    assert figure.caption


def test_classes_differ_without_colour() -> None:
    assert len({(top, bottom) for top, bottom, _ in CLASSES.values()}) >= len(CLASSES) - 1
    assert "stroke-dasharray" in ROLES["gap"], "a gap has the extent of busy, and is outlined"


def test_many_lanes_make_several_figures() -> None:
    chart = document().charts["timeline"]
    lane = chart["lanes"][0]
    made = timeline({**chart, "lanes": [lane] * (LANES_PER_FIGURE + 1)})
    assert [f.title for f in made] == ["Incident timeline, part 1 of 2", "Incident timeline, part 2 of 2"]


def test_empty_charts_make_no_figures() -> None:
    chart: dict[str, Any] = {"start_ns": "0", "end_ns": "0", "lanes": []}
    assert timeline(chart) == []


def test_late_cells_are_marked_by_shape() -> None:
    figure = rank_heat(document().charts["rank_heat"][0])[0]
    diamonds = [s for s in figure.shapes if isinstance(s, Path) and s.role == "spot"]
    assert len(diamonds) == 10 + 1, "ten late cells and the legend"


@pytest.mark.parametrize(
    ("ns", "role"), [(0, "heat0"), (1_249, "heat0"), (1_250, "heat1"), (4_999, "heat3"), (9_999, "heat3")]
)
def test_shade(ns: int, role: str) -> None:
    assert shade(ns, 5_000) == role
    assert shade(ns, 0) == "heat0"


@given(st.integers(0, 10**18), st.integers(1, 10**14))
@settings(max_examples=60)
def test_ticks_are_round_and_apart(start: int, span: int) -> None:
    axis = TimeAxis(start, start + span, 100, 500, start)
    ticks = axis.ticks()
    assert len(ticks) <= 25
    edges = sorted(
        (axis.x(at) - text_width(t, LABEL_SIZE) / 2, axis.x(at) + text_width(t, LABEL_SIZE) / 2) for at, t in ticks
    )
    if len(ticks) > 2:
        assert all(a[1] < b[0] for a, b in pairwise(edges))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (Fraction(1, 3), "0.33"), (Fraction(-1, 8), "-0.12"), (10, "10"), (Fraction(5, 2), "2.5")],
)
def test_coordinates_have_two_decimals(value: int | Fraction, text: str) -> None:
    assert coordinate(value) == text


def test_fitted_text_fits() -> None:
    assert fitted("short", LABEL_SIZE, Fraction(100)) == "short"
    cut = fitted("a very long name of a process", LABEL_SIZE, Fraction(60))
    assert cut.endswith("…")
    assert text_width(cut, LABEL_SIZE) <= 60
