"""Draining the ring: CPU for each record, and the highest rate that is drained without a loss."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bench import compile as compiler
from bench.producer import RECORDS_PER_RUN, Producer, write
from bench.result import Figure, Plan, ratio, value
from bench.ring import CAPACITY, SIZE_BYTES, TABLE, CallbackDrain, Drain, GeneratedRing, numpy_drain
from bench.spread import take_turns
from gpuaudit.bundle.errors import AuditError, HostUnfit
from gpuaudit.capture.recorder_main import BUSY_RECORDS, SLEEP_MIN_S
from gpuaudit.capture.ring import to_rows

NAME = "drain"
TITLE = "Draining the ring"
METHOD = (
    "A BPF program writes `cuda_calls` records into the capture's ring, as the probes do; the capture's numpy reader "
    "and a Python callback under libbpf's `ring_buffer__consume`, which copies each record, drain it. CPU: the ring "
    "is filled with 16,384 records while nobody reads, then drained, again and again; every record must come once. "
    "Rate: producer and consumer on CPUs of their own, the consumer pausing as the recorder does; halving finds the "
    "highest rate at which nothing is lost and the ring is at most half full when the producer stops."
)
RECORDS = 1_000_000
FILL_RECORDS = 16_384
"""Records in the ring when a drain whose CPU time is taken begins."""
RING_VOLUMES = 6
"""Each trial of a rate writes so many times what the ring holds, or for the least of seconds."""
TRIAL_LEAST_S, TRIAL_MOST_S = 0.3, 1.5
STEPS = 5
"""Trials of a rate in one turn: the span of a factor of 4 is halved on a logarithmic scale, to 4 %."""


@dataclass(frozen=True)
class _Rate:
    """A rate that held. ``bounded``: the producer cannot write faster."""

    per_s: float
    bounded: bool = False


@dataclass(frozen=True)
class _Way:
    name: str
    drain: Drain


def measure(plan: Plan) -> Figure:
    """CPU per million records and sustained rate of both ways."""
    ring = GeneratedRing(compiler.bpf("generate.bpf.c", plan.folder))
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        ring.close()
        raise HostUnfit("one CPU: producer and consumer need one each")
    callback = CallbackDrain(ring)
    try:
        os.sched_setaffinity(0, {cpus[0]})
        with Producer(ring.program_fd, cpus[1]) as producer:
            return _measure(plan, ring, producer, _Way("numpy", numpy_drain(ring)), _Way("callback", callback))
    finally:
        os.sched_setaffinity(0, cpus)
        callback.close()
        ring.close()


def _measure(plan: Plan, ring: GeneratedRing, producer: Producer, numpy: _Way, callback: _Way) -> Figure:
    records = plan.size(RECORDS, CAPACITY)

    def cost(way: _Way) -> Callable[[], float]:
        return lambda: _cpu_per_million(ring, way, records)

    ways = (numpy, callback)
    cpu = take_turns({w.name: cost(w) for w in ways}, plan.repeats, plan.budget_s / 3)
    columns = [_columns_cpu_per_million(ring, numpy.drain) for _ in range(10)]
    top = _producer_alone(producer, numpy.drain)

    def rate(way: _Way) -> Callable[[], _Rate]:
        return lambda: _highest_rate(ring, producer, way, 1e6 / statistics.median(cpu[way.name]), top)

    held = take_turns({w.name: rate(w) for w in ways}, plan.repeats, plan.budget_s * 2 / 3)
    rates = {name: [r.per_s for r in turns] for name, turns in held.items()}
    bounded = sum(r.bounded for r in held["numpy"])
    remark = (
        f"In {bounded} of {len(held['numpy'])} turns the numpy reader kept up with the fastest that the producer can "
        "write here: its rate, and the ratio of rates, are lower bounds."
    )
    return Figure(NAME, TITLE, METHOD, (
        ratio("numpy ÷ callback, CPU per record", cpu["numpy"], cpu["callback"], "lower"),
        ratio("numpy ÷ callback, records per second without loss", rates["numpy"], rates["callback"], "higher"),
        value("numpy: CPU per million records", "s", cpu["numpy"]),
        value("callback: CPU per million records", "s", cpu["callback"]),
        value("records to columns, after either: CPU per million", "s", columns),
        value("numpy: records per second without loss", "1/s", rates["numpy"]),
        value("callback: records per second without loss", "1/s", rates["callback"]),
        value("producer, at full speed", "1/s", [top]),
    ), {
        "ring": f"{SIZE_BYTES >> 20} MiB, {CAPACITY:,} records of {TABLE.record_dtype().itemsize} bytes and an 8-byte "
        "header",
        "pause of the consumer": f"{SLEEP_MIN_S * 1e3:g} ms after a drain of fewer than {BUSY_RECORDS:,} records",
    }, (remark,) if bounded else ())  # fmt: skip


def _cpu_per_million(ring: GeneratedRing, way: _Way, records: int) -> float:
    _empty(way.drain)
    taken, drain_s = 0, 0.0
    while taken < records:
        write(ring.program_fd, FILL_RECORDS // RECORDS_PER_RUN)
        start_s = time.thread_time()
        got = way.drain()
        drain_s += time.thread_time() - start_s
        # this thread is pinned to one CPU and is the only one to write, so the numbers run on
        if len(got) != FILL_RECORDS or np.any(np.diff(got["seq"]) != 1):
            raise AuditError(f"{way.name}: {len(got)} of {FILL_RECORDS} records came, or not each of them once")
        taken += len(got)
    return drain_s / taken * 1e6


def _columns_cpu_per_million(ring: GeneratedRing, drain: Drain) -> float:
    write(ring.program_fd, FILL_RECORDS // RECORDS_PER_RUN)
    got = drain()
    start_s = time.thread_time()
    to_rows("cuda_calls", got)
    return (time.thread_time() - start_s) / len(got) * 1e6


def _empty(drain: Drain) -> None:
    while len(drain()):
        pass


def _producer_alone(producer: Producer, drain: Drain) -> float:
    """Records per second when nobody reads meanwhile: half a ring, a few times."""
    records, seconds = CAPACITY // 2, []
    for _ in range(5):
        _empty(drain)
        seconds.append(_run(producer, records, 1e12, lambda: None))
    _empty(drain)
    return records / sorted(seconds)[2]


def _run(producer: Producer, records: int, rate_per_s: float, meanwhile: Callable[[], None]) -> float:
    producer.start(records, rate_per_s)
    while (seconds := producer.finished()) is None:
        meanwhile()
    return seconds


def _highest_rate(ring: GeneratedRing, producer: Producer, way: _Way, guess: float, top: float) -> _Rate:
    """The highest rate that holds, to a few per cent."""
    low, high = min(guess, top) / 4, min(guess * 1.5, top)
    found = 0.0
    if held := _trial(ring, producer, way, high):
        if high >= top:
            return _Rate(held, bounded=True)
        found, low, high = held, high, min(high * 2, top)
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        if held := _trial(ring, producer, way, middle):
            found, low = max(found, held), middle
        else:
            high = middle
    if not found:
        raise AuditError(f"{way.name}: records were lost even at {low:,.0f} a second", hint="is the machine busy?")
    return _Rate(found)


def _trial(ring: GeneratedRing, producer: Producer, way: _Way, rate_per_s: float) -> float | None:
    """The rate that the producer kept, if nothing was lost at it and no backlog grew; None otherwise."""
    _empty(way.drain)
    seconds = min(max(TRIAL_LEAST_S, RING_VOLUMES * CAPACITY / rate_per_s), TRIAL_MOST_S)
    seen_before, lost_before = ring.counts()
    taken = 0

    def once() -> None:
        nonlocal taken
        got = len(way.drain())
        taken += got
        if got < BUSY_RECORDS:
            time.sleep(SLEEP_MIN_S)

    took_s = _run(producer, int(rate_per_s * seconds), rate_per_s, once)
    seen, lost = ring.counts()
    written = seen - seen_before
    backlog = written - (lost - lost_before) - taken
    return written / took_s if lost == lost_before and backlog <= CAPACITY // 2 else None
