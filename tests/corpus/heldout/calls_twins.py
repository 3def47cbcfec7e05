"""Held-out: calls that take long, and what only seems to have made them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.corpus.heldout.calls import (
    FILE,
    HOG,
    LAUNCH,
    LOCK,
    NANOSLEEP,
    PID,
    POLL,
    READ,
    SYNC,
    counters,
    loses,
    reclaims,
)
from tests.corpus.heldout.programs import Loss, Place, Program, Traces, asleep, everyday, request, scenario, spins
from tests.corpus.model import Host, Scenario
from tests.scenes import MS, T0, US


def innocent(
    name: str,
    traces: Traces = spins,
    op: str = LAUNCH,
    spun: int = 4,
    after: Callable[[Host, Program], None] | None = None,
) -> Scenario:
    """A trainer with slow calls that ``traces`` (rows beside or in them) do not explain."""

    @scenario(name, "twin")
    def told(host: Host) -> None:
        program = Program(PID, slow=[(op, 8 if op == LAUNCH else 3, loses(traces, None))]).run(host)
        if after:
            after(host, program)
        everyday(host, PID)

    return told


def moved(traces: Traces, by: Callable[[Place], Place]) -> Callable[[Host, Program], None]:
    """The traces, somewhere else than in the slow calls."""

    def after(host: Host, program: Program) -> None:
        for place in program.times:
            traces(host, by(place))

    return after


def another_thread(place: Place) -> Place:
    """Of the same process, at the same time."""
    pid, tid, at, ns = place
    return pid, tid + 9, at, ns


def another_process(place: Place) -> Place:
    """At the same time."""
    _, _, at, ns = place
    return 26_000, 26_000, at, ns


def ended(place: Place) -> Place:
    """Of the same thread, when the call has returned: in the few microseconds until the next."""
    pid, tid, at, ns = place
    return pid, tid, at + ns, 2 * US


def slices(host: Host, place: Place) -> None:
    """Off the CPU for one percent of it."""
    pid, tid, at, ns = place
    HOG(host, (pid, tid, at + ns // 3, ns // 100))


def counted_after(host: Host, program: Program) -> None:
    """Another cgroup with a like name is throttled, at the time of the slow calls."""
    counters(host, PID, "/train", {"/train": [], "/train-eval": [(t[2], t[3]) for t in program.times]})


def observer(host: Host, program: Program) -> None:
    """A tool that watches writes its log while calls are slow, and has a context on the GPU."""
    host.scene.process(1_500, "dcgm-exporter", "observer", reason="opens NVML and serves metrics")
    for _, _, at, ns in program.times:
        request(host, (1_500, 1_500, at, ns), "dcgm-exporter", write=True)
    for at in range(T0, host.end, 250 * MS):
        host.scene.add(
            "nvml_processes",
            start_ns=at,
            duration_ns=250 * MS,
            gpu_index=0,
            gpu_uuid="GPU-0",
            pid=1_500,
            op="compute",
            memory_used_bytes=310 << 20,
            sm_utilization_percent=0,
        )


def pressed(host: Host, _: Program) -> None:
    """Memory and disk are short in another cgroup, so also on the host; nobody of ours waits for either."""
    for n, at in enumerate(range(T0, host.end, 500 * MS)):
        for resource in ("memory", "io", "cpu"):
            for cgroup in (None, "/system.slice/backup.service"):
                host.scene.add(
                    "pressure", start_ns=at, resource=resource, cgroup=cgroup, some_ns=n * 120 * MS, full_ns=n * 40 * MS
                )
        host.scene.add("page_allocations", start_ns=at, duration_ns=400 * MS, pid=PID, order=9, count=64 + n)


def hidden(host: Host, _: Program) -> None:
    """Rows of the slow calls' time were lost; what is left is of other threads."""
    host.scene.lost["off_cpu"] = 900
    host.scene.add(
        "gaps",
        start_ns=T0,
        duration_ns=host.end - T0,
        source="off_cpu",
        table_name="off_cpu",
        pid=None,
        reason="900 records found the ring of CPU 2 full",
    )
    for n in range(40):
        HOG(host, (PID, PID + 9, T0 + (2 * n + 1) * (host.end - T0) // 90, 3 * MS))


@scenario("the pid was another process's, which the kernel killed", "twin")
def reused(host: Host) -> None:
    host.scene.add("oom_kills", start_ns=T0 + 60 * MS, pid=PID, comm="stress-ng-vm", killer_pid=PID, cgroup_id=90)
    request(host, (PID, PID, T0 + 5 * MS, 40 * MS), "stress-ng-vm")
    host.scene.process(PID, start_ns=T0 + 100 * MS, seen_ns=T0 + 120 * MS, cgroup="/train", cgroup_id=71)
    Program(PID, slow=[(LAUNCH, 8, loses(spins, None))], known=True).run(host)
    everyday(host, PID)


@scenario("calls end, and their thread is preempted at other times", "twin")
def afterwards(host: Host) -> None:
    def pause(h: Host) -> Sequence[Loss]:
        return (Loss(h.of((80 * US, 250 * US)), HOG),)

    Program(PID, slow=[(LAUNCH, 8, loses(spins, None))], between=[(8, pause)], steps=240).run(host)
    everyday(host, PID)


TWINS: tuple[Scenario, ...] = (
    reused,
    afterwards,
    innocent("a synchronisation sleeps until the GPU is done", asleep(POLL), SYNC),
    innocent("a sampler stops the process to read its stack", asleep(None, 8, (4_400, 4_400, "py-spy"))),
    innocent("a debugger's stop signal", asleep(None, 4, (4_400, 4_400, "gdb"))),
    innocent("reads from a network file system: no disk here", asleep(READ, 2)),
    innocent("a sleep of its own inside a call", asleep(NANOSLEEP)),
    innocent("a hundredth of each slow call off the CPU", slices),
    innocent("the autograd thread is preempted, the main thread is slow", after=moved(HOG, another_thread)),
    innocent("the checkpoint's thread reads a disk, the main thread is slow", after=moved(FILE, another_thread)),
    innocent(
        "the checkpoint's thread reads a disk, a synchronisation sleeps",
        asleep(POLL),
        SYNC,
        after=moved(FILE, another_thread),
    ),
    innocent("the pinning thread waits for a lock, the main thread is slow", after=moved(LOCK, another_thread)),
    innocent("the pinning thread looks for memory, the main thread is slow", after=moved(reclaims(), another_thread)),
    innocent("another process waits for its disk", after=moved(FILE, another_process)),
    innocent(
        "another process waits for its disk, and a call sleeps in a timer",
        asleep(NANOSLEEP),
        after=moved(FILE, another_process),
    ),
    innocent("preempted when the call had returned", after=moved(HOG, ended)),
    innocent("a cgroup with a like name is throttled", after=counted_after),
    innocent("an exporter writes its log", after=observer),
    innocent("huge pages are put together, a backup presses on memory", after=pressed),
    innocent("rows of the slow calls' time were lost", after=hidden),
)
