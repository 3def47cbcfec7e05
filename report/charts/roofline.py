"""Roofline: achieved rate over operational intensity, both logarithmic, under the ceilings of memory and arithmetic.

Williams, Waterman & Patterson 2009 (CACM 52:4). A ceiling is a slope (bandwidth × intensity) up to its knee and flat
from there; the knee is the intensity from which arithmetic and not memory is the limit.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

from gpuaudit.bundle.rounding import digits, half_even
from gpuaudit.report.charts.canvas import LABEL_SIZE, WIDTH, Figure
from gpuaudit.report.charts.labels import Labels, Place
from gpuaudit.report.charts.log_axis import LogAxis
from gpuaudit.report.fonts import fitted, text_width
from gpuaudit.report.text import Text, inert, join, listed, prose, words

MOST_POINTS, MOST_CEILINGS = 64, 12

_PLOT_HEIGHT = 300
_TOP, _LEFT, _RIGHT = 24, 78, WIDTH - 8

KINDS = {"measured": "measured", "derived": "derived from recorded values", "estimated": "estimated"}
"""Kinds of points, each with a shape of its own: diamond, square, triangle."""

_ROLES = {"measured": "collective", "derived": "busy", "estimated": "throttled"}


class _Ceiling(NamedTuple):
    label: str
    flops: int
    bandwidth: int

    @property
    def knee(self) -> Fraction:
        return Fraction(self.flops, self.bandwidth)


class _Point(NamedTuple):
    label: str
    intensity: Fraction
    rate: Fraction
    kind: str


def roofline(data: dict[str, Any], title: str) -> Figure | None:
    """The figure of one chart of kind ``roofline``; None without a ceiling. ValueError for numbers without a sense."""
    if len(data["ceilings"]) > MOST_CEILINGS or len(data["points"]) > MOST_POINTS:
        raise ValueError(f"a roofline of more than {MOST_CEILINGS} ceilings or {MOST_POINTS} points")
    ceilings = [_Ceiling(inert(c["label"]), int(c["flops"]), int(c["bandwidth"])) for c in data["ceilings"]]
    if not ceilings:
        return None
    ceilings = _merged(ceilings)
    points = [_point(p) for p in data["points"]]
    drawn = [p for p in points if p.intensity > 0 and p.rate > 0]
    bottom = _TOP + _PLOT_HEIGHT
    x = LogAxis([*(c.knee / 4 for c in ceilings), *(c.knee * 8 for c in ceilings), *(p.intensity for p in drawn)],
                _LEFT, _RIGHT)  # fmt: skip
    y = LogAxis([*(Fraction(c.flops) for c in ceilings), *(Fraction(c.flops, 20) for c in ceilings),
                 *(p.rate for p in drawn)], bottom, _TOP)  # fmt: skip
    figure = Figure(title, _describe(ceilings, points), bottom + 32)
    _axes(figure, x, y, bottom)
    labels = Labels(figure, (Fraction(_LEFT + 2), Fraction(_RIGHT), Fraction(_TOP - 2), Fraction(bottom)))
    for p in drawn:
        cx, cy = x.at(p.intensity), y.at(p.rate)
        labels.keep_free((cx - 5, cx + 5, cy - 5, cy + 5))
    _keep_roofs_free(labels, ceilings, (x, y))
    _ceilings(figure, labels, ceilings, (x, y))
    unlabelled = [p for p in drawn if not _draw(figure, labels, p, x.at(p.intensity), y.at(p.rate))]
    _legend(figure, [k for k in KINDS if any(p.kind == k for p in drawn)])
    figure.caption = _caption(data, unlabelled, [p for p in points if p not in drawn])
    return figure


def _merged(ceilings: list[_Ceiling]) -> list[_Ceiling]:
    """Equal ceilings as one with all their names, at the place of the first; what their names end with stands once."""
    names: dict[tuple[int, int], dict[str, None]] = {}
    for c in ceilings:
        names.setdefault((c.flops, c.bandwidth), {})[c.label] = None
    return [_Ceiling(_together([*of]), flops, bandwidth) for (flops, bandwidth), of in names.items()]


def _together(labels: list[str]) -> str:
    """ "H100, fp8" and "H100, int8" as "H100, fp8 / int8"."""
    split = [label.split() for label in labels]
    room = min(len(s) for s in split) - 1
    before = next((i for i in range(room) if len({s[i] for s in split}) > 1), room)
    after = next((i for i in range(room - before) if len({s[-1 - i] for s in split}) > 1), room - before)
    apart = " / ".join(" ".join(s[before : len(s) - after]) for s in split)
    return " ".join([*split[0][:before], apart, *split[0][len(split[0]) - after :]])


def _point(p: dict[str, Any]) -> _Point:
    num, den = p["intensity"]
    if p["kind"] not in KINDS:
        raise ValueError(f"a point of kind {p['kind']!r:.40}")
    return _Point(inert(p["label"]), Fraction(int(num), int(den)), Fraction(int(p["rate"])), p["kind"])


def _axes(figure: Figure, x: LogAxis, y: LogAxis, bottom: int) -> None:
    for value in x.decades(46):
        at = x.at(value)
        figure.line(at, _TOP, at, bottom, "grid")
        figure.label(min(at, Fraction(_RIGHT) - 12), bottom + 13, _plain(value), "middle", "quiet")
    for value in y.decades(18):
        at = y.at(value)
        figure.line(_LEFT, at, _RIGHT, at, "grid")
        figure.label(_LEFT - 6, at + 3, _tick(value), "end", "quiet")
    figure.path([(_LEFT, _TOP), (_LEFT, bottom), (_RIGHT, bottom)], "axis")
    figure.label(_LEFT, bottom + 27, "operational intensity (FLOP/byte, logarithmic)", "start", "quiet")
    figure.label(0, 10, "rate (logarithmic)", "start", "quiet")


def _plain(value: Fraction) -> str:
    """A power of ten in digits: 0.01, 1, 1,000."""
    return half_even(value, len(str(value.denominator)) - 1)


def _tick(value: Fraction) -> str:
    """A power of ten as a rate: "10 TFLOP/s"; :func:`digits` would say 10.0."""
    amount, unit = digits(value, "flop/s").split(" ", 1)
    return f"{amount.removesuffix('.0').removesuffix('.00')} {unit}"


def _ceilings(figure: Figure, labels: Labels, ceilings: list[_Ceiling], axes: tuple[LogAxis, LogAxis]) -> None:
    """Slopes once per bandwidth, a flat line per ceiling; the highest first, so that its label gets its place."""
    x, y = axes
    for bandwidth in sorted({c.bandwidth for c in ceilings}, reverse=True):
        top = max((c for c in ceilings if c.bandwidth == bandwidth), key=lambda c: c.flops)
        begin = max(x.low, y.low / bandwidth)
        figure.path([(x.at(begin), y.at(begin * bandwidth)), (x.at(top.knee), y.at(top.flops))], "roof")
    for c in sorted(ceilings, key=lambda c: -c.flops):
        figure.path([(x.at(c.knee), y.at(c.flops)), (x.at(x.high), y.at(c.flops))], "roof")
        figure.path(_diamond(x.at(c.knee), y.at(c.flops)), "ring", closed=True)
        labels.keep_free((x.at(c.knee) - 5, x.at(c.knee) + 5, y.at(c.flops) - 5, y.at(c.flops) + 5))
    for c in sorted(ceilings, key=lambda c: -c.flops):
        text = f"{c.label} · {digits(c.flops, 'flop/s')}"
        cx, cy = x.at(c.knee), y.at(c.flops)
        text = fitted(text, LABEL_SIZE, Fraction(_RIGHT - _LEFT - 20))
        labels.place(text, [(_RIGHT - 2, cy - 5, "end"), (_RIGHT - 2, cy + 12, "end"), (cx - 8, cy - 4, "end")])
        labels.place(f"knee {digits(c.knee, 'flop/byte')}", [(cx + 7, cy + 13, "start"), (cx + 7, cy + 25, "start"),
                     (cx - 8, cy - 5, "end"), (cx + 7, cy - 5, "start")], "quiet")  # fmt: skip
    for bandwidth in sorted({c.bandwidth for c in ceilings}, reverse=True):
        _slope_label(labels, bandwidth, axes)


def _keep_roofs_free(labels: Labels, ceilings: list[_Ceiling], axes: tuple[LogAxis, LogAxis]) -> None:
    """No label lies across a roof: its line as a row of small boxes."""
    x, y = axes
    for c in ceilings:
        flat = y.at(c.flops)
        labels.keep_free((x.at(c.knee), x.end, flat - 1, flat + 1))
        begin = max(x.low, y.low / c.bandwidth)
        x1, y1, x2 = x.at(begin), y.at(begin * c.bandwidth), x.at(c.knee)
        steps = max(1, int(x2 - x1) // 4)
        for i in range(steps):
            at, height = x1 + (x2 - x1) * i / steps, y1 + (flat - y1) * i / steps
            labels.keep_free((at, at + 4, height - 3, height + 1))


def _slope_label(labels: Labels, bandwidth: int, axes: tuple[LogAxis, LogAxis]) -> None:
    """Name of a memory roof, left of it at one of a few heights."""
    x, y = axes
    text = f"memory {digits(bandwidth, 'bytes/s')}"
    span = y.last - y.first
    places: list[Place] = []
    for eighth in (4, 3, 5, 2, 6, 1):
        rate = y.low * Fraction(10) ** (span * eighth // 8)
        if rate / bandwidth >= x.low:
            at, height = x.at(rate / bandwidth), y.at(rate)
            places += [(at - 8, height - 2, "end"), (at + 8, height + 11, "start")]
    labels.place(text, places, "quiet")


def _draw(figure: Figure, labels: Labels, p: _Point, x: Fraction, y: Fraction) -> bool:
    """A point and its label; whether the label found a place."""
    _marker(figure, p.kind, x, y)
    room = Fraction(_RIGHT - _LEFT - 20)
    return labels.place(
        fitted(p.label, LABEL_SIZE, room),
        [(x + 8, y + 3, "start"), (x - 8, y + 3, "end"), (x, y + 15, "middle"), (x, y - 8, "middle"),
         (x + 8, y + 14, "start"), (x + 8, y - 7, "start"), (x - 8, y + 14, "end"), (x - 8, y - 7, "end")],
    )  # fmt: skip


def _diamond(x: Fraction, y: Fraction) -> list[tuple[Any, Any]]:
    r = Fraction(7, 2)
    return [(x, y - r), (x + r, y), (x, y + r), (x - r, y)]


def _marker(figure: Figure, kind: str, x: Fraction, y: Fraction) -> None:
    r, role = Fraction(4), _ROLES[kind]
    if kind == "measured":
        figure.path([(x, y - r - 1), (x + r + 1, y), (x, y + r + 1), (x - r - 1, y)], role, closed=True)
    elif kind == "derived":
        figure.rect(x - r, y - r, 2 * r, 2 * r, role)
    else:
        figure.path([(x - r - 1, y + r), (x + r + 1, y + r), (x, y - r - 1)], role, closed=True)


def _legend(figure: Figure, kinds: list[str]) -> None:
    x = Fraction(_LEFT + 60)
    for kind in kinds:
        _marker(figure, kind, x, Fraction(7))
        figure.label(x + 9, 10, KINDS[kind])
        x += 9 + text_width(KINDS[kind], LABEL_SIZE) + 20


def _describe(ceilings: list[_Ceiling], points: list[_Point]) -> str:
    roofs = "; ".join(
        f"{c.label}: {digits(c.flops, 'flop/s')} from {digits(c.knee, 'flop/byte')} on, below it "
        f"{digits(c.bandwidth, 'bytes/s')}" for c in ceilings
    )  # fmt: skip
    told = "; ".join(f"{p.label}: {digits(p.rate, 'flop/s')} at {digits(p.intensity, 'flop/byte')}" for p in points)
    return f"Ceilings: {roofs}. Points: {told or 'none'}."


def _caption(data: dict[str, Any], unlabelled: list[_Point], undrawn: list[_Point]) -> Text:
    basis = dict.fromkeys(c["basis"] for c in data["ceilings"] if c["basis"])
    text = words("Left of a knee memory is the limit, right of it arithmetic.")
    if basis:
        text = join(text, words(" Ceilings: "), listed((prose(b) for b in basis), "; "), words("."))
    if not data["points"]:
        text = join(text, words(" No point: nothing recorded gives both a rate and an intensity."))
    for found, what in ((unlabelled, "Not labelled for want of room"), (undrawn, "Not drawn, being zero")):
        if found:
            text = join(text, words(f" {what}: "), listed((prose(p.label) for p in found), ", "), words("."))
    return text
