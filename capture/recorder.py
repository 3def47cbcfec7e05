"""The recorder: the only writer of a bundle. Batches of rows become segments, segments become sealed leaves.

Rows are held per table until a segment closes (see :class:`SegmentLimits`). Counters are exact and cumulative: of every
table, how many rows its source tried to hand over (``seen``), how many stand in the bundle (``written``) and how many
were lost. For a ring table, seen and lost come from the kernel's own counters; when everything has been drained,
seen = written + lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from gpuaudit.bundle.columns import Rows, check_rows, concat, from_records, readable, row_count
from gpuaudit.bundle.limits import SEGMENT_RAW_BYTES, SEGMENT_ROWS, SEGMENT_SECONDS
from gpuaudit.bundle.table import NUMPY_DTYPE, Table
from gpuaudit.bundle.tables import TABLES
from gpuaudit.capture.source import boottime_ns


class SegmentWriter(Protocol):
    """What the recorder needs of :class:`gpuaudit.bundle.writer.BundleWriter`."""

    def append_segment(
        self, table: Table, rows: Rows, *, seen: int, written: int, lost: int, critical: bool = False
    ) -> int:
        """Seal one segment; the counters are cumulative and include it."""

    def append_artefact(self, name: str, body: Mapping[str, Any]) -> int:
        """Seal a named piece of evidence that is not rows."""


SEAL_ROWS = min(200_000, SEGMENT_ROWS)
"""Before the format's million: sealing that many rows takes about 0.3 s of CPU, in which nobody drains, and a ring
holds a quarter of a second of 500,000 events a second (``python -m bench seal cadence``)."""


@dataclass(frozen=True)
class SegmentLimits:
    """When a segment closes: whichever comes first, within what format version 1 allows."""

    rows: int = SEAL_ROWS
    raw_bytes: int = SEGMENT_RAW_BYTES
    age_ns: int = SEGMENT_SECONDS * 1_000_000_000
    total_raw_bytes: int = 128 << 20
    """All open segments together: past it the largest one closes early, so that memory stays bounded."""


@dataclass
class TableCount:
    """Counters of one table since the capture began."""

    seen: int = 0
    written: int = 0
    lost: int = 0
    segments: int = 0

    def to_json(self) -> dict[str, str]:
        """Decimal strings, as the seal's totals hold them."""
        return {
            "seen": str(self.seen),
            "written": str(self.written),
            "lost": str(self.lost),
            "segments": str(self.segments),
        }


@dataclass
class _OpenSegment:
    parts: list[Rows] = field(default_factory=list)
    rows: int = 0
    raw_bytes: int = 0
    first_ns: int = 0
    critical: bool = False


@dataclass
class _RingCount:
    """Counters of one ring table, CPU → count. ``told`` is what the last ``losses`` row of a CPU said."""

    seen: dict[int, int] = field(default_factory=dict)
    lost: dict[int, int] = field(default_factory=dict)
    drained: Counter[int] = field(default_factory=Counter)
    told: dict[int, tuple[int, int, int]] = field(default_factory=dict)


_ROW_BYTES = {t.name: sum(np.dtype(NUMPY_DTYPE[c.type]).itemsize for c in t.columns) for t in TABLES.values()}
_AT_ONCE = frozenset({"gaps"})
"""Tables that do not wait for a full segment: what went wrong must survive what comes next."""

_CRITICAL = frozenset({"oom_kills"})
"""Ring tables whose rows are sealed at once, as events: the next victim may be the recorder."""

CRITICAL_BURST = 1000
CRITICAL_PAUSE_NS = 1_000_000_000
"""After so many segments of a table its critical rows, and gaps, are sealed once a second: a storm of events must not
fill the bundle, which has room for a million leaves."""

MAX_REASONS = 64
"""Different reasons of one source's gaps that are kept for its final state, which names four."""


class Recorder:
    """Holds open segments and seals them; one thread only. ``now_ns`` is CLOCK_BOOTTIME, or a scenario's clock."""

    def __init__(
        self, writer: SegmentWriter, *, limits: SegmentLimits | None = None, now_ns: Callable[[], int] = boottime_ns
    ) -> None:
        self._writer = writer
        self._limits = limits or SegmentLimits()
        self._now_ns = now_ns
        self._open: dict[str, _OpenSegment] = {}
        self._artefacts: list[tuple[str, Mapping[str, object]]] = []
        self._critical_ns: dict[str, int] = {}
        self._direct_seen: dict[str, int] = dict.fromkeys(TABLES, 0)
        self._direct_lost: dict[str, int] = dict.fromkeys(TABLES, 0)
        self._rings: dict[str, _RingCount] = {}
        self.counts: dict[str, TableCount] = {name: TableCount() for name in TABLES}
        self.gap_reasons: dict[str, list[str]] = {}
        """Source → why it could not see for a time, for the final state of the sources."""

    def add(self, table: str, rows: Rows) -> None:
        """Take rows of a source other than a ring. Rows that do not fit the table are lost, and a gap says so."""
        count = max((len(c) for c in rows.values()), default=0)
        self._direct_seen[table] += count
        try:
            check_rows(TABLES[table], rows)
        except ValueError as e:
            self._refuse(table, count, str(e))
            return
        self._hold(table, rows)

    def add_records(self, table: str, records: Sequence[Mapping[str, object]]) -> None:
        """The same as one mapping per row; of several rows only those that do not fit are lost."""
        if not records:
            return
        self._direct_seen[table] += len(records)
        fitting, why = _fitting(TABLES[table], records)
        for rows in fitting:
            self._hold(table, rows)
        if table == "gaps":
            self._note_reasons(records)
        if why:
            self._refuse(table, len(records) - sum(row_count(rows) for rows in fitting), why)

    def add_critical(self, table: str, records: Sequence[Mapping[str, object]]) -> None:
        """The same for rows that are sealed at the next :meth:`tick`, with what their segment holds already."""
        self.add_records(table, records)
        if table in self._open:
            self._open[table].critical = True

    def artefact(self, name: str, body: Mapping[str, object]) -> None:
        """Take a named piece of evidence that is not rows; sealed at the next :meth:`tick`."""
        self._artefacts.append((name, body))

    def add_drained(self, table: str, rows: Rows) -> None:
        """Take rows drained from the table's ring; ``seen`` and ``lost`` come through :meth:`ring_counters`."""
        self._hold(table, rows)
        if table in _CRITICAL and table in self._open:
            self._open[table].critical = True
        ring = self._rings.setdefault(table, _RingCount())
        counts = np.bincount(rows["cpu"].values)
        ring.drained.update({cpu: int(counts[cpu]) for cpu in np.flatnonzero(counts).tolist()})

    def ring_counters(self, table: str, seen: Mapping[int, int], lost: Mapping[int, int]) -> None:
        """The kernel's counters of a ring, cumulative, CPU → count; read them after the drain."""
        ring = self._rings.setdefault(table, _RingCount())
        ring.seen, ring.lost = dict(seen), dict(lost)

    def gap(
        self, source: str, reason: str, start_ns: int, end_ns: int | None, *, table: str | None = None,
        pid: int | None = None,
    ) -> None:  # fmt: skip
        """Time in which ``source`` could not see; sealed at the next :meth:`tick`."""
        duration = None if end_ns is None else max(0, end_ns - start_ns)
        row = {
            "start_ns": start_ns,
            "duration_ns": duration,
            "source": source,
            "table_name": table,
            "pid": pid,
            "reason": reason,
        }
        self.add_records("gaps", [row])

    def tick(self) -> int:
        """Close every segment that is due; returns how many."""
        now = self._now_ns()
        due = [t for t, s in self._open.items() if self._is_due(t, s, now)]
        held = sum(s.raw_bytes for s in self._open.values())
        if held > self._limits.total_raw_bytes and not due:
            due = [max(self._open, key=lambda t: self._open[t].raw_bytes)]
        for table in sorted(due, key=lambda t: not self._open[t].critical):
            self._close(table, now)
        self._write_artefacts()
        return len(due)

    def flush(self) -> None:
        """Write artefacts and close every open segment, the losses last: they count what was sealed before them."""
        now = self._now_ns()
        self._write_artefacts()
        for table in [t for t in TABLES if t in self._open and t != "losses"]:
            self._close(table, now)
        for table in self._rings:
            self._tell_losses(table, now)
        if "losses" in self._open:
            self._close("losses", now)

    def drop_held(self) -> tuple[int, int]:
        """Give up the rows of open segments, for which there is no room: they count as lost.

        Returns how many, and when the first of them came (CLOCK_BOOTTIME; now, if there were none).
        """
        dropped, first_ns = 0, self._now_ns()
        for table, segment in self._open.items():
            self._direct_lost[table] += segment.rows
            dropped += segment.rows
            first_ns = min(first_ns, segment.first_ns)
        self._open.clear()
        self._artefacts.clear()
        return dropped, first_ns

    def settle(self) -> None:
        """Nothing will be drained any more: records that are still in a ring are lost."""
        for table, ring in self._rings.items():
            unread = sum(ring.seen.values()) - sum(ring.lost.values()) - sum(ring.drained.values())
            self._direct_lost[table] += max(0, unread)

    @property
    def held_bytes(self) -> int:
        """Raw bytes of all open segments."""
        return sum(s.raw_bytes for s in self._open.values())

    def totals(self) -> dict[str, dict[str, str]]:
        """Counters of every table, for the seal."""
        for table in TABLES:
            self._count(table)
        return {table: count.to_json() for table, count in self.counts.items()}

    def lost(self) -> int:
        """Rows lost so far, in all tables."""
        return sum(self._count(table).lost for table in TABLES)

    def rows_taken(self) -> dict[str, int]:
        """Rows per table so far, sealed or held."""
        return {t: c.written + (self._open[t].rows if t in self._open else 0) for t, c in self.counts.items()}

    def _hold(self, table: str, rows: Rows) -> None:
        count = row_count(rows)
        if not count:
            return
        segment = self._open.setdefault(table, _OpenSegment(first_ns=self._now_ns()))
        segment.parts.append(rows)
        segment.rows += count
        segment.raw_bytes += count * _ROW_BYTES[table]

    def _note_reasons(self, gaps: Sequence[Mapping[str, object]]) -> None:
        """Each reason of a source once: a source that is late all day gives the same ones again and again."""
        for gap in gaps:
            told = self.gap_reasons.setdefault(str(gap.get("source")), [])
            reason = readable(str(gap.get("reason")))  # it may hold a path, and paths are any bytes
            if len(told) < MAX_REASONS and reason not in told:
                told.append(reason)

    def _refuse(self, table: str, count: int, why: str) -> None:
        self._direct_lost[table] += count
        if table != "gaps":
            now = self._now_ns()
            self.gap(table, f"rows did not fit the table and were dropped ({count}): {why:.300}", now, now, table=table)

    def _is_due(self, table: str, segment: _OpenSegment, now: int) -> bool:
        limits = self._limits
        return (
            ((segment.critical or table in _AT_ONCE) and self._may_seal_critical(table, now))
            or segment.rows >= limits.rows
            or segment.raw_bytes >= limits.raw_bytes
            or now - segment.first_ns >= limits.age_ns
        )

    def _may_seal_critical(self, table: str, now: int) -> bool:
        few = self.counts[table].segments < CRITICAL_BURST
        return few or now - self._critical_ns.get(table, 0) >= CRITICAL_PAUSE_NS

    def _write_artefacts(self) -> None:
        while self._artefacts:
            name, body = self._artefacts[0]
            try:
                self._writer.append_artefact(name, body)
            except ValueError as e:  # canonical JSON cannot hold it: that costs this piece, not the capture
                now = self._now_ns()
                self.gap("recorder", f"the artefact {name} could not be written: {e!s:.300}", now, now)
            self._artefacts.pop(0)

    def _count(self, table: str) -> TableCount:
        count = self.counts[table]
        ring = self._rings.get(table)
        count.seen = self._direct_seen[table] + (sum(ring.seen.values()) if ring else 0)
        count.lost = self._direct_lost[table] + (sum(ring.lost.values()) if ring else 0)
        return count

    def _close(self, table: str, now: int) -> None:
        """Seal the open segment, in pieces if one drain brought more than a segment may hold.

        What was not sealed stays held when the writer fails, so that :meth:`drop_held` counts it as lost.
        """
        segment = self._open[table]
        rest = concat(segment.parts)
        count = self._count(table)
        while segment.rows:
            n = min(self._limits.rows, segment.rows)
            part = rest if n == segment.rows else _slice(rest, 0, n)
            written = count.written + n
            self._writer.append_segment(
                TABLES[table], part, seen=count.seen, written=written, lost=count.lost, critical=segment.critical
            )
            count.written = written
            count.segments += 1
            rest = _slice(rest, n, segment.rows)
            segment.parts = [rest]
            segment.rows -= n
            segment.raw_bytes = segment.rows * _ROW_BYTES[table]
        if segment.critical or table in _AT_ONCE:
            self._critical_ns[table] = now
        del self._open[table]
        if table in self._rings:
            self._tell_losses(table, now)

    def _tell_losses(self, table: str, now: int) -> None:
        """A ``losses`` row for every CPU whose counters changed since the last one."""
        ring = self._rings[table]
        records = []
        for cpu, seen in sorted(ring.seen.items()):
            counters = (seen, ring.drained[cpu], ring.lost.get(cpu, 0))
            if counters != ring.told.get(cpu, (0, 0, 0)):
                row = {"start_ns": now, "duration_ns": None, "table_name": table, "cpu": cpu}
                records.append({**row, "seen": counters[0], "written": counters[1], "lost": counters[2]})
                ring.told[cpu] = counters
        self.add_records("losses", records)


def _fitting(table: Table, records: Sequence[Mapping[str, object]]) -> tuple[list[Rows], str]:
    """Columns of the records that fit the table, in order, and why the first of the others does not (empty: all do).

    By halves, so that one bad record among thousands costs a few tries and no other record.
    """
    try:
        return [from_records(table, records)], ""
    except (ValueError, OverflowError) as e:
        if len(records) == 1:
            return [], str(e)
    middle = len(records) // 2
    left, why = _fitting(table, records[:middle])
    right, why_right = _fitting(table, records[middle:])
    return [*left, *right], why or why_right


def _slice(rows: Rows, at: int, end: int) -> Rows:
    return {
        name: type(c)(c.values[at:end], None if c.valid is None else c.valid[at:end], c.dictionary)
        for name, c in rows.items()
    }
