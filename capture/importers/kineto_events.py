"""Events of a Kineto trace as rows: what the GPU did, calls into its runtime, operators and ranges.

A trace is of one process: work of the GPU belongs to the process whose host events came first in the file. Work whose
call is not in the trace keeps its row; that it is not linked shows in the analysis.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from gpuaudit.capture.importers import kineto_values as values
from gpuaudit.capture.importers.batches import Batches
from gpuaudit.capture.importers.cells import Unreadable
from gpuaudit.capture.importers.model import MAX_TIME_NS, Told

ACTIVITIES, CALLS, RANGES = "gpu_activities", "cuda_calls", "user_ranges"

CATEGORIES: dict[str, tuple[str, str]] = {
    "kernel": (ACTIVITIES, "kernel"),
    "gpu_memcpy": (ACTIVITIES, "memcpy"), "memcpy": (ACTIVITIES, "memcpy"),
    "gpu_memset": (ACTIVITIES, "memset"), "memset": (ACTIVITIES, "memset"),
    "cuda_sync": (ACTIVITIES, "sync"),
    "cuda_runtime": (CALLS, ""), "runtime": (CALLS, ""), "cuda_driver": (CALLS, ""), "driver": (CALLS, ""),
    "hip_runtime": (CALLS, ""),
    "cpu_op": (RANGES, "operator"), "operator": (RANGES, "operator"),
    "user_annotation": (RANGES, "annotation"),
    "python_function": (RANGES, "python"),
    "gpu_user_annotation": (RANGES, "gpu_annotation"),
    "trace": (RANGES, "annotation"),
}  # fmt: skip
"""Category of an event, in small letters (PyTorch before 1.13 wrote Kernel, Memcpy, Operator) → table and op."""

KINDS: dict[str, str] = {
    "s": "start of an arrow", "t": "step of an arrow", "f": "end of an arrow", "i": "instant", "C": "counter",
    "M": "label of a process or thread", "X": "event",
}  # fmt: skip
"""``ph`` of an event (Chrome's trace event format) → what it is."""

OTHER_KIND = "event of another kind"

MAX_WAITING = 65_536
"""Rows of the GPU that wait for the first host event, which tells their process; in Kineto's traces none do."""

MAX_KINDS = 64
"""Different kinds of events that are not carried and told by name; the rest count together."""

FIRST_FREE_PID = 1 << 22
"""PID_MAX_LIMIT of the Linux kernel (include/linux/threads.h): no process has this id or one above it."""


MAX_PROCESSES = 1024
"""Processes of one trace: it is of one, and of children that a merged trace brings."""


class Pids:
    """Process ids of all files of one import: two containers may each have a process 1, and they are not the same."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._mine: dict[int, int] = {}
        self.rank: int | None = None

    def of(self, recorded: int) -> int:
        """The process id that stands for ``recorded`` of this file."""
        known = self._mine.get(recorded)
        if known is None:
            if len(self._mine) >= MAX_PROCESSES:
                raise Unreadable(f"process {recorded} is one more than the {MAX_PROCESSES} that a trace may tell of")
            known = self._mine[recorded] = self._choose(recorded)
        return known

    @property
    def all(self) -> dict[int, int]:
        """Recorded process id → the one that stands for it."""
        return self._mine

    def _choose(self, recorded: int) -> int:
        taken = self._told.pids
        key = (recorded, self.rank)
        if key in taken:
            self._told.assume(f"Process {recorded} is taken to be the same as in an earlier file, of the same rank.")
            return taken[key]
        used = set(taken.values())
        pid = recorded
        if pid in used:
            pid = FIRST_FREE_PID
            while pid in used:
                pid += 1
            self._told.assume(
                f"Process {recorded} stands as {pid}: another rank's file has a process of that number, on another "
                "host or in another container."
            )
        taken[key] = pid
        return pid


class Events:
    """Turns events into rows; :meth:`finish` hands over what is left. Unreadable where an event is none."""

    def __init__(self, batches: Batches, told: Told, base_ns: int) -> None:
        self._batches = batches
        self._base_ns = base_ns
        self._calls = 0
        self._waiting: list[dict[str, object]] = []
        self._told = told
        self._places: dict[str, tuple[str, str, str]] = {}
        self._first_ns, self._last_ns = MAX_TIME_NS, -1
        self._makers: dict[str, Callable[[str, dict[str, Any], dict[str, Any], dict[str, object]], None]] = {
            ACTIVITIES: self._activity, CALLS: self._call, RANGES: self._range,
        }  # fmt: skip
        self.pids = Pids(told)
        self.process: int | None = None
        """The process whose GPU work the trace holds, as its rows have it."""
        self.names: dict[int, str] = {}
        self.left_out: Counter[str] = Counter()
        self.finer = self.cut_names = self.long_details = 0

    def add(self, event: dict[str, Any]) -> None:
        """One event of the trace."""
        phase, category = event.get("ph"), event.get("cat")
        place = self._place(category) if phase == "X" else None
        if place is None:
            self._other(phase, category, event)
            return
        start, duration, finer = values.times(event, self._base_ns)
        args = event.get("args")
        args = args if isinstance(args, dict) else {}
        name = event.get("name")
        if not isinstance(name, str):
            raise Unreadable(f"its name is {name!r:.40}, expected a text")
        row: dict[str, object] = {"start_ns": start, "duration_ns": duration, "op": place[1], "name": name}
        if len(name) > values.MAX_NAME_CHARS:
            row["name"] = name[: values.MAX_NAME_CHARS]
            self.cut_names += 1
        self.finer += finer
        self._makers[place[0]](place[2], event, args, row)
        self._first_ns = min(self._first_ns, start)
        self._last_ns = max(self._last_ns, start + (duration or 0))

    def _place(self, category: Any) -> tuple[str, str, str] | None:
        """Table, op and category in small letters; None for a category that is not carried."""
        try:
            return self._places[category]
        except (KeyError, TypeError):
            small = category.lower() if isinstance(category, str) else ""
            if small not in CATEGORIES:
                return None
            self._places[category] = (*CATEGORIES[small], small)
            return self._places[category]

    def finish(self) -> None:
        """Rows that waited in vain go without a process; then the times of the file are known."""
        self._release()
        self._batches.finish()
        if self._last_ns >= 0:
            self._told.at(self._first_ns)
            self._told.at(self._last_ns)

    def _activity(
        self, category: str, event: dict[str, Any], args: dict[str, Any], row: dict[str, object]
    ) -> None:  # fmt: skip
        name, integer = str(row["name"]), values.integer
        device = integer(args.get("device"), values.I32)
        row["device"] = integer(event.get("pid"), values.I32) if device is None else device
        row["context"] = integer(args.get("context"), values.I64)
        stream = integer(args.get("stream"), values.I64, -1)
        row["stream"] = integer(event.get("tid"), values.I64, -1) if stream is None else stream
        row["correlation"] = integer(args.get("correlation"), values.U64, 1)
        row["external_id"] = integer(args.get("External id", args.get("external id")), values.U64, 1)
        if row["op"] == "kernel":
            row["grid_x"], row["grid_y"], row["grid_z"] = values.three(args.get("grid"))
            row["block_x"], row["block_y"], row["block_z"] = values.three(args.get("block"))
            row["shared_bytes"] = integer(args.get("shared memory"), values.U64)
            row["graph"] = integer(args.get("graph id"), values.U64, 1)
            if "Collective name" in args or "Process Group Name" in args:
                row["collective"] = values.text(args.get("Collective name"))
                row["group_name"] = values.text(args.get("Process Group Name"))
                row["group_size"] = integer(args.get("Group size"), values.U32)
                row["group_ranks"] = values.text(args.get("Process Group Ranks"))
                row["in_elements"] = integer(args.get("In msg nelems"), values.U64)
                row["out_elements"] = integer(args.get("Out msg nelems"), values.U64)
                row["datatype"] = values.text(args.get("dtype"))
        elif category != "cuda_sync":
            row["size_bytes"] = integer(args.get("bytes"), values.U64)
            if row["op"] == "memcpy":
                row["direction"] = values.direction(name, args.get("kind"))
                row["pageable"] = values.pageable(name)
        self._of_the_gpu(row)

    def _of_the_gpu(self, row: dict[str, object]) -> None:
        if self.process is None and len(self._waiting) < MAX_WAITING:
            self._waiting.append(row)
            return
        row["pid"] = self.process
        self._batches.add(ACTIVITIES, row)

    def _call(self, category: str, event: dict[str, Any], args: dict[str, Any], row: dict[str, object]) -> None:  # noqa: ARG002
        self._of_the_host(event, row)
        row["op"] = row.pop("name")
        integer = values.integer
        row["correlation"] = integer(args.get("correlation"), values.U64, 1)
        row["size_bytes"] = integer(args.get("bytes", args.get("size")), values.U64)
        row["direction"] = integer(args.get("kind"), values.I32)
        row["stream"] = integer(args.get("stream"), values.U64)
        if "grid" in args:
            row["grid_x"], row["grid_y"], row["grid_z"] = values.three(args.get("grid"))
            row["block_x"], row["block_y"], row["block_z"] = values.three(args.get("block"))
            row["shared_bytes"] = integer(args.get("shared memory"), values.U64)
        row["cpu"], row["seq"] = 0, self._calls
        self._calls += 1
        self._batches.add(CALLS, row)

    def _range(self, category: str, event: dict[str, Any], args: dict[str, Any], row: dict[str, object]) -> None:
        row["correlation"] = values.integer(args.get("External id", args.get("external id")), values.U64, 1)
        if category in {"gpu_user_annotation", "trace"}:
            if self.process is None:
                self.left_out[f"{category} before the first event of a process"] += 1
                return
            row["pid"], row["tid"] = self.process, None
            args = {"device": event.get("pid"), "stream": event.get("tid")} if category != "trace" else {}
        else:
            self._of_the_host(event, row)
        row["detail"], long = values.detail(args)
        self.long_details += long
        self._batches.add(RANGES, row)

    def _of_the_host(self, event: dict[str, Any], row: dict[str, object]) -> None:
        recorded, tid = values.integer(event.get("pid"), values.U32), values.thread(event.get("tid"))
        if recorded is None or tid is None:
            raise Unreadable(f"pid {event.get('pid')!r:.40} and tid {event.get('tid')!r:.40} are no process and thread")
        pid = self.pids.of(recorded)
        row["pid"], row["tid"] = pid, tid
        if self.process is None:
            self.process = pid
            self._release()
        elif pid != self.process:
            self._told.assume(
                f"Host events of several processes: work of the GPU is taken to be of process {self.process}, whose "
                "came first."
            )

    def _release(self) -> None:
        for row in self._waiting:
            row["pid"] = self.process
            self._batches.add(ACTIVITIES, row)
        self._waiting.clear()

    def _other(self, phase: Any, category: Any, event: Mapping[str, Any]) -> None:
        """What is not carried as a row: names of processes are kept, the rest is counted."""
        args = event.get("args")
        if phase == "M":
            pid = values.integer(event.get("pid"), values.U32)
            if event.get("name") == "process_name" and isinstance(args, dict) and pid is not None:
                name = args.get("name")
                if isinstance(name, str) and len(self.names) < values.MAX_NAME_CHARS:
                    self.names.setdefault(pid, name[:256])
                return
            category = None
        kind = KINDS.get(phase, OTHER_KIND) if isinstance(phase, str) else OTHER_KIND
        told = f"{kind} ({category[:64]})" if isinstance(category, str) else kind
        self.left_out[told if told in self.left_out or len(self.left_out) < MAX_KINDS else "other events"] += 1
