"""Who is who in an Ingero database: threads and their processes, what belongs to the workload, and who recorded.

Three passes over ``events`` and one over the totals, before any row is carried. Rules, none of them by a name of ours:

- A scheduler row names a thread, whatever its column is called. A row of another kind with the same tid tells its
  process; without one the thread stands for itself.
- Of the workload is who made a CUDA call, whom the recording was restricted to (``pid_filter``), and who was forked by
  one of them.
- The recorder is a process outside of the workload that bears the name by which the database names its own tool (the
  column ``<tool>_ver`` of ``sessions``), or whose disk writes, and nothing else, keep time with the tool's commits.
- Everybody else is a bystander.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.capture.importers.cells import Unreadable
from gpuaudit.capture.importers.foreign_sqlite import Cell, ForeignDatabase
from gpuaudit.capture.importers.ingero_values import BLOCK, CUDA, DRIVER, EXIT, FORK, GRAPH, HOST, U32, text, whole
from gpuaudit.capture.importers.model import MAX_TIME_NS

MAX_IDS = 262_144
"""Processes and threads that are told apart; Linux has at most 4,194,304 ids and a host uses few thousands."""
MAX_NAME = 64
"""Characters of a process's name; the kernel has 15."""

COMMIT_NS = 100_000_000
"""The tool commits what it recorded every 100 ms (its batch writer)."""
PHASES = 100
"""Parts of that period in which writes are counted, 1 ms each."""
WITHIN_PHASES = 10
"""Writes that keep time lie within a tenth of the period of each other, chosen: a commit takes a few ms."""
LEAST_WRITES = 8
"""Chosen: by chance eight writes all lie in a tenth of the period once in a million times."""

_GPU_SOURCES = f"({CUDA}, {DRIVER}, {GRAPH})"
_OF_THREADS = f"(source = {HOST} AND op IN (1, 2, 21))"
"""SQL: rows whose pid is a thread id."""
_VERSION_COLUMN = re.compile(r"([a-z][a-z0-9]{1,15})_ver\Z")
_NOT_TOOLS = frozenset({"cuda", "python"})


@dataclass
class Process:
    """What the recording tells of one process or thread id."""

    pid: int
    name: str = ""
    seen_ns: int | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    parent: int | None = None
    cgroup_id: int | None = None
    rank: tuple[int | None, int | None, int | None] = (None, None, None)
    role: str = "bystander"
    reason: str = ""


@dataclass
class People:
    """Processes by id, the process of each thread id, and the names of threads."""

    processes: dict[int, Process] = field(default_factory=dict)
    process_of: dict[int, int] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    ambiguous: int = 0
    filtered: frozenset[int] = frozenset()

    def pid_of(self, tid: int) -> int:
        """The process of a thread, itself where no row tells."""
        return self.process_of.get(tid, tid)

    def name_of(self, tid: int) -> str | None:
        """Name of a thread, or of its process."""
        return self.names.get(tid) or self.names.get(self.pid_of(tid))

    def process(self, pid: int) -> Process:
        """The process of that id, made where it is new."""
        found = self.processes.get(pid)
        if found is None:
            if len(self.processes) >= MAX_IDS:
                raise InputUnusable(f"more than {MAX_IDS} processes in one recording", hint="is it one host's?")
            found = self.processes[pid] = Process(pid)
        return found


def read_people(database: ForeignDatabase, filtered: frozenset[int], tools: frozenset[str]) -> People:
    """Everybody; ``filtered`` are the pids that the recording was restricted to, ``tools`` names of the recorder."""
    people = People(filtered=filtered)
    _threads(database, people)
    gpu = _ids(database, "events", f"source IN {_GPU_SOURCES}") | _ids(
        database, "event_aggregates", f"source IN {_GPU_SOURCES}"
    )
    for table in ("events", "event_aggregates"):
        for pid in sorted(_ids(database, table, f"NOT {_OF_THREADS}")):
            people.process(people.pid_of(pid))
    for pid in sorted(_ids(database, "events", _OF_THREADS)):
        people.process(people.pid_of(pid))
    _lives(database, people)
    _names(database, people)
    _places(database, people)
    traced = _descendants(people, {people.pid_of(p) for p in gpu | filtered})
    for pid in sorted(traced):
        people.process(pid).role = "workload" if pid in filtered else "traced"
    _recorders(database, people, tools)
    return people


def tools_of(database: ForeignDatabase) -> frozenset[str]:
    """Names that the database gives the tool that wrote it."""
    found = {m[1] for c in database.columns("sessions") if (m := _VERSION_COLUMN.match(c))}
    return frozenset(found - _NOT_TOOLS)


def _id(value: Cell) -> int | None:
    return value if isinstance(value, int) and 0 < value <= U32 else None


def _ids(database: ForeignDatabase, table: str, where: str) -> set[int]:
    if not {"pid", "source", "op"} <= set(database.columns(table)):
        return set()
    out: set[int] = set()
    for (pid,) in database.rows(f'SELECT DISTINCT pid FROM "{table}" NOT INDEXED WHERE {where}'):  # noqa: S608
        if (known := _id(pid)) is not None:
            out.add(known)
        if len(out) > MAX_IDS:
            raise InputUnusable(f"{database.name}: more than {MAX_IDS} processes", hint="is it one host's recording?")
    return out


def _threads(database: ForeignDatabase, people: People) -> None:
    torn: set[int] = set()
    query = f"SELECT DISTINCT tid, pid FROM events NOT INDEXED WHERE tid <> pid AND NOT {_OF_THREADS}"  # noqa: S608
    for tid, pid in database.rows(query):
        if (t := _id(tid)) is None or (p := _id(pid)) is None:
            continue
        if people.process_of.setdefault(t, p) != p:
            torn.add(t)
        if len(people.process_of) > MAX_IDS:
            raise InputUnusable(f"{database.name}: more than {MAX_IDS} threads", hint="is it one host's recording?")
    for t in torn:
        del people.process_of[t]
    people.ambiguous = len(torn)


def _lives(database: ForeignDatabase, people: People) -> None:
    """Forks and exits. A process ends with the last of its threads that was seen to."""
    query = (
        "SELECT op, pid, tid, arg1, timestamp FROM events NOT INDEXED "  # noqa: S608 - numbers of ours
        f"WHERE source = {HOST} AND op IN ({EXIT}, {FORK})"
    )
    last: dict[int, int] = {}
    leaders: set[int] = set()
    for op, pid, tid, child, at in database.rows(query):
        p, t, c = _id(pid), _id(tid), _id(child)
        if p is None or not isinstance(at, int) or not 0 <= at < MAX_TIME_NS:
            continue
        if op == EXIT:
            last[p] = max(last.get(p, 0), at)
            if t == p:
                leaders.add(p)
        elif c is not None and people.pid_of(c) == c:
            born = people.process(c)
            born.start_ns, born.parent = at, people.pid_of(p)
    for p in leaders:
        people.process(p).end_ns = last[p]


def _names(database: ForeignDatabase, people: People) -> None:
    for pid, name, seen in database.read("process_names", ("pid", "name", "seen_at")) if database.columns(
        "process_names") else ():  # fmt: skip
        known = _id(pid)
        if known is None or not text(name, MAX_NAME) or len(people.names) >= MAX_IDS:
            continue
        people.names[known] = text(name, MAX_NAME)
        if people.pid_of(known) == known:
            process = people.process(known)
            process.name = people.names[known]
            process.seen_ns = seen if isinstance(seen, int) and 0 < seen < MAX_TIME_NS else None


def _places(database: ForeignDatabase, people: People) -> None:
    """Cgroup and ranks, where all rows of a process agree. A scheduler row has the cgroup of whoever ran there."""
    have = set(database.columns("events"))
    cells = [c if c in have else "NULL" for c in ("cgroup_id", "rank", "local_rank", "world_size")]
    ends = ", ".join(f"min({c}), max({c})" for c in cells)
    query = f"SELECT pid, {ends} FROM events NOT INDEXED WHERE source <> {HOST} GROUP BY pid"  # noqa: S608
    for pid, *found in database.rows(query):
        known = _id(pid)
        if known is None:
            continue
        process = people.process(people.pid_of(known))
        same = [a if a == b and isinstance(a, int) else None for a, b in zip(found[::2], found[1::2], strict=True)]
        process.cgroup_id = same[0] or None
        rank, local, world = (v if v is not None and 0 <= v <= U32 else None for v in same[1:])
        process.rank = (rank, local, world)


def _descendants(people: People, roots: set[int]) -> set[int]:
    out = set(roots)
    children: dict[int, list[int]] = {}
    for process in people.processes.values():
        if process.parent is not None:
            children.setdefault(process.parent, []).append(process.pid)
    todo = sorted(roots)
    while todo:
        for child in children.get(todo.pop(), []):
            if child not in out:
                out.add(child)
                todo.append(child)
    return out


def _recorders(database: ForeignDatabase, people: People, tools: frozenset[str]) -> None:
    writes, others, phases = _disk_writes(database)
    for pid, process in sorted(people.processes.items()):
        if process.role != "bystander":
            continue
        n = writes[pid]
        in_time = _most_within(phases.get(pid, Counter()))
        if process.name in tools:
            process.role = "recorder"
            process.reason = "bears the name by which the database names the tool that wrote it"
        elif n >= LEAST_WRITES and not others[pid] and 10 * in_time >= 9 * n:
            # Kernel threads (the file system's journal) are in the root cgroup and write on behalf of others.
            process.role = "bystander" if process.cgroup_id == 1 else "recorder"
            process.reason = (
                f"{in_time} of its {n} disk writes lie within 10 ms of a rhythm of 100 ms, that of the tool's commits"
                + (", from the root cgroup: made by the kernel for another" if process.cgroup_id == 1 else "")
            )


def _disk_writes(database: ForeignDatabase) -> tuple[Counter[int], Counter[int], dict[int, Counter[int]]]:
    """Per process: writes, other requests, and writes by the phase of the commit period in which they were issued."""
    writes, others, phases = Counter[int](), Counter[int](), dict[int, Counter[int]]()
    query = f"SELECT pid, op, timestamp, duration FROM events NOT INDEXED WHERE source = {BLOCK}"  # noqa: S608
    for pid, op, at, length in database.rows(query):
        try:
            known = whole(pid, "pid", 1)
            issued = whole(at, "timestamp", 0, MAX_TIME_NS) - whole(length, "duration", 0, MAX_TIME_NS)
        except Unreadable:
            continue
        if op != 2:
            others[known] += 1
            continue
        writes[known] += 1
        phases.setdefault(known, Counter())[issued % COMMIT_NS * PHASES // COMMIT_NS] += 1
    return writes, others, phases


def _most_within(phases: Counter[int]) -> int:
    """The most writes that lie within :data:`WITHIN_PHASES` neighbouring phases of the period, which is a circle."""
    return max((sum(phases[(start + i) % PHASES] for i in range(WITHIN_PHASES)) for start in range(PHASES)), default=0)
