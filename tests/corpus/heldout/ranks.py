"""Held-out: ranks that reduce together, late ones and why, their network, and what only looks like lateness."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.corpus.heldout.calls import FILE, FUTEX, HOG, LOCK, counters, reclaims
from tests.corpus.heldout.programs import Loss, Place, Thread, Traces, asleep, gpu, request, resent, scenario, spins
from tests.corpus.heldout.silences import saves
from tests.corpus.model import Host, Planted, Scenario
from tests.scenes import MS, T0, US, S

FIRST = 44_100
GROUP = 0xFEED_0000_0000_0042
Losses = Callable[[Host], Sequence[Loss]]


@dataclass
class Job:
    """``ranks`` that train together: launches, an all-reduce, a synchronisation that ends when the slowest has come.

    ``late``: by rank, in which steps it loses what before it comes. ``wire``: by step, how much longer the collective
    takes than the last arrival tells, and what shows it. ``known``: the communicator was made while probes looked.
    """

    ranks: int = 4
    steps: int = 160
    late: Mapping[int, tuple[Sequence[int], Losses]] = field(default_factory=dict)
    wire: Mapping[int, int] = field(default_factory=dict)
    known: bool = True
    first: int = FIRST
    start: int = T0 + 200 * MS
    group: int = GROUP
    cgroups: Mapping[int, str] = field(default_factory=dict)
    spread: int = 60 * US
    spans: list[tuple[int, int]] = field(default_factory=list)
    """Of each collective: last arrival and end."""

    def run(self, host: Host) -> Job:
        """All steps of all ranks."""
        for r in range(self.ranks):
            host.scene.process(
                self.first + r,
                start_ns=T0 - 700 * S,
                cgroup=self.cgroups.get(r, "/job"),
                cgroup_id=80 + r,
                rank=r,
                local_rank=r,
                world_size=self.ranks,
                rank_source="RANK,LOCAL_RANK,WORLD_SIZE",
            )
        threads = [Thread(host, self.first + r, at=self.start) for r in range(self.ranks)]
        for step in range(self.steps):
            arrivals = []
            for r, thread in enumerate(threads):
                for _ in range(6):
                    thread.call("cudaLaunchKernel", host.around(6 * US), stream=7 + r, function=0x42)
                    thread.works(host.of((20 * US, 30 * US)))
                steps, losses = self.late.get(r, ((), lambda _: ()))
                if step in steps:
                    for loss in losses(host):
                        thread.loses(loss)
                thread.works(host.of((0, self.spread)))
                arrivals.append(thread.at)
            done = max(arrivals) + host.around(900 * US, 0.1) + self.wire.get(step, 0)
            self.spans.append((max(arrivals), done))
            for r, thread in enumerate(threads):
                inside = host.around(14 * US)
                host.scene.add(
                    "nccl_calls",
                    start_ns=thread.at,
                    duration_ns=inside,
                    pid=thread.pid,
                    tid=thread.tid,
                    op="ncclAllReduce",
                    return_code=0,
                    comm_handle=0x5000 if not self.known else 0x5000 + r,
                    comm_id=self.group if self.known else None,
                    rank=r if self.known else None,
                    nranks=self.ranks if self.known else None,
                    datatype=9,
                    reduce_op=0,
                    count=1 << 22,
                    size_bytes=1 << 23,
                    stream=7 + r,
                )
                thread.at += inside + 4 * US
                thread.call("cudaStreamSynchronize", max(2 * US, done - thread.at), stream=7 + r)
                thread.works(host.around(350 * US, 0.05))
        for r in range(self.ranks):
            gpu(host, [self.first + r], index=r)
        return self

    def is_late(self, host: Host, *ranks: int) -> None:
        """The truth of late ranks; their peers wait for them, which need not be said."""
        for r in ranks:
            host.planted.append(Planted("late_rank", self.first + r))
        host.also |= {("peer_late", self.first + r) for r in range(self.ranks)}


def chosen(host: Host, often: int = 9, steps: int = 160) -> Sequence[int]:
    """Steps in which something happens, none of the first ten."""
    return sorted(host.draw.sample(range(10, steps), often))


def one(traces: Traces, cause: str | None, low: int = 20 * MS, high: int = 90 * MS) -> Losses:
    """A rank loses time to one thing before it comes."""

    def losses(host: Host) -> Sequence[Loss]:
        return (Loss(host.of((low, high)), traces, cause),)

    return losses


def late(name: str, rank: int, traces: Traces, cause: str | None, also: Sequence[str] = ()) -> Scenario:
    """One rank is late, now and then."""

    @scenario(name, "single" if cause is None else "compound")
    def told(host: Host) -> None:
        job = Job(late={rank: (chosen(host), one(traces, cause))}).run(host)
        job.is_late(host, rank)
        host.also |= {(c, FIRST + rank) for c in also}

    return told


def talks(host: Host, place: Place) -> None:
    """It logs to a tracking service and waits for the answer."""
    asleep(45, waker=(0, 0, "swapper/7"))(host, place)


@scenario("packets of the ring are lost: a retransmission timer ends each long collective", "single")
def lost_packets(host: Host) -> None:
    steps = chosen(host, 8)
    job = Job(wire={s: host.of((203 * MS, 218 * MS)) for s in steps}).run(host)
    for s in steps:
        last = job.spans[s][0]
        resent(host, FIRST + 1, last + 200 * MS + host.of((10 * US, MS)))
    for r in range(job.ranks):
        host.also.add(("tcp_retransmits", FIRST + r))
    host.planted.append(Planted("tcp_retransmits", FIRST + 1))


@scenario("two ranks are late: a disk holds one, a hog the other", "compound")
def two_late(host: Host) -> None:
    first, second = chosen(host, 8), chosen(host, 8)
    second = [s for s in second if s not in first]
    job = Job(late={1: (first, one(FILE, "blocking_io")), 3: (second, one(HOG, "preempted"))}).run(host)
    job.is_late(host, 1, 3)


@scenario("packets are lost in some collectives, a rank is late in others", "compound")
def lost_and_late(host: Host) -> None:
    steps = chosen(host, 14)
    lossy, slow = steps[::2], steps[1::2]
    job = Job(wire={s: host.of((203 * MS, 218 * MS)) for s in lossy}, late={2: (slow, one(LOCK, "lock_wait"))}).run(
        host
    )
    for s in lossy:
        resent(host, FIRST, job.spans[s][0] + 200 * MS + host.of((10 * US, MS)))
    host.planted.append(Planted("tcp_retransmits", FIRST))
    for r in range(job.ranks):
        host.also.add(("tcp_retransmits", FIRST + r))
    job.is_late(host, 2)


@scenario("a rank's container has a quota, of version 2", "compound")
def late_for_quota(host: Host) -> None:
    spans: list[tuple[int, int]] = []

    def throttled(h: Host, place: Place) -> None:
        spans.append((place[2], place[3]))
        h.off_cpu(
            place[0],
            place[1],
            place[2],
            place[3],
            op="preempted",
            prev_state=0,
            wake_ns=None,
            runqueue_ns=place[3],
            syscall=None,
        )

    job = Job(late={2: (chosen(host), one(throttled, "cpu_quota", 30 * MS, 90 * MS))}, cgroups={2: "/job/r2"}).run(host)
    counters(host, FIRST + 2, "/job/r2", {"/job/r2": spans})
    job.is_late(host, 2)


@scenario("a rank is late for a lock and a hog, in halves", "compound")
def halves(host: Host) -> None:
    def losses(h: Host) -> Sequence[Loss]:
        ns = h.of((30 * MS, 80 * MS))
        return (Loss(ns // 2, LOCK, "lock_wait"), Loss(ns // 2, HOG, "preempted"))

    job = Job(late={0: (chosen(host), losses)}).run(host)
    job.is_late(host, 0)


SINGLE = (
    lost_packets,
    late("a rank collects garbage before it comes", 2, spins, None),
    late("a rank writes to a tracking service before it comes", 0, talks, None),
)

COMPOUND = (
    two_late,
    lost_and_late,
    late_for_quota,
    halves,
    late("rank 0 saves a checkpoint before it comes", 0, saves, "blocking_io"),
    late(
        "a rank waits for a lock of its logging thread",
        3,
        asleep(FUTEX, waker=(FIRST + 3, FIRST + 40, "logger")),
        "lock_wait",
    ),
    late("a rank looks for memory before it comes", 1, reclaims(), "memory_reclaim"),
    late("a rank faults in a cold file before it comes", 1, FILE, "blocking_io"),
)


def blameless(
    name: str, traces: Traces | None = None, after: Callable[[Host, Job], None] | None = None, **more: int | bool
) -> Scenario:
    """Ranks with one that is late for no reason that has rows (``traces``: rows of the delay), or with none."""

    @scenario(name, "twin")
    def told(host: Host) -> None:
        job = Job(**more)  # type: ignore[arg-type]
        if traces:
            job.late = {2: (chosen(host), one(traces, None))}
        job.run(host)
        if traces and job.known:
            job.is_late(host, 2)
        if after:
            after(host, job)

    return told


def waits(job: Job) -> Sequence[tuple[int, int]]:
    """Collectives in which the others waited longest: from the usual arrival to the end, by the length of a step."""
    ends = [T0 + 200 * MS, *(done for _, done in job.spans)]
    return sorted(((ends[i], ends[i + 1]) for i in range(len(job.spans))), key=lambda s: s[0] - s[1])[:9]


def upload(host: Host, job: Job) -> None:
    """A peer's upload to an object store loses packets while all wait."""
    for start, end in waits(job):
        resent(host, FIRST + 1, (start + end) // 2, port=39_000, remote=443)


def monitoring(host: Host, job: Job) -> None:
    """The packets of a monitoring agent are lost while all wait."""
    host.scene.process(1_700, "node_exporter", "observer", reason="serves metrics")
    for start, end in waits(job):
        resent(host, 1_700, (start + end) // 2, port=9_100)


def disk_of_peers(host: Host, job: Job) -> None:
    """Ranks that wait write their logs meanwhile, on threads of their own."""
    for start, end in waits(job):
        for r in (0, 1, 3):
            ns = (end - start) // 2
            FILE(host, (FIRST + r, FIRST + r + 60, start + ns // 2, ns))


def hog_of_peers(host: Host, job: Job) -> None:
    """A hog preempts threads of ranks that wait."""
    for start, end in waits(job):
        ns = (end - start) // 2
        HOG(host, (FIRST, FIRST + 61, start + ns // 2, ns))


def after_the_fact(host: Host, job: Job) -> None:
    """Packets are lost right after the long collectives."""
    for _, end in waits(job):
        resent(host, FIRST + 1, end + 40 * US)


def sleeping_late(host: Host, place: Place) -> None:
    """Another thread of the late rank is on a disk; its main thread is on its CPU."""
    pid, tid, at, ns = place
    FILE(host, (pid, tid + 70, at, ns))


def written_by_others(host: Host, place: Place) -> None:
    """The late rank sleeps for a timer while another process's requests are with the disk."""
    asleep(230)(host, place)
    request(host, (9_900, 9_900, place[2], place[3]), "postgres", write=True, for_pid=9_900)


TWINS = (
    blameless("ranks that come as they always do"),
    blameless("ranks that scatter widely, none more than another", spread=3 * MS),
    blameless("a late rank of a communicator that nobody saw made", spins, known=False),
    blameless("a rank is late while a peer's upload loses packets", spins, upload),
    blameless("a rank is late while a monitoring agent loses packets", spins, monitoring),
    blameless("a rank is late while its peers write logs", spins, disk_of_peers),
    blameless("a rank is late while its peers' threads are preempted", spins, hog_of_peers),
    blameless("packets are lost after the long collectives", spins, after_the_fact),
    blameless("a rank is late on its CPU while its own thread is on a disk", sleeping_late),
    blameless("a rank is late for a timer while a database writes", written_by_others),
)

RANKS: tuple[Scenario, ...] = (*SINGLE, *COMPOUND, *TWINS)
