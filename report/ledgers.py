"""The ledgers: what every operation took, where GPU time went, and what the recording cost the host."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from gpuaudit.analyze.finding import Document, Quantity, number_from_json
from gpuaudit.bundle.rounding import shown
from gpuaudit.report.charts.canvas import Figure
from gpuaudit.report.charts.waste_bars import waste_bars
from gpuaudit.report.statements import EvidenceLinks
from gpuaudit.report.tables import Cell, Column, Raw, Table, build
from gpuaudit.report.text import Text, data, join, number, plain, prose, words

KEYS = {
    "idle_allocated": "idle, memory held",
    "idle_unallocated": "idle, no memory held",
    "waiting_for_peers": "waiting for peers",
    "host_blocked": "host blocked in synchronisation",
    "not_classified": "not classified",
}
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
    notes: tuple[Text, ...]


def quantity(value: Any) -> Quantity:
    """A quantity of a JSON section of the document."""
    return Quantity(
        number_from_json(value["value"]), value["unit"], value["provenance"], tuple(value.get("evidence", ())),
        value.get("formula", ""), value.get("reason", ""),
    )  # fmt: skip


def operations(document: Document) -> Table:
    """Exact statistics per operation, by total time."""
    names = ("count", "open", "errors", "total", "p50", "p99", "max")
    titles = ("calls", "still open", "errors", "total", "median", "p99", "longest")
    links = EvidenceLinks(document)
    rows: list[list[Raw]] = [
        [data(o["op"]), data(o["table"]), *(_dashed(quantity(o[n])) for n in names), links.text(_ids(o["count"]))]
        for o in document.operations
    ]
    return build(
        "Operations, by total time",
        [Column("operation"), Column("table"), *(Column(t, numeric=True) for t in titles), Column("evidence")],
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
    return tuple(prose(r) for r in reasons)


def waste(document: Document) -> Waste:
    """The waste ledger; money appears only where the document has it."""
    section = document.waste
    observed = quantity(section["observed"])
    money = any(r["money"] is not None for r in section["by_key"])
    sums = [(k["key"], quantity(k["gpu_time"]), quantity(k["share"]), k["money"]) for k in section["by_key"]]
    bars = [
        (key, plain(_name(key)), time.value, f"{shown(time).text} · {shown(share).text}")
        for key, time, share, _ in sums
        if time.value is not None and share.value is not None
    ]
    figure = None
    if observed.value and bars:
        figure = waste_bars(bars, observed.value, shown(observed).text)
        figure.caption = join(
            words("Each bar is a part of the observed GPU time, "),
            number(observed),
            words("; no time is counted twice."),
        )
    return Waste(
        figure,
        _by_key(sums, observed, money),
        _rows(section["rows"], money, EvidenceLinks(document)),
        tuple((_name(k), prose(d)) for k, d in dict.fromkeys((r["key"], r["definition"]) for r in section["rows"])),
        _rate(section),
        tuple(prose(n) for n in section["notes"]),
    )


def _name(key: str) -> Text:
    return words(KEYS[key]) if key in KEYS else data(key)


def _by_key(sums: list[tuple[str, Quantity, Quantity, Any]], observed: Quantity, money: bool) -> Table:
    columns = [Column("what became of it"), Column("GPU time", numeric=True), Column("share of observed", numeric=True)]
    rows: list[list[Any]] = [[_name(key), time, share, *([_money(m)] if money else [])] for key, time, share, m in sums]
    caption = join(words("GPU time by what became of it, of "), number(observed), words(" observed"))
    return build(plain(caption), [*columns, *([Column("money", numeric=True)] if money else [])], rows, sortable=False)


def _rows(rows: list[dict[str, Any]], money: bool, links: EvidenceLinks) -> Table:
    columns = [Column("what became of it"), Column("GPU"), Column("process"), Column("GPU time", numeric=True),
               Column("share of observed", numeric=True), Column("made"), Column("evidence")]  # fmt: skip
    out: list[list[Any]] = []
    for r in rows:
        gpu = words("not assigned") if r["gpu_index"] is None else words(f"GPU {int(r['gpu_index'])}")
        process = words("–") if r["pid"] is None else data(r["pid"])
        time = quantity(r["gpu_time"])
        line = [
            _name(r["key"]),
            gpu,
            process,
            time,
            quantity(r["share"]),
            data(time.provenance),
            links.text(time.evidence),
        ]
        out.append([*line, *([_money(r["money"])] if money else [])])
    return build("GPU time by GPU and process", [*columns, *([Column("money", numeric=True)] if money else [])], out)


def _money(value: Any) -> Quantity:
    return quantity(value) if value is not None else Quantity(None, "", "assumed")


def _rate(section: dict[str, Any]) -> Text:
    if section["rate"] is None:
        return words("No rate was given, so nothing is said in money.")
    return join(
        words("Money is GPU time × a rate assumed by whoever asked: "), data(section["rate"]), words(" "),
        data(section["currency"]), words(" for a GPU-hour."),
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
