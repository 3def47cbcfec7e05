"""Half an hour at 50,000 calls a second, with another tracer on the same function: nothing grows, nothing is lost.

A launch loop makes the calls; ``audit capture`` records it while bpftrace keeps a histogram of the same function.
Memory, descriptors and CPU of attacher and recorder are read from /proc every few seconds. ``--count`` is minutes.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import compile as compiler
from bench.bpftrace import BpfTrace
from bench.figures.verify import audit_environment
from bench.live import Capture
from gpuaudit.bundle.errors import AuditError, HostUnfit
from gpuaudit.capture import processes
from tests.torture.progress import Progress

RATE_PER_S = 50_000
SAMPLE_S = 5.0
FUNCTION = "cudaLaunchKernel"

MEMORY_SLACK_BYTES = 16 << 20
"""Between the median of the second and of the last quarter of the samples; one segment's buffers are about that."""

CPU_SLACK = 1.5
"""Largest ratio of those quarters' CPU per call: the machine has other work too, and a leak of work would grow."""

KEPT = 0.9
"""Share of the rate that must have been kept: on a machine too busy for it nothing has been shown."""


@dataclass(frozen=True)
class Sample:
    """One process at one moment: calls made so far, bytes resident, open descriptors, CPU seconds so far."""

    made: int
    resident_bytes: int
    descriptors: int
    cpu_s: float


def run(count: int, seed: int) -> list[str]:
    """``count`` minutes; sentences about what grew or was lost. ``seed`` is not used: nothing here is random."""
    del seed
    if os.geteuid() != 0:
        return ["attaching probes needs root"]
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        try:
            return _soak(Path(folder), count * 60.0)
        except AuditError as e:
            return [str(e)]


def _soak(folder: Path, seconds: float) -> list[str]:
    library = compiler.library("launches.c", "libcudart.so.13", folder)
    command = [str(compiler.program("storm.c", folder)), str(library)]
    storm = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        capture = Capture(storm.pid, folder / "soak.db", audit_environment(folder), limit_s=round(seconds) + 600)
        with _other_tracer(library) as tracer:
            capture.begin()
            made, samples = _storm(storm, capture.pid, seconds)
            print(f"soak: {made:,} calls in {seconds / 60:.0f} min ({made / seconds:,.0f}/s)", flush=True)
            for name, taken in samples.items():
                print(f"soak: {name}: {_told(taken)}", flush=True)
            done = capture.end()
    finally:
        assert storm.stdin is not None
        storm.stdin.close()
        storm.wait(60)
    problems = [p for name, taken in samples.items() for p in _grown(name, taken)]
    if made < KEPT * RATE_PER_S * seconds:
        problems.append(f"the machine kept {made / seconds:,.0f} calls/s of {RATE_PER_S:,}: it has other work")
    if done.events != made or done.lost:
        problems.append(f"{made} calls were made, {done.events} are in the evidence, {done.lost} were lost")
    if tracer is not None and tracer.counted != made:
        problems.append(f"{made} calls were made beside the other tracer, which counted {tracer.counted}")
    print(f"soak: {done.events:,} calls in {done.size_bytes / 2**20:.0f} MiB sealed, {done.lost} lost", flush=True)
    return problems


@contextlib.contextmanager
def _other_tracer(library: Path) -> Iterator[BpfTrace | None]:
    tracer = BpfTrace("histogram", library, FUNCTION)
    try:
        tracer.__enter__()
    except HostUnfit as e:
        print(f"soak: without another tracer: {e}", flush=True)
        yield None
        return
    try:
        yield tracer
    finally:
        tracer.__exit__(None, None, None)


def _storm(storm: subprocess.Popen[str], attacher: int, seconds: float) -> tuple[int, dict[str, list[Sample]]]:
    """Calls made, and the samples by name of process."""
    assert storm.stdin is not None
    assert storm.stdout is not None
    unit_ns = float(storm.stdout.readline())
    units, part = round(1e9 / RATE_PER_S / unit_ns * 0.1), RATE_PER_S // 10  # the rest is the tracers, and sleep
    names = {"attacher": attacher, **_children(attacher)}
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    made, start_s, next_s = 0, time.monotonic(), 0.0
    with Progress("soak", round(seconds)) as progress:
        while (elapsed_s := time.monotonic() - start_s) < seconds:
            storm.stdin.write(f"{units} {part}\n")
            storm.stdin.flush()
            storm.stdout.readline()
            made += part
            ahead_s = made / RATE_PER_S - (time.monotonic() - start_s)
            time.sleep(max(0.0, ahead_s))
            if elapsed_s >= next_s:
                next_s += SAMPLE_S
                progress.step(round(SAMPLE_S))
                for name, pid in names.items():
                    samples[name].append(_sample(pid, made))
    return made, samples


def _children(attacher: int) -> dict[str, int]:
    """Name → process of the recorder and the attacher's other helpers."""
    found = {}
    for pid in sorted(processes.children({attacher}) - {attacher}):
        words = Path(processes.PROC, str(pid), "cmdline").read_bytes().decode().split("\0")
        found[next((w.rpartition(".")[2] for w in words if w.startswith("gpuaudit.")), str(pid))] = pid
    return found


def _sample(pid: int, made: int) -> Sample:
    place = Path(processes.PROC, str(pid))
    pages = int((place / "statm").read_text().split()[1])
    fields = (place / "stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    descriptors = len(list((place / "fd").iterdir()))
    return Sample(made, pages * os.sysconf("SC_PAGE_SIZE"), descriptors, ticks / os.sysconf("SC_CLK_TCK"))


def _quarters(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The second and the last quarter: the first one holds the start."""
    size = max(2, len(samples) // 4)
    return samples[size : 2 * size], samples[-size:]


def _grown(name: str, samples: list[Sample]) -> list[str]:
    early, late = _quarters(samples)
    out = []
    before, after = (statistics.median(s.resident_bytes for s in q) for q in (early, late))
    if after > before + MEMORY_SLACK_BYTES:
        out.append(f"memory of the {name} grew from {before / 2**20:.0f} to {after / 2**20:.0f} MiB")
    if max(s.descriptors for s in late) > max(s.descriptors for s in early):
        out.append(f"descriptors of the {name} grew to {max(s.descriptors for s in late)}")
    first, last = ((q[-1].cpu_s - q[0].cpu_s) / max(1, q[-1].made - q[0].made) * 1e6 for q in (early, late))
    if last > first * CPU_SLACK + 0.1:
        out.append(f"CPU of the {name} grew from {first:.2f} to {last:.2f} s for a million calls")
    return out


def _told(samples: list[Sample]) -> str:
    early, late = _quarters(samples)
    span_s = (len(samples) - 1) * SAMPLE_S
    return (
        f"{statistics.median(s.resident_bytes for s in early) / 2**20:.0f} → "
        f"{statistics.median(s.resident_bytes for s in late) / 2**20:.0f} MiB resident, "
        f"{max(s.descriptors for s in early)} → {max(s.descriptors for s in late)} descriptors, "
        f"{(samples[-1].cpu_s - samples[0].cpu_s) / max(span_s, 1):.1%} of a CPU"
    )
