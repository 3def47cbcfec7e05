"""Threads that call, programs made of steps, and the everyday noise of a host around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.corpus.model import Deed, Host, Kind, Planted, Scenario
from tests.scenes import MS, T0, US, S

Place = tuple[int, int, int, int]
"""Process, thread, from when, how long."""

Traces = Callable[[Host, Place], None]
"""Writes the rows of one loss of time."""


@dataclass(frozen=True)
class Loss:
    """Time that a thread loses; ``cause``: the truth, None where nothing that has a name took it."""

    ns: int
    traces: Traces
    cause: str | None = None


@dataclass(frozen=True)
class Story:
    """A deed told as a function."""

    tell: Callable[[Host], None]

    def happen(self, host: Host) -> None:
        """Tell it."""
        self.tell(host)


def scenario(name: str, kind: Kind) -> Callable[[Callable[[Host], None]], Scenario]:
    """Make a scenario of the function below it."""

    def make(tell: Callable[[Host], None]) -> Scenario:
        def deeds() -> Sequence[Deed]:
            return (Story(tell),)

        return Scenario(name, kind, deeds)

    return make


class Thread:
    """One thread and its clock: what it does follows what it did."""

    def __init__(self, host: Host, pid: int, tid: int = 0, at: int = T0 + 150 * MS) -> None:
        self.host, self.pid, self.tid, self.at = host, pid, tid or pid, at

    def call(self, op: str, ns: int, *losses: Loss, **columns: Any) -> None:
        """A call that takes ``ns`` and what it loses, each loss after a moment on the CPU."""
        start = self.at
        self.at += ns // 3
        for loss in losses:
            self.at += 15 * US
            loss.traces(self.host, (self.pid, self.tid, self.at, loss.ns))
            self.at += loss.ns
            if loss.cause:
                self.host.planted.append(Planted(loss.cause, self.pid, op, loss.ns))
        self.at += ns - ns // 3
        whole = self.at - start
        if losses:
            key = (self.pid, op)
            self.host.lengthened[key] = self.host.lengthened.get(key, 0) + whole
        self.host.scene.cuda(self.pid, op, start, whole, tid=self.tid, **columns)
        self.host.reaches(self.at)

    def works(self, ns: int) -> None:
        """On its CPU, outside any call."""
        self.at += ns

    def loses(self, loss: Loss) -> None:
        """Between two calls."""
        self.at += 10 * US
        loss.traces(self.host, (self.pid, self.tid, self.at, loss.ns))
        self.at += loss.ns + 10 * US
        if loss.cause:
            self.host.planted.append(Planted(loss.cause, self.pid))
        self.host.reaches(self.at)


TRAIN = (
    ("cudaMemcpyAsync", 11 * US),
    *(("cudaLaunchKernel", 5 * US),) * 8,
    ("cudaEventRecord", 3 * US),
    ("cudaStreamSynchronize", 1_400 * US),
)
"""A training step."""

DECODE = (
    ("cudaMemcpyAsync", 8 * US),
    ("cudaGraphLaunch", 45 * US),
    ("cudaLaunchKernel", 5 * US),
    ("cudaLaunchKernel", 5 * US),
    ("cudaMemcpyAsync", 9 * US),
    ("cudaEventSynchronize", 7 * MS),
)
"""A decode step of a server that replays a graph."""

COLUMNS: Mapping[str, Mapping[str, Any]] = {
    "cudaMemcpyAsync": {"stream": 13, "size_bytes": 2 << 20, "direction": 1},
    "cudaLaunchKernel": {"stream": 13, "function": 0x7F11_0000, "grid_x": 1_024, "block_x": 128},
    "cudaGraphLaunch": {"stream": 13, "handle": 0xA000},
    "cudaEventSynchronize": {"handle": 0xE000},
    "cudaStreamSynchronize": {"stream": 13},
    "cudaEventRecord": {"stream": 13, "handle": 0xE000},
}


@dataclass
class Program:
    """Runs ``steps``; ``slow`` are (operation, how often, what such a call loses), each on a step of its own;
    ``between`` are losses after some steps, outside calls."""

    pid: int
    step: Sequence[tuple[str, int]] = TRAIN
    steps: int = 200
    slow: Sequence[tuple[str, int, Callable[[Host], Sequence[Loss]]]] = ()
    between: Sequence[tuple[int, Callable[[Host], Sequence[Loss]]]] = ()
    think: int = 900 * US
    tid: int = 0
    comm: str = "python3"
    cgroup: str = "/train"
    gpu: int | None = 0
    known: bool = False
    """Its row among the processes is there already."""
    start: int = T0 + 150 * MS
    times: list[Place] = field(default_factory=list)
    """Of the slow calls, once it has run."""

    def run(self, host: Host) -> Program:
        """All its steps."""
        if not self.known:
            host.scene.process(
                self.pid,
                self.comm,
                start_ns=T0 - 900 * S,
                cgroup=self.cgroup,
                cgroup_id=71,
                exe=f"/usr/bin/{self.comm}",
            )
        thread = Thread(host, self.pid, self.tid, self.start)
        free = list(range(self.steps // 10, self.steps))
        host.draw.shuffle(free)
        hits: dict[int, tuple[str, Sequence[Loss]]] = {}
        for op, often, losses in self.slow:
            for _ in range(often):
                hits[free.pop()] = (op, losses(host))
        pauses: dict[int, Sequence[Loss]] = {}
        for often, losses in self.between:
            for _ in range(often):
                pauses[free.pop()] = losses(host)
        for n in range(self.steps):
            op_hit, losses_hit = hits.get(n, ("", ()))
            places = [i for i, (op, _) in enumerate(self.step) if op == op_hit]
            place = host.draw.choice(places) if places else -1
            for i, (op, usual) in enumerate(self.step):
                begun = thread.at
                thread.call(op, host.around(usual, 0.15), *(losses_hit if i == place else ()), **COLUMNS.get(op, {}))
                if i == place:
                    self.times.append((self.pid, thread.tid, begun, thread.at - begun))
                thread.works(host.of((3 * US, 25 * US)))
            thread.works(host.around(self.think))
            for loss in pauses.get(n, ()):
                thread.loses(loss)
        if self.gpu is not None:
            gpu(host, [self.pid], index=self.gpu)
        return self


def gpu(host: Host, pids: Sequence[int], index: int = 0, **more: Any) -> None:
    """NVML's samples of a busy GPU until now."""
    fine = {
        "clock_sm_mhz": 1_980,
        "clock_sm_max_mhz": 1_980,
        "power_mw": 540_000,
        "power_limit_mw": 700_000,
        "temperature_c": 61,
        "performance_state": 0,
        "pcie_generation": 5,
        "pcie_width": 16,
    }
    host.scene.samples(T0, host.end, index, pids, **{**fine, **more})


def everyday(host: Host, pid: int) -> None:
    """Idle threads of the process, a journal, packets of others: there on every host, causes of nothing."""
    for i, (comm, ns, syscall) in enumerate((("pt_nccl_watchdg", 100 * MS, 202), ("tokio-runtime-w", 330 * MS, 232))):
        at = T0 + host.of((MS, 90 * MS))
        while at + ns < host.end:
            host.off_cpu(
                pid,
                pid + 40 + i,
                at,
                ns,
                comm=comm,
                syscall=syscall,
                syscall_arg=0x7F22_0000 + 8 * i,
                waker_pid=0,
                waker_tid=0,
                waker_comm="swapper/5",
                cpu_out=5,
            )
            at += ns + host.of((20 * US, 90 * US))
    host.off_cpu(
        pid,
        pid + 44,
        T0,
        host.end - T0,
        comm="cuda-EvtHandlr",
        syscall=7,
        wake_ns=None,
        runqueue_ns=None,
        began_before=1,
        cpu_out=6,
    )
    for comm, other in (("systemd-journal", 412), ("kworker/u64:3", 88)):
        at = T0
        while (at := at + host.of((40 * MS, 400 * MS))) < host.end:
            request(host, (other, other, at, host.of((60 * US, 3 * MS))), comm, write=True)
    for _ in range(3):
        resent(host, None, T0 + host.of((0, host.end - T0)), port=9_100)


def request(host: Host, place: Place, comm: str, write: bool = False, for_pid: int | None = None) -> None:
    """One request to a disk."""
    pid, tid, at, ns = place
    host.scene.add(
        "block_io",
        start_ns=at,
        duration_ns=ns,
        pid=pid,
        tid=tid,
        op="write" if write else "read",
        operation=int(write),
        comm=comm,
        major=259,
        minor=1,
        sector=host.of((0, 1 << 31)),
        size_bytes=262_144,
        error=0,
        queue_ns=3 * US,
        for_pid=for_pid,
        for_comm=None if for_pid is None else "python3",
    )


def resent(host: Host, pid: int | None, at: int, port: int = 43_210, remote: int = 51_000) -> None:
    """A packet of an established connection is sent again."""
    host.scene.add(
        "tcp_retransmits",
        start_ns=at,
        pid=pid,
        comm=None if pid is None else "python3",
        inode=99_001,
        uid=1_000,
        family=2,
        state=1,
        segments=1,
        error=0,
        local_address="10.0.0.4",
        local_port=port,
        remote_address="10.0.0.9",
        remote_port=remote,
    )


def spins(host: Host, place: Place) -> None:
    """On its CPU all the time: no row."""


def ran_instead(comm: str, pid: int, tid: int = 0, *, priority: int = 120, cgroup: int = 99) -> Traces:
    """Runnable, and somebody else had its CPU."""

    def traces(host: Host, place: Place) -> None:
        who, thread, at, ns = place
        host.off_cpu(
            who,
            thread,
            at,
            ns,
            op="preempted",
            prev_state=0,
            next_pid=pid,
            next_tid=tid or pid,
            next_comm=comm,
            wake_ns=None,
            runqueue_ns=ns,
            syscall=None,
            next_priority=priority,
            next_cgroup_id=cgroup,
            cpu_out=2,
        )

    return traces


def asleep(
    syscall: int | None, state: int = 1, waker: tuple[int, int, str] = (0, 0, "swapper/2"), arg: int = 0x7F31_0040
) -> Traces:
    """Asleep in a system call (None: a page fault) until somebody woke it (0: from an interrupt)."""

    def traces(host: Host, place: Place) -> None:
        pid, tid, at, ns = place
        late = min(25 * US, ns // 8)
        host.off_cpu(
            pid,
            tid,
            at,
            ns,
            prev_state=state,
            syscall=syscall,
            syscall_arg=None if syscall is None else arg,
            wake_ns=at + ns - late,
            runqueue_ns=late,
            waker_pid=waker[0],
            waker_tid=waker[1],
            waker_comm=waker[2],
        )

    return traces


def cold_file(
    syscall: int | None = 0, reader: int = 0, comm: str = "python3", write: bool = False, for_it: bool = False
) -> Traces:
    """Asleep, uninterruptibly, while a disk serves what it asked for; ``reader``: the thread that gave the requests to
    the disk, where it is not the sleeper."""

    def traces(host: Host, place: Place) -> None:
        pid, tid, at, ns = place
        late = min(25 * US, ns // 8)
        asleep(syscall, 2)(host, place)
        cut = at + host.of((ns // 4, ns // 2))
        for start, end in ((at - 2 * US, cut), (cut + 4 * US, at + ns - late)):
            who = (reader, reader) if reader else (pid, tid)
            request(host, (*who, start, end - start), comm, write, pid if for_it else None)

    return traces
