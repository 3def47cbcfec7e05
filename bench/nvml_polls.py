"""The NVML source and the recorder in a process of their own, over the double, while the ring is filled or not.

``python -m bench.nvml_polls OPTIONS`` with OPTIONS as JSON (:class:`Options`); one line of JSON (:class:`Polls`). The
double is found through LD_LIBRARY_PATH, so it must be there when the process starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from bench.evidence import new_writer
from bench.producer import Producer
from bench.ring import TABLE, GeneratedRing, numpy_drain
from gpuaudit.bundle.errors import AuditError
from gpuaudit.bundle.writer import BundleWriter
from gpuaudit.capture.nvml_samples import POLL_INTERVAL_NS, SampleReader
from gpuaudit.capture.nvml_source import NvmlSource
from gpuaudit.capture.recorder import Recorder
from gpuaudit.capture.recorder_main import BUSY_RECORDS, SLEEP_MAX_S, SLEEP_MIN_S
from gpuaudit.capture.ring import to_rows
from tests.doubles.build import build

GPUS = 8
PROCESSES_PER_GPU = 8
LIMIT_S = 120


@dataclass(frozen=True)
class Options:
    """``record`` false: NVML is asked as often and what it says is thrown away. ``program``: the compiled producer of
    events, empty for none."""

    seconds: float
    folder: str
    record: bool = True
    program: str = ""
    events_per_s: float = 0


@dataclass(frozen=True)
class Polls:
    """``polls``: rounds over all GPUs. ``lateness_ms``: of each poll, the distance from the one before less 250 ms."""

    polls: float
    cpu_s: float
    elapsed_s: float
    lateness_ms: list[float]
    events: int = 0
    lost: int = 0


def run(options: Options, library: Path) -> Polls:
    """Start the process and wait for it; AuditError with its last words."""
    root = str(Path(__file__).resolve().parents[1])
    env = {**os.environ, "PYTHONPATH": root, "LD_LIBRARY_PATH": str(library.parent),
           "DOUBLE_NVML_SCRIPT": str(library.parent / "script.txt")}  # fmt: skip
    command = [sys.executable, "-m", "bench.nvml_polls", json.dumps(asdict(options))]
    done = subprocess.run(
        command, env=env, cwd=root, capture_output=True, text=True, timeout=LIMIT_S + options.seconds, check=False
    )
    if done.returncode:
        raise AuditError(f"the polling process ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    return Polls(**json.loads(done.stdout))


def library(folder: Path) -> Path:
    """The double and its script: :data:`GPUS` GPUs with NVLinks and :data:`PROCESSES_PER_GPU` processes on each."""
    path = build("nvml", folder)
    lines = [f"gpus {GPUS}", "0 * links 18", "0 * utilization 90"]
    for i in range(PROCESSES_PER_GPU):
        lines += [f"0 * process {5000 + i} {1 << 30}", f"0 * use {5000 + i} {10 + i} 5"]
    (folder / "script.txt").write_text("\n".join(lines) + "\n")
    return path


class _Starts(Recorder):
    """The recorder, which also remembers when each GPU was polled."""

    def __init__(self, writer: BundleWriter) -> None:
        super().__init__(writer)
        self.starts: dict[object, list[int]] = {}

    def add_records(self, table: str, records: Sequence[Mapping[str, object]]) -> None:
        super().add_records(table, records)
        if table == "nvml_samples":
            for row in records:
                self.starts.setdefault(row["gpu_index"], []).append(int(str(row["start_ns"])))


def main(options: Options) -> Polls:
    """Poll for the time that was asked for."""
    source = NvmlSource()
    capability = source.probe()
    if not capability.available or len(source.gpus) != GPUS:
        raise AuditError(f"the double is not what NVML is here: {capability.reason or len(source.gpus)}")
    return _record(source, options) if options.record else _ask(source, options.seconds)


def _ask(source: NvmlSource, seconds: float) -> Polls:
    """The calls of the samples alone, as often, in as many threads."""
    ended = threading.Event()
    counts: list[int] = []

    def ask(reader: SampleReader) -> None:
        count, due_s = 0, time.monotonic()
        while not ended.wait(max(0.0, due_s - time.monotonic())):
            reader()
            count += 1
            due_s += POLL_INTERVAL_NS / 1e9
        counts.append(count)

    threads = [threading.Thread(target=ask, args=(SampleReader(gpu),)) for gpu in source.gpus]
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    for thread in threads:
        thread.start()
    ended.wait(seconds)
    ended.set()
    for thread in threads:
        thread.join()
    return Polls(sum(counts) / GPUS, time.process_time() - start_cpu_s, time.monotonic() - start_s, [])


def _record(source: NvmlSource, options: Options) -> Polls:
    writer, _ = new_writer(Path(options.folder) / "bundle.db")
    recorder = _Starts(writer)
    with ExitStack() as stack:
        ring = producer = None
        if options.program:
            ring = GeneratedRing(Path(options.program))
            stack.callback(ring.close)
            drain = numpy_drain(ring)
            producer = stack.enter_context(Producer(ring.program_fd, max(os.sched_getaffinity(0))))
            producer.start(int(options.events_per_s * options.seconds), options.events_per_s)
        start_s, start_cpu_s, events = time.monotonic(), time.process_time(), 0
        source.start(recorder)
        pause = SLEEP_MIN_S
        while time.monotonic() - start_s < options.seconds:
            taken = source.poll(recorder)
            if ring is not None:
                records = drain()
                taken += len(records)
                events += len(records)
                recorder.add_drained(TABLE.name, to_rows(TABLE.name, records))
                seen, lost = ring.counts()
                recorder.ring_counters(TABLE.name, {0: seen}, {0: lost})
            recorder.tick()
            pause = SLEEP_MIN_S if taken >= BUSY_RECORDS else min(SLEEP_MAX_S, pause * 2)
            time.sleep(pause)
        cpu_s, elapsed_s = time.process_time() - start_cpu_s, time.monotonic() - start_s
        lost = ring.counts()[1] if ring is not None else 0
    source.stop(recorder)
    writer.close()
    polls = sum(len(starts) for starts in recorder.starts.values()) / GPUS
    return Polls(polls, cpu_s, elapsed_s, _lateness_ms(recorder.starts), events, lost)


def _lateness_ms(starts: Mapping[object, Sequence[int]]) -> list[float]:
    return [
        abs(after - before - POLL_INTERVAL_NS) / 1e6 for of_gpu in starts.values() for before, after in pairwise(of_gpu)
    ]


if __name__ == "__main__":
    print(json.dumps(asdict(main(Options(**json.loads(sys.argv[1]))))))
    sys.stdout.flush()
    os._exit(0)
