"""The quality grade: how complete the evidence is, before anything is concluded from it.

A: complete as far as the counters tell. B: something is missing, and it is known what. C: conclusions need care:
losses past one in a thousand, or a seal that does not prove the whole. D: cannot support conclusions. Each table has
a grade; a finding has the worst of its inputs and of what concerns the whole bundle.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.analyze.evidence import EvidenceBook
from gpuaudit.analyze.finding import Grade, Json, Threshold
from gpuaudit.analyze.missing import Reason, missing
from gpuaudit.analyze.store import Store
from gpuaudit.analyze.window import Window
from gpuaudit.bundle import canonical
from gpuaudit.bundle.errors import BundleInvalid
from gpuaudit.bundle.tables import TABLES

LOST_SHARE_C = Threshold(
    "lost_share_c", Fraction(1, 1000), "share",
    "chosen: past one lost record in a thousand a p99 of a thousand calls may be another call",
)  # fmt: skip
LOST_SHARE_D = Threshold(
    "lost_share_d",
    Fraction(1, 10),
    "share",
    "chosen: with a tenth of the records lost no count or share is near the truth",
)
THRESHOLDS = (LOST_SHARE_C, LOST_SHARE_D)

MAX_GAPS = 10_000
"""Gaps that a document lists, the first ones (``schema.MAX_ITEMS``); the reasons count all of them."""

MAX_SOURCES = 64
"""Sources that are told of; a recorder has fewer than ten."""

_TELLING = (
    "cuda_calls", "nccl_calls", "call_totals", "off_cpu", "nvml_samples", "gpm_samples", "engine_samples", "ioctls",
    "socket_io", "block_io", "lifecycle", "process_samples",
)  # fmt: skip
"""Tables of which one at least must have rows for anything to be concluded."""

PROVEN_STATUS = ("SEALED",)
"""The one status that proves the whole file; any other caps the grade at C (design of the bundle)."""


@dataclass(frozen=True)
class TableQuality:
    """Counters of one table: seen by the source, written by the recorder, lost; rows and leaves in the bundle."""

    table: str
    seen: int
    written: int
    lost: int
    rows: int
    leaves: int


@dataclass(frozen=True)
class Quality:
    """Grades and reasons; ``reasons`` are sentences, each naming what is missing."""

    tables: tuple[TableQuality, ...]
    reasons: tuple[Reason, ...]
    gaps: tuple[dict[str, Json], ...]
    sources: tuple[dict[str, Json], ...]

    @property
    def grade(self) -> Grade:
        """Worst of all reasons."""
        return _worst(r.grade for r in self.reasons)

    def grade_of(self, tables: Iterable[str]) -> Grade:
        """Grade of what is concluded from ``tables``: reasons that concern them or the whole bundle."""
        names = set(tables)
        return _worst(r.grade for r in self.reasons if not r.tables or names & set(r.tables))

    def lost(self, table: str) -> int:
        """Records of ``table`` that the counters say were lost."""
        return sum(t.lost for t in self.tables if t.table == table)

    def source_reason(self, source: str) -> str:
        """Why ``source`` was not recorded, or an empty string."""
        for s in self.sources:
            if s["source"] == source and s["state"] != "recorded":
                return str(s["reason"])
        return ""

    def to_json(self, book: EvidenceBook) -> Json:
        """Section ``quality`` of the document."""
        return {
            "grade": self.grade,
            "reasons": [r.text for r in self.reasons],
            "tables": [
                {
                    "table": t.table, "seen": str(t.seen), "written": str(t.written), "lost": str(t.lost),
                    "rows": str(t.rows), "leaves": str(t.leaves),
                    "evidence": [book.where("leaves", f"table_name = '{t.table}'")],
                }
                for t in self.tables
            ],
            "gaps": list(self.gaps),
            "sources": list(self.sources),
        }  # fmt: skip


def read_quality(store: Store, window: Window, status: str) -> Quality:
    """Grade the evidence; ``status`` is the word of ``audit verify``."""
    lost_in_rings = _ring_losses(store)
    tables = tuple(_table(store, name, lost_in_rings.get(name, 0)) for name in TABLES)
    reasons: list[Reason] = []
    if status not in PROVEN_STATUS:
        reasons.append(Reason("C", f"the seal does not prove the whole file: status {status}"))
    if not any(t.rows for t in tables if t.table in _TELLING):
        reasons.append(Reason("D", "no call and no sample was recorded"))
    for t in tables:
        reasons += _losses(t)
    sources = tuple(_sources(store))
    reasons += missing(store, window, sources)
    return Quality(
        tables, tuple(sorted(set(reasons), key=lambda r: (-ord(r.grade), r.text))), tuple(_gaps(store)), sources
    )


def _worst(grades: Iterable[Grade]) -> Grade:
    return max(grades, default="A")


def _table(store: Store, name: str, lost_in_rings: int) -> TableQuality:
    leaves = [leaf for leaf in store.leaves if leaf.table == name and leaf.kind in ("segment", "event", "clock", "gap")]
    rows = store.row_count(name)
    told = store.totals.get(name) if isinstance(store.totals, dict) else None
    counters: dict[str, int] = {"seen": rows, "written": rows, "lost": 0}
    for key, given in counters.items():
        values = [v for leaf in leaves if (v := getattr(leaf, key)) is not None]
        if isinstance(told, dict) and str(told.get(key, "")).isdecimal():
            values.append(int(told[key]))
        counters[key] = max(values, default=given)
    counters["lost"] = max(counters["lost"], lost_in_rings)
    return TableQuality(name, counters["seen"], counters["written"], counters["lost"], rows, len(leaves))


def _ring_losses(store: Store) -> dict[str, int]:
    """Per table the last cumulative counter of every CPU, together."""
    found = store.sql(
        "SELECT table_name, sum(n)::HUGEINT FROM "
        "(SELECT table_name, max(lost) AS n FROM losses GROUP BY table_name, cpu) GROUP BY 1 HAVING sum(n) > 0"
    )
    return {str(name): int(n) for name, n in found}


def _losses(t: TableQuality) -> list[Reason]:
    out = []
    if t.lost:
        share = Fraction(t.lost, max(t.seen, t.lost))
        grade: Grade = "D" if share > LOST_SHARE_D.value else "C" if share > LOST_SHARE_C.value else "B"
        out.append(Reason(grade, f"{t.table}: {t.lost} of {t.seen} records were lost", (t.table,)))
    if t.written != t.rows:
        text = f"{t.table}: {t.rows} rows are in the bundle, and its counters say {t.written} were written"
        out.append(Reason("C", text, (t.table,)))
    return out


def _gaps(store: Store) -> list[dict[str, Json]]:
    rows = store.sql(
        "SELECT source, start_ns, duration_ns, pid, reason FROM gaps ORDER BY start_ns, source, reason, leaf, row "
        f"LIMIT {MAX_GAPS}"
    )
    return [
        {
            "source": source, "start_ns": str(start), "duration_ns": None if duration is None else str(duration),
            "pid": pid, "reason": reason,
        }
        for source, start, duration, pid, reason in rows
    ]  # fmt: skip


STATES = ("recorded", "partly recorded", "not recorded")


def _sources(store: Store) -> list[dict[str, Json]]:
    """The final state of each source, or what the recorder knew when it began (an unsealed capture)."""
    artefact = store.artefact("sources")
    told: object = store.open_body.get("sources", [])
    if artefact is not None:
        try:
            told = canonical.loads(artefact.body)
        except BundleInvalid:
            told = []
    if isinstance(told, dict):
        told = told.get("sources", told.get("rows", []))
    rows = told if isinstance(told, list) else []
    out = [
        {"source": str(s.get("source", "")), "state": _state(s.get("state")), "reason": str(s.get("reason") or "")}
        for s in rows[:MAX_SOURCES]
        if isinstance(s, dict)
    ]
    return sorted(out, key=lambda s: (s["source"], s["reason"]))


def _state(state: object) -> str:
    """Leaf 0 says "available"; without a final state that is all there is to go by."""
    if state in STATES:
        return str(state)
    return "recorded" if state == "available" else "not recorded"
