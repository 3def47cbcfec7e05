"""Evidence to measure with: ``cuda_calls`` records from a seed, as the BPF programs lay them out, and a sealed bundle.

The mix is that of a training loop seen from the CUDA runtime: mostly kernel launches, some copies, few
synchronisations, fewer allocations; four processes on eight CPUs. Durations have a long tail, pointers come from pools.
How well a column compresses depends on all of that: bytes per event are a property of this mix, not a promise.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gpuaudit.bundle.keys import FileSigner
from gpuaudit.bundle.tables import TABLES
from gpuaudit.bundle.writer import BundleWriter
from gpuaudit.capture.probes import OP_IDS
from gpuaudit.capture.ring import to_rows

TABLE = TABLES["cuda_calls"]

CPUS, PROCESSES, FUNCTIONS, STREAMS, BUFFERS = 8, 4, 300, 3, 2000
MIX = (
    ("cudaLaunchKernel", 0.82), ("cudaMemcpyAsync", 0.10), ("cudaStreamSynchronize", 0.04), ("cudaMalloc", 0.02),
    ("cudaFree", 0.02),
)  # fmt: skip
"""Share of each call."""

MEAN_GAP_NS = 10_000
"""100,000 calls a second over all processes."""

START_NS = 1_000_000_000_000

VALUES: dict[str, tuple[str, ...]] = {
    "cudaLaunchKernel": (
        "function", "grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_bytes", "stream",
    ),
    "cudaMemcpyAsync": ("device_pointer", "source_pointer", "size_bytes", "direction", "stream"),
    "cudaStreamSynchronize": ("stream",),
    "cudaMalloc": ("device_pointer", "size_bytes"),
    "cudaFree": ("device_pointer",),
}  # fmt: skip
"""Columns that a call fills, besides those that every call does; as in the probe table."""


def records(count: int, seed: int, start_ns: int = START_NS, first_seq: int = 0) -> np.ndarray:
    """``count`` records in the order in which a ring would give them: by the time they ended."""
    draw = np.random.default_rng(seed)
    out = np.zeros(count, TABLE.record_dtype())
    end = start_ns + np.cumsum(draw.exponential(MEAN_GAP_NS, count)).astype("<u8")
    kind = draw.choice(len(MIX), count, p=[share for _, share in MIX])
    duration = (draw.lognormal(8.3, 0.6, count) * np.where(kind == 2, 100, 1)).astype("<u8")
    out["start_ns"], out["duration_ns"] = end - duration, duration
    process = draw.integers(0, PROCESSES, count)
    out["pid"] = out["tid"] = 4_000 + 17 * process
    out["cpu"] = process * 2 + draw.integers(0, 2, count)
    for cpu in range(CPUS):
        here = out["cpu"] == cpu
        out["seq"][here] = first_seq + np.arange(here.sum(), dtype="<u8")
    out["op"] = np.array([OP_IDS[op] for op, _ in MIX], "<u4")[kind]
    pool = _pools(draw, count)
    bits = {c.name: np.uint32(1 << i) for i, c in enumerate(TABLE.nullable_in_ring)}
    out["valid_mask"] = bits["duration_ns"] | bits["return_code"]
    for k, (op, _) in enumerate(MIX):
        here = kind == k
        for name in VALUES[op]:
            out[name][here] = pool[name][here]
            out["valid_mask"][here] |= bits[name]
    return out


def _pools(draw: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """For each column the values that its rows would have, were they all filled."""
    grids = 1 << draw.integers(4, 12, FUNCTIONS)
    which = draw.zipf(1.3, count) % FUNCTIONS
    buffers = 0x7F00_0000_0000 + 512 * draw.integers(0, 1 << 26, BUFFERS)
    one = np.ones(count, "<u4")
    return {
        "function": 0x5555_5555_0000 + 64 * which, "grid_x": grids[which], "grid_y": one, "grid_z": one,
        "block_x": np.where(which % 3, 256, 128), "block_y": one, "block_z": one, "shared_bytes": (which % 5) * 8192,
        "stream": draw.integers(1, STREAMS + 1, count) * 0x5555_6000, "direction": draw.integers(1, 4, count),
        "device_pointer": buffers[draw.integers(0, BUFFERS, count)],
        "source_pointer": buffers[draw.integers(0, BUFFERS, count)],
        "size_bytes": 1 << draw.integers(8, 26, count),
    }  # fmt: skip


def batches(total: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """``total`` records in batches of at most ``size``, times and sequence numbers running on."""
    made, start_ns = 0, START_NS
    while made < total:
        part = records(min(size, total - made), seed + made, start_ns, made)
        start_ns = int(part["start_ns"][-1] + part["duration_ns"][-1])
        made += len(part)
        yield part


def new_writer(path: Path) -> tuple[BundleWriter, FileSigner]:
    """A writer as a capture has it, and the identity that it signs with, made for this run."""
    identity = FileSigner(Ed25519PrivateKey.generate())
    writer = BundleWriter.create(
        path, site="bench", host_id="bench", capture_uuid=str(uuid.uuid4()),
        open_body={"synthetic": True, "sources": [], "options": {}}, identity=identity,
    )  # fmt: skip
    return writer, identity


def write_bundle(path: Path, rows: int, segment_rows: int, seed: int = 1) -> FileSigner:
    """Seal ``rows`` calls in segments of ``segment_rows``; the identity."""
    writer, identity = new_writer(path)
    written = 0
    for part in batches(rows, segment_rows, seed):
        written += len(part)
        writer.append_segment(TABLE, to_rows(TABLE.name, part), seen=written, written=written, lost=0)
    writer.seal({})
    writer.close()
    return identity
