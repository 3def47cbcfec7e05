"""Traces of NCCL's example profiler plugin (``ext-profiler/example``): asynchronous Chrome events, one on each line.

By the plugin's README; not verified against a trace of a GPU host. Collectives and point-to-point operations become
rows of ``nccl_calls``; steps of its network proxy are counted. Times are µs of a clock of the process that starts at
no known time: a bundle of one such file has an axis of its own.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.capture.importers.batches import Batches
from gpuaudit.capture.importers.cells import Unreadable
from gpuaudit.capture.importers.kineto_events import Pids
from gpuaudit.capture.importers.kineto_values import integer
from gpuaudit.capture.importers.model import MAX_TIME_NS, Format, Line, Request, RowSink, Told

I32, U32, U64 = (1 << 31) - 1, (1 << 32) - 1, (1 << 64) - 1
OPERATIONS = ("COLL", "P2P")
MAX_OPEN = 65_536
"""Operations that have begun and not ended; the plugin's own pools have 16 collectives and 1,024 transfers."""

MAX_UNREADABLE = 10_000
MAX_KINDS = 64

DATATYPES = {
    "ncclInt8": (0, 1), "ncclUint8": (1, 1), "ncclInt32": (2, 4), "ncclUint32": (3, 4), "ncclInt64": (4, 8),
    "ncclUint64": (5, 8), "ncclFloat16": (6, 2), "ncclFloat32": (7, 4), "ncclFloat64": (8, 8), "ncclBfloat16": (9, 2),
    "ncclFloat8e4m3": (10, 1), "ncclFloat8e5m2": (11, 1),
}  # fmt: skip
"""Name → ncclDataType_t (nccl.h) and bytes of an element."""

_NAME = re.compile(r"[A-Z][A-Za-z0-9]{1,63}\Z", re.ASCII)


@dataclass
class _Trace:
    """The state of reading one trace."""

    out: Batches
    told: Told
    pids: Pids
    others: Counter[str] = field(default_factory=Counter)
    open: dict[tuple[str, str, int, int], dict[str, object]] = field(default_factory=dict)
    rows: int = 0

    def event(self, e: Mapping[str, Any]) -> None:
        """One event; Unreadable where it is none."""
        category, phase = e.get("cat"), e.get("ph")
        if category not in OPERATIONS or phase not in ("b", "e"):
            kind = str(category)[:64]
            self.others[kind if len(self.others) < MAX_KINDS or kind in self.others else "other kinds"] += 1
            return
        name = e.get("name")
        if not isinstance(name, str) or not _NAME.match(name):
            raise Unreadable(f"name is {name!r:.40}, expected an operation like AllReduce")
        recorded = integer(e.get("pid"), U32)
        number = integer(e.get("id"), U64)
        if recorded is None or number is None:
            raise Unreadable("pid or id is no number")
        at_ns = _time(e.get("ts"))
        key = (str(category), name, number, recorded)
        if phase == "b":
            self._begin(key, at_ns, e.get("args"))
        else:
            self._end(key, at_ns)

    def _begin(self, key: tuple[str, str, int, int], at_ns: int, args: Any) -> None:
        if not isinstance(args, dict):
            raise Unreadable("args is no object")
        if key in self.open:
            self._give(self.open.pop(key), None)
        if len(self.open) >= MAX_OPEN:
            raise Unreadable(f"more than {MAX_OPEN} operations have begun and not ended")
        comm = integer(args.get("CommHash"), U64)
        if comm is None:
            raise Unreadable("CommHash is no number")
        count = integer(args.get("Count"), U64)
        code, size = DATATYPES.get(str(args.get("Datatype")), (None, None))
        total = count * size if count is not None and size is not None else None
        pid = self.pids.of(key[3])
        self.open[key] = {
            "start_ns": at_ns, "pid": pid, "tid": pid, "op": f"nccl{key[1]}", "comm_handle": comm, "comm_id": comm,
            "rank": integer(args.get("Rank"), I32), "peer": integer(args.get("Peer"), I32), "count": count,
            "datatype": code, "size_bytes": total if total is None or total <= U64 else None,
        }  # fmt: skip

    def _end(self, key: tuple[str, str, int, int], at_ns: int) -> None:
        row = self.open.pop(key, None)
        if row is None:
            raise Unreadable("it ends and has not begun")
        start = int(str(row["start_ns"]))
        if at_ns < start:
            raise Unreadable(f"it ends at {at_ns} ns, and begins at {start} ns")
        self._give(row, at_ns - start)

    def _give(self, row: dict[str, object], duration_ns: int | None) -> None:
        start = int(str(row["start_ns"]))
        self.told.at(start)
        self.told.at(start + (duration_ns or 0))
        self.out.add("nccl_calls", {**row, "duration_ns": duration_ns, "seq": self.rows})
        self.rows += 1

    def finish(self) -> None:
        """Operations that never ended."""
        for key in sorted(self.open):
            self._give(self.open[key], None)
        self.out.finish()


def _time(value: Any) -> int:
    """µs with decimals, exactly, in ns; what is finer is cut off."""
    known = isinstance(value, int | Decimal) and not isinstance(value, bool)
    if not known or not 0 <= value < MAX_TIME_NS // 1_000:
        raise Unreadable(f"ts is {value!r:.40}, expected µs")
    return int(value * 1_000)


def read(name: str, lines: Iterable[Line], sink: RowSink, request: Request, told: Told) -> None:  # noqa: ARG001
    """Rows of one trace; see :class:`gpuaudit.capture.importers.model.Reader`."""
    trace = _Trace(Batches(sink, told), told, Pids(told))
    trace.pids.rank = -1 - told.file  # which host wrote a file is not told: equal numbers may be of two
    for number, text in lines:
        told.lines = number
        try:
            event = _event(text)
            if event:
                trace.event(event)
        except Unreadable as e:
            told.refuse(number, str(e))
            if told.unreadable > MAX_UNREADABLE:
                raise InputUnusable(f"{name}: more than {MAX_UNREADABLE} lines cannot be read, as: {e}") from None
    trace.finish()
    _tell(trace, sink, told)


def _event(text: str) -> Mapping[str, Any]:
    """The event of one line, which may begin the array or end in a comma; nothing for what only closes it."""
    bare = text.strip().removeprefix("[").removesuffix("]").strip().removesuffix(",")
    if not bare:
        return {}
    try:
        event = json.loads(bare, parse_float=Decimal)
    except (ValueError, RecursionError) as e:
        raise Unreadable(f"no JSON: {str(e)[:80]}") from None
    if not isinstance(event, dict):
        raise Unreadable("not an object")
    return event


def _tell(trace: _Trace, sink: RowSink, told: Told) -> None:
    told.wall_clock = False
    told.facts = {"tool": "NCCL example profiler"}
    told.assume("The format is read by NCCL's documentation of its example profiler, not verified by a real trace.")
    told.assume("Times are those of a clock of the process, which is no wall clock, and stand as they are.")
    told.assume(
        "An operation ends when its launch has, or, where the profiler followed its network steps, with the last of "
        "them; the thread is not told, and taken to be the main thread."
    )
    told.not_carried += [f"events of kind {kind}: {n}" for kind, n in sorted(trace.others.items())]
    told.not_carried.append("algorithm, protocol, channels and sequence numbers")
    if told.first_ns is None:
        return
    made = [
        {"start_ns": told.first_ns, "pid": pid, "op": "found", "role": "traced", "seen_ns": told.first_ns,
         "comm": "name not recorded", "pid_in_namespace": recorded if pid != recorded else None}
        for recorded, pid in sorted(trace.pids.all.items())
    ]  # fmt: skip
    sink.add_records("processes", made)
    told.rows["processes"] += len(made)


def recognises(head: Sequence[str]) -> bool:
    """Whether it begins as an array of the plugin's own asynchronous events."""
    text = "\n".join(head[:4])
    return text.lstrip().startswith("[") and re.search(r'"cat": ?"(GROUP|COLL|P2P)", ?"ph": ?"b"', text) is not None


FORMAT = Format("NCCL profiler trace", "nccl", recognises, read)
