"""What the recorder sees when a thread loses time on the host: one function per cause, the rows of one occurrence."""

from __future__ import annotations

from collections.abc import Sequence

from tests.corpus.model import Host
from tests.corpus.training import Rows, Victim
from tests.scenes import US

FUTEX, READ, FSYNC, NANOSLEEP, RECVFROM = 202, 0, 74, 230, 45
RUNNABLE, INTERRUPTIBLE, UNINTERRUPTIBLE = 0, 1, 2


def preempted(comm: str = "stress-ng", pid: int = 900, cgroup: int = 40) -> Rows:
    """Somebody else runs on its CPU, in one stretch or in slices."""

    def rows(host: Host, v: Victim) -> None:
        slices = host.of((1, 3))
        for i in range(slices):
            start, end = v.at + v.ns * i // slices, v.at + v.ns * (i + 1) // slices
            host.off_cpu(
                v.pid, v.tid, start, end - start, op="preempted", prev_state=RUNNABLE, next_pid=pid, next_tid=pid,
                next_comm=comm, wake_ns=None, runqueue_ns=end - start, syscall=None, next_priority=120,
                next_cgroup_id=cgroup,
            )  # fmt: skip

    return rows


def crowd(names: Sequence[str], cgroup: int, first_pid: int = 911) -> Rows:
    """Processes of one container run on its CPU, some after the other."""

    def rows(host: Host, v: Victim) -> None:
        by_turns = host.draw.sample(range(len(names)), host.of((2, len(names))))
        for i, n in enumerate(by_turns):
            start, end = v.at + v.ns * i // len(by_turns), v.at + v.ns * (i + 1) // len(by_turns)
            preempted(names[n], first_pid + n, cgroup)(host, Victim(v.pid, v.tid, start, end - start))

    return rows


def disk(own: bool = True, reader: int = 0, comm: str = "python3", write: bool = False) -> Rows:
    """Asleep while a disk serves a request: its own process's, or (twin) only somebody else's."""

    def rows(host: Host, v: Victim) -> None:
        wake = v.at + v.ns - min(60 * US, v.ns // 10)
        host.off_cpu(
            v.pid, v.tid, v.at, v.ns, prev_state=UNINTERRUPTIBLE if own else INTERRUPTIBLE, wake_ns=wake,
            runqueue_ns=v.at + v.ns - wake, syscall=(FSYNC if write else READ) if own else NANOSLEEP, waker_pid=0,
            waker_tid=0, waker_comm="swapper/2",
        )  # fmt: skip
        requests = host.of((1, 4))
        who = v.pid if own else reader
        for i in range(requests):
            start, end = v.at + v.ns * i // requests, v.at + v.ns * (i + 1) // requests
            end = min(end, wake)
            if end > start:
                request(host, Victim(who, v.tid if own else who, start, end - start), comm, write)

    return rows


def request(host: Host, v: Victim, comm: str, write: bool = False) -> None:
    """One request to the disk, by this thread at this time."""
    host.scene.add(
        "block_io", start_ns=v.at, duration_ns=v.ns, pid=v.pid, tid=v.tid, op="write" if write else "read",
        operation=int(write), comm=comm, major=259, minor=0, sector=host.draw.randrange(1 << 30),
        size_bytes=131_072, error=0, queue_ns=4 * US, for_pid=v.pid if write else None,
        for_comm=comm if write else None,
    )  # fmt: skip


def futex(sibling: bool = True) -> Rows:
    """Asleep on a lock until another thread of its own process, or of no process that is known, wakes it."""

    def rows(host: Host, v: Victim) -> None:
        wake = v.at + v.ns - min(40 * US, v.ns // 10)
        waker = {"waker_pid": v.pid, "waker_tid": v.pid + 3, "waker_comm": "holder"} if sibling else {}
        host.off_cpu(
            v.pid, v.tid, v.at, v.ns, prev_state=INTERRUPTIBLE, wake_ns=wake, runqueue_ns=v.at + v.ns - wake,
            syscall=FUTEX, syscall_arg=0x7FFC_0000_1000, **waker,
        )  # fmt: skip

    return rows


def reclaim(cgroup: bool = False) -> Rows:
    """The thread frees memory itself before it gets some: on its CPU, so nothing else is recorded of it."""

    def rows(host: Host, v: Victim) -> None:
        parts = host.of((1, 3))
        for i in range(parts):
            start, end = v.at + v.ns * i // parts, v.at + v.ns * (i + 1) // parts
            host.scene.add(
                "reclaims", start_ns=start, duration_ns=end - start, pid=v.pid, tid=v.tid,
                op="cgroup" if cgroup else "host", cgroup_limit=int(cgroup), comm="python3", order=0,
                reclaimed_pages=host.of((32, 900)),
            )  # fmt: skip

    return rows


def quota(cgroup: str = "/train") -> Rows:
    """The cgroup has used up its CPU time: the thread is runnable and nobody may run it until the period ends; the
    cgroup's counters, read once a second, tell how much."""

    def rows(host: Host, v: Victim) -> None:
        host.off_cpu(
            v.pid, v.tid, v.at, v.ns, op="preempted", prev_state=RUNNABLE, wake_ns=None, runqueue_ns=v.ns,
            syscall=None,
        )  # fmt: skip
        host.throttled.append((cgroup, v.at, v.ns))
        host.cgroups[v.pid] = cgroup

    return rows


def nothing(host: Host, v: Victim) -> None:
    """The thread was on its CPU, or waited for its GPU by spinning: no row."""


def mixed(*parts: Rows) -> Rows:
    """All of them at the same time."""

    def rows(host: Host, v: Victim) -> None:
        for part in parts:
            part(host, v)

    return rows
