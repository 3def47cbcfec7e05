"""A chain drawn for a terminal: effect, causes and peers as lanes, all of it first, then its longest part.

A column of a lane is as high as the share of its time that the lane covers, in eighths; what covers anything at all is
at least one eighth high, so that nothing short disappears. Roles are told by a word, so that nothing depends on colour.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from gpuaudit.analyze import intervals
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.lanes import Drawing, Lane
from gpuaudit.bundle.display import printable
from gpuaudit.bundle.rounding import duration

BLOCKS = " ▁▂▃▄▅▆▇█"
"""Eighths of a column (Unicode Block Elements)."""

FRAME = "▕▏"
LEAST_BAR = 20
"""Columns of a lane, however narrow the terminal is."""

MARGIN = 5
"""The longest part is drawn with a fifth of its length on either side: what came before belongs to the picture."""

COLOURS = {"effect": 31, "cause": 33, "peer": 36, "rows": 39}
"""SGR colours: red, yellow, cyan, the terminal's own (ECMA-48)."""


def draw(drawing: Drawing, origin_ns: int, width: int, *, colour: bool) -> str:
    """The lanes of a chain and what each is, in lines of at most ``width`` columns; times count from ``origin_ns``."""
    lanes = _named([lane for lane in drawing.lanes if len(lane.time)])
    if not lanes:
        return "nothing to draw: the chain has no interval of its own\n"
    out = _view(lanes, _whole([x for _, x in lanes]), "All of it", (origin_ns, width, colour))
    longest = _longest([x for _, x in lanes])
    if longest is not None:
        out += _view(lanes, longest, "The longest part", (origin_ns, width, colour))
    for name, lane in lanes:
        out += textwrap.wrap(f"{name}: {printable(lane.label)}", width, subsequent_indent="  ", break_on_hyphens=False)
    if drawing.omitted:
        out.append(f"{drawing.omitted} more peers waited less, and have no lane")
    return "\n".join(out) + "\n"


def _named(lanes: Sequence[Lane]) -> list[tuple[str, Lane]]:
    """Each lane with its role, and a number where there are several of it."""
    count = Counter(x.role for x in lanes)
    seen: Counter[str] = Counter()
    out = []
    for lane in lanes:
        seen[lane.role] += 1
        out.append((f"{lane.role} {seen[lane.role]}" if count[lane.role] > 1 else lane.role, lane))
    return out


def _whole(lanes: Sequence[Lane]) -> tuple[int, int]:
    """From the first moment of an effect to the last; of anything where there is no effect."""
    shown = [x for x in lanes if x.role == "effect"] or lanes
    return min(int(x.time[0, 0]) for x in shown), max(int(x.time[-1, 1]) for x in shown)


def _longest(lanes: Sequence[Lane]) -> tuple[int, int] | None:
    parts = [x.parts for x in lanes if x.role == "effect" and len(x.parts)]
    if not parts or sum(map(len, parts)) < 2:
        return None
    every = np.concatenate(parts)
    start, end = (int(x) for x in every[np.argmax(every[:, 1] - every[:, 0])])
    margin = (end - start) // MARGIN
    return start - margin, end + margin


def _view(
    lanes: Sequence[tuple[str, Lane]], span: tuple[int, int], title: str, how: tuple[int, int, bool]
) -> list[str]:
    origin, width, colour = how
    names = max(len(name) for name, _ in lanes)
    columns = max(width - names - len(FRAME) - 1, LEAST_BAR)
    start, end = span
    when = f"{duration(start - origin)} after the capture began" if start >= origin else "before the capture began"
    each = duration(Fraction(end - start, columns))
    head = f"{title}: {duration(end - start)} from {when}; a column is {each}"
    out = textwrap.wrap(head, width, subsequent_indent="  ")
    for name, lane in lanes:
        bar = _bar(lane.time, start, end, columns)
        shown = f"\x1b[{COLOURS[lane.role]}m{bar}\x1b[0m" if colour else bar
        out.append(f"{name:{names}} {FRAME[0]}{shown}{FRAME[1]}")
    return [*out, ""]


def _bar(time: Intervals, start: int, end: int, columns: int) -> str:
    """One character per column; the columns are cut at exact nanoseconds, so that none is counted twice."""
    cuts = [start + (end - start) * i // columns for i in range(columns + 1)]
    edges = np.array(cuts, dtype=np.int64)
    covered = intervals.coverage(np.stack([edges[:-1], edges[1:]], axis=1), time)
    out = []
    for got, low, high in zip(covered.tolist(), cuts, cuts[1:], strict=False):
        level = 0 if got == 0 else max(1, 8 * got // max(high - low, 1))
        out.append(BLOCKS[min(level, 8)])
    return "".join(out)
