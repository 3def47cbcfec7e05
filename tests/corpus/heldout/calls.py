"""Held-out: calls that take long, and what did and did not make them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.corpus.heldout.programs import (
    DECODE,
    Loss,
    Place,
    Program,
    Thread,
    Traces,
    asleep,
    cold_file,
    everyday,
    gpu,
    ran_instead,
    scenario,
    spins,
)
from tests.corpus.model import Host, Scenario
from tests.scenes import MS, T0, US, S

PID = 21_300
LAUNCH, COPY, SYNC, GRAPH = "cudaLaunchKernel", "cudaMemcpyAsync", "cudaStreamSynchronize", "cudaGraphLaunch"
FUTEX, READ, MMAP, NANOSLEEP, POLL = 202, 0, 9, 230, 7


def loses(
    traces: Traces, cause: str | None, low: int = 6 * MS, high: int = 40 * MS, spun: int = 4
) -> Callable[[Host], Sequence[Loss]]:
    """One loss, and ``spun`` percent of it more on the CPU, of which nobody knows the reason."""

    def losses(host: Host) -> Sequence[Loss]:
        ns = host.of((low, high))
        return (Loss(ns, traces, cause), Loss(ns * spun // 100, spins))

    return losses


def parts(
    *given: tuple[int, Traces, str | None], low: int = 15 * MS, high: int = 50 * MS
) -> Callable[[Host], Sequence[Loss]]:
    """Several losses after each other, in percent of the whole."""

    def losses(host: Host) -> Sequence[Loss]:
        ns = host.of((low, high))
        return tuple(Loss(ns * percent // 100, traces, cause) for percent, traces, cause in given)

    return losses


def simple(name: str, traces: Traces, cause: str, op: str = LAUNCH, *, also: str = "") -> Scenario:
    """A trainer that loses time to one thing."""

    @scenario(name, "single")
    def told(host: Host) -> None:
        Program(PID, slow=[(op, 2 if op == SYNC else 7, loses(traces, cause))]).run(host)
        everyday(host, PID)
        if also:
            host.also.add((also, PID))

    return told


@scenario("a tokenizer has the core of the engine's decode loop", "single")
def tokenizer(host: Host) -> None:
    Program(
        PID,
        DECODE,
        240,
        [(GRAPH, 9, loses(ran_instead("tokenizer-3", 21_280, 21_291), "preempted", 3 * MS, 24 * MS))],
        comm="VLLM::EngineCor",
    ).run(host)
    everyday(host, PID)


@scenario("interrupts of a network card are served where launches are made", "single")
def interrupts(host: Host) -> None:
    Program(PID, slow=[(LAUNCH, 8, loses(ran_instead("ksoftirqd/2", 24), "irq_load", 4 * MS, 12 * MS))]).run(host)
    everyday(host, PID)
    host.also.add(("preempted", PID))


@scenario("a threaded interrupt handler has the core", "single")
def threaded_interrupt(host: Host) -> None:
    handler = ran_instead("irq/187-mlx5_co", 1_187, priority=49)
    Program(PID, slow=[(LAUNCH, 8, loses(handler, "irq_load", 3 * MS, 9 * MS))]).run(host)
    everyday(host, PID)
    host.also.add(("preempted", PID))


@scenario("a pod's quota, counted in version 2", "single")
def quota_v2(host: Host) -> None:
    _quota(host, "/kubepods.slice/pod7.slice/ctr.scope", "/kubepods.slice/pod7.slice/ctr.scope")


@scenario("a quota set on the pod, not on its container", "single")
def quota_of_parent(host: Host) -> None:
    _quota(host, "/kubepods.slice/pod7.slice/ctr.scope", "/kubepods.slice/pod7.slice")


def _quota(host: Host, mine: str, limited: str) -> None:
    program = Program(
        PID, slow=[(LAUNCH, 7, loses(ran_instead("swapper/2", 0), "cpu_quota", 25 * MS, 80 * MS))], cgroup=mine
    ).run(host)
    everyday(host, PID)
    throttling = [(at, ns) for _, _, at, ns in program.times]
    counters(host, PID, mine, {limited: throttling} if limited == mine else {mine: [], limited: throttling})


def counters(host: Host, pid: int, mine: str, throttled: dict[str, list[tuple[int, int]]]) -> None:
    """Counters of version 2, every second and at the end, of cgroups of which some are throttled."""
    for at in (*range(T0, host.end, S), host.end):
        host.scene.add(
            "process_samples",
            start_ns=at,
            pid=pid,
            user_ns=(at - T0) // 2,
            system_ns=(at - T0) // 30,
            resident_bytes=3 << 30,
            threads=31,
            cpu_cgroup=mine,
            cpu_cgroup_version=2,
        )
        for cgroup, spans in throttled.items():
            done = [ns for start, ns in spans if start + ns <= at]
            host.scene.add(
                "cgroup_cpu",
                start_ns=at,
                cgroup=cgroup,
                version=2,
                usage_ns=(at - T0) // 2,
                periods=(at - T0) // (100 * MS),
                throttled_periods=len(done),
                throttled_ns=sum(done),
                quota_ns=400 * MS if spans else None,
                period_ns=100 * MS,
            )


@scenario("a container of a Java service has the core", "single")
def java(host: Host) -> None:
    def losses(h: Host) -> Sequence[Loss]:
        ns = h.of((8 * MS, 30 * MS))
        names = h.draw.sample(("G1 Conc#0", "C2 CompilerThre", "http-nio-8080-e", "GC Thread#3"), 3)
        return tuple(
            Loss(ns // 3, ran_instead(n, 30_700 + i, 30_710 + i, cgroup=881), "noisy_neighbour")
            for i, n in enumerate(names)
        )

    for i in range(4):
        host.scene.process(30_700 + i, "java", "workload", cgroup="/docker/9f", cgroup_id=881, start_ns=T0 - 80 * S)
    Program(PID, slow=[(LAUNCH, 8, losses)]).run(host)
    everyday(host, PID)
    host.also.add(("preempted", PID))


@scenario("fast calls are counted in the kernel, only slow ones have rows", "single")
def counted(host: Host) -> None:
    host.scene.process(PID, start_ns=T0 - 900 * S, cgroup="/train", cgroup_id=71)
    thread = Thread(host, PID)
    for second in range(12):
        begin = thread.at
        for low, count in ((4 * US, 9_000), (6 * US, 1_200)):
            host.scene.add(
                "call_totals",
                start_ns=begin,
                duration_ns=990 * MS,
                pid=PID,
                tid=PID,
                op=LAUNCH,
                low_ns=low,
                high_ns=low * 5 // 4,
                count=count,
                sum_ns=count * low * 9 // 8,
                min_ns=low,
                max_ns=low * 6 // 5,
                size_bytes=0,
                errors=0,
                nested=0,
            )
        if second:
            thread.works(host.of((50 * MS, 600 * MS)))
            ns = host.of((5 * MS, 30 * MS))
            thread.call(LAUNCH, 6 * US, Loss(ns, ran_instead("rsync", 3_344), "preempted"))
        thread.at = begin + S
    host.reaches(thread.at)
    gpu(host, [PID])
    everyday(host, PID)


@scenario("rows of another CPU were lost, the slow thread's were not", "single")
def lost_elsewhere(host: Host) -> None:
    Program(PID, slow=[(LAUNCH, 8, loses(ran_instead("ffmpeg", 7_800), "preempted"))]).run(host)
    everyday(host, PID)
    host.scene.lost["block_io"] = 40
    host.scene.add(
        "gaps",
        start_ns=T0 + 300 * MS,
        duration_ns=200 * MS,
        source="block_io",
        table_name="block_io",
        pid=None,
        reason="40 records found the ring of CPU 9 full",
    )


@scenario("the wall clock is set back in the middle", "single")
def clock_step(host: Host) -> None:
    Program(PID, slow=[(LAUNCH, 8, loses(asleep(FUTEX, waker=(PID, PID + 5, "pt_data_pin")), "lock_wait"))]).run(host)
    everyday(host, PID)
    middle = (T0 + host.end) // 2
    for at in range(T0, host.end + 10 * MS, max(MS, (host.end - T0) // 8)):
        step = -3 * S if at > middle else 0
        host.scene.add("clock", start_ns=at, duration_ns=900, realtime_ns=at + 10**18 + step, monotonic_ns=at)


@scenario("a thread that is no main thread launches, and loses its core", "single")
def backward(host: Host) -> None:
    Program(PID, slow=[(LAUNCH, 8, loses(ran_instead("clang", 5_500), "preempted"))], tid=PID + 9, comm="python3").run(
        host
    )
    everyday(host, PID)


SINGLE = (
    tokenizer,
    interrupts,
    threaded_interrupt,
    quota_v2,
    quota_of_parent,
    java,
    counted,
    lost_elsewhere,
    clock_step,
    backward,
    simple("a copy faults in pages of a mapped file", cold_file(syscall=None), "blocking_io", COPY),
    simple(
        "a copy faults in pages that were swapped out",
        cold_file(syscall=None),
        "blocking_io",
        COPY,
        also="memory_reclaim",
    ),
    simple(
        "an encrypted disk: a kernel worker hands on the reads", cold_file(READ, 318, "kworker/u64:9"), "blocking_io"
    ),
    simple(
        "a mapping waits for the address space's lock",
        asleep(MMAP, 2, (PID, PID + 12, "pt_data_pin")),
        "lock_wait",
        COPY,
    ),
    simple(
        "launches wait for a driver lock held by an allocation",
        asleep(FUTEX, waker=(PID, PID + 6, "python3")),
        "lock_wait",
    ),
    simple("a real-time thread has the core", ran_instead("jackd", 640, priority=9), "preempted"),
    simple(
        "more OpenMP threads than cores: its own threads have the core",
        ran_instead("python3", PID, PID + 21),
        "preempted",
    ),
    simple("the core is lost during synchronisations", ran_instead("stress", 9_100), "preempted", SYNC),
)


def mixture(name: str, *slow: tuple[str, int, Callable[[Host], Sequence[Loss]]], also: Sequence[str] = ()) -> Scenario:
    """A trainer that loses time to several things."""

    @scenario(name, "compound")
    def told(host: Host) -> None:
        Program(PID, slow=slow, steps=220).run(host)
        everyday(host, PID)
        host.also |= {(cause, PID) for cause in also}

    return told


HOG = ran_instead("make", 8_120)
LOCK = asleep(FUTEX, waker=(PID, PID + 3, "python3"))
FILE = cold_file(READ)


def reclaims(op: str = "host", tid: int = 0) -> Traces:
    """The thread (or another of the process) looks for memory itself, on its CPU."""

    def traces(host: Host, place: Place) -> None:
        pid, own, at, ns = place
        host.scene.add(
            "reclaims",
            start_ns=at,
            duration_ns=ns,
            pid=pid,
            tid=tid or own,
            op=op,
            cgroup_limit=int(op == "cgroup"),
            comm="python3",
            order=0,
            reclaimed_pages=host.of((32, 400)),
        )

    return traces


def both(*given: Traces) -> Traces:
    """At the same time."""

    def traces(host: Host, place: Place) -> None:
        for one in given:
            one(host, place)

    return traces


@scenario("a tokenizer takes the core of some replays, a quota that of some copies", "compound")
def tokenizer_and_quota(host: Host) -> None:
    program = Program(
        PID,
        DECODE,
        240,
        [
            (COPY, 5, loses(ran_instead("swapper/2", 0), "cpu_quota", 25 * MS, 70 * MS)),
            (GRAPH, 6, loses(ran_instead("tokenizer-1", 21_280), "preempted", 8 * MS, 30 * MS)),
        ],
        cgroup="/serve",
    ).run(host)
    everyday(host, PID)
    throttled = [
        (t[2], t[3])
        for t in program.times
        if any(
            r["start_ns"] >= t[2] and r["start_ns"] < t[2] + t[3] and r["next_pid"] == 0 and r["op"] == "preempted"
            for r in host.scene.rows["off_cpu"]
        )
    ]
    counters(host, PID, "/serve", {"/serve": throttled})


@scenario("a lock whose holder waits for a disk", "compound")
def lock_and_disk(host: Host) -> None:
    def locked(h: Host, place: Place) -> None:
        pid, _, at, ns = place
        cold_file(READ)(h, (pid, pid + 3, at - 400 * US, ns))
        LOCK(h, place)

    Program(PID, slow=[(LAUNCH, 7, loses(locked, "lock_wait"))]).run(host)
    everyday(host, PID)
    host.also.add(("blocking_io", PID))


COMPOUND = (
    tokenizer_and_quota,
    lock_and_disk,
    mixture("half a hog, half a lock", (LAUNCH, 8, parts((50, HOG, "preempted"), (46, LOCK, "lock_wait")))),
    mixture(
        "two thirds a disk, a fifth a hog",
        (LAUNCH, 8, parts((67, FILE, "blocking_io"), (20, HOG, "preempted"), (10, spins, None))),
    ),
    mixture(
        "a hog, a lock and a disk in one call",
        (LAUNCH, 9, parts((38, HOG, "preempted"), (31, LOCK, "lock_wait"), (25, FILE, "blocking_io"))),
    ),
    mixture(
        "memory is short, then pages come back from swap",
        (COPY, 3, parts((45, reclaims(), "memory_reclaim"), (48, cold_file(None), "blocking_io"))),
    ),
    mixture(
        "interrupts and a hog in the same launches",
        (LAUNCH, 8, parts((37, ran_instead("ksoftirqd/2", 24), "irq_load"), (55, HOG, "preempted"))),
    ),
    mixture(
        "a lock in launches, a hog in copies", (LAUNCH, 6, loses(LOCK, "lock_wait")), (COPY, 2, loses(HOG, "preempted"))
    ),
    mixture(
        "a limit of the cgroup in copies, a disk in launches",
        (COPY, 2, loses(reclaims("cgroup"), "memory_reclaim")),
        (LAUNCH, 6, loses(FILE, "blocking_io")),
    ),
    mixture(
        "a disk in a third, nothing known in the rest, a lock elsewhere",
        (LAUNCH, 7, parts((34, FILE, "blocking_io"), (66, spins, None))),
        (COPY, 2, loses(LOCK, "lock_wait")),
    ),
)

CALLS: tuple[Scenario, ...] = (*SINGLE, *COMPOUND)
