"""The ledgers: what every operation took, where GPU time went, and what the recording cost the host."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from gpuaudit.analyze.finding import Document, Quantity, number_from_json
from gpuaudit.bundle.rounding import shown
from gpuaudit.report.charts.canvas import Figure
from gpuaudit.report.charts.waste_bars import Bar, waste_bars
from gpuaudit.report.statements import EvidenceLinks
from gpuaudit.report.tables import Cell, Column, Raw, Table, build
from gpuaudit.report.text import Text, data, join, listed, marked, number, plain, prose, words

KEYS = {
    "useful": "useful", "waiting_for_peers": "waiting for peers", "host_blocked": "host blocked", "starved": "starved",
    "over_allocated": "over-allocated", "idle_allocated": "idle, memory held",
    "idle_unallocated": "idle, no memory held", "throttled": "throttled", "memory_bound": "memory-bound headroom",
    "not_classified": "not classified",
}  # fmt: skip
"""What each key of the waste ledger is called."""


_COUNT_IN_BRACKETS = re.compile(r" \([0-9]+\)")


@dataclass(frozen=True)
class Waste:
    """The waste ledger as printed: the bars, the sums by key, every row, and what it rests on."""

    figure: Figure | None
    by_key: Table
    rows: Table
    definitions: tuple[tuple[Text, Text], ...]
    rate: Text
    projection: tuple[tuple[str, Text], ...]
    notes: tuple[Text, ...]


def quantity(value: Any) -> Quantity:
    """A quantity of a JSON section of the document."""
    return Quantity(
        number_from_json(value["value"]), value["unit"], value["provenance"], tuple(value.get("evidence", ())),
        value.get("formula", ""), value.get("reason", ""),
    )  # fmt: skip


ALSO_COUNTED = (("nested", "inside others"), ("aggregated", "without rows"))
"""Columns that stand only where an operation has them: calls made inside other recorded ones, and calls that the kernel
counted."""

ALSO_MEANS = {
    "nested": "inside others: calls that another recorded call made; their time is in that one's, and in no sum here",
    "aggregated": "without rows: calls that the kernel counted in buckets of durations; they are in calls and total, "
    "and where an operation has any, median and p99 are at most what is told (evidence says what they are at least)",
}


def operations(document: Document) -> Table:
    """Exact statistics per operation, by total time."""
    names = ("count", "open", "errors", "total", "p50", "p99", "max")
    titles = ("calls", "still open", "errors", "total", "median", "p99", "longest")
    also = [(n, t) for n, t in ALSO_COUNTED if any(n in o for o in document.operations)]
    links = EvidenceLinks(document)
    rows: list[list[Raw]] = [
        [
            data(o["op"]), data(o["table"]), *(_dashed(quantity(o[n])) for n in names),
            *(quantity(o[n]) if n in o else Cell(words("–"), -1) for n, _ in also), links.text(_ids(o["count"])),
        ]
        for o in document.operations
    ]  # fmt: skip
    numbers = (*titles, *(t for _, t in also))
    return build(
        "Operations, by total time",
        [Column("operation"), Column("table"), *(Column(t, numeric=True) for t in numbers), Column("evidence")],
        rows,
        empty="no call was recorded",
    )


def _dashed(q: Quantity) -> Raw:
    """A quantity; a null one is a dash, whose reason is told once below the table instead of in every cell."""
    return q if q.value is not None else Cell(words("–"), -1)


def _ids(value: Any) -> tuple[str, ...]:
    return quantity(value).evidence


def operation_notes(document: Document) -> tuple[Text, ...]:
    """Why values of the operations table are not there, each reason once, whatever count it gives in brackets."""
    given = (quantity(o[n]) for o in document.operations for n in ("errors", "total", "p50", "p99", "max"))
    reasons = dict.fromkeys(_COUNT_IN_BRACKETS.sub("", q.reason) for q in given if q.value is None and q.reason)
    also = [text for name, text in ALSO_MEANS.items() if any(name in o for o in document.operations)]
    return tuple(prose(r) for r in (*reasons, *also))


def waste(document: Document) -> Waste:
    """The waste ledger; money appears only where the document has it."""
    section = document.waste
    observed = quantity(section["observed"])
    money = any(r["money"] is not None for r in section["by_key"])
    return Waste(
        _figure(section["by_key"], observed),
        _by_key(section, observed, money),
        _rows(section["rows"], money, EvidenceLinks(document)),
        tuple((_name(k), prose(d)) for k, d in dict.fromkeys((r["key"], r["definition"]) for r in section["rows"])),
        _rate(section),
        _projection(section["projection"]),
        tuple(prose(n) for n in section["notes"]),
    )


def _name(key: str) -> Text:
    return words(KEYS[key]) if key in KEYS else data(key)


def _figure(by_key: list[dict[str, Any]], observed: Quantity) -> Figure | None:
    bars = []
    for k in by_key:
        time, low, high, share = (quantity(k[name]) for name in ("gpu_time", "low", "high", "share"))
        if time.value is not None and low.value is not None and high.value is not None:
            label = f"{shown(time).text} · {shown(share).text}"
            bars.append(Bar(k["key"], plain(_name(k["key"])), time.value, low.value, high.value, label))
    if not observed.value or not bars:
        return None
    figure = waste_bars(bars, observed.value, shown(observed).text)
    figure.caption = join(
        words("Each bar is a part of the observed GPU time, "), number(observed), words("; no time is counted twice. "
        "The line across its end reaches from the least to the most that the part can be."),
    )  # fmt: skip
    return figure


_AMOUNTS = ("low", "gpu_time", "high", "share")
_AMOUNT_COLUMNS = tuple(Column(t, numeric=True) for t in ("at least", "GPU time", "at most", "share of observed"))


def _by_key(section: dict[str, Any], observed: Quantity, money: bool) -> Table:
    columns = [Column("what became of it"), *_AMOUNT_COLUMNS, *([Column("money", numeric=True)] if money else [])]
    named = [*((_name(k["key"]), k) for k in section["by_key"]), (words("avoidable in principle, in all"),
             section["total"])]  # fmt: skip
    rows: list[list[Any]] = [
        [name, *(quantity(k[a]) for a in _AMOUNTS), *([_money(k["money"])] if money else [])] for name, k in named
    ]
    caption = join(words("GPU time by what became of it, of "), number(observed), words(" observed"))
    return build(plain(caption), columns, rows, sortable=False, marks=True)


def _rows(rows: list[dict[str, Any]], money: bool, links: EvidenceLinks) -> Table:
    columns = [Column("what became of it"), Column("GPU", whole=True), Column("process"), *_AMOUNT_COLUMNS,
               *([Column("money", numeric=True)] if money else []), Column("evidence")]  # fmt: skip
    out: list[list[Any]] = []
    for r in rows:
        gpu = words("not assigned") if r["gpu_index"] is None else words(f"GPU {int(r['gpu_index'])}")
        process = words("–") if r["pid"] is None else data(r["pid"])
        amounts = [quantity(r[a]) for a in _AMOUNTS]
        out.append([_name(r["key"]), gpu, process, *amounts, *([_money(r["money"])] if money else []),
                    links.text(amounts[1].evidence)])  # fmt: skip
    return build("GPU time by GPU and process", columns, out, marks=True)


def _money(value: Any) -> Raw:
    return quantity(value) if value is not None else Cell(words("no price"), -1)


def _rate(section: dict[str, Any]) -> Text:
    if not section["prices"]:
        return words("No price of a GPU-hour was given or known, so nothing is said in money.")
    prices = listed((prose(p) for p in section["prices"]), "; ")
    return join(words("Money is GPU time × the price of its GPU: "), prices, words("."))


def _projection(section: dict[str, Any] | None) -> tuple[tuple[str, Text], ...]:
    """Waste per month and year, with the two shares that it stands on; nothing without a stated duty cycle."""
    if section is None:
        return ()
    told = {k: quantity(v) for k, v in section.items()}

    def span(name: str) -> Text:
        low, high = told[f"{name}_low"], told[f"{name}_high"]
        return join(marked(told[name]), words(", at least "), number(low), words(", at most "), number(high))

    return (
        ("In a month", join(span("month"), words("; if the host works as in the capture for "),
                            marked(told["duty_cycle"]), words(" of all time"))),
        ("In a year", span("year")),
        ("Resting on", join(number(told["coverage"]), words(" of the GPUs' time in the capture, which was observed: "),
                            prose(told["month"].formula))),
    )  # fmt: skip


def cost(document: Document) -> Table:
    """What the recording cost the host."""
    return build(
        "Measured or derived by the recorder itself",
        [Column("what"), Column("amount", numeric=True), Column("made"), Column("definition", wide=True)],
        [
            [prose(str(r["name"]).replace("_", " ")), q, data(q.provenance), prose(r["definition"])]
            for r in document.cost["rows"]
            for q in (quantity(r["quantity"]),)
        ],
        empty="the recording did not measure itself",
        sortable=False,
    )
