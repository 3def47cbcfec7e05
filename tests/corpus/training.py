"""A process that trains on one thread: copies, launches and a synchronisation a step, some calls slow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tests.corpus.model import Host, Planted, Range
from tests.scenes import MS, T0, US, S

MEDIANS = {
    "cudaMemcpyAsync": 9 * US, "cudaLaunchKernel": 6 * US, "cudaStreamSynchronize": 900 * US, "cudaMalloc": 60 * US,
}  # fmt: skip
STEP = ("cudaMemcpyAsync", *("cudaLaunchKernel",) * 6, "cudaMalloc", "cudaStreamSynchronize")

Where = Literal["here", "another thread", "another process", "between calls", "earlier"]
"""Where a disturbance lies: on the slow call's own thread within the call, or (negative twins) somewhere else."""


@dataclass(frozen=True)
class Victim:
    """Time of a call that is lost: on whose thread, and from when to when."""

    pid: int
    tid: int
    at: int
    ns: int


def timer(host: Host, v: Victim) -> None:
    """A voluntary sleep."""
    host.off_cpu(v.pid, v.tid, v.at, v.ns, waker_pid=0, waker_tid=0, waker_comm="swapper/2")


Rows = Callable[[Host, Victim], None]
"""Writes the rows of one occurrence of a cause."""


@dataclass(frozen=True)
class Slow:
    """``times`` calls of ``op`` take ``lost`` ns longer than they would; the cause covers ``covered`` percent of what
    was lost, beginning ``after`` percent into it. ``cause`` is the truth; None: nothing explains it."""

    rows: Rows
    cause: str | None
    op: str = "cudaLaunchKernel"
    times: Range = (4, 12)
    lost: Range = (5 * MS, 60 * MS)
    covered: Range = (60, 98)
    after: Range = (0, 2)
    where: Where = "here"
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trainer:
    """Trains for some ``steps`` with a voluntary pause before each; ``slow`` are its disturbances, each on calls of its
    own, and ``together`` those that hit the same calls as the one before them."""

    slow: Sequence[Slow] = ()
    pid: int = 3_100
    steps: Range = (150, 260)
    pause: Range = (300 * US, 3 * MS)
    together: Sequence[Slow] = ()
    role: str = "traced"
    start: int = T0 + 200 * MS
    gpu: int | None = 0
    medians: dict[str, int] = field(default_factory=lambda: dict(MEDIANS))

    def happen(self, host: Host) -> None:
        """All its calls, one after the other."""
        host.scene.process(self.pid, "python3", self.role, start_ns=T0 - 500 * S, cgroup_id=40, cgroup="/train")
        steps = host.of(self.steps)
        plan = self._plan(host, steps)
        at = self.start
        for step in range(steps):
            beside = plan.beside.get(step)
            pause = host.of(self.pause if beside is None else beside.lost)
            (beside.rows if beside else timer)(host, Victim(self.pid, self.pid, at, pause))
            at += pause + 20 * US
            for i, op in enumerate(STEP):
                natural = host.around(self.medians[op])
                lost = plan.hits.get((step, i), 0)
                self._call(host, op, at, natural + lost, i)
                if lost:
                    key = (self.pid, op)
                    host.lengthened[key] = host.lengthened.get(key, 0) + natural + lost
                    self._disturb(host, plan.groups[step, i], at + natural // 2, lost)
                at += natural + lost + host.of((2 * US, 12 * US))
        host.reaches(at)
        if self.gpu is not None:
            host.scene.samples(T0, at, self.gpu, [self.pid], clock_sm_mhz=1_755, clock_sm_max_mhz=1_980)

    def _call(self, host: Host, op: str, at: int, ns: int, place: int) -> None:
        more = {
            "cudaMalloc": {"size_bytes": 1 << 20, "device_pointer": 0x7F00_0000_0000 + at % (1 << 30) * 512},
            "cudaLaunchKernel": {"stream": 7, "function": 0x5555_0000 + 64 * place, "grid_x": 512, "block_x": 256},
            "cudaMemcpyAsync": {"stream": 7, "size_bytes": 1 << 20, "direction": 1},
        }
        host.scene.cuda(self.pid, op, at, ns, **more.get(op, {"stream": 7}))

    def _plan(self, host: Host, steps: int) -> _Plan:
        """Which calls are hit: after the first twentieth, each of another step."""
        plan = _Plan()
        free = list(range(max(3, steps // 20), steps))
        host.draw.shuffle(free)
        for n, slow in enumerate(self.slow):
            group = (slow, *self.together) if n == len(self.slow) - 1 else (slow,)
            for _ in range(host.of(slow.times)):
                step = free.pop()
                place = host.draw.choice([i for i, op in enumerate(STEP) if op == slow.op])
                plan.hits[step, place] = host.of(slow.lost)
                plan.groups[step, place] = group
                if slow.where in ("between calls", "earlier"):
                    plan.beside[step if slow.where == "between calls" else free.pop()] = slow
        return plan

    def _disturb(self, host: Host, group: Sequence[Slow], at: int, lost: int) -> None:
        for slow in group:
            start = at + lost * host.of(slow.after) // 100
            ns = min(lost * host.of(slow.covered) // 100, at + lost - start)
            if slow.where == "here":
                slow.rows(host, Victim(self.pid, self.pid, start, ns))
            elif slow.where == "another thread":
                slow.rows(host, Victim(self.pid, self.pid + 7, start, ns))
            elif slow.where == "another process":
                slow.rows(host, Victim(self.pid + 400, self.pid + 400, start, ns))
            if slow.cause is not None and slow.where == "here":
                host.planted.append(Planted(slow.cause, self.pid, group[0].op, ns))
                host.also |= {(c, self.pid) for c in slow.also}


@dataclass
class _Plan:
    hits: dict[tuple[int, int], int] = field(default_factory=dict)
    groups: dict[tuple[int, int], Sequence[Slow]] = field(default_factory=dict)
    beside: dict[int, Slow] = field(default_factory=dict)
