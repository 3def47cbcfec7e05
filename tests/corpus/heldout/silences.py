"""Held-out: programs that stop calling, wait for input, copy, allocate or make graphs; and those that only seem to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.corpus.heldout.calls import FUTEX, POLL, READ
from tests.corpus.heldout.programs import (
    TRAIN,
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
    request,
    scenario,
    spins,
)
from tests.corpus.model import Host, Planted, Scenario
from tests.scenes import MS, T0, US, S

PID = 33_700
FSYNC, WRITE, EPOLL = 74, 1, 232


def stops(
    traces: Callable[[Host], Traces], cause: str | None, often: int = 3, low: int = 1_500 * MS, high: int = 4 * S
) -> tuple[int, Callable[[Host], Sequence[Loss]]]:
    """Stretches in which the program calls nothing."""

    def losses(host: Host) -> Sequence[Loss]:
        return (Loss(host.of((low, high)), traces(host), cause),)

    return often, losses


def workers(host: Host, place: Place, doing: Traces, busy: int) -> None:
    """What data workers do in that time: ``busy`` percent of it as told, the rest on a CPU."""
    _, _, at, ns = place
    for n in range(3):
        turns = 4
        for turn in range(turns):
            begin = at + (ns - 4 * MS) * turn // turns + n * MS
            doing(host, (PID + 100 + n, PID + 100 + n, begin, (ns - 4 * MS) // turns * busy // 100))


def loaders(host: Host, count: int = 3, first: int = PID + 100) -> None:
    """Worker processes of a data loader."""
    for n in range(count):
        host.scene.process(
            first + n,
            "pt_data_worker",
            "workload",
            parent_pid=PID,
            start_ns=T0 - 800 * S,
            cgroup="/train",
            cgroup_id=71,
        )


def starving(name: str, doing: Traces, busy: int, also: Sequence[str] = ()) -> Scenario:
    """Each batch is waited for on a pipe that a worker writes to."""

    @scenario(name, "single")
    def told(host: Host) -> None:
        loaders(host)

        def traces(h: Host) -> Traces:
            who = PID + 100 + h.of((0, 2))

            def waits(h: Host, place: Place) -> None:
                asleep(POLL, waker=(who, who, "pt_data_worker"))(h, place)
                workers(h, place, doing, busy)

            return waits

        Program(PID, steps=120, between=[stops(traces, "input_starvation", 14, 700 * MS, 1_600 * MS)]).run(host)
        everyday(host, PID)
        host.also |= {(cause, pid) for cause in also for pid in (PID, PID + 100, PID + 101, PID + 102)}

    return told


def same(traces: Traces) -> Callable[[Host], Traces]:
    """The same each time."""
    return lambda _: traces


def saves(host: Host, place: Place) -> None:
    """fsync: a writeback worker gives the pages to the disk on its behalf."""
    pid, _, at, ns = place
    asleep(FSYNC, 2)(host, place)
    each = ns // 12
    for n in range(12):
        request(host, (88, 88, at + n * each, each - 30 * US), "kworker/u64:3", write=True, for_pid=pid)


def dirty(host: Host, place: Place) -> None:
    """write: the thread has to wait until enough of what it dirtied is on the disk; short sleeps that timers end."""
    pid, tid, at, ns = place
    each = 200 * MS
    for n in range(ns // each):
        asleep(WRITE, 2)(host, (pid, tid, at + n * each, each - 200 * US))
        for k in range(3):
            request(
                host,
                (88, 88, at + n * each + k * each // 3, each // 3 - 10 * US),
                "kworker/u64:3",
                write=True,
                for_pid=pid,
            )


def interpreter_lock(host: Host, place: Place) -> None:
    """Another thread keeps the interpreter's lock: a wait is repeated every 5 ms; that thread ends the last one."""
    pid, tid, at, ns = place
    n = ns // (5 * MS)
    for i in range(n):
        waker = (pid, pid + 8, "python3") if i == n - 1 else (0, 0, "swapper/2")
        asleep(FUTEX, waker=waker)(host, (pid, tid, at + i * 5 * MS, 5 * MS - 20 * US))


def silent(name: str, traces: Traces, cause: str, also: Sequence[str] = (), steps: int = 300) -> Scenario:
    """A trainer that stops a few times, for one reason."""

    @scenario(name, "single")
    def told(host: Host) -> None:
        Program(PID, steps=steps, between=[stops(same(traces), cause)]).run(host)
        everyday(host, PID)
        host.also |= {(c, PID) for c in also}

    return told


@scenario("a data worker is killed for want of memory", "single")
def worker_killed(host: Host) -> None:
    loaders(host)
    Program(PID, steps=160).run(host)
    at = host.end + 5 * MS
    host.scene.add(
        "oom_kills",
        start_ns=at,
        pid=PID + 101,
        comm="pt_data_worker",
        uid=1_000,
        resident_bytes=58 << 30,
        killer_pid=PID + 102,
        killer_comm="pt_data_worker",
        cgroup_id=71,
    )
    host.scene.add(
        "lifecycle",
        start_ns=at + 30 * MS,
        pid=PID + 101,
        tid=PID + 101,
        op="exit",
        event=2,
        comm="pt_data_worker",
        exit_code=0,
        signal=9,
    )
    host.off_cpu(PID, PID, at - 4 * MS, 5 * S, syscall=POLL, wake_ns=at + 5 * S - 4 * MS)
    host.planted.append(Planted("oom_kill", PID + 101))
    host.also |= {("oom_kill", PID), ("input_starvation", PID)}
    host.reaches(at + 5 * S)
    everyday(host, PID)


@scenario("each step copies its loss tensor from pageable memory and waits", "single")
def copies(host: Host) -> None:
    step = (*TRAIN[:-1], ("cudaMemcpy", 14 * MS), TRAIN[-1])
    host.scene.process(PID, cgroup="/train", cgroup_id=71)
    thread = Thread(host, PID)
    for _ in range(260):
        for op, usual in step:
            more = {"size_bytes": 64 << 20, "direction": 2} if op == "cudaMemcpy" else {"stream": 13}
            thread.call(op, host.around(usual, 0.1), **more)
            thread.works(8 * US)
        thread.works(host.around(MS))
    gpu(host, [PID])
    everyday(host, PID)
    host.planted.append(Planted("synchronous_copy", PID))


@scenario("each step allocates its workspace and frees it", "single")
def thrash(host: Host) -> None:
    host.scene.process(PID, cgroup="/train", cgroup_id=71)
    thread = Thread(host, PID)
    for _ in range(300):
        for k in range(3):
            pointer = 0x7F50_0000_0000 + k * (1 << 26)
            thread.call("cudaMalloc", host.around(380 * US), size_bytes=48 << 20, device_pointer=pointer)
            thread.works(5 * US)
        for op, usual in TRAIN:
            thread.call(op, host.around(usual), stream=13)
            thread.works(8 * US)
        for k in range(3):
            pointer = 0x7F50_0000_0000 + k * (1 << 26)
            thread.call("cudaFree", host.around(700 * US), size_bytes=48 << 20, device_pointer=pointer)
            thread.works(5 * US)
    gpu(host, [PID])
    everyday(host, PID)
    host.planted.append(Planted("allocator_thrash", PID))
    host.also.add(("allocation_burst", PID))


@scenario("a cache is emptied at once", "single")
def emptied(host: Host) -> None:
    program = Program(PID, steps=200).run(host)
    thread = Thread(host, program.pid, at=host.end + MS)
    for k in range(180):
        thread.call(
            "cudaFree", host.around(1_100 * US), size_bytes=20 << 20, device_pointer=0x7F60_0000_0000 + k * (1 << 25)
        )
        thread.works(6 * US)
    thread.works(20 * MS)
    for _ in range(300):
        for op, usual in TRAIN:
            thread.call(op, host.around(usual), stream=13)
            thread.works(12 * US)
    everyday(host, PID)
    host.planted.append(Planted("allocation_burst", PID))


@scenario("the first call makes the context", "single")
def first_call(host: Host) -> None:
    host.scene.process(PID, start_ns=T0 + 20 * MS, seen_ns=T0 + 25 * MS, cgroup="/train", cgroup_id=71)
    thread = Thread(host, PID)
    thread.call("cudaMalloc", 1_900 * MS, size_bytes=2 << 20, device_pointer=0x7F00_0000_0000)
    thread.call("cudaLaunchKernel", 210 * MS, stream=0, function=0x1234)
    thread.works(5 * MS)
    Program(PID, known=True, start=thread.at).run(host)
    everyday(host, PID)
    host.planted.append(Planted("cold_start", PID))


def graphs(host: Host, thread: Thread, handle: int, launched: bool = True) -> None:
    """A graph is captured, made and (mostly) launched."""
    thread.call("cudaStreamBeginCapture", 20 * US, stream=13, flags=0)
    for _ in range(12):
        thread.call("cudaLaunchKernel", 5 * US, stream=13, function=0x99)
        thread.works(20 * US)
    thread.call("cudaStreamEndCapture", 90 * US, stream=13, handle=handle, other_handle=handle)
    thread.call("cudaGraphInstantiate", host.around(26 * MS), handle=handle, other_handle=handle + 0x1_0000)
    if launched:
        thread.call("cudaGraphLaunch", host.around(60 * US), handle=handle + 0x1_0000, stream=13)


def decode(host: Host, thread: Thread, steps: int, handles: Sequence[int]) -> None:
    """Decode steps that replay graphs."""
    for n in range(steps):
        thread.call("cudaMemcpyAsync", host.around(9 * US), stream=13, size_bytes=4_096, direction=1)
        thread.call("cudaGraphLaunch", host.around(50 * US), handle=handles[n % len(handles)] + 0x1_0000, stream=13)
        thread.call("cudaStreamSynchronize", host.around(9 * MS, 0.05), stream=13)
        thread.works(host.around(400 * US))


@scenario("an engine makes a new graph for each new batch size, while it serves", "single")
def recaptures(host: Host) -> None:
    host.scene.process(PID, "VLLM::EngineCor", cgroup="/serve", cgroup_id=72, start_ns=T0 - 900 * S)
    thread = Thread(host, PID)
    decode(host, thread, 60, [0xB00])
    for n in range(40):
        graphs(host, thread, 0xC00 + n * 8)
        decode(host, thread, 8, [0xC00 + n * 8])
    gpu(host, [PID])
    everyday(host, PID)
    host.planted.append(Planted("graph_recapture", PID))


@scenario("graphs are made and none is launched", "single")
def unused(host: Host) -> None:
    host.scene.process(PID, "python3", cgroup="/serve", cgroup_id=72, start_ns=T0 - 900 * S)
    thread = Thread(host, PID)
    for n in range(14):
        graphs(host, thread, 0xD00 + n * 8, launched=False)
    Program(PID, steps=260, known=True, start=thread.at + MS).run(host)
    everyday(host, PID)
    host.planted.append(Planted("graph_unused", PID))
    host.also.add(("graph_recapture", PID))


SINGLE = (
    worker_killed,
    copies,
    thrash,
    emptied,
    first_call,
    recaptures,
    unused,
    starving(
        "workers decode images with all the CPUs there are", ran_instead("pt_data_worker", PID + 101), 35, ["preempted"]
    ),
    starving("workers read cold shards from a disk", cold_file(READ), 92, ["blocking_io"]),
    starving("workers wait for an object store", asleep(POLL), 96),
    silent("a checkpoint is flushed on the thread that trains", saves, "blocking_io"),
    silent("a log that is written faster than the disk", dirty, "blocking_io"),
    silent("an extension keeps the interpreter's lock", interpreter_lock, "lock_wait"),
    silent("the only core is a build's for seconds", ran_instead("cc1plus", 7_150), "preempted"),
)


@scenario("workers starve it, and its copies are synchronous", "compound")
def starved_and_copies(host: Host) -> None:
    loaders(host)
    host.scene.process(PID, cgroup="/train", cgroup_id=71, start_ns=T0 - 900 * S)
    thread = Thread(host, PID)
    who = PID + 101
    for n in range(240):
        for op, usual in (*TRAIN[:-1], ("cudaMemcpy", 21 * MS), TRAIN[-1]):
            more = {"size_bytes": 96 << 20, "direction": 1} if op == "cudaMemcpy" else {"stream": 13}
            thread.call(op, host.around(usual, 0.1), **more)
            thread.works(8 * US)
        if n % 20 == 10:

            def waits(h: Host, place: Place) -> None:
                asleep(POLL, waker=(who, who, "pt_data_worker"))(h, place)
                workers(h, place, ran_instead("pt_data_worker", PID + 100), 30)

            thread.loses(Loss(host.of((800 * MS, 1_500 * MS)), waits, "input_starvation"))
    gpu(host, [PID])
    everyday(host, PID)
    host.planted.append(Planted("synchronous_copy", PID))
    host.also |= {("preempted", PID + 100 + n) for n in range(3)}


@scenario("new graphs while it serves, and tokenizers on its core", "compound")
def graphs_and_tokenizers(host: Host) -> None:
    host.scene.process(PID, "VLLM::EngineCor", cgroup="/serve", cgroup_id=72, start_ns=T0 - 900 * S)
    thread = Thread(host, PID)
    decode(host, thread, 100, [0xB00])
    for n in range(40):
        graphs(host, thread, 0xC00 + n * 8)
        decode(host, thread, 6, [0xC00 + n * 8])
        if n % 7 == 3:
            loss = Loss(host.of((6 * MS, 20 * MS)), ran_instead("tokenizer-0", 33_650), "preempted")
            thread.call("cudaMemcpyAsync", 9 * US, loss, stream=13, size_bytes=4_096, direction=1)
    gpu(host, [PID])
    everyday(host, PID)
    host.planted.append(Planted("graph_recapture", PID))


@scenario("memory runs out: reclaim in copies, then a worker is killed", "compound")
def reclaim_then_kill(host: Host) -> None:
    def frees(h: Host, place: Place) -> None:
        pid, tid, at, ns = place
        h.scene.add(
            "reclaims",
            start_ns=at,
            duration_ns=ns,
            pid=pid,
            tid=tid,
            op="host",
            cgroup_limit=0,
            comm="python3",
            order=0,
            reclaimed_pages=90,
        )

    def losses(h: Host) -> Sequence[Loss]:
        ns = h.of((10 * MS, 70 * MS))
        return (Loss(ns, frees, "memory_reclaim"), Loss(ns // 20, spins))

    loaders(host)
    Program(PID, slow=[("cudaMemcpyAsync", 3, losses)]).run(host)
    host.scene.add(
        "oom_kills",
        start_ns=host.end - 20 * MS,
        pid=PID + 100,
        comm="pt_data_worker",
        uid=1_000,
        resident_bytes=90 << 30,
        killer_pid=PID,
        killer_comm="python3",
        cgroup_id=71,
    )
    host.planted.append(Planted("oom_kill", PID + 100))
    host.also.add(("oom_kill", PID))
    everyday(host, PID)


@scenario("checkpoints are flushed, and a build has the core at other times", "compound")
def checkpoints_and_build(host: Host) -> None:
    def losses(h: Host) -> Sequence[Loss]:
        ns = h.of((8 * MS, 50 * MS))
        return (Loss(ns, ran_instead("cc1plus", 7_150), "preempted"),)

    Program(PID, steps=300, slow=[("cudaLaunchKernel", 8, losses)], between=[stops(same(saves), "blocking_io")]).run(
        host
    )
    everyday(host, PID)


COMPOUND = (starved_and_copies, graphs_and_tokenizers, reclaim_then_kill, checkpoints_and_build)

SILENCES: tuple[Scenario, ...] = (*SINGLE, *COMPOUND)
