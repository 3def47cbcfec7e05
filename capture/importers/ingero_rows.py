"""Rows of ``events`` of an Ingero database, in order of time, turned into rows of our tables.

The interval of a CUDA, driver or graph row is [timestamp, timestamp + duration); that of a switch, a disk request, a
socket call or a retransmit is [timestamp − duration, timestamp). A call that lies inside another of its thread has that
one as parent; a wake-up inside an interval off the CPU belongs to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.capture.importers.batches import Batches
from gpuaudit.capture.importers.cells import Unreadable
from gpuaudit.capture.importers.foreign_sqlite import Cell
from gpuaudit.capture.importers.ingero_processes import People
from gpuaudit.capture.importers.ingero_stacks import Stacks
from gpuaudit.capture.importers.ingero_values import (
    BLOCK,
    BLOCK_OPS,
    CALLS,
    HOST,
    LIFE_OPS,
    NET,
    OOM,
    PAGES_SUM,
    SECTOR_BYTES,
    SWITCH,
    SWITCH_SUM,
    TCP,
    U32,
    WAKEUP,
    Call,
    time_ns,
    unsigned,
    whole,
)
from gpuaudit.capture.importers.model import MAX_TIME_NS, Told

COLUMNS = (
    "timestamp", "pid", "tid", "source", "op", "duration", "arg0", "arg1", "ret_code", "stack_hash", "cgroup_id",
)  # fmt: skip
ORDER = "timestamp, duration DESC, source, id"
"""A call comes before the calls inside it; of an equal time the longer one is outside."""

MAX_THREADS = 262_144
"""Threads whose open calls and wake-ups are remembered."""
SUMMARY_NS = 1_000_000_000
"""The kernel's own counters are read once a second."""
I32 = 1 << 31
LAST_KIND = 4
"""Largest cudaMemcpyKind (default); the tool writes 5 where it does not know."""


@dataclass(frozen=True)
class Event:
    """One row with its cells checked."""

    at_ns: int
    pid: int
    tid: int
    source: int
    op: int
    duration_ns: int
    arg0: int
    arg1: int
    return_code: int
    stack: int
    cgroup_id: int

    @property
    def start_ns(self) -> int:
        """Of a row that carries its end."""
        if self.duration_ns > self.at_ns:
            raise Unreadable(f"duration is {self.duration_ns}, longer than the time before its end {self.at_ns}")
        return self.at_ns - self.duration_ns


def event(row: tuple[Cell, ...]) -> Event:
    """A row of :data:`COLUMNS`; Unreadable where a cell cannot be."""
    at, pid, tid, source, op, duration, arg0, arg1, code, stack, cgroup = row
    return Event(
        time_ns(at), whole(pid, "pid"), whole(tid, "tid"), whole(source, "source", 0, 255), whole(op, "op", 0, 255),
        whole(duration, "duration", 0, MAX_TIME_NS - 1), unsigned(arg0, "arg0"), unsigned(arg1, "arg1"),
        whole(code if code is not None else 0, "ret_code", -I32, I32 - 1),
        whole(stack if stack is not None else 0, "stack_hash", -(1 << 63), (1 << 63) - 1),
        unsigned(cgroup if cgroup is not None else 0, "cgroup_id"),
    )  # fmt: skip


@dataclass
class EventRows:
    """Takes events in order of time and hands their rows over."""

    out: Batches
    people: People
    stacks: Stacks
    told: Told
    pointers: bool
    """Whether the second argument of cudaMalloc is the address it gave: in old versions it is where that is stored."""
    counts: Counter[str] = field(default_factory=Counter)
    """Rows by what was not carried of them."""
    _open: dict[int, list[tuple[int, int, str]]] = field(default_factory=dict)
    _woken: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    _numbers: Counter[str] = field(default_factory=Counter)

    def add(self, e: Event) -> None:
        """One event."""
        call = CALLS.get((e.source, e.op))
        if call is not None:
            self._call(e, call)
        elif e.source == HOST:
            self._host(e)
        elif e.source == BLOCK and e.op in BLOCK_OPS:
            self._block(e)
        elif e.source == NET and e.op in (1, 2):
            self._socket(e)
        elif e.source == TCP and e.op == 1:
            self._retransmit(e)
        else:
            self.counts[f"rows of source {e.source}, op {e.op}"] += 1
            return
        self.told.at(e.at_ns)

    def finish(self) -> None:
        """What became of the wake-ups that no interval off a CPU holds."""
        if self._woken:
            self.counts["wake-ups with no interval off a CPU around them"] += len(self._woken)

    def _row(self, table: str, row: dict[str, object]) -> None:
        row["seq"] = self._numbers[table]
        self._numbers[table] += 1
        self.out.add(table, row)

    def _bounded(self, remembered: dict[int, object]) -> None:
        if len(remembered) > MAX_THREADS:
            raise InputUnusable(f"rows of more than {MAX_THREADS} threads", hint="is it one host's recording?")

    def _call(self, e: Event, call: Call) -> None:
        end = e.at_ns + e.duration_ns
        if end >= MAX_TIME_NS:
            raise Unreadable(f"it ends at {end} ns")
        around = self._open.setdefault(e.tid, [])
        self._bounded(self._open)  # type: ignore[arg-type]
        while around and around[-1][1] <= e.at_ns:
            around.pop()
        parent = next(((start, op) for start, stop, op in reversed(around) if end <= stop), None)
        around.append((e.at_ns, end, call.name))
        native, python = self.stacks.of(e.stack, e.pid, e.tid, e.at_ns)
        self._row("cuda_calls", {
            "start_ns": e.at_ns, "duration_ns": e.duration_ns, "pid": e.pid, "tid": e.tid, "op": call.name,
            "return_code": e.return_code, "parent_ns": parent[0] if parent else None,
            "parent_op": parent[1] if parent else None, "native_stack": native, "python_stack": python,
            **self._arguments(e, call),
        })  # fmt: skip

    def _arguments(self, e: Event, call: Call) -> dict[str, object]:
        made = _ARGUMENTS[call.arguments](e) if call.arguments in _ARGUMENTS else {}
        if call.arguments == "copy_2d":
            self.counts["widths of two-dimensional copies, without their heights"] += 1
        elif call.arguments == "malloc" and e.arg1 and not self.pointers:
            self.counts["second argument of cudaMalloc (the address, or where it is stored)"] += 1
            del made["device_pointer"]
        return made

    def _host(self, e: Event) -> None:
        if e.op == SWITCH:
            self._switch(e)
        elif e.op == WAKEUP:
            if e.arg1 <= U32:
                if e.arg1 in self._woken:
                    self.counts["wake-ups with no interval off a CPU around them"] += 1
                self._woken[e.arg1] = (e.at_ns, e.pid, e.tid)
                self._bounded(self._woken)  # type: ignore[arg-type]
        elif e.op in LIFE_OPS:
            name, number = LIFE_OPS[e.op]
            self._row("lifecycle", {
                "start_ns": e.at_ns, "pid": e.pid, "tid": e.tid, "op": name, "event": number,
                "comm": self.people.name_of(e.pid), "other_pid": e.arg1 if name == "fork" and e.arg1 <= U32 else None,
                "cgroup_id": e.cgroup_id or None,
            })  # fmt: skip
        elif e.op == OOM:
            victim = whole(e.arg1, "victim")
            self._row("oom_kills", {
                "start_ns": e.at_ns, "pid": victim, "comm": self.people.name_of(victim), "killer_pid": e.pid,
                "killer_comm": self.people.name_of(e.pid),
            })  # fmt: skip
        elif e.op in (PAGES_SUM, SWITCH_SUM):
            self._summary(e)
        else:
            self.counts[f"rows of source {e.source}, op {e.op}"] += 1

    def _switch(self, e: Event) -> None:
        """Its pid is a thread id, and the previous thread it names is the same one. Its cgroup is somebody's."""
        start, tid = e.start_ns, e.pid
        woken = self._woken.get(tid)
        if woken is not None:
            del self._woken[tid]
            if not start <= woken[0] <= e.at_ns:
                self.counts["wake-ups with no interval off a CPU around them"] += 1
                woken = None
        row: dict[str, object] = {
            "start_ns": start, "duration_ns": e.duration_ns, "pid": self.people.pid_of(tid), "tid": tid, "op": "off",
            "comm": self.people.names.get(tid),
        }  # fmt: skip
        if woken is not None:  # who is woken was asleep
            at, pid, waker = woken
            row |= {
                "op": "blocked", "wake_ns": at, "waker_pid": pid, "waker_tid": waker, "runqueue_ns": e.at_ns - at,
                "waker_comm": self.people.name_of(waker),
            }  # fmt: skip
        self._row("off_cpu", row)

    def _summary(self, e: Event) -> None:
        """Counters of the kernel, read once a second: of the second before."""
        switches = e.op == SWITCH_SUM
        tid = e.tid if switches else None
        self.out.add("period_totals", {
            "start_ns": max(0, e.at_ns - SUMMARY_NS), "duration_ns": min(SUMMARY_NS, e.at_ns),
            "pid": self.people.pid_of(e.tid) if switches else e.pid, "tid": tid,
            "comm": self.people.name_of(e.tid if switches else e.pid),
            "op": "off_cpu" if switches else "page_allocation", "count": e.arg0, "kept": 0,
            "sum_ns": e.arg1 if switches else None, "size_bytes": None if switches else e.arg1,
        })  # fmt: skip
        self.told.assume("Summaries that the tool read from the kernel's counters are of the second before them.")

    def _block(self, e: Event) -> None:
        name, number = BLOCK_OPS[e.op]
        self._row("block_io", {
            "start_ns": e.start_ns, "duration_ns": e.duration_ns, "pid": e.pid, "tid": e.tid, "op": name,
            "operation": number, "comm": self.people.name_of(e.tid), "sector": e.arg1,
            "size_bytes": whole(e.arg0 * SECTOR_BYTES, "bytes of a disk request"), "cgroup_id": e.cgroup_id or None,
        })  # fmt: skip

    def _socket(self, e: Event) -> None:
        self.out.add("os_calls", {
            "start_ns": e.start_ns, "duration_ns": e.duration_ns, "pid": e.pid, "tid": e.tid,
            "op": "sendto" if e.op == 1 else "recvfrom", "descriptor": e.arg0 if e.arg0 < I32 else None,
            "size_bytes": e.arg1, "return_code": e.return_code,
        })  # fmt: skip

    def _retransmit(self, e: Event) -> None:
        """The process is whoever was interrupted, so it is not carried."""
        self.told.assume("Addresses of retransmitted packets are taken to be in network order, ports in host order.")
        self._row("tcp_retransmits", {
            "start_ns": e.at_ns, "family": 2, "local_address": _address(e.arg0 >> 32),
            "local_port": e.arg1 >> 16 & 0xFFFF,
            "remote_address": _address(e.arg0 & U32), "remote_port": e.arg1 & 0xFFFF,
        })  # fmt: skip


_ARGUMENTS: dict[str, Callable[[Event], dict[str, object]]] = {
    "malloc": lambda e: {"size_bytes": e.arg0, "device_pointer": e.arg1 or None},
    "sized": lambda e: {"size_bytes": e.arg0},
    "free": lambda e: {"device_pointer": e.arg0, "size_bytes": e.arg1 or None},
    "launch": lambda e: {"function": e.arg0, "stream": e.arg1 or None},  # 0: default stream, or not read
    "copy": lambda e: {"size_bytes": e.arg0, "direction": e.arg1 if e.arg1 <= LAST_KIND else None},
    "copy_2d": lambda e: {"direction": e.arg1 if e.arg1 <= LAST_KIND else None},
    "sync": lambda e: {"stream": e.arg0},
}
"""What the two arguments of a call become."""


def _address(stored: int) -> str:
    """A ``__be32`` of the kernel, read as a number on a little-endian machine."""
    return ".".join(str(stored >> shift & 0xFF) for shift in (0, 8, 16, 24))
