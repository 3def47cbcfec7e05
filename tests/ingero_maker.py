"""Ingero databases that a test makes: schema 0.10, with ids, names, times and causes of its own choosing.

Nothing in it is taken from the four real ones but the schema. Every scenario has a truth that is exact in ns.
"""

from __future__ import annotations

import json
import random
import sqlite3
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

US, MS, S = 1_000, 1_000_000, 1_000_000_000

SCHEMA = """
CREATE TABLE events (id TEXT PRIMARY KEY, timestamp INTEGER NOT NULL, pid INTEGER NOT NULL, tid INTEGER NOT NULL,
  source INTEGER NOT NULL, op INTEGER NOT NULL, duration INTEGER NOT NULL, gpu_id INTEGER NOT NULL DEFAULT 0,
  arg0 INTEGER NOT NULL DEFAULT 0, arg1 INTEGER NOT NULL DEFAULT 0, ret_code INTEGER NOT NULL DEFAULT 0,
  stack_hash INTEGER NOT NULL DEFAULT 0, node TEXT NOT NULL DEFAULT '', rank INTEGER, local_rank INTEGER,
  world_size INTEGER, stack_ips TEXT NOT NULL DEFAULT '', cgroup_id INTEGER NOT NULL DEFAULT 0);
CREATE INDEX idx_events_timestamp ON events(timestamp);
CREATE TABLE stack_traces (hash INTEGER PRIMARY KEY, ips TEXT NOT NULL, frames TEXT NOT NULL DEFAULT '');
CREATE TABLE causal_chains (id TEXT PRIMARY KEY, detected_at INTEGER NOT NULL, severity TEXT NOT NULL,
  summary TEXT NOT NULL, root_cause TEXT NOT NULL, explanation TEXT NOT NULL, recommendations TEXT NOT NULL DEFAULT '',
  cuda_op TEXT NOT NULL DEFAULT '', cuda_p99_us INTEGER NOT NULL DEFAULT 0, cuda_p50_us INTEGER NOT NULL DEFAULT 0,
  tail_ratio REAL NOT NULL DEFAULT 0, timeline TEXT NOT NULL DEFAULT '', node TEXT NOT NULL DEFAULT '');
CREATE TABLE schema_info (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE system_snapshots (id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp INTEGER NOT NULL UNIQUE,
  cpu_pct REAL NOT NULL, mem_pct REAL NOT NULL, mem_avail INTEGER NOT NULL, swap_mb INTEGER NOT NULL,
  load_avg REAL NOT NULL);
CREATE TABLE sessions (id INTEGER PRIMARY KEY AUTOINCREMENT, started_at INTEGER NOT NULL,
  stopped_at INTEGER NOT NULL DEFAULT 0, gpu_model TEXT NOT NULL DEFAULT '', gpu_driver TEXT NOT NULL DEFAULT '',
  cpu_model TEXT NOT NULL DEFAULT '', cpu_cores INTEGER NOT NULL DEFAULT 0, mem_total INTEGER NOT NULL DEFAULT 0,
  kernel TEXT NOT NULL DEFAULT '', ingero_ver TEXT NOT NULL DEFAULT '', pid_filter TEXT NOT NULL DEFAULT '',
  flags TEXT NOT NULL DEFAULT '', node TEXT NOT NULL DEFAULT '');
CREATE TABLE process_names (pid INTEGER NOT NULL, name TEXT NOT NULL, seen_at INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (pid));
CREATE TABLE event_aggregates (bucket INTEGER NOT NULL, source INTEGER NOT NULL, op INTEGER NOT NULL,
  pid INTEGER NOT NULL DEFAULT 0, count INTEGER NOT NULL DEFAULT 0, stored INTEGER NOT NULL DEFAULT 0,
  sum_dur INTEGER NOT NULL DEFAULT 0, min_dur INTEGER NOT NULL DEFAULT 0, max_dur INTEGER NOT NULL DEFAULT 0,
  sum_arg0 INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (bucket, source, op, pid));
CREATE TABLE cgroup_metadata (cgroup_id INTEGER PRIMARY KEY, container_id TEXT NOT NULL DEFAULT '',
  cgroup_path TEXT NOT NULL DEFAULT '', pod_name TEXT NOT NULL DEFAULT '', namespace TEXT NOT NULL DEFAULT '');
CREATE TABLE annotations (timestamp INTEGER NOT NULL, labels TEXT NOT NULL);
PRAGMA user_version = 10;
"""


@dataclass
class Truth:
    """What happened: who did it to whom, and the share of the effect that the cause covers."""

    pid: int
    detector: str | None
    share: Fraction = Fraction(0)
    recorder: int = 0
    bystanders: tuple[int, ...] = ()
    verdicts: dict[str, str] = field(default_factory=dict)


class Maker:
    """A database in the making; times are ns after its beginning, intervals given by their start."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.t0 = self.random.randrange(1_600_000_000, 1_900_000_000) * S + self.random.randrange(S)
        self._pids = self.random.sample(range(900, 4_000_000), 40)
        self.node = f"n{seed}"
        self.events: list[tuple[object, ...]] = []
        self.rest: list[tuple[str, tuple[object, ...]]] = []
        self.pid_filter = ""
        self.end = 0

    def person(self, role: str) -> int:
        """A process with a name nobody has seen before."""
        pid = self._pids.pop()
        name = "".join(self.random.choices("abcdefghijklmnopqrstuvwxyz", k=8)) + role[:1]
        self.rest.append(("process_names", (pid, name, self.t0)))
        return pid

    def _event(self, pid: int, source: int, op: int, at: int, length: int, *more: int, cgroup: int = 77) -> None:
        arg0, arg1 = (*more, 0, 0)[:2]
        signed = tuple(x - (1 << 64) if x >= 1 << 63 else x for x in (arg0, arg1))
        self.events.append((self.t0 + at, pid, pid, source, op, length, *signed, cgroup))
        self.end = max(self.end, at + length)

    def call(self, pid: int, op: int, at: int, length: int, *arguments: int, source: int = 1) -> None:
        """A CUDA call; its row carries the entry."""
        self._event(pid, source, op, at, length, *arguments)

    def off(self, tid: int, at: int, length: int) -> None:
        """Time off a CPU; its row carries the end."""
        self._event(tid, 3, 1, at + length, length, 0, tid, cgroup=1)

    def disk(self, pid: int, op: int, at: int, length: int, *, cgroup: int = 77) -> None:
        """A disk request (1 read, 2 write); its row carries the end."""
        self._event(pid, 5, op, at + length, length, 64, self.random.randrange(1 << 30), cgroup=cgroup)

    def fork(self, pid: int, child: int, at: int) -> None:
        """A process starts another."""
        self._event(pid, 3, 7, at, 0, 0, child)

    def total(self, what: tuple[int, int], pid: int, at: int, count: int, *, sum_ns: int = 0, stored: int = 0) -> None:
        """A total of the minute in which ``at`` lies; ``what`` is (source, op)."""
        bucket = (self.t0 + at) // (60 * S) * 60 * S
        values = (bucket, *what, pid, count, stored, sum_ns, 0, sum_ns, 0)
        self.rest.append(("event_aggregates", values))

    def sample(self, at: int, cpu: float) -> None:
        """A look at the host."""
        self.rest.append(("system_snapshots", (None, self.t0 + at, cpu, 40.0, 9_000, 0, 3.5)))

    def conclude(self, op: str, p99_us: int, p50_us: int, *named: str) -> None:
        """What the tool itself concluded."""
        layers = {"sched_switch": "HOST", "block_io": "IO", "cpu": "SYSTEM"}
        line = [{"layer": layers[n], "op": n, "detail": "some", "dur_us": 5_000} for n in named]
        text = f"{op} p99={p99_us}µs — {' + '.join(named)}"
        self.rest.append(("causal_chains", (
            f"{self.node}:tail-high-{op}", self.t0 + self.end, "HIGH", text, " + ".join(named), text, "[]", op, p99_us,
            p50_us, p99_us / p50_us, json.dumps([*line, {"layer": "CUDA", "op": op, "detail": "tail"}]), self.node,
        )))  # fmt: skip

    def recorder(self, length: int) -> int:
        """A tool that writes what it recorded to disk ten times a second, and the journal that does so for it."""
        tool, journal = self.person("r"), self.person("j")
        phase = self.random.randrange(100 * MS)
        for at in range(100 * MS - self.t0 % (100 * MS) + phase, length, 100 * MS):
            self.disk(tool, 2, at, self.random.randrange(MS, 2 * MS))
            self.disk(journal, 2, at + 900 * US, self.random.randrange(MS, 2 * MS), cgroup=1)
        return tool

    def write(self, path: Path) -> Path:
        """The file, its events in no order."""
        self.random.shuffle(self.events)
        with sqlite3.connect(path) as db:
            db.executescript(SCHEMA)
            db.execute("INSERT INTO schema_info VALUES ('version', '0.10')")
            db.execute(
                "INSERT INTO sessions VALUES (1, ?, ?, 'Some GPU, 80 GiB', '600.1', 'Some CPU', 8, 64000, '6.8.0', "
                "'0.30', ?, 'stack,record', ?)",
                (self.t0 - 3 * S, self.t0 + self.end + 100 * MS, self.pid_filter, self.node),
            )
            for n, (at, pid, tid, source, op, length, arg0, arg1, cgroup) in enumerate(self.events, start=1):
                db.execute(
                    "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?, 0, 0, ?, NULL, NULL, NULL, '', ?)",
                    (f"{self.node}:{n}", at, pid, tid, source, op, length, arg0, arg1, self.node, cgroup),
                )
            for table, values in self.rest:
                db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608
        db.close()
        return path


def disk(m: Maker) -> Truth:
    """Five copies of 9 ms, in 8 ms of each of which the thread is off its CPU, 7.5 ms of that behind its own read."""
    pid, idle = m.person("w"), m.person("d")
    for n in range(300):
        at, slow = 2 * S + n * 20 * MS, n % 60 == 30
        m.call(pid, 7, at, 9 * MS if slow else (30 + n % 7) * US, 1 << 20, 1)
        if slow:
            m.off(pid, at + 500 * US, 8 * MS)
            m.disk(pid, 1, at + 500 * US, 7_500 * US)
    m.off(idle, S, 6 * S)
    tool = m.recorder(8 * S)
    m.conclude("cudaMemcpyAsync", 9_000, 33, "sched_switch", "block_io")
    return Truth(pid, "blocking_io", Fraction(5, 6), tool, (idle,), {"off_cpu": "refuted", "block_io": "supported"})


def starvation(m: Maker) -> Truth:
    """A second of calls, then 20 s without any: in 15 s of them full CPUs and four workers that switch all the time."""
    pid, idle = m.person("t"), m.person("d")
    begin = 60 * S - m.t0 % (60 * S)  # the silence lies in one minute of totals
    for n in range(40):
        m.call(pid, 3, begin + n * 25 * MS, (20 + n % 5) * US, 0xFFFF_8000_0000_1000)
    last = begin + 39 * 25 * MS + 24 * US
    for n in range(4):
        worker = m.person("l")
        m.fork(pid, worker, last + (n + 1) * 10 * MS)
        m.total((3, 1), worker, last, 20_000 + n, sum_ns=5 * S)
        m.total((3, 3), worker, last, 900)
    for second in range(1, 21):
        m.sample(last + second * S, 99.5 if second <= 15 else 30.0)
    m.off(idle, last + 20 * S - 400 * MS, 300 * MS)
    m.end = last + 20 * S - 100 * MS
    m.total((1, 3), pid, begin, 40, sum_ns=40 * 22 * US, stored=40)
    m.conclude("cudaLaunchKernel", 24, 22, "cpu")
    return Truth(pid, "input_starvation", Fraction(15, 20), 0, (idle,), {"host_cpu": "unsupported"})


def release(m: Maker) -> Truth:
    """Sixty releases one after the other, one of them of 3 ms; the thread's switches lie elsewhere."""
    pid, idle = m.person("a"), m.person("d")
    for n in range(60):
        m.call(pid, 1, 2 * S + n * 3 * MS, (200 + n % 9) * US, 20 << 20, 0xFFFF_9000_0000_0000 + n)
        m.off(pid, 2 * S + n * 3 * MS + 2 * MS, 40 * US)
    at = 5 * S
    for n in range(60):
        length = 3 * MS if n == 50 else (400 + n % 11) * US
        m.call(pid, 2, at, length, 0xFFFF_9000_0000_0000 + n)
        at += length + 10 * US
    m.off(pid, at + 50 * MS, 60 * US)
    m.off(idle, S, 4 * S)
    tool = m.recorder(6 * S)
    m.conclude("cudaFree", 3_000, 405, "sched_switch")
    return Truth(pid, "allocation_burst", Fraction(1), tool, (idle,), {"off_cpu": "refuted"})


def sleeper(m: Maker) -> Truth:
    """A process that sleeps 50 ms and allocates, again and again; all disk writes are the recorder's and journal's."""
    pid = m.person("s")
    m.pid_filter = str(pid)
    for n in range(60):
        at = 2 * S + n * 51 * MS
        m.off(pid, at, 50 * MS)
        m.call(pid, 5, at + 50 * MS + 14 * US, (110 + n % 13) * US, 1 << 20, source=4)
    tool = m.recorder(6 * S)
    m.conclude("cuMemAlloc", 51_000, 115, "sched_switch", "block_io")
    return Truth(pid, None, Fraction(0), tool, (), {"off_cpu": "refuted", "block_io": "refuted"})


def left_out(m: Maker) -> Truth:
    """Ten seconds of rows, then twenty of a thousand launches a second without rows, but for three slow ones.

    Workers fill the CPUs meanwhile; and the slow launches are the first *rows* of their kernels, and no first launches.
    """
    pid = m.person("t")
    begin = 60 * S - m.t0 % (60 * S)
    for n in range(200):
        m.call(pid, 3, begin + n * 50 * MS, (20 + n % 5) * US, 0x4000_0000)
    for n in range(3):
        m.call(pid, 3, begin + (14 + 5 * n) * S, 3 * MS, 0x5000_0000 + n)
    for n in range(3):
        worker = m.person("w")
        m.fork(pid, worker, begin + 9 * S + n * MS)
        m.total((3, 1), worker, begin, 30_000 + n, sum_ns=S)
    for second in range(10, 31):
        m.sample(begin + second * S, 99.0)
    m.end = begin + 30 * S
    m.total((1, 3), pid, begin, 20_203, sum_ns=20_203 * 22 * US, stored=203)
    m.conclude("cudaLaunchKernel", 3_000, 22, "cpu")
    return Truth(pid, None, verdicts={"host_cpu": "supported"})


SCENARIOS = {
    "disk": disk, "starvation": starvation, "release": release, "sleeper": sleeper, "left_out": left_out,
}  # fmt: skip
