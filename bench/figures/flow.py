"""How many events a second reach the sealed bundle without loss."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path

from bench import compile as compiler
from bench.evidence import new_writer
from bench.producer import Producer
from bench.result import Figure, Plan, value
from bench.ring import SIZE_BYTES, TABLE, GeneratedRing
from bench.spread import take_turns
from gpuaudit.bundle.errors import AuditError, HostUnfit
from gpuaudit.capture.allocator import keep_freed_memory
from gpuaudit.capture.recorder import Recorder
from gpuaudit.capture.recorder_main import BUSY_RECORDS, SLEEP_MAX_S, SLEEP_MIN_S
from gpuaudit.capture.ring import RingDescription
from gpuaudit.capture.ring_source import RingSource

NAME = "flow"
TITLE = "Events into the sealed bundle"
SECONDS = 4.0
STEPS = 5
LOWEST_PER_S, HIGHEST_PER_S = 100_000.0, 4_000_000.0
METHOD = (
    "BPF programs on two CPUs write `cuda_calls` records of the capture's own form into its ring, half of the rate "
    "each, while the recorder drains it, turns records into columns, compresses, hashes, signs and commits them on the "
    "same two CPUs, and seals the bundle at the end; halving finds the highest rate at which nothing is lost in four "
    "seconds. CPU is that of the recorder's process."
)


@dataclass(frozen=True)
class _Trial:
    """``rate``: what the producers kept."""

    rate: float
    lost: int
    cpu_s: float
    events: int


def measure(plan: Plan) -> Figure:
    """The highest rate without loss."""
    keep_freed_memory()
    if os.geteuid() != 0:
        raise HostUnfit("filling a ring needs root", hint="run the bench as root")
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        raise HostUnfit("one CPU: the producers need two")
    program = compiler.bpf("generate.bpf.c", plan.folder)
    number = itertools.count()
    seconds = max(1.0, SECONDS * plan.scale)

    def highest() -> _Trial:
        low, high, best = LOWEST_PER_S, HIGHEST_PER_S, None
        for _ in range(STEPS):
            middle = (low * high) ** 0.5
            trial = _flow(program, cpus, plan.folder / f"{next(number)}.db", middle, seconds)
            if trial.lost:
                high = middle
            else:
                best = trial if best is None or trial.rate > best.rate else best
                low = middle
        if best is None:
            raise AuditError("events were lost at the lowest rate tried", hint="is the machine busy?")
        return best

    found = take_turns({"flow": highest}, plan.repeats, plan.budget_s)["flow"]
    return Figure(NAME, TITLE, METHOD, (
        value("events per second without loss", "1/s", [t.rate for t in found]),
        value("recorder: CPU per million events", "s", [t.cpu_s / t.events * 1e6 for t in found]),
    ), {"seconds of a trial": f"{seconds:g}", "record": f"{TABLE.record_dtype().itemsize} bytes"})  # fmt: skip


def _flow(program: Path, cpus: list[int], out: Path, rate_per_s: float, seconds: float) -> _Trial:
    """One capture at one rate."""
    writer, _ = new_writer(out)
    recorder, ring = Recorder(writer), GeneratedRing(program)
    try:
        source = RingSource([RingDescription(TABLE.name, ring.ring_fd, SIZE_BYTES)], ring.counters_fd)
        writer.between_columns = source.relieve
        taken, start_cpu_s = 0, time.process_time()
        with Producer(ring.program_fd, cpus[0]) as first, Producer(ring.program_fd, cpus[1]) as second:
            running = [first, second]
            for producer in running:
                producer.start(int(rate_per_s * seconds / 2), rate_per_s / 2)
            took_s, pause = [0.0], SLEEP_MIN_S
            while True:
                count = source.poll(recorder)
                taken += count
                recorder.tick()
                ended = [(p, s) for p in running if (s := p.finished()) is not None]
                took_s += [s for _, s in ended]
                running = [p for p in running if all(p is not e for e, _ in ended)]
                if not running and not count:
                    break
                pause = SLEEP_MIN_S if count >= BUSY_RECORDS else min(SLEEP_MAX_S, pause * 2)
                time.sleep(pause)
        source.stop(recorder)
        recorder.flush()
        writer.seal({})
        cpu_s = time.process_time() - start_cpu_s
        seen, lost = ring.counts()
    finally:
        writer.close()
        ring.close()
    if taken + lost != seen:
        raise AuditError(f"{seen} events were written, {taken} came and {lost} were lost")
    out.unlink()
    return _Trial(seen / max(took_s), lost, cpu_s, max(1, taken))
