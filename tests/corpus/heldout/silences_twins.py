"""Held-out: programs that stop calling, make graphs or load, and nothing that happened beside them is the cause."""

from __future__ import annotations

from collections.abc import Callable

from tests.corpus.heldout.calls import FUTEX, NANOSLEEP
from tests.corpus.heldout.programs import (
    Loss,
    Place,
    Program,
    Thread,
    Traces,
    asleep,
    everyday,
    gpu,
    request,
    scenario,
    spins,
)
from tests.corpus.heldout.silences import EPOLL, PID, decode, graphs, loaders, same, saves, stops, workers
from tests.corpus.model import Host, Scenario
from tests.scenes import MS, T0, US, S


def pauses(name: str, traces: Traces, beside: Callable[[Host, Place], None] | None = None) -> Scenario:
    """A trainer that stops a few times for reasons that are its own."""

    @scenario(name, "twin")
    def told(host: Host) -> None:
        loaders(host)

        def both(h: Host, place: Place) -> None:
            traces(h, place)
            if beside:
                beside(h, place)

        Program(PID, steps=240, between=[stops(same(both), None, 4)]).run(host)
        everyday(host, PID)

    return told


def bored(host: Host, place: Place) -> None:
    """Workers that have nothing to do: asleep until somebody orders a batch."""
    workers(host, place, asleep(FUTEX, waker=(PID, PID, "python3")), 99)


def writes_elsewhere(host: Host, place: Place) -> None:
    """Another thread of the process writes a checkpoint meanwhile."""
    pid, tid, at, ns = place
    saves(host, (pid, tid + 11, at, ns))


def others_write(host: Host, place: Place) -> None:
    """A database of another container writes meanwhile."""
    _, _, at, ns = place
    for n in range(20):
        request(host, (9_900, 9_900, at + n * ns // 20, ns // 20 - 20 * US), "postgres", write=True, for_pid=9_900)


@scenario("an inference server without requests", "twin")
def no_requests(host: Host) -> None:
    host.scene.process(PID, "VLLM::EngineCor", cgroup="/serve", cgroup_id=72, start_ns=T0 - 900 * S)
    thread = Thread(host, PID)
    for _ in range(5):
        decode(host, thread, 60, [0xB00])
        thread.loses(Loss(host.of((2 * S, 4 * S)), asleep(EPOLL)))
    gpu(host, [PID], gpu_utilization_percent=20)
    everyday(host, PID)


@scenario("requests become fewer while another GPU gets hot", "twin")
def fewer(host: Host) -> None:
    host.scene.process(PID, "VLLM::EngineCor", cgroup="/serve", cgroup_id=72, start_ns=T0 - 900 * S)
    thread = Thread(host, PID)
    decode(host, thread, 500, [0xB00])
    for _ in range(120):
        decode(host, thread, 1, [0xB00])
        thread.loses(Loss(host.of((30 * MS, 50 * MS)), asleep(EPOLL)))
    decode(host, thread, 300, [0xB00])
    gpu(host, [PID])
    gpu(host, [PID + 900], index=1, event_reasons=0x20, clock_sm_mhz=1_100, temperature_c=91)
    everyday(host, PID)


@scenario("weights are loaded with synchronous copies, then it serves", "twin")
def loading(host: Host) -> None:
    host.scene.process(PID, "VLLM::EngineCor", cgroup="/serve", cgroup_id=72, start_ns=T0 - 2 * S)
    thread = Thread(host, PID)
    for n in range(120):
        thread.call(
            "cudaMalloc", host.around(120 * US), size_bytes=96 << 20, device_pointer=0x7F80_0000_0000 + n * (1 << 27)
        )
        thread.call("cudaMemcpy", host.around(11 * MS), size_bytes=96 << 20, direction=1)
        thread.works(300 * US)
    graphs(host, thread, 0xB00)
    decode(host, thread, 700, [0xB00])
    gpu(host, [PID])
    everyday(host, PID)
    host.also |= {("cold_start", PID), ("allocation_burst", PID)}


@scenario("graphs of all batch sizes are made at the start, and used", "twin")
def warm_up(host: Host) -> None:
    host.scene.process(PID, "VLLM::EngineCor", cgroup="/serve", cgroup_id=72, start_ns=T0 - 2 * S)
    thread = Thread(host, PID)
    handles = [0xC00 + 8 * n for n in range(35)]
    for handle in handles:
        graphs(host, thread, handle)
    decode(host, thread, 700, handles)
    gpu(host, [PID])
    everyday(host, PID)
    host.also.add(("cold_start", PID))


@scenario("a stranger is killed for want of memory in its own cgroup", "twin")
def stranger_killed(host: Host) -> None:
    Program(PID, steps=200, between=[stops(same(spins), None, 2)]).run(host)
    host.scene.add(
        "oom_kills",
        start_ns=T0 + 600 * MS,
        pid=61_000,
        comm="chrome",
        uid=1_001,
        resident_bytes=2 << 30,
        killer_pid=61_000,
        killer_comm="chrome",
        cgroup_id=500,
    )
    everyday(host, PID)


TWINS: tuple[Scenario, ...] = (
    no_requests,
    fewer,
    loading,
    warm_up,
    stranger_killed,
    pauses("evaluation on the CPU while the workers have nothing to do", spins, bored),
    pauses("it sleeps by intent while the workers have nothing to do", asleep(NANOSLEEP), bored),
    pauses("evaluation on the CPU while a thread of its own saves", spins, writes_elsewhere),
    pauses("evaluation on the CPU while a database writes", spins, others_write),
    pauses("it waits for a remote service while a database writes", asleep(45), others_write),
)
