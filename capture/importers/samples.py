"""Samples of a log, held until the next one of the same GPU says how long they stood; memory is bounded by the GPUs."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median_low

from gpuaudit.capture.importers.model import RowSink, Told

HOLE_FACTOR = 3
"""A sample later than this many usual intervals leaves a hole: one poll may be late, two missing are not one."""

INTERVALS_KEPT = 31
"""Last intervals whose median is the usual one."""

BATCH_ROWS = 4096

RAN_BACK = (
    "Times run back at line {line}: a clock was set back, summer time ended, or logs were joined in another order. "
    "Lines are left out until the time before is passed, and later ones may stand too early by as much; import such "
    "parts apart."
)


@dataclass
class _Held:
    time_ns: int
    row: dict[str, object]
    intervals: list[int] = field(default_factory=list)


class Samples:
    """Gives every row its ``duration_ns`` and hands rows over in batches; call :meth:`finish` at the end."""

    def __init__(self, source: str, sink: RowSink, told: Told) -> None:
        self._source = source
        self._sink = sink
        self._told = told
        self._held: dict[tuple[str, int, str], _Held] = {}
        self._ran_back = False
        self._batches: dict[str, list[dict[str, object]]] = {}

    def add(self, table: str, index: int, uuid: str, time_ns: int, values: dict[str, object]) -> None:
        """One sample; a time before the last one of the same GPU is refused as out of order."""
        row = {"start_ns": time_ns, "gpu_index": index, "gpu_uuid": uuid, **values}
        held = self._held.get((table, index, uuid))
        if held is None:
            self._held[table, index, uuid] = _Held(time_ns, row)
        elif time_ns <= held.time_ns:
            self._told.refuse(self._told.lines, f"GPU {index}: its time is not after that of the row before")
            if time_ns < held.time_ns and not self._ran_back:
                self._ran_back = True
                self._told.assume(RAN_BACK.format(line=self._told.lines))
            return
        else:
            self._emit(table, held, time_ns, index)
            held.time_ns, held.row = time_ns, row
        self._told.at(time_ns)

    def finish(self) -> None:
        """Hand over what is left; nothing says how long the last samples stood."""
        for (table, _, _), held in sorted(self._held.items(), key=lambda item: item[0]):
            self._give(table, {**held.row, "duration_ns": None})
        for table, rows in self._batches.items():
            self._hand_over(table, rows)

    def _emit(self, table: str, held: _Held, next_ns: int, index: int) -> None:
        lasted = next_ns - held.time_ns
        usual = median_low(held.intervals) if held.intervals else lasted
        if lasted > HOLE_FACTOR * usual:
            end = held.time_ns + usual
            self._sink.gap(self._source, f"the log has no sample of GPU {index}", end, next_ns, table=table)
            lasted = usual
        else:
            held.intervals.append(lasted)
            del held.intervals[:-INTERVALS_KEPT]
        self._give(table, {**held.row, "duration_ns": lasted})

    def _give(self, table: str, row: dict[str, object]) -> None:
        batch = self._batches.setdefault(table, [])
        batch.append(row)
        if len(batch) >= BATCH_ROWS:
            self._hand_over(table, batch)

    def _hand_over(self, table: str, rows: list[dict[str, object]]) -> None:
        if rows:
            self._sink.add_records(table, rows)
            self._told.rows[table] += len(rows)
            rows.clear()
