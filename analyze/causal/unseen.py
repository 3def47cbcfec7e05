"""Time of an effect in which a detector was blind: gaps in the recording of the tables that it joins on. Units: ns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpuaudit.analyze import intervals
from gpuaudit.analyze.causal.findings import Explained
from gpuaudit.analyze.words import duration

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

OF_EFFECTS = frozenset({"cuda_calls", "nccl_calls"})
"""Tables that effects come from: what is missing there is an effect that nobody knows of."""


def notes(context: Context, group: Sequence[Explained]) -> Iterator[str]:
    """For each table that the detector of ``group`` joins on, the time of its effects that lies in gaps of it."""
    known = group[0].known
    for table in (t for t, _ in known.declaration.inputs if t not in OF_EFFECTS):
        ns = sum(
            intervals.measure(intervals.intersect(x.effect.time, _gaps(context, table, x.effect.pid))) for x in group
        )
        if ns:
            yield f"for {duration(ns)} of the effects {table} was not recorded (gaps): the cause may cover more of them"


def _gaps(context: Context, table: str, pid: int) -> intervals.Intervals:
    if not context.store.row_count("gaps"):
        return intervals.EMPTY
    a = context.store.arrays(
        f"SELECT start_ns::BIGINT AS a, coalesce(end_ns, {context.window.end_ns})::BIGINT AS b FROM gaps "
        f"WHERE coalesce(table_name, source) = '{table}' AND (pid IS NULL OR pid = {int(pid)})"
    )
    return intervals.from_bounds(a["a"], a["b"])
