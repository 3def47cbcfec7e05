"""Held-out: what GPUs, their links and clocks do to programs, and what they do without harm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.corpus.heldout.calls import LAUNCH, loses
from tests.corpus.heldout.programs import Program, Thread, everyday, gpu, ran_instead, scenario, spins
from tests.corpus.heldout.silences import decode
from tests.corpus.model import Host, Planted, Scenario
from tests.scenes import MS, T0, US, S

PID = 55_200
BUSY: dict[str, Any] = {
    "clock_sm_mhz": 1_980,
    "clock_sm_max_mhz": 1_980,
    "power_mw": 560_000,
    "power_limit_mw": 700_000,
    "temperature_c": 63,
    "performance_state": 0,
    "pcie_generation": 5,
    "pcie_width": 16,
    "ecc_corrected": 12,
    "ecc_uncorrected": 0,
}


def health(host: Host, index: int = 0, **more: Any) -> None:
    """What is read every 5 s."""
    fine = {
        "ecc_enabled": 1,
        "ecc_corrected_volatile": 12,
        "ecc_uncorrected_volatile": 0,
        "ecc_corrected_aggregate": 512,
        "ecc_uncorrected_aggregate": 0,
        "remapped_rows_corrected": 0,
        "remapped_rows_uncorrected": 0,
        "remapped_rows_pending": 0,
        "remapped_rows_failed": 0,
        "pcie_generation_max": 5,
        "pcie_width_max": 16,
        "power_limit_default_mw": 700_000,
        "power_limit_set_mw": 700_000,
        "power_limit_max_mw": 700_000,
        "temperature_slowdown_c": 92,
        "persistence_mode": 1,
        "compute_mode": 0,
        "mig_mode": 0,
    }
    for n, at in enumerate((*range(T0, host.end, 5 * S), host.end)):
        row = {k: v(n) if callable(v) else v for k, v in {**fine, **more}.items()}
        host.scene.add(
            "nvml_health",
            start_ns=at,
            duration_ns=2 * MS,
            gpu_index=index,
            gpu_uuid=f"GPU-{index}",
            unavailable="",
            **row,
        )


def polls(host: Host, pids: tuple[int, ...], values: Callable[[int], dict[str, Any]], index: int = 0) -> None:
    """NVML's samples every 250 ms; what is unlike a busy GPU comes of the time of the sample."""
    for at in range(T0, host.end, 250 * MS):
        host.scene.sample(at, 250 * MS, index, pids, **{**BUSY, **values(at)})


def engine(host: Host, start: int, until: int, factor: float = 1.0, known: bool = False) -> Thread:
    """Decodes from then on; each step takes ``factor`` of the usual."""
    if not known:
        host.scene.process(PID, "VLLM::EngineCor", cgroup="/serve", cgroup_id=72, start_ns=T0 - 900 * S)
    thread = Thread(host, PID, at=start)
    while thread.at < until - 30 * MS:
        thread.call("cudaMemcpyAsync", host.around(9 * US), stream=13, size_bytes=4_096, direction=1)
        thread.call("cudaGraphLaunch", host.around(50 * US), handle=0x1_0B00, stream=13)
        thread.call("cudaStreamSynchronize", host.around(round(9 * MS * factor), 0.04), stream=13)
        thread.works(host.around(400 * US))
    return thread


def hot(name: str, reason: int, clock: int = 900) -> Scenario:
    """It slows down for seconds, since the clock does."""

    @scenario(name, "single")
    def told(host: Host) -> None:
        begin, over, end = T0 + 12 * S, T0 + 20 * S, T0 + 28 * S
        engine(host, T0 + 100 * MS, begin)
        engine(host, begin + MS, over, 2.3, known=True)
        engine(host, over + 20 * MS, end, known=True)
        polls(
            host,
            (PID,),
            lambda at: (
                {"event_reasons": reason, "clock_sm_mhz": clock, "temperature_c": 93} if begin <= at < over else {}
            ),
        )
        health(host)
        everyday(host, PID)
        host.planted.append(Planted("throttled", PID))

    return told


def state(name: str, cause: str, also: tuple[str, ...], tell: Callable[[Host], None]) -> Scenario:
    """A GPU in a bad state."""

    @scenario(name, "single")
    def told(host: Host) -> None:
        engine(host, T0 + 100 * MS, T0 + 12 * S)
        tell(host)
        everyday(host, PID)
        host.planted.append(Planted(cause, 0))
        host.also |= {(c, pid) for c in also for pid in (0, PID)}

    return told


def locked_clocks(host: Host) -> None:
    """nvidia-smi -ac of a benchmark was forgotten."""
    polls(host, (PID,), lambda _: {"clock_sm_mhz": 1_140, "clock_sm_cap_mhz": 1_140, "event_reasons": 0x2})
    health(host)


def trained_down(host: Host) -> None:
    """The slot gives four lanes of the first generation, and is in use."""
    polls(host, (PID,), lambda _: {"pcie_generation": 1, "pcie_width": 4, "pcie_rx_kib_per_s": 880_000})
    health(host)


def fell_off(host: Host) -> None:
    """XID 79."""
    polls(host, (PID,), lambda _: {})
    health(host)
    host.scene.add(
        "nvml_events",
        start_ns=T0 + 7 * S,
        duration_ns=0,
        gpu_index=0,
        gpu_uuid="GPU-0",
        op="xid",
        event_type=8,
        event_data=79,
    )


def double_bit(host: Host) -> None:
    """Uncorrected errors are counted while it computes."""
    polls(host, (PID,), lambda at: {"ecc_uncorrected": 2 if at > T0 + 6 * S else 0})
    health(
        host,
        ecc_uncorrected_volatile=lambda n: 2 if n > 1 else 0,
        ecc_uncorrected_aggregate=lambda n: 2 if n > 1 else 0,
    )


def replays(host: Host) -> None:
    """A link of NVLink sends again and again."""
    polls(host, (PID,), lambda _: {})
    health(host)
    links(host, lambda n: 400 * n)


def links(host: Host, errors: Callable[[int], int]) -> None:
    """Two NVLinks, the second with errors."""
    for n, at in enumerate((*range(T0, host.end, 5 * S), host.end)):
        for link in range(2):
            host.scene.add(
                "nvml_links",
                start_ns=at,
                duration_ns=MS,
                gpu_index=0,
                gpu_uuid="GPU-0",
                link=link,
                active=1,
                version=4,
                remote_pci="0000:45:00.0",
                remote_type=2,
                tx_kib=n * 50_000_000,
                rx_kib=n * 50_000_000,
                crc_flit_errors=0,
                crc_data_errors=0,
                replay_errors=errors(n) if link else 0,
                recovery_errors=0,
                unavailable="",
            )


@scenario("a notebook computes on the engine's GPU for some seconds", "single")
def notebook(host: Host) -> None:
    begin, over = T0 + 10 * S, T0 + 16 * S
    engine(host, T0 + 100 * MS, begin)
    engine(host, begin + MS, over, 2.6, known=True)
    engine(host, over + 30 * MS, T0 + 24 * S, known=True)
    other = PID + 700
    host.scene.process(other, "jupyter", cgroup="/user", cgroup_id=300, start_ns=T0 - 950 * S)
    thread = Thread(host, other, at=begin)
    while thread.at < over:
        for _ in range(5):
            thread.call("cudaLaunchKernel", host.around(7 * US), stream=0, function=0x77)
        thread.call("cudaDeviceSynchronize", host.around(30 * MS))
    for at in range(T0, host.end, 250 * MS):
        host.scene.sample(at, 250 * MS, 0, **BUSY)
        together = begin <= at < over
        for pid, share in ((PID, 52 if together else 88), (other, 47 if together else None)):
            host.scene.add(
                "nvml_processes",
                start_ns=at,
                duration_ns=250 * MS,
                gpu_index=0,
                gpu_uuid="GPU-0",
                pid=pid,
                op="compute",
                memory_used_bytes=8 << 30,
                sm_utilization_percent=share,
            )
    health(host)
    everyday(host, PID)
    host.planted.append(Planted("gpu_shared", PID))
    host.also.add(("gpu_shared", other))


@scenario("kernels of a few microseconds, launched one by one: the GPU waits for the host", "single")
def small_kernels(host: Host) -> None:
    host.scene.process(PID, cgroup="/train", cgroup_id=71, start_ns=T0 - 900 * S)
    thread = Thread(host, PID)
    number = 0
    for _ in range(180):
        for _ in range(40):
            number += 1
            begun = thread.at
            thread.call(
                "cudaLaunchKernel", host.around(7 * US), stream=7, function=0x10 + number % 5, correlation=number
            )
            host.scene.add(
                "gpu_activities",
                start_ns=begun + 9 * US,
                duration_ns=host.around(3 * US),
                pid=PID,
                op="kernel",
                name="elementwise",
                device=0,
                context=1,
                stream=7,
                correlation=number,
            )
            thread.works(host.of((6 * US, 12 * US)))
        thread.call("cudaStreamSynchronize", 8 * US, stream=7)
    gpu(host, [PID])
    everyday(host, PID)
    host.planted.append(Planted("launch_bound", PID))


SINGLE = (
    notebook,
    small_kernels,
    hot("a fan fails: hardware slowdown for heat", 0x48),
    hot("software slowdown for heat", 0x20, 1_100),
    hot("the rack's power brake", 0x80, 700),
    state("an applications clock was forgotten", "clock_caps", ("clock_capped",), locked_clocks),
    state("a slot with four lanes, in use", "pcie_link", ("pcie_degraded",), trained_down),
    state("a GPU falls off the bus", "xid", ("gpu_error",), fell_off),
    state("uncorrected memory errors while it computes", "memory_errors", ("gpu_error",), double_bit),
    state("a link of NVLink replays", "nvlink", ("fabric_error", "gpu_error"), replays),
)


@scenario("a hot GPU for seconds, and a hog on launches before it", "compound")
def hot_and_hog(host: Host) -> None:
    begin, over, end = T0 + 14 * S, T0 + 21 * S, T0 + 29 * S
    host.scene.process(PID, "VLLM::EngineCor", cgroup="/serve", cgroup_id=72, start_ns=T0 - 900 * S)
    program = Program(
        PID,
        (("cudaMemcpyAsync", 9 * US), ("cudaGraphLaunch", 50 * US), ("cudaStreamSynchronize", 9 * MS)),
        1_150,
        [("cudaGraphLaunch", 9, loses(ran_instead("gzip", 8_800), "preempted", 5 * MS, 30 * MS))],
        known=True,
        gpu=None,
    ).run(host)
    assert program.times[0][2] < begin
    engine(host, begin, over, 2.4, known=True)
    engine(host, over + 20 * MS, end, known=True)
    polls(
        host,
        (PID,),
        lambda at: {"event_reasons": 0x40, "clock_sm_mhz": 900, "temperature_c": 94} if begin <= at < over else {},
    )
    health(host)
    everyday(host, PID)
    host.planted.append(Planted("throttled", PID))


def harmless(name: str, tell: Callable[[Host], None], slow: bool = True) -> Scenario:
    """A GPU as it ought to be, and calls that are slow for no reason that anybody recorded."""

    @scenario(name, "twin")
    def told(host: Host) -> None:
        if slow:
            Program(PID, slow=[(LAUNCH, 8, loses(spins, None))], steps=900, gpu=None, think=6 * MS).run(host)
        else:
            engine(host, T0 + 100 * MS, T0 + 4 * S)
            engine(host, T0 + 12 * S, T0 + 16 * S, known=True)
        tell(host)
        everyday(host, PID)

    return told


def at_its_limit(host: Host) -> None:
    """Full load: the power limit it ships with holds it, as always."""
    polls(host, (PID,), lambda _: {"power_mw": 699_000, "event_reasons": 0x4, "clock_sm_mhz": 1_905})
    health(host)


def another_is_hot(host: Host) -> None:
    """GPU 3, on which nothing of ours runs, slows down."""
    polls(host, (PID,), lambda _: {})
    polls(host, (), lambda _: {"event_reasons": 0x40, "clock_sm_mhz": 600, "temperature_c": 95}, index=3)
    health(host)


def saves_power(host: Host) -> None:
    """Between two loads the link and the clocks go down, as they ought to."""
    polls(
        host,
        (PID,),
        lambda at: (
            {
                "gpu_utilization_percent": 0,
                "pcie_generation": 1,
                "clock_sm_mhz": 345,
                "event_reasons": 0x1,
                "performance_state": 8,
                "power_mw": 70_000,
            }
            if T0 + 4 * S <= at < T0 + 12 * S
            else {}
        ),
    )
    health(host)


def old_errors(host: Host) -> None:
    """Counters that do not grow: errors of another year."""
    polls(host, (PID,), lambda _: {"ecc_corrected": 40})
    health(host, ecc_corrected_volatile=40, ecc_corrected_aggregate=90_000)
    links(host, lambda _: 17)


def shared_in_name(host: Host, instances: bool, index: int) -> None:
    """Another process: in another GPU instance, idle, or on another GPU."""
    polls(host, (), lambda _: {})
    health(host)
    host.scene.process(PID + 500, "python3", cgroup="/other", cgroup_id=301, start_ns=T0 - 90 * S)
    for at in range(T0, host.end, 250 * MS):
        for n, pid in enumerate((PID, PID + 500)):
            device = index if n else 0
            host.scene.add(
                "nvml_processes",
                start_ns=at,
                duration_ns=250 * MS,
                gpu_index=device,
                gpu_uuid=f"GPU-{device}",
                pid=pid,
                op="compute",
                memory_used_bytes=4 << 30,
                sm_utilization_percent=(0 if n and not instances and not index else 60),
                gpu_instance=n + 1 if instances else None,
                compute_instance=0 if instances else None,
            )
    if index:
        polls(host, (), lambda _: {}, index)


def no_error(host: Host) -> None:
    """Events that are none of an error: the clock and the performance state changed."""
    polls(host, (PID,), lambda _: {})
    health(host)
    for n, op in enumerate(("clock", "performance_state", "power_source")):
        for k in range(6):
            host.scene.add(
                "nvml_events",
                start_ns=T0 + (1 + k) * 700 * MS + n * MS,
                duration_ns=0,
                gpu_index=0,
                gpu_uuid="GPU-0",
                op=op,
                event_type=16,
                event_data=0,
            )


@scenario("kernels are small, and the GPU is busy with many streams", "twin")
def many_streams(host: Host) -> None:
    host.scene.process(PID, cgroup="/train", cgroup_id=71, start_ns=T0 - 900 * S)
    thread = Thread(host, PID)
    free = {7: 0, 8: 0}
    number = 0
    for _ in range(160):
        for _ in range(30):
            number += 1
            stream = 7 + number % 2
            begun = thread.at
            thread.call("cudaLaunchKernel", host.around(6 * US), stream=stream, function=0x10, correlation=number)
            free[stream] = max(free[stream], begun + 9 * US)
            ns = host.around(70 * US)
            host.scene.add(
                "gpu_activities",
                start_ns=free[stream],
                duration_ns=ns,
                pid=PID,
                op="kernel",
                name="gemm",
                device=0,
                context=1,
                stream=stream,
                correlation=number,
            )
            free[stream] += ns + US
            thread.works(host.of((3 * US, 6 * US)))
        until = max(free.values())
        thread.call("cudaDeviceSynchronize", max(5 * US, until - thread.at + 4 * US))
    gpu(host, [PID])
    everyday(host, PID)


@scenario("a server without work whose GPU goes cold and slow", "twin")
def goes_cold(host: Host) -> None:
    host.scene.process(PID, "VLLM::EngineCor", cgroup="/serve", cgroup_id=72, start_ns=T0 - 900 * S)
    thread = Thread(host, PID)
    decode(host, thread, 200, [0xB00])
    idle_from = thread.at
    thread.works(6 * S)
    idle_to = thread.at
    decode(host, thread, 200, [0xB00])
    polls(
        host,
        (PID,),
        lambda at: (
            {"event_reasons": 0x1, "clock_sm_mhz": 210, "gpu_utilization_percent": 0}
            if idle_from < at < idle_to - 250 * MS
            else {}
        ),
    )
    health(host)
    everyday(host, PID)


TWINS = (
    many_streams,
    goes_cold,
    harmless("at the power limit it ships with", at_its_limit),
    harmless("another GPU of the host is hot", another_is_hot),
    harmless("link and clocks go down when there is no work", saves_power, slow=False),
    harmless("error counters that do not grow", old_errors),
    harmless("another process in another GPU instance", lambda host: shared_in_name(host, True, 0)),
    harmless("another process only holds memory", lambda host: shared_in_name(host, False, 0)),
    harmless("another process on another GPU", lambda host: shared_in_name(host, False, 2)),
    harmless("events that are no errors", no_error),
)

MACHINES: tuple[Scenario, ...] = (*SINGLE, hot_and_hog, *TWINS)
