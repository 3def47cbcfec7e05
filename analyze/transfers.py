"""Copies between host and GPU as the probes saw them, against the theoretical rate of the PCIe link. Bytes, ns.

Rate = bytes of blocking copies / time in which a thread was inside one (the union, on CLOCK_BOOTTIME). Of asynchronous
copies the call's time is not the transfer's: they are told by bytes alone. A copy from pageable memory is staged by the
driver and reaches part of the link only.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.analyze import intervals, shards
from gpuaudit.analyze.call_meanings import BLOCKING_COPY, COPY
from gpuaudit.analyze.call_totals import OUTER
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.gpu_time import GpuTime
from gpuaudit.analyze.store import NOT_OWN

DIRECTIONS = {1: "host to device", 2: "device to host"}
"""cudaMemcpyKind (driver_types.h) of what goes over the link."""

LANE_BYTES_PER_S: dict[int, Fraction] = {
    1: Fraction(2_500_000_000 * 8, 10 * 8), 2: Fraction(5_000_000_000 * 8, 10 * 8),
    3: Fraction(8_000_000_000 * 128, 130 * 8), 4: Fraction(16_000_000_000 * 128, 130 * 8),
    5: Fraction(32_000_000_000 * 128, 130 * 8), 6: Fraction(64_000_000_000 * 236, 256 * 8),
}  # fmt: skip
"""One lane, one direction, by PCIe generation: transfers/s × coding / 8 bits. 8b/10b to generation 2, 128b/130b from 3
to 5, flits with 236 of 256 bytes for transactions in 6 (PCI Express Base Specification)."""

BLOCKING = BLOCKING_COPY.condition

UNKNOWN_DIRECTION = "not known"
NOT_KEPT = "these copies were aggregated in the kernel: their bytes are exact, their directions and kinds were not kept"
"""Of a transfer that is read from ``call_totals``."""


@dataclass(frozen=True)
class Transfer:
    """Copies of a process in one direction; ``link_bytes_per_s`` None where the link is not known, with the reason."""

    pid: int
    shard: str
    gpu: GpuTime | None
    direction: str
    copies: int
    bytes: int
    blocking_bytes: int
    blocking_ns: int
    link: str
    link_bytes_per_s: Fraction | None
    reason: str
    where: str
    table: str = "cuda_calls"

    @property
    def rate(self) -> Fraction | None:
        """bytes/s of blocking copies; None without any."""
        return Fraction(self.blocking_bytes * 10**9, self.blocking_ns) if self.blocking_ns else None

    @property
    def of_link(self) -> Fraction | None:
        """Rate over the link's theoretical rate."""
        return None if self.rate is None or not self.link_bytes_per_s else self.rate / self.link_bytes_per_s


def read_transfers(context: Context) -> list[Transfer]:
    """Every process that copied between host and device, by process and direction."""
    kinds = ", ".join(map(str, DIRECTIONS))
    rows = context.store.sql(
        f"SELECT pid, direction, count(*), sum(size_bytes)::HUGEINT, "
        f"coalesce(sum(size_bytes) FILTER ({BLOCKING} AND duration_ns IS NOT NULL), 0)::HUGEINT FROM cuda_calls "
        f"WHERE {COPY.first} AND direction IN ({kinds}) AND size_bytes IS NOT NULL "
        f"AND coalesce(return_code, 0) = 0 AND {NOT_OWN} GROUP BY 1, 2 ORDER BY 1, 2"
    )
    told = [_transfer(context, int(p), int(k), (int(n), int(size), int(b))) for p, k, n, size, b in rows]
    return [*told, *_aggregated(context)]


def _aggregated(context: Context) -> list[Transfer]:
    """Copies that the kernel counted, by process: their bytes are known, their directions are not."""
    rows = context.store.sql(
        f"SELECT pid, sum(count)::HUGEINT, sum(size_bytes)::HUGEINT FROM call_totals WHERE {COPY.condition} "
        f"AND {OUTER} AND {NOT_OWN} GROUP BY pid ORDER BY pid"
    )
    out = []
    for pid, copies, size in rows:
        shard = shards.shard_of(context, int(pid))
        where = f"pid = {int(pid)} AND {COPY.condition} AND {OUTER}"
        out.append(Transfer(
            int(pid), shard.name if shard else "", None, UNKNOWN_DIRECTION, int(copies), int(size), 0, 0, "", None,
            NOT_KEPT, where, "call_totals",
        ))  # fmt: skip
    return out


def _transfer(context: Context, pid: int, kind: int, sums: tuple[int, int, int]) -> Transfer:
    copies, size, blocking = sums
    where = f"pid = {pid} AND {COPY.first} AND direction = {kind}"
    a = context.store.arrays(
        f"SELECT start_ns::BIGINT AS a, end_ns::BIGINT AS b FROM cuda_calls WHERE {where} AND {BLOCKING} "
        "AND end_ns IS NOT NULL AND size_bytes IS NOT NULL AND coalesce(return_code, 0) = 0"
    )
    time = intervals.measure(intervals.from_bounds(a["a"], a["b"]))
    shard = shards.shard_of(context, pid)
    gpus = shards.gpus_of(context, pid)
    gpu = gpus[0] if len(gpus) == 1 else None
    link, rate, reason = ("", None, "NVML listed the process on no GPU") if not gpus else ("", None, "")
    if len(gpus) > 1:
        reason = "the process held several GPUs, and a copy does not say which one it was for"
    if gpu is not None:
        link, rate, reason = _link(context, gpu)
    return Transfer(
        pid, shard.name if shard else "", gpu, DIRECTIONS[kind], copies, size, blocking, time, link, rate, reason, where
    )  # fmt: skip


def _link(context: Context, gpu: GpuTime) -> tuple[str, Fraction | None, str]:
    """The fastest link of any sample: an idle GPU lowers its generation."""
    rows = context.store.sql(
        f"SELECT DISTINCT pcie_generation, pcie_width FROM nvml_samples WHERE {gpu.where} "
        "AND pcie_generation IS NOT NULL AND pcie_width IS NOT NULL ORDER BY 1, 2"
    )
    known = [(LANE_BYTES_PER_S[int(g)] * int(w), int(g), int(w)) for g, w in rows if int(g) in LANE_BYTES_PER_S]
    if not known:
        return "", None, "NVML told no generation and width of the PCIe link"
    rate, generation, width = max(known)
    return f"PCIe {generation} x{width}", rate, ""
