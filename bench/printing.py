"""A result as a table for a terminal, and as the reference page."""

from __future__ import annotations

from collections.abc import Sequence

from bench.result import Figure, Result, Value

REPEAT = "python -m bench --save bench/results/figures.json"
HEAD = ("what", "unit", "median", "smallest", "largest", "repeats")

HEADLINES: dict[str, tuple[str, ...]] = {
    "drain": ("numpy ÷ callback, CPU per record", "numpy ÷ callback, records per second without loss"),
    "seal": ("seal ÷ sha256sum, CPU", "bundle ÷ ring records, bytes"),
    "probe": (
        "pair without a record ÷ bpftrace that counts calls, added per call",
        "pair with a record ÷ bpftrace that keeps a histogram and no record, added per call",
        "pair with a record ÷ bpftrace that prints a line for each call, added per call",
    ),
    "stacks": tuple(
        f"pair with {what} ÷ pair with a record, added per call" for what in ("a native stack", "CPython frames")
    ),
    "verify": ("audit verify ÷ sha256sum, elapsed",),
    "poll": ("CPU ÷ elapsed time: the share of one core", "CPU per poll of 8 GPUs"),
    "cadence": ("99th percentile of lateness ÷ poll interval, rings busy",),
    "flow": ("events per second without loss",),
    "storm": tuple(f"captured ÷ not, elapsed, {rate} launches/s" for rate in ("10,000", "100,000", "1,000,000")),
    "training": ("captured ÷ not, elapsed per step",),
    "startup": ("until the last probe is attached",),
    "day": ("bundle", "audit analyze", "audit analyze: peak memory"),
    "imports": ("audit import ÷ HTA's loader, speed", "audit import ÷ HTA's loader, peak memory"),
    "causes": (
        "slow calls and 3 detectors ÷ the joins by hand, CPU",
        "audit analyze: CPU",
        "audit analyze: peak memory",
    ),
    "render": ("our PDF ÷ WeasyPrint's defaults, CPU per page", "PDF", "HTML"),
    "demo": ("demo ÷ loading its libraries, elapsed", "demo", "demo: peak memory"),
}
"""Figure → what the README shows of it."""


def busy(result: Result) -> str:
    """A sentence for a machine that had other work when the run began; empty when it had not, or does not say."""
    load, _, _ = result.machine.get("load before", "").partition(" ")
    cpus, _, _ = result.machine.get("CPUs", "").partition(" ")
    if not load or not cpus or float(load) < int(cpus) / 2:
        return ""
    return f"The machine had other work (load {load} on {cpus} CPUs when the run began), so the spreads are wide."


def number(value: float) -> str:
    """Three significant digits, thousands apart; never in powers of ten."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        digits = len(str(int(abs(value))))
        return f"{round(value, -max(0, digits - 3)):,.0f}"
    places = 2
    small = abs(value)
    while small < 1 and places < 12:
        small *= 10
        places += 1
    return f"{value:.{places if abs(value) < 10 else 1}f}"


def cells(value: Value) -> tuple[str, ...]:
    """One row, as in :data:`HEAD`."""
    s = value.spread
    what = f"{value.what} ({value.better})" if value.better else value.what
    return what, value.unit, number(s.median), number(s.low), number(s.high), str(s.repeats)


def text(result: Result) -> str:
    """The table of a run, figure by figure, then the machine and the command."""
    lines: list[str] = []
    for figure in result.figures:
        lines += [f"{figure.name}: {figure.title}", *_columns([HEAD, *map(cells, figure.values)])]
        lines += [f"  {name}: {value}" for name, value in figure.parameters.items()]
        lines += [f"  Note: {remark}" for remark in figure.remarks]
        lines.append("")
    lines += [f"{n.name}: {n.title}\n  not measured: {n.reason}\n" for n in result.not_measured]
    lines += [f"{name}: {value}" for name, value in result.machine.items()]
    if busy(result):
        lines.append(f"Note: {busy(result)}")
    lines += [f"taken: {result.taken_utc}, in {number(result.seconds)} s", f"repeat: {result.command}"]
    return "\n".join(lines) + "\n"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    out = []
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        out.append("  " + "  ".join([*left, *right]).rstrip())
    return out


def markdown(result: Result) -> str:
    """``docs/reference/figures.md``."""
    lines = [
        "# Figures",
        "",
        "<!-- Generated from bench/results/figures.json by `python -m bench --markdown`. Do not edit. -->",
        "",
        "Every ratio has both of its sides from one run, measured turn by turn: it is the median of the quotients of",
        "the repeats, with the smallest and the largest beside it. The other values are this machine's and say nothing",
        "about another one. As root, with clang-16, libbpf-dev, gcc and bpftrace installed, a few minutes:",
        "",
        "```sh",
        result.command,
        "```",
        "",
    ]
    for figure in result.figures:
        lines += _section(figure)
    for missing in result.not_measured:
        lines += [f"## {missing.title}", "", f"Not measured: {missing.reason}.", ""]
    taken = f"Taken {result.taken_utc}, in {number(result.seconds)} s."
    if busy(result):
        taken += f" {busy(result)}"
    lines += ["## The machine", "", taken, "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in result.machine.items()]
    return "\n".join(lines) + "\n"


def _section(figure: Figure) -> list[str]:
    lines = [f"## {figure.title}", "", figure.method, "", *_table([HEAD, *map(cells, figure.values)]), ""]
    if figure.parameters:
        lines += [*(f"- {name}: {value}" for name, value in figure.parameters.items()), ""]
    for remark in figure.remarks:
        lines += [remark, ""]
    return lines


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return [lines[0], "|---|---|--:|--:|--:|--:|", *lines[1:]]


def extract(result: Result) -> str:
    """The table of the README: the values named in :data:`HEADLINES`, with their units."""
    rows = [("", "median", "smallest–largest")]
    for figure in result.figures:
        for value in figure.values:
            if value.what in HEADLINES.get(figure.name, ()):
                s = value.spread
                unit = "" if value.unit == "ratio" else f" {value.unit}"
                what = f"{figure.title}: {cells(value)[0]}"
                rows.append((what, number(s.median) + unit, f"{number(s.low)}–{number(s.high)}{unit}"))
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    table = "\n".join([lines[0].replace("|  |", "| |"), "|---|--:|--:|", *lines[1:]]) + "\n"
    return f"{table}\n{busy(result)}\n" if busy(result) else table


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
