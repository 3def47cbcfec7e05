"""Rows of an Nsight Systems export: what CUPTI, NVTX, the tracer of OS libraries and the kernel's scheduler told.

Column names and enumerations are those of NVIDIA's "SQLite Schema Reference" (Nsight Systems User Guide) and of CUPTI's
``cupti_activity.h``. A globalTid holds the process in bits 24–47 and the thread in bits 0–23.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gpuaudit.bundle import canonical
from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.capture.importers.batches import Batches
from gpuaudit.capture.importers.cells import Unreadable
from gpuaudit.capture.importers.foreign_sqlite import Cell, ForeignDatabase
from gpuaudit.capture.importers.ingero_values import U32, text, whole
from gpuaudit.capture.importers.kineto_events import Pids
from gpuaudit.capture.importers.model import MAX_TIME_NS, Told

U16 = (1 << 16) - 1
I32 = (1 << 31) - 1
I64 = (1 << 63) - 1
NO_STREAM = 0xFFFF_FFFF
"""CUPTI_SYNCHRONIZATION_INVALID_VALUE: a synchronisation of all streams of a context."""

MAX_NAME_CHARS = 1024
"""Demangled names of templates have thousands of characters; what tells them apart stands at the beginning."""

MAX_NAMES = 65_536
"""Names kept at hand; more are looked up again."""

MAX_THREADS = 262_144
"""Threads whose open calls are remembered, as for other imports."""

COPY_KINDS = {1: ("HtoD", 1), 2: ("DtoH", 2), 3: ("HtoA", 1), 4: ("AtoH", 2), 5: ("AtoA", 3), 6: ("AtoD", 3),
              7: ("DtoA", 3), 8: ("DtoD", 3), 9: ("HtoH", 0), 10: ("PtoP", 10)}  # fmt: skip
"""CUpti_ActivityMemcpyKind → its name and the cudaMemcpyKind of our tables."""

PAGEABLE, PINNED = 1, 2
"""CUpti_ActivityMemoryKind."""

SYNCS = {1: "event synchronize", 2: "stream wait event", 3: "stream synchronize", 4: "context synchronize"}
"""CUpti_ActivitySynchronizationType."""

NVTX_MARK, NVTX_PUSH_POP, NVTX_START_END = 34, 59, 60
"""ENUM_NSYS_EVENT_TYPE: the kinds of NVTX events that are moments or ranges; the others name and define."""

UNMATCHED = "switches of threads of which the one before or after was not recorded"

_VERSIONED = re.compile(r"(cuda\w+?)_v[0-9]{4,}\Z", re.ASCII)
"""The runtime's names carry the version that their arguments had first: cudaLaunchKernel_v7000."""

Row = Mapping[str, Cell]


@dataclass
class Names:
    """Texts of StringIds, looked up when asked for: a file may hold millions, and few are names of calls."""

    database: ForeignDatabase
    _known: dict[int, str] = field(default_factory=dict)

    def of(self, number: Cell) -> str:
        """The text of one id; empty where there is none."""
        if not isinstance(number, int):
            return ""
        known = self._known.get(number)
        if known is None:
            rows = self.database.rows("SELECT value FROM StringIds WHERE id = ? LIMIT 1", (number,))
            known = next((text(v, MAX_NAME_CHARS) for (v,) in rows), "")
            if len(self._known) >= MAX_NAMES:
                self._known.clear()
            self._known[number] = known
        return known


@dataclass
class Rows:
    """Makes rows of our tables; Unreadable where a cell cannot be. ``base_ns`` is UTC at the session's own zero."""

    out: Batches
    names: Names
    pids: Pids
    told: Told
    base_ns: int
    left: Counter[str] = field(default_factory=Counter)
    """What was not carried, by what it is."""
    _open: dict[tuple[int, int], list[tuple[int, int, str]]] = field(default_factory=dict)
    _calls: int = 0
    _switches: int = 0
    _away: dict[tuple[int, int], tuple[int, int | None]] = field(default_factory=dict)
    """Threads that are off a CPU just now: since when, and which one they left."""

    def kernel(self, r: Row) -> None:
        """CUPTI_ACTIVITY_KIND_KERNEL."""
        grid = {f"grid_{x}": _unsigned(r[f"grid{x.upper()}"], U32) for x in "xyz"}
        block = {f"block_{x}": _unsigned(r[f"block{x.upper()}"], U32) for x in "xyz"}
        name = self.names.of(r["demangledName"]) or self.names.of(r["shortName"]) or "name not recorded"
        shared = [v for k in ("staticSharedMemory", "dynamicSharedMemory") if (v := _unsigned(r[k], I64)) is not None]
        self._activity(r, "kernel", name, {**grid, **block, "shared_bytes": sum(shared) if shared else None})

    def memcpy(self, r: Row) -> None:
        """CUPTI_ACTIVITY_KIND_MEMCPY."""
        kind = r["copyKind"] if isinstance(r["copyKind"], int) else 0
        name, direction = COPY_KINDS.get(kind, ("of unknown kind", None))
        host = r["srcKind"] if direction == 1 else r["dstKind"] if direction == 2 else None
        pageable = {PAGEABLE: 1, PINNED: 0}.get(host) if isinstance(host, int) else None
        more = {"size_bytes": _unsigned(r["bytes"], I64), "direction": direction, "pageable": pageable}
        self._activity(r, "memcpy", f"memcpy {name}", more)

    def memset(self, r: Row) -> None:
        """CUPTI_ACTIVITY_KIND_MEMSET."""
        self._activity(r, "memset", "memset", {"size_bytes": _unsigned(r["bytes"], I64)})

    def sync(self, r: Row) -> None:
        """CUPTI_ACTIVITY_KIND_SYNCHRONIZATION."""
        kind = r["syncType"] if isinstance(r["syncType"], int) else 0
        self._activity(r, "sync", SYNCS.get(kind, "synchronize"), {})

    def graph(self, r: Row) -> None:
        """CUPTI_ACTIVITY_KIND_GRAPH_TRACE: a graph as a whole, where its nodes were not traced one by one."""
        if r["start"] == r["end"] == 0:  # CUPTI could not tell
            self.left["executions of graphs without a recorded time"] += 1
            return
        self._activity({**r, "graphNodeId": r["graphId"]}, "graph", "graph", {})

    def _activity(self, r: Row, op: str, name: str, more: Mapping[str, object]) -> None:
        start, duration = self._span(r)
        owner = r["globalPid"]
        stream = _unsigned(r["streamId"], I64)
        self.out.add("gpu_activities", {
            "start_ns": start, "duration_ns": duration, "op": op, "name": name,
            "pid": None if owner is None else self._thread(owner)[0],
            "device": _unsigned(r["deviceId"], I32), "context": _unsigned(r["contextId"], I64),
            "stream": -1 if stream == NO_STREAM else stream, "correlation": _unsigned(r["correlationId"], I64) or None,
            "graph": _unsigned(r["graphNodeId"], I64) or None, **more,
        })  # fmt: skip

    def call(self, r: Row) -> None:
        """CUPTI_ACTIVITY_KIND_RUNTIME, in order of start and outer ones first: calls of the runtime and the driver."""
        start, duration = self._span(r)
        pid, tid = self._thread(r["globalTid"])
        name = self.names.of(r["nameId"])
        if not name:
            raise Unreadable(f"nameId is {r['nameId']!r:.40}, which StringIds does not have")
        versioned = _VERSIONED.match(name)
        op = versioned[1] if versioned else name[:128]
        parent = self._around(pid, tid, start, duration, op)
        self.out.add("cuda_calls", {
            "start_ns": start, "duration_ns": duration, "pid": pid, "tid": tid, "op": op,
            "return_code": _signed(r["returnValue"]), "correlation": _unsigned(r["correlationId"], I64) or None,
            "parent_ns": parent[0] if parent else None, "parent_op": parent[1] if parent else None, "seq": self._calls,
        })  # fmt: skip
        self._calls += 1

    def _around(self, pid: int, tid: int, start: int, duration: int | None, op: str) -> tuple[int, str] | None:
        """The innermost call of the thread that this one lies in."""
        end = start + (duration or 0)
        around = self._open.setdefault((pid, tid), [])
        if len(self._open) > MAX_THREADS:
            raise InputUnusable(f"calls of more than {MAX_THREADS} threads", hint="is it one host's recording?")
        while around and around[-1][1] <= start:
            around.pop()
        parent = next(((a, name) for a, b, name in reversed(around) if end <= b), None)
        if duration is not None:
            around.append((start, end, op))
        return parent

    def os_call(self, r: Row) -> None:
        """OSRT_API."""
        start, duration = self._span(r)
        pid, tid = self._thread(r["globalTid"])
        name = self.names.of(r["nameId"])
        if not name:
            raise Unreadable(f"nameId is {r['nameId']!r:.40}, which StringIds does not have")
        self.out.add("os_calls", {
            "start_ns": start, "duration_ns": duration, "pid": pid, "tid": tid, "op": name[:128],
            "return_code": _signed(r["returnValue"], I64),
        })  # fmt: skip

    def switch(self, r: Row) -> None:
        """SCHED_EVENTS: a row where a thread comes back to a CPU, from when it left one."""
        at = self._moment(r["start"])
        key, came, cpu = self._thread(r["globalTid"]), r["isSchedIn"], _unsigned(r["cpu"], U16)
        if not isinstance(came, int):
            raise Unreadable(f"isSchedIn is {came!r:.40}")
        left = self._away.pop(key, None)
        if not came:
            if left is not None:
                self.left[UNMATCHED] += 1
            if len(self._away) >= MAX_THREADS:
                raise InputUnusable(f"switches of more than {MAX_THREADS} threads", hint="is it one host's recording?")
            self._away[key] = at, cpu
        elif left is None:
            self.left[UNMATCHED] += 1
        else:
            self.out.add("off_cpu", {
                "start_ns": left[0], "duration_ns": at - left[0], "pid": key[0], "tid": key[1], "op": "off",
                "cpu_out": left[1], "cpu": cpu, "seq": self._switches,
            })  # fmt: skip
            self._switches += 1

    def finish(self) -> None:
        """When every table was read: a thread that did not come back may have ended, and has no row for that."""
        if self._away:
            self.left[UNMATCHED] += len(self._away)
            self._away.clear()

    def nvtx(self, r: Row) -> None:
        """NVTX_EVENTS: ranges and marks; the others define domains, categories and names."""
        kind = r["eventType"]
        if kind not in (NVTX_MARK, NVTX_PUSH_POP, NVTX_START_END):
            self.left["NVTX events that define names, categories and domains"] += 1
            return
        start, duration = self._span(r)
        pid, tid = self._thread(r["globalTid"])
        name = text(r["text"], MAX_NAME_CHARS) or self.names.of(r["textId"])
        detail = {k: str(r[c]) for k, c in (("domain", "domainId"), ("category", "category")) if r[c]}
        if kind == NVTX_MARK:
            duration, detail = 0, {**detail, "kind": "mark"}
        elif kind == NVTX_START_END:
            detail["kind"] = "start and end, which may be of two threads"
        self.out.add("user_ranges", {
            "start_ns": start, "duration_ns": duration, "pid": pid, "tid": tid, "op": "nvtx", "name": name,
            "detail": canonical.dumps(detail).decode() if detail else None,
        })  # fmt: skip

    def _span(self, r: Row) -> tuple[int, int | None]:
        """Start and length; a row without an end was open when the recording stopped."""
        start = self._moment(r["start"])
        if r["end"] is None:
            return start, None
        end = whole(r["end"], "end", -MAX_TIME_NS, MAX_TIME_NS) + self.base_ns
        if not start <= end < MAX_TIME_NS:
            raise Unreadable(f"it ends at {end} ns, and begins at {start} ns")
        self.told.at(end)
        return start, end - start

    def _moment(self, value: Cell) -> int:
        at = whole(value, "start", -MAX_TIME_NS, MAX_TIME_NS) + self.base_ns
        if not 0 <= at < MAX_TIME_NS:
            raise Unreadable(f"it begins at {at} ns")
        self.told.at(at)
        return at

    def _thread(self, value: Cell) -> tuple[int, int]:
        """Process, as it stands in the bundle, and thread of a globalTid."""
        number = whole(value, "globalTid", -(1 << 63), I64)
        return self.pids.of(number >> 24 & 0xFF_FFFF), number & 0xFF_FFFF


def _unsigned(value: Cell, most: int) -> int | None:
    """A number that is not negative and fits; None for anything else, which a defaulted cell may hold."""
    return value if isinstance(value, int) and 0 <= value <= most else None


def _signed(value: Cell, most: int = I32) -> int | None:
    return value if isinstance(value, int) and -most - 1 <= value <= most else None


@dataclass(frozen=True)
class Source:
    """A table of the export: columns without which it is not that table, others that are read, and what reads a row."""

    table: str
    needed: tuple[str, ...]
    also: tuple[str, ...]
    make: Callable[[Rows, Row], None]
    order: str = '"start", "end" DESC'
    """SQL: a call comes before the calls inside it, and a thread comes to a CPU before it leaves one."""


_GPU = ("deviceId", "contextId", "streamId", "correlationId")
_GPU_ALSO = ("globalPid", "graphNodeId")
_SHAPE = tuple(f"{what}{x}" for what in ("grid", "block") for x in "XYZ")

SOURCES = (
    Source("CUPTI_ACTIVITY_KIND_KERNEL", ("start", "end", *_GPU),
           (*_GPU_ALSO, *_SHAPE, "demangledName", "shortName", "staticSharedMemory", "dynamicSharedMemory"),
           Rows.kernel),
    Source("CUPTI_ACTIVITY_KIND_MEMCPY", ("start", "end", *_GPU, "bytes", "copyKind"),
           (*_GPU_ALSO, "srcKind", "dstKind"), Rows.memcpy),
    Source("CUPTI_ACTIVITY_KIND_MEMSET", ("start", "end", *_GPU, "bytes"), _GPU_ALSO, Rows.memset),
    Source("CUPTI_ACTIVITY_KIND_GRAPH_TRACE", ("start", "end", *_GPU), ("globalPid", "graphId"), Rows.graph),
    Source("CUPTI_ACTIVITY_KIND_SYNCHRONIZATION", ("start", "end", "contextId", "streamId", "correlationId"),
           ("deviceId", *_GPU_ALSO, "syncType"), Rows.sync),
    Source("CUPTI_ACTIVITY_KIND_RUNTIME", ("start", "end", "globalTid", "nameId", "correlationId"), ("returnValue",),
           Rows.call),
    Source("NVTX_EVENTS", ("start", "end", "eventType", "globalTid"), ("text", "textId", "domainId", "category"),
           Rows.nvtx),
    Source("OSRT_API", ("start", "end", "globalTid", "nameId"), ("returnValue",), Rows.os_call),
    Source("SCHED_EVENTS", ("start", "cpu", "isSchedIn", "globalTid"), (), Rows.switch, '"start", "isSchedIn" DESC'),
)  # fmt: skip
