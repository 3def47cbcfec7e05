"""Scenario ``late-rank``: training on four GPUs in which rank 2 comes late because a neighbour takes its CPU.

What is true in it, and what an honest analysis must find:

* steps :data:`LATE_STEPS`: the thread of rank 2 is preempted for :data:`LATE_NS` before its all-reduce, by a
  compression job on the same CPU; the other three wait in the stream synchronisation that follows their own all-reduce;
* from :data:`THROTTLE_NS` on GPU 0 runs against its power limit for 8 s and lowers its SM clock;
* ranks 0, 2 and 3 end after the training, the process of rank 1 lives on to the end of the capture without one API
  call, with all its memory allocated: its GPU is allocated but idle;
* no event is lost, and every communicator was made while it was watched.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gpuaudit.bundle.tables_host import OCCUPANTS_FROM_NS
from gpuaudit.capture.scenario import VIRTUAL_BOOT_ID, VIRTUAL_START_BOOT_NS, Draw, Row, Scenario, TimedRow

RANKS = 4
LATE_RANK = 2
LATE_STEPS = range(60, 240)
LATE_NS = 30_000_000
THROTTLE_NS = (12_000_000_000, 20_000_000_000)
SILENT_RANK = 1
DURATION_NS = 40_000_000_000

_MS, _US, _S = 1_000_000, 1_000, 1_000_000_000
_T0 = VIRTUAL_START_BOOT_NS
_ATTACHED_NS = _T0 + 150 * _MS
_STEPS = 360
_LAUNCHES = 24
_DEVICE_NS = 58 * _MS
_TRANSFER_NS = 1_200 * _US
_GRADIENT_COUNT, _GRADIENT_BYTES = 8_388_608, 16_777_216
_WEIGHT_BUFFERS, _WEIGHT_BYTES = 24, 536_870_912
_COMM_ID = 0x5EED_1A7E_0000_0001
_POLL_NS = 250 * _MS
_MEMORY_TOTAL, _MEMORY_DRIVER = 85_520_809_984, 616_562_688
_POWER_LIMIT_MW = 700_000
_SW_POWER_CAP = 0x4
"""nvmlClocksEventReasonSwPowerCap of nvml.h."""

_KERNELS = (0x7F10_2000_1100, 0x7F10_2000_2200, 0x7F10_2000_3300)
_CUDART, _NCCL = "/opt/train/lib/libcudart.so.13", "/opt/train/lib/libnccl.so.2"
_PROBED = {
    "cudart": ("cudaMalloc", "cudaFree", "cudaMemcpy", "cudaMemcpyAsync", "cudaLaunchKernel", "cudaStreamSynchronize",
               "cudaDeviceSynchronize"),
    "nccl": ("ncclCommInitRank", "ncclCommInitRankConfig", "ncclCommDestroy", "ncclAllReduce", "ncclAllGather",
             "ncclReduceScatter", "ncclBroadcast"),
}  # fmt: skip


@dataclass
class _Rank:
    """One process with one GPU, and how far its main thread has come."""

    rank: int
    now_ns: int
    draw: Draw
    rows: list[TimedRow]
    allocated: list[int] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)  # (since, bytes held)
    end_ns: int | None = None

    @property
    def pid(self) -> int:
        return 4100 + self.rank

    @property
    def stream(self) -> int:
        return 0x55D0_0000_1000 + self.rank * 0x100

    @property
    def handle(self) -> int:
        return 0x55D0_0010_0000 + self.rank * 0x1000

    def place(self) -> Row:
        return {"pid": self.pid, "tid": self.pid, "cpu": 2 * self.rank}

    def call(self, table: str, op: str, duration_ns: int, **arguments: int) -> None:
        """One API call of the main thread, which then goes on after it."""
        row = {
            "start_ns": self.now_ns,
            "duration_ns": duration_ns,
            "op": op,
            "return_code": 0,
            **self.place(),
            **arguments,
        }
        self.now_ns += duration_ns
        self.rows.append(TimedRow(self.now_ns, table, row))

    def off_cpu(self, op: str, duration_ns: int, *, by: tuple[int, str], waker: tuple[int, str] | None) -> None:
        """The main thread leaves its CPU; ``by`` runs there instead, ``waker`` makes a sleeper runnable again."""
        row: dict[str, object] = {
            "start_ns": self.now_ns, "duration_ns": duration_ns, "op": op, "comm": "python3", **self.place(),
            "prev_state": 0 if op == "preempted" else 1, "next_pid": by[0], "next_tid": by[0], "next_comm": by[1],
            "cpu_out": 2 * self.rank,
        }  # fmt: skip
        self.now_ns += duration_ns
        if waker is not None:
            row |= {
                "wake_ns": self.now_ns - 6 * _US,
                "waker_pid": waker[0],
                "waker_tid": waker[0],
                "waker_comm": waker[1],
            }
        self.rows.append(TimedRow(self.now_ns, "off_cpu", row))
        if op == "preempted" and duration_ns >= OCCUPANTS_FROM_NS:  # one turn of the other fills the wait
            turn = {
                "start_ns": row["start_ns"], "duration_ns": duration_ns, "pid": by[0], "tid": by[0], "comm": by[1],
                "priority": 120, "cgroup_id": 1, "cpu": 2 * self.rank,
            }  # fmt: skip
            self.rows.append(TimedRow(self.now_ns, "cpu_occupants", turn))

    def hold(self, size_bytes: int) -> None:
        """Remember from when on how much framebuffer the process holds, for NVML."""
        self.memory.append((self.now_ns, size_bytes))

    def held(self, at_ns: int) -> int:
        return next((b for since, b in reversed(self.memory) if since <= at_ns), 0)


def rows(seed: int) -> list[TimedRow]:
    """Every row of the scenario, in no particular order."""
    out: list[TimedRow] = []
    ranks = [_Rank(r, _T0 + 1_000 * _MS + r * 7 * _MS, Draw(seed * 1_000 + r), out) for r in range(RANKS)]
    _processes(ranks, out)
    _load(ranks)
    loop_start = max(r.now_ns for r in ranks) + 20 * _MS
    for r in ranks:
        r.now_ns = loop_start
    for step in range(_STEPS):
        if max(r.now_ns for r in ranks) > _T0 + 32 * _S:
            break
        _step(ranks, step)
    training = range(loop_start, max(r.now_ns for r in ranks))
    _end(ranks, out)
    _nvml(ranks, Draw(seed * 1_000 + 99), out, training)
    _probe_totals(out)
    return out


def _load(ranks: list[_Rank]) -> None:
    """Communicator, then one allocation and one copy from the host per weight buffer."""
    joined = max(r.now_ns for r in ranks) + 380 * _MS
    for r in ranks:
        init = {"comm_handle": r.handle, "comm_id": _COMM_ID, "rank": r.rank, "nranks": RANKS}
        r.call("nccl_comms", "ncclCommInitRank", joined - r.now_ns + r.draw.below(90 * _US), **init)
        for i in range(_WEIGHT_BUFFERS):
            pointer = 0x7F00_0000_0000 + r.rank * (1 << 40) + i * _WEIGHT_BYTES
            r.now_ns += r.draw.between(150 * _US, 400 * _US)
            r.call(
                "cuda_calls",
                "cudaMalloc",
                r.draw.skewed(95 * _US, 900 * _US),
                size_bytes=_WEIGHT_BYTES,
                device_pointer=pointer,
            )
            r.allocated.append(pointer)
            r.hold(_MEMORY_DRIVER + (i + 1) * _WEIGHT_BYTES)
            source = 0x7E00_0000_0000 + i * _WEIGHT_BYTES
            copy = {"size_bytes": _WEIGHT_BYTES, "direction": 1, "device_pointer": pointer, "source_pointer": source}
            r.call("cuda_calls", "cudaMemcpy", r.draw.skewed(21 * _MS, 34 * _MS), **copy)


def _step(ranks: list[_Rank], step: int) -> None:
    """One training step: input, kernels, all-reduce, and the synchronisation in which everybody waits for the last."""
    for r in ranks:
        r.off_cpu(
            "blocked",
            r.draw.skewed(600 * _US, 3 * _MS),
            by=(0, "swapper/" + str(2 * r.rank)),
            waker=(r.pid, "pt_data_worker"),
        )
        batch = {"size_bytes": 262_144, "direction": 1, "stream": r.stream, "device_pointer": r.allocated[0]}
        r.call(
            "cuda_calls", "cudaMemcpyAsync", r.draw.skewed(7 * _US, 90 * _US), source_pointer=0x7E10_0000_0000, **batch
        )
        for i in range(_LAUNCHES):
            r.now_ns += r.draw.between(90 * _US, 160 * _US)
            _launch(r, i)
        if r.rank == LATE_RANK and step in LATE_STEPS:
            r.off_cpu("preempted", LATE_NS + r.draw.below(400 * _US), by=(7301, "zstd"), waker=None)
    ends = []
    for r in ranks:
        collective = {"datatype": 7, "reduce_op": 0, "count": _GRADIENT_COUNT // 2, "size_bytes": _GRADIENT_BYTES}
        identity = {"comm_handle": r.handle, "comm_id": _COMM_ID, "rank": r.rank, "nranks": RANKS, "stream": r.stream}
        r.call("nccl_calls", "ncclAllReduce", r.draw.skewed(9 * _US, 60 * _US), **identity, **collective)
        r.now_ns += r.draw.between(3 * _US, 9 * _US)
        throttled = r.rank == 0 and THROTTLE_NS[0] <= r.now_ns - _T0 < THROTTLE_NS[1]
        ends.append(r.now_ns + (_DEVICE_NS * 5 // 4 if throttled else _DEVICE_NS))
    done = max(ends) + _TRANSFER_NS
    for r in ranks:
        r.call("cuda_calls", "cudaStreamSynchronize", done - r.now_ns + r.draw.below(40 * _US), stream=r.stream)


def _launch(r: _Rank, i: int) -> None:
    grid = {"grid_x": 132 * (1 + i % 3), "grid_y": 1, "grid_z": 1, "block_x": 256, "block_y": 1, "block_z": 1}
    kernel = {"function": _KERNELS[i % 3], "stream": r.stream, "shared_bytes": 0 if i % 3 else 49_152}
    r.call("cuda_calls", "cudaLaunchKernel", r.draw.skewed(4 * _US, 40 * _US), **grid, **kernel)


def _end(ranks: list[_Rank], out: list[TimedRow]) -> None:
    """Three processes clean up and exit; the silent one does neither."""
    for r in ranks:
        if r.rank == SILENT_RANK:
            continue
        for i, pointer in enumerate(r.allocated):
            r.now_ns += r.draw.between(20 * _US, 60 * _US)
            r.call("cuda_calls", "cudaFree", r.draw.skewed(60 * _US, 700 * _US), device_pointer=pointer)
            r.hold(_MEMORY_DRIVER + (_WEIGHT_BUFFERS - 1 - i) * _WEIGHT_BYTES)
        r.call(
            "nccl_comms", "ncclCommDestroy", 4 * _MS, comm_handle=r.handle, comm_id=_COMM_ID, rank=r.rank, nranks=RANKS
        )
        r.now_ns += 250 * _MS
        r.hold(0)
        r.end_ns = r.now_ns
        born = _T0 + 200 * _MS
        gone = {**_process(r), "op": "exited", "duration_ns": r.end_ns - born, "seen_ns": r.end_ns}
        out.append(TimedRow(r.end_ns, "processes", gone))


def _process(r: _Rank) -> dict[str, object]:
    return {
        "start_ns": _T0 + 200 * _MS, "duration_ns": None, "pid": r.pid, "op": "found", "role": "traced",
        "parent_pid": 4099, "uid": 1000, "comm": "python3", "exe": "/opt/train/bin/python3",
        "cgroup": "/system.slice/train.service", "command_line": f"python3 train.py --rank {r.rank}",
        "seen_ns": _T0 + 900 * _MS, "exit_status": None,
    }  # fmt: skip


def _processes(ranks: list[_Rank], out: list[TimedRow]) -> None:
    """Processes, their libraries and the probes, as discovery would have found them: the files were probed before."""
    found = _T0 + 900 * _MS
    for r in ranks:
        out.append(TimedRow(found, "processes", _process(r)))
        for n, (library, path) in enumerate((("cudart", _CUDART), ("nccl", _NCCL))):
            row = {
                "start_ns": found, "duration_ns": 0, "pid": r.pid, "op": "shared", "library": library, "path": path,
                "build_id": f"{n + 1:040x}", "device": 64769, "inode": 90_001 + n, "probes": len(_PROBED[library]),
                "not_observed": "", "reason": None,
            }  # fmt: skip
            out.append(TimedRow(found, "libraries", row))
    out.extend(TimedRow(_ATTACHED_NS, "probes", row) for row in _probe_rows())


def _probe_rows() -> list[dict[str, object]]:
    return [
        {
            "start_ns": _ATTACHED_NS, "duration_ns": None, "op": op, "library": library,
            "path": _CUDART if library == "cudart" else _NCCL, "offset": 0x21000 + 0x140 * i,
            "mechanism": "uprobe_multi", "instruction": "push", "expected_cost_ns": 700,
            "hits": None, "unmatched": None, "misses": None,
        }
        for library, ops in _PROBED.items()
        for i, op in enumerate(ops)
    ]  # fmt: skip


def _probe_totals(out: list[TimedRow]) -> None:
    """What each probe counted: the calls there are rows for."""
    hits: dict[object, int] = {}
    for t in out:
        if t.table in ("cuda_calls", "nccl_calls", "nccl_comms"):
            hits[t.row["op"]] = hits.get(t.row["op"], 0) + 1
    end = _T0 + DURATION_NS
    for row in _probe_rows():
        attached = end - _ATTACHED_NS
        final = {**row, "duration_ns": attached, "hits": hits.get(row["op"], 0), "unmatched": 0, "misses": 0}
        out.append(TimedRow(end, "probes", final))


def _nvml(ranks: list[_Rank], draw: Draw, out: list[TimedRow], training: range) -> None:
    """One sample per GPU every 250 ms, and the processes NVML would list with it."""
    for at in range(_T0 + 100 * _MS, _T0 + DURATION_NS, _POLL_NS):
        duration = min(_POLL_NS, _T0 + DURATION_NS - at)
        for r in ranks:
            throttled = r.rank == 0 and THROTTLE_NS[0] <= at - _T0 < THROTTLE_NS[1]
            sample = {"start_ns": at, "duration_ns": duration, **_gpu(r.rank)}
            sample |= {**_load_of(draw, at in training, throttled), "memory_used_bytes": r.held(at), **_LINK}
            out.append(TimedRow(at + duration, "nvml_samples", sample))
            if r.held(at):
                held = {"start_ns": at, "duration_ns": duration, **_gpu(r.rank), "pid": r.pid, "op": "compute"}
                out.append(TimedRow(at + duration, "nvml_processes", {**held, "memory_used_bytes": r.held(at)}))


_LINK: dict[str, object] = {
    "memory_total_bytes": _MEMORY_TOTAL, "memory_reserved_bytes": _MEMORY_DRIVER, "power_limit_mw": _POWER_LIMIT_MW,
    "clock_memory_mhz": 2619, "clock_sm_max_mhz": 1980, "pcie_generation": 5, "pcie_width": 16, "ecc_corrected": 0,
    "ecc_uncorrected": 0, "unavailable": "",
}  # fmt: skip


def _load_of(draw: Draw, training: bool, throttled: bool) -> dict[str, object]:
    if not training:
        return {
            "gpu_utilization_percent": 0, "memory_utilization_percent": 0, "power_mw": draw.between(108_000, 121_000),
            "temperature_c": draw.between(36, 39), "clock_sm_mhz": 1980, "event_reasons": 0,
            "pcie_tx_kib_per_s": draw.between(0, 40), "pcie_rx_kib_per_s": draw.between(0, 90),
        }  # fmt: skip
    return {
        "gpu_utilization_percent": draw.between(96, 100), "memory_utilization_percent": draw.between(52, 68),
        "power_mw": draw.between(694_000, 703_000) if throttled else draw.between(585_000, 640_000),
        "temperature_c": draw.between(70, 73) if throttled else draw.between(61, 66),
        "clock_sm_mhz": draw.between(1_395, 1_455) if throttled else 1_980,
        "event_reasons": _SW_POWER_CAP if throttled else 0,
        "pcie_tx_kib_per_s": draw.between(2_000, 9_000), "pcie_rx_kib_per_s": draw.between(9_000, 24_000),
    }  # fmt: skip


def _gpu(index: int) -> dict[str, object]:
    return {"gpu_index": index, "gpu_uuid": f"GPU-5eed1a7e-0000-4000-8000-{index:012d}"}


SCENARIO = Scenario(
    name="late-rank",
    host={
        "hostname": "synthetic-host", "kernel": "0.0.0-synthetic", "machine": "x86_64", "cpus": 8,
        "host_id": "5eed1a7e5eed1a7e", "boot_id": VIRTUAL_BOOT_ID,
    },
    gpus=[
        {"index": i, "uuid": _gpu(i)["gpu_uuid"], "name": "NVIDIA H100 80GB HBM3", "driver": "synthetic"}
        for i in range(RANKS)
    ],
    duration_ns=DURATION_NS,
    rows=rows,
)  # fmt: skip
