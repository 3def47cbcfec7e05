"""Sealing, next to the checksum that is the least anybody would do with the same bytes."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from bench import evidence, usage
from bench.result import Figure, Plan, ratio, value
from bench.spread import take_turns
from gpuaudit.bundle.columns import Rows
from gpuaudit.capture.ring import to_rows

NAME = "seal"
TITLE = "Sealing"
EVENTS = 2_000_000
SEGMENT_EVENTS = 500_000
"""Rounded from what closes a segment: 64 MiB raw at 128 bytes a record."""

METHOD = (
    "`cuda_calls` records from a seed, as the ring holds them, turned into columns, compressed, hashed, signed and "
    "committed to a bundle, which is then sealed; next to `sha256sum` of a file with the same records. CPU time, user "
    "and system."
)


@dataclass(frozen=True)
class _Turn:
    cpu_s: float
    columns_cpu_s: float = 0.0
    seconds: float = 0.0
    bytes_out: int = 0


def measure(plan: Plan) -> Figure:
    """CPU and bytes of the writer, and CPU of ``sha256sum``."""
    events = plan.size(EVENTS, 10_000)
    parts = list(evidence.batches(events, SEGMENT_EVENTS, seed=1))
    raw = plan.folder / "records.raw"
    with raw.open("wb") as f:
        for part in parts:
            f.write(part.tobytes())
    raw_bytes = raw.stat().st_size

    def seal() -> _Turn:
        return _seal(plan, parts)

    def checksum() -> _Turn:
        return _Turn(usage.run(["sha256sum", str(raw)]).cpu_s)

    usage.run(["sha256sum", str(raw)])  # the file is in the page cache for every turn
    turns = take_turns({"seal": seal, "sha256sum": checksum}, plan.repeats, plan.budget_s)
    sealed, summed = turns["seal"], turns["sha256sum"]
    million = events / 1e6
    cpu, summed_cpu = [t.cpu_s / million for t in sealed], [t.cpu_s / million for t in summed]
    return Figure(NAME, TITLE, METHOD, (
        ratio("seal ÷ sha256sum, CPU", cpu, summed_cpu, "lower"),
        ratio("bundle ÷ ring records, bytes", [t.bytes_out for t in sealed], [raw_bytes] * len(sealed), "lower"),
        value("seal: CPU per million events", "s", cpu),
        value("of that, ring records to columns", "s", [t.columns_cpu_s / million for t in sealed]),
        value("seal: elapsed per million events, fsync included", "s", [t.seconds / million for t in sealed]),
        value("sha256sum: CPU per million events", "s", summed_cpu),
        value("bundle: bytes per event", "bytes", [t.bytes_out / events for t in sealed]),
    ), {"events": f"{events:,}", "a record": f"{raw_bytes // events} bytes", "segments": f"{len(parts)}"})  # fmt: skip


def _seal(plan: Plan, parts: list[np.ndarray]) -> _Turn:
    path = plan.folder / "sealed.db"
    start_s, before_s, columns_cpu_s, written = time.monotonic(), time.process_time(), 0.0, 0
    writer, _ = evidence.new_writer(path)
    for part in parts:
        began_s = time.process_time()
        rows: Rows = to_rows(evidence.TABLE.name, part)
        columns_cpu_s += time.process_time() - began_s
        written += len(part)
        writer.append_segment(evidence.TABLE, rows, seen=written, written=written, lost=0)
    writer.seal({})
    cpu_s, seconds = time.process_time() - before_s, time.monotonic() - start_s
    writer.close()
    size = path.stat().st_size
    for file in (path, path.with_name(path.name + ".seal")):
        size = size if file == path else size + file.stat().st_size
        file.unlink()
    return _Turn(cpu_s, columns_cpu_s, seconds, size)
