"""Ratios and memory of a findings document in Prometheus text format (version 0.0.4), for a dashboard or an alert.

    arca_gpu_compute_efficiency_ratio{gpu,pid,shard,window}   window 1s, 1m: the last one of that length; capture: all
    arca_vram_topology_bytes{gpu,category,precision}          at each GPU's last sample

``gpu`` is the UUID; ``pid`` and ``shard`` are empty for a whole GPU. Values are decimals of at most 17 significant
digits, half to even. What has no value has no line: an absent series is not 0. No time stamps: a file that is scraped
has the time of the scrape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction

from gpuaudit.analyze.finding import Document, Quantity, SectionTable
from gpuaudit.analyze.vram import LABELS, LAST
from gpuaudit.bundle.errors import InputUnusable

RATIO = "arca_gpu_compute_efficiency_ratio"
BYTES = "arca_vram_topology_bytes"

HELP = {
    RATIO: "Kernel time / (kernel time + time blocked in memory copies without a kernel); definition: findings, "
    "section compute_stall.",
    BYTES: "Memory of a GPU by category and precision at its last sample; parts add up to what NVML tells.",
}

WINDOWS = (("windows", "last_second", "1s"), ("windows", "last_minute", "1m"), ("ratios", "ratio", "capture"))
"""Table and column of a ratio, and the label of its window."""

_DIGITS = Context(prec=17, rounding=ROUND_HALF_EVEN)
_KEYS = {label: key for key, label in LABELS.items()}
_GPU = re.compile(r"[0-9]{1,10} \((.{1,256})\)\Z", re.DOTALL)

Labels = tuple[tuple[str, str], ...]
Row = dict[str, Quantity | str | None]


def exposition(document: Document) -> str:
    """The text, ending in a line feed; InputUnusable where the document has no value for it."""
    families = {RATIO: dict(_ratios(document)), BYTES: _memory(document)}
    if not any(families.values()):
        reasons = [f"{s.id}: {s.reason}" for s in document.sections if s.id in {"compute_stall", "vram"}]
        raise InputUnusable(
            "the findings hold neither a compute/stall ratio nor memory of a GPU"
            + (f" ({'; '.join(reasons)})" if reasons else ""),
            hint="capture with NVML, and analyze again",
        )
    lines: list[str] = []
    for name, samples in families.items():
        lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} gauge"]
        lines += [f"{name}{{{_labels(labels)}}} {_number(value)}" for labels, value in samples.items()]
    if omitted := sum(t.omitted for t in _tables(document, "compute_stall", "ratios")):
        lines.append(f"# {omitted} subjects of the ratio are left out, as they are in the findings")
    return "\n".join(lines) + "\n"


def _ratios(document: Document) -> Iterable[tuple[Labels, int | Fraction]]:
    seen: set[Labels] = set()
    for table, column, window in WINDOWS:
        for row in _rows(document, "compute_stall", table):
            cell = row.get(column)
            if not isinstance(cell, Quantity) or cell.value is None:
                continue
            labels = (
                ("gpu", _uuid(row)), ("pid", _text(row, "pid")), ("shard", _text(row, "shard")), ("window", window)
            )  # fmt: skip
            if labels in seen:
                raise InputUnusable(f"two rows of the table of ratios are of the same subject: {dict(labels)}")
            seen.add(labels)
            yield labels, cell.value


def _memory(document: Document) -> dict[Labels, int | Fraction]:
    out: dict[Labels, int | Fraction] = {}
    for row in _rows(document, "vram", "categories"):
        cell = row.get("bytes")
        if row.get("when") != LAST or not isinstance(cell, Quantity) or cell.value is None:
            continue
        labels = (
            ("gpu", _uuid(row)), ("category", _KEYS.get(_text(row, "category"), _text(row, "category"))),
            ("precision", _text(row, "precision")),
        )  # fmt: skip
        out[labels] = out.get(labels, 0) + cell.value
    return out


def _rows(document: Document, section: str, table: str) -> Iterable[Row]:
    for t in _tables(document, section, table):
        names = [name for name, _ in t.columns]
        for cells in t.rows:
            yield dict(zip(names, cells, strict=True))


def _tables(document: Document, section: str, table: str) -> list[SectionTable]:
    return [t for s in document.sections if s.id == section for t in s.tables if t.id == table]


def _text(row: Mapping[str, Quantity | str | None], column: str) -> str:
    value = row.get(column)
    return value if isinstance(value, str) else ""


def _uuid(row: Mapping[str, Quantity | str | None]) -> str:
    """The UUID in "0 (GPU-…)", or whatever else stands there."""
    told = _text(row, "gpu")
    found = _GPU.match(told)
    return found[1] if found else told


def _labels(labels: Labels) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: int | Fraction) -> str:
    if isinstance(value, int) or value.denominator == 1:
        return str(int(value))
    return format(_DIGITS.divide(Decimal(value.numerator), Decimal(value.denominator)), "f")
