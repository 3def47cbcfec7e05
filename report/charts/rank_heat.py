"""Rank × collective heat map: how late each rank arrived, per communicator, late cells marked by a diamond."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from gpuaudit.bundle.rounding import duration, half_even
from gpuaudit.report.charts.canvas import LABEL_SIZE, WIDTH, Figure
from gpuaudit.report.fonts import text_width
from gpuaudit.report.text import Text, data, inert, join, words

RANKS_PER_FIGURE = 40
"""Ranks that fit a page with caption and axis: 40 × 17 px in the 900 px of an A4 page."""

STEPS = 4
"""Shades below the threshold: a reader tells four steps of one hue apart without counting."""

_CELL_HEIGHT, _STEP = 15, 17
_WIDEST_CELL = Fraction(16)
_TOP = 26


def rank_heat(chart: dict[str, Any]) -> list[Figure]:
    """Figures of one entry of ``charts.rank_heat``."""
    ranks = chart["ranks"]
    cuts = range(0, len(ranks), RANKS_PER_FIGURE)
    return [_figure(chart, at, min(at + RANKS_PER_FIGURE, len(ranks)), len(cuts)) for at in cuts]


def shade(lateness_ns: int, threshold_ns: int) -> str:
    """Role of a cell that is not late: the quarter of the threshold that its lateness falls into."""
    if threshold_ns <= 0:
        return "heat0"
    return f"heat{min(max(lateness_ns * STEPS // threshold_ns, 0), STEPS - 1)}"


def _figure(chart: dict[str, Any], first: int, last: int, parts: int) -> Figure:
    ranks, columns = chart["ranks"][first:last], chart["columns"]
    names = [f"rank {int(r)}" for r in ranks]
    room = max(text_width(n, LABEL_SIZE) for n in names) + 10
    cell = min((WIDTH - room - 2) / Fraction(max(len(columns), 1)), _WIDEST_CELL)
    bottom = _TOP + _STEP * len(ranks)
    late = {(int(r), int(c)) for r, c in chart["late"]}
    part = f", ranks {int(ranks[0])} to {int(ranks[-1])}" if parts > 1 else ""
    figure = Figure(
        f"Lateness of each rank, communicator {inert(chart['comm_id'])}{part}", _describe(chart), bottom + 32,
        caption=_caption(chart),
    )  # fmt: skip
    _legend(figure, int(chart["threshold_ns"]))
    for row, (rank, name) in enumerate(zip(ranks, names, strict=True)):
        y = _TOP + row * _STEP
        figure.label(room - 6, y + 11, name, "end")
        for column, lateness in enumerate(chart["lateness_ns"][first + row]):
            x = room + column * cell
            value = None if lateness is None else int(lateness)
            role = "late" if (int(rank), column) in late else shade(value or 0, int(chart["threshold_ns"]))
            _cell(figure, (x, y, cell), None if value is None else role)
    _axis(figure, columns, room, cell, bottom)
    return figure


def _cell(figure: Figure, place: tuple[Fraction, int, Fraction], role: str | None) -> None:
    """One cell at (x, y, width): shaded, late with a diamond, or a stroke where nothing was recorded (None)."""
    x, y, cell = place
    width = cell - (1 if cell > 4 else 0)
    if role is None:
        figure.line(x, y + _CELL_HEIGHT, x + width, y, "missing")
        return
    figure.rect(x, y, width, _CELL_HEIGHT, role)
    if role == "late":
        _diamond(figure, x + width / 2, y + Fraction(_CELL_HEIGHT, 2), min(width / 2, Fraction(4)))


def _diamond(figure: Figure, x: Fraction, y: Fraction, r: Fraction) -> None:
    figure.path([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], "spot", closed=True)


def _legend(figure: Figure, threshold_ns: int) -> None:
    x = Fraction(0)
    for step in range(STEPS):
        edge = duration(Fraction(threshold_ns * (step + 1), STEPS))
        figure.rect(x, 2, 13, 11, f"heat{step}")
        figure.label(x + 17, 11, f"< {edge}")
        x += 17 + text_width(f"< {edge}", LABEL_SIZE) + 12
    figure.rect(x, 2, 13, 11, "late")
    _diamond(figure, x + Fraction(13, 2), Fraction(15, 2), Fraction(7, 2))
    figure.label(x + 17, 11, "late")
    x += 17 + text_width("late", LABEL_SIZE) + 12
    figure.line(x, 13, x + 13, 2, "missing")
    figure.label(x + 17, 11, "not recorded")


def _axis(figure: Figure, columns: list[list[int]], left: Fraction, cell: Fraction, bottom: int) -> None:
    """Index of the first collective of a column, under as many columns as there is room for."""
    widest = max((text_width(half_even(int(c[0])), LABEL_SIZE) for c in columns), default=Fraction(0))
    every = next(step for step in _round_numbers() if step * cell >= widest + 10)
    for at in range(0, len(columns), every):
        x = left + at * cell + cell / 2
        figure.line(x, bottom, x, bottom + 3, "axis")
        figure.label(x, bottom + 13, half_even(int(columns[at][0])), "middle", "quiet")
    per = int(columns[0][1]) - int(columns[0][0]) + 1 if columns else 1
    unit = "index of the collective on this communicator" + (f"; {per} per column, worst shown" if per > 1 else "")
    figure.label(left, bottom + 27, unit, "start", "quiet")


def _round_numbers() -> list[int]:
    return [s * 10**p for p in range(9) for s in (1, 2, 5)]


def _describe(chart: dict[str, Any]) -> str:
    per_rank: dict[int, int] = {}
    for rank, _ in chart["late"]:
        per_rank[int(rank)] = per_rank.get(int(rank), 0) + 1
    if not per_rank:
        return f"{len(chart['ranks'])} ranks, {len(chart['columns'])} columns, no cell late."
    told = ", ".join(f"rank {rank} in {n} of {len(chart['columns'])}" for rank, n in sorted(per_rank.items()))
    return f"{len(chart['ranks'])} ranks, {len(chart['columns'])} columns; late: {told}."


def _caption(chart: dict[str, Any]) -> Text:
    text = join(
        words("Arrival of a rank minus the median arrival of the others. Communicator "), data(chart["comm_id"]),
        words(f", {int(chart['nranks'])} ranks; late from {duration(int(chart['threshold_ns']))}."),
    )  # fmt: skip
    worst = max((int(v) for row in chart["lateness_ns"] for v in row if v is not None), default=None)
    if worst is not None:
        text = join(text, words(f" Largest lateness {duration(worst)}."))
    if int(chart["omitted"]):
        text = join(text, words(f" {half_even(int(chart['omitted']))} more communicators or ranks are not drawn."))
    return text
