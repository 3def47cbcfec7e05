"""A findings document as analysis makes them: four ranks on four GPUs, rank 2 preempted and 30 ms late in ten steps."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from gpuaudit.analyze.finding import (
    Chain,
    Declaration,
    Document,
    Evidence,
    Finding,
    Gain,
    Link,
    Quantity,
    RuleOutcome,
    Share,
    Threshold,
)  # fmt: skip

START = 812_000_000_000
LENGTH = 60_000_000_000
END = START + LENGTH
UTC = 1_795_312_000_000_000_000
LATE_STEPS = tuple(range(20, 30))
MS = 1_000_000
Values = dict[str, Quantity | str]
UUIDS = tuple(f"GPU-5a1d0c3e-0000-4000-8000-00000000000{i}" for i in range(4))


def q(value: int | Fraction | None, unit: str = "ns", provenance: str = "measured", **more: Any) -> Quantity:
    return Quantity(value, unit, provenance, **more)  # type: ignore[arg-type]


LATE_RANK = Declaration(
    id="late_rank", kind="chain", title="One rank arrives late and the others wait",
    question="Did one rank of a communicator arrive later at its collectives than the others, and who waited for it?",
    inputs=(("nccl_calls", ("start_ns", "comm_id", "rank", "nranks")), ("cuda_calls", ("start_ns", "duration_ns",
    "tid")),
            ("off_cpu", ("start_ns", "duration_ns", "tid", "op", "next_comm"))),
    thresholds=(
        Threshold("late_floor_ns", 5 * MS, "ns",
        "ten times the jitter of host-side arrivals on an idle node (bench/arrival)"),
        Threshold("spread_factor", 4, "ratio", "robust z-score, Iglewicz & Hoaglin 1993: 3.5, rounded up"),
        Threshold("quorum", Fraction(3, 4), "share", "ranks of the communicator that must be recorded"),
    ),
    texts={"late": "Rank {rank} of communicator {comm} arrived late at {late} of {steps} collectives, by "
                   "{median} in the median and {worst} at most; the other {others} ranks waited {wait} for it in all."},
    never_claims="Nothing about the GPU's own work: when a rank's kernels are slow, all ranks end together.",
    assumptions=("Ranks of one communicator share one clock: they run on this host.",),
    controls=("SOC2-CC7.2",),
)  # fmt: skip

IDLE = Declaration(
    id="idle_allocation", kind="rule", title="GPU memory held while the GPU does nothing",
    question="Was a GPU's memory held by a process while no kernel ran on it?",
    inputs=(("nvml_samples", ("gpu_utilization_percent", "memory_used_bytes")), ("nvml_processes", ("pid",))),
    thresholds=(Threshold("idle_floor_ns", 10_000 * MS, "ns", "forty NVML polls of 250 ms"),),
    texts={"idle": "GPU {gpu} held {memory} for {process} and ran nothing for {idle} of {window} ({share})."},
    never_claims="That the memory was not needed later.",
)  # fmt: skip

THROTTLING = Declaration(
    id="throttling", kind="rule", title="Clocks lowered by power or heat",
    question="Did NVML report that clocks were lowered for power or thermal reasons?",
    inputs=(("nvml_samples", ("event_reasons", "clock_sm_mhz")),),
    thresholds=(Threshold("least_share", Fraction(1, 100), "share", "one per cent of the capture"),),
    texts={"throttled": "GPU {gpu} was throttled for {time} of {window} ({share}): {reason}."},
    never_claims="How much slower the work became.",
)  # fmt: skip

SILENCE = Declaration(
    id="api_silence", kind="rule", title="No API call while the process lives",
    question="Did a process that uses the GPU make no call for long?",
    inputs=(("cuda_calls", ("start_ns", "duration_ns", "pid")),),
    thresholds=(Threshold("silence_ns", 5_000 * MS, "ns", "a hundred steps of 50 ms"),),
    texts={"silent": "Process {process} made no CUDA call for {time}."},
    never_claims="That the process was doing nothing.",
)  # fmt: skip


def document(**changes: Any) -> Document:
    """The scenario; ``changes`` replace whole sections."""
    parts: dict[str, Any] = {
        "tool": {"name": "gpu-audit", "version": "0.1.0", "digest": "9f" * 32},
        "options": {"rate": "2.99", "currency": "USD"},
        "bundle": {
            "origin": "lab/5a1d0c3e/7f0e55aa-0001-4c00-9000-2f6b1c9d0e11",
            "root": "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=", "size": 34, "status": "SEALED",
            "file_sha256": "5e" * 32, "identity_sha256": "c4" * 32, "synthetic": True, "imported": False,
            "notices": ["No start receipt was given: a holder of the identity key could have forged the whole bundle."],
        },
        "host": {
            "hostname": "gpu-node-07.lab", "kernel": "6.8.0-45-generic", "machine": "x86_64", "cpus": 96,
            "gpus": [{"index": i, "uuid": UUIDS[i], "name": "NVIDIA H100 80GB HBM3",
            "driver": "560.35.03"} for i in range(4)],
        },
        "window": {"start_ns": str(START), "end_ns": str(END), "start_utc_ns": str(UTC),
        "end_utc_ns": str(UTC + LENGTH),
                   "utc_uncertainty_ns": "1840"},
        "quality": _quality(),
        "operations": _operations(),
        "outcomes": [
            RuleOutcome("late_rank", "finding", ""), RuleOutcome("idle_allocation", "finding", ""),
            RuleOutcome("throttling", "finding", ""),
            RuleOutcome("api_silence", "not evaluated", "the libraries of process 4977 could not be observed"),
        ],
        "findings": _findings(),
        "chains": [_chain()],
        "waste": _waste(),
        "cost": {"rows": [
            {"name": "probe time", "quantity": q(41_300_000, "ns", "derived",
             formula="hits × cost of a pair").to_json(),
             "definition": "hits of every probe × its cost, calibrated on this host before the capture"},
            {"name": "recorder CPU", "quantity": q(1_204_000_000).to_json(),
             "definition": "user and system time of the recorder"},
            {"name": "recorder memory", "quantity": q(88_301_568, "bytes").to_json(),
             "definition": "largest resident set"},
            {"name": "off-CPU probe", "quantity": q(None, reason="its cost could not be calibrated").to_json(),
             "definition": "sched_switch hits × their cost"},
        ]},
        "charts": {"timeline": _timeline(), "rank_heat": [_heat()], "nvml": [_nvml(i) for i in range(4)],
        "latency": _latency()},
        "appendix": _appendix(),
        "evidence": [
            Evidence("E1", "nccl_calls", (4, 9, 14), 200,
            "SELECT * FROM nccl_calls WHERE comm_id = 11400714819323198485 ORDER BY start_ns"),
            Evidence("E2", "cuda_calls", (5, 10, 15), 200,
            "SELECT * FROM cuda_calls WHERE op = 'cudaStreamSynchronize'"),
            Evidence("E3", "off_cpu", (6, 11), 10, "SELECT * FROM off_cpu WHERE tid = 4903 AND op = 'preempted'"),
            Evidence("E4", "nvml_samples", tuple(range(2, 33)), 960, "SELECT * FROM nvml_samples WHERE gpu_index = 3"),
        ],
    }  # fmt: skip
    return Document(**{**parts, **changes})


def _quality() -> dict[str, Any]:
    counts = {
        "cuda_calls": (48_213, 48_213, 0, 12), "nccl_calls": (200, 200, 0, 3), "nccl_comms": (4, 4, 0, 1),
        "off_cpu": (9_120, 9_118, 2, 9), "nvml_samples": (960, 960, 0, 4), "nvml_processes": (957, 957, 0, 4),
        "processes": (9, 9, 0, 2), "libraries": (8, 8, 0, 1), "probes": (26, 26, 0, 2), "clock": (12, 12, 0, 12),
        "gaps": (2, 2, 0, 2), "losses": (144, 144, 0, 12),
    }  # fmt: skip
    return {
        "grade": "B",
        "reasons": ["2 of 9,120 off-CPU records were lost (0.02 %)", "libraries of process 4977 could not be observed"],
        "tables": [
            {"table": t, "seen": str(s), "written": str(w), "lost": str(x), "rows": str(w), "leaves": str(n)}
            for t, (s, w, x, n) in counts.items()
        ],
        "gaps": [
            {"source": "cuda", "start_ns": str(START), "duration_ns": None, "pid": 4977,
             "reason": "statically linked CUDA runtime without symbols: not observable"},
            {"source": "nvml", "start_ns": str(START + 31_000 * MS), "duration_ns": str(750 * MS), "pid": None,
             "reason": "NVML did not answer in time"},
        ],
        "sources": [
            {"source": "cuda", "state": "partly recorded", "reason": "process 4977 could not be observed"},
            {"source": "nccl", "state": "recorded", "reason": ""}, {"source": "off_cpu", "state": "recorded",
             "reason": ""},
            {"source": "nvml", "state": "partly recorded", "reason": "one gap of 750 ms"},
            {"source": "clock", "state": "recorded", "reason": ""},
        ],
    }  # fmt: skip


def _operations() -> list[dict[str, Any]]:
    rows = (
        ("cuda_calls", "cudaStreamSynchronize", 200, 9_800 * MS, 46 * MS, 76 * MS, 77 * MS),
        ("cuda_calls", "cudaLaunchKernel", 45_600, 310 * MS, 5_900, 14_300, 2_100_000),
        ("cuda_calls", "cudaMemcpyAsync", 2_400, 41 * MS, 15_800, 38_000, 911_000),
        ("nccl_calls", "ncclAllReduce", 200, 4 * MS, 18_400, 61_000, 64_200),
        ("cuda_calls", "cudaMalloc", 13, 31 * MS, 2 * MS, None, 9 * MS),
    )
    few = "fewer than 100 calls: the longest is given instead"
    return [
        {"table": t, "op": op, "count": q(n, "count").to_json(), "open": q(0, "count").to_json(),
         "errors": q(0, "count").to_json(), "total": q(total).to_json(), "p50": q(p50).to_json(),
         "p99": q(p99, reason="" if p99 else few).to_json(), "max": q(most).to_json()}
        for t, op, n, total, p50, p99, most in rows
    ]  # fmt: skip


def _findings() -> list[Finding]:
    idle: Values = {"gpu": "3", "memory": q(71 << 30, "bytes"), "process": "python3 (4905)", "idle": q(21_400 * MS),
            "window": q(LENGTH), "share": q(Fraction(214, 600), "share", "derived")}  # fmt: skip
    hot: Values = {"gpu": "1", "time": q(1_250 * MS), "window": q(LENGTH),
           "share": q(Fraction(125, 6000), "share", "derived"), "reason": "software power cap"}  # fmt: skip
    return [
        Finding("F1", "idle_allocation", "warning", "idle", idle, {"gpu": "3", "pid": "4905"},
                q(21_400 * MS, "gpu_ns", "derived", formula="Σ of poll intervals with no kernel and memory held"),
                "B", ("E4",)),
        Finding("F2", "throttling", "notice", "throttled", hot, {"gpu": "1"},
                q(1_250 * MS, "gpu_ns", "derived", formula="Σ of poll intervals with the reason set"), "A", ("E4",)),
    ]  # fmt: skip


def _chain() -> Chain:
    effect, overlap = q(306 * MS, evidence=("E1", "E2")), q(301_900_000, "ns", "derived", evidence=("E3",))
    values: Values = {
        "rank": "2", "comm": "9e3779b97f4a7c15", "late": q(10, "count"), "steps": q(50, "count"),
        "median": q(30_240_000), "worst": q(31_870_000), "others": q(3, "count"),
        "wait": q(918 * MS, "gpu_ns", "derived", formula="Σ over the other ranks"),
    }  # fmt: skip
    return Chain(
        "C1", "late_rank", "critical", "late", values, {"communicator": "9e3779b97f4a7c15", "rank": "2", "pid": "4903"},
        (
            Link("three ranks wait in cudaStreamSynchronize after their all-reduce",
            "rank 2 makes the same all-reduce later",
                 q(918 * MS), q(918 * MS), q(Fraction(1), "share", "derived"), ("E1", "E2")),
            Link("rank 2 makes its all-reduce late",
            "its thread was preempted while runnable; stress-ng ran on its CPU",
                 effect, overlap, q(Fraction(3019, 3060), "share", "derived"), ("E3",)),
        ),
        q(918 * MS, "gpu_ns", "derived", formula="wait of the other ranks × one GPU each"), "high", "B",
        ("Device-side lateness was not evaluated: GPU time was not recorded.",),
        "Rank 2 on time while the same thread is preempted for as long.",
        "Keep other work off the CPUs of the training processes (cpuset), and record again.", ("E1", "E2", "E3"),
        experiment="Pin the rank's thread to a CPU that nothing else may use, and record again.",
        gain=Gain(q(0, "gpu_ns", "derived"), q(918 * MS, "gpu_ns", "derived")),
        shares=(
            Share("Preempted: stress-ng (812)", overlap, q(Fraction(3019, 3060), "share", "derived")),
            Share("unexplained", q(4_100_000, "ns", "derived"), q(Fraction(41, 3060), "share", "derived")),
        ),
        code=("ncclAllReduce from train.py:142 in step()",),
    )  # fmt: skip


_TOLD = {
    "useful": "a kernel ran, and nothing below claims its time",
    "waiting_for_peers": "a rank waited in a collective for a late rank",
    "host_blocked": "no kernel ran and the host was in a blocking call",
    "idle_allocated": "no kernel ran, a process held the GPU, and why is not known",
    "idle_unallocated": "no kernel ran and NVML listed no process",
    "memory_bound": "what the busiest pipe did not use while memory was the limit",
    "not_classified": "not known",
}


def _amounts(ns: int, spread: int, observed: int) -> dict[str, Any]:
    rate = Fraction(299, 100 * 3600 * 10**9)
    return {
        "gpu_time": q(ns, "gpu_ns", "derived", evidence=("E4",)).to_json(),
        "low": q(max(0, ns - spread), "gpu_ns", "derived", evidence=("E4",)).to_json(),
        "high": q(ns + spread, "gpu_ns", "derived", evidence=("E4",)).to_json(),
        "share": q(Fraction(ns, observed), "share", "derived", evidence=("E4",)).to_json(),
        **{
            name: q(amount * rate, "USD", "assumed", formula="gpu_time × price").to_json()
            for name, amount in (("money", ns), ("money_low", max(0, ns - spread)), ("money_high", ns + spread))
        },
    }  # fmt: skip


_MONTH = "money of the total / observed GPU-hours × 4 GPUs × 730 h × duty cycle"


def _waste() -> dict[str, Any]:
    total = 4 * LENGTH
    parts = {
        "useful": 0, "waiting_for_peers": 918 * MS, "host_blocked": 8_882 * MS, "idle_allocated": 21_400 * MS,
        "idle_unallocated": 3_100 * MS, "memory_bound": 40_200 * MS, "not_classified": 1_400 * MS,
    }  # fmt: skip
    parts["useful"] = total - sum(parts.values())
    held = {"idle_allocated": (3, 4905), "idle_unallocated": (0, None), "host_blocked": (2, 4903)}
    rows = [
        {"key": key, "gpu": UUIDS[gpu], "gpu_index": gpu, "pid": pid, "definition": _TOLD[key],
         **_amounts(parts[key], parts[key] // 8, total)}
        for key, (gpu, pid) in held.items()
    ]  # fmt: skip
    rows += [
        {"key": key, "gpu": UUIDS[i], "gpu_index": i, "pid": 4901 + i, "definition": _TOLD[key],
         **_amounts(parts[key] // 3, 0, total)}
        for key in ("waiting_for_peers", "useful", "memory_bound", "not_classified") for i in (0, 1, 3)
    ]  # fmt: skip
    waste = sum(ns for key, ns in parts.items() if key not in ("useful", "memory_bound", "not_classified"))
    return {
        "rows": rows, "observed": q(total, "gpu_ns", "derived").to_json(), "rate": "2.99", "currency": "USD",
        "by_key": [{"key": k, **_amounts(ns, ns // 9, total)} for k, ns in parts.items()],
        "total": _amounts(waste, waste // 9, total), "prices": ["rate given by the user: 2.99 USD per GPU-hour"],
        "projection": {
            "duty_cycle": q(Fraction(3, 5), "share", "assumed").to_json(),
            "coverage": q(Fraction(97, 100), "share", "derived", evidence=("E4",)).to_json(),
            **{
                f"month{b}": q(Fraction(cents, 100), "USD", "assumed", formula=_MONTH).to_json()
                for b, cents in (("", 161_420), ("_low", 120_000), ("_high", 182_050))
            },
            **{
                f"year{b}": q(Fraction(cents, 100), "USD/year", "assumed", formula="12 months").to_json()
                for b, cents in (("", 1_937_040), ("_low", 1_440_000), ("_high", 2_184_600))
            },
        },
        "notes": ["Each nanosecond of observed GPU time stands in one row."],
    }  # fmt: skip


def _timeline() -> dict[str, Any]:
    lanes: list[dict[str, Any]] = []
    for gpu in range(4):
        busy = [[str(START + i * 1_200 * MS), str(1_050 * MS), "busy"] for i in range(50)]
        if gpu == 3:
            busy = [b for b in busy if int(b[0]) < START + 36_000 * MS]
            busy.append([str(START + 37_000 * MS), str(21_400 * MS), "idle"])
            busy.append([str(START + 37_000 * MS), str(21_400 * MS), "finding"])
        if gpu == 1:
            busy.append([str(START + 12_000 * MS), str(1_250 * MS), "throttled"])
        lanes.append({"label": f"GPU {gpu}", "kind": "gpu", "intervals": busy, "omitted": 0, "rule": ""})
    for rank in range(4):
        steps = [[str(START + i * 1_200 * MS + 1_000 * MS), str(20 * MS), "collective"] for i in range(50)]
        steps += [[str(START + i * 1_200 * MS + 1_020 * MS), str(46 * MS), "sync"] for i in range(50)]
        if rank == 2:
            steps += [[str(START + i * 1_200 * MS + 900 * MS), str(100 * MS), "preempted"] for i in LATE_STEPS]
            steps += [[str(START + 24_000 * MS), str(12_000 * MS), "finding"]]
        lanes.append({"label": f"rank {rank} · python3 ({4901 + rank})", "kind": "rank", "intervals": steps,
        "omitted": 412,
                      "rule": "the longest 500 intervals of a lane are drawn"})  # fmt: skip
    lanes.append({"label": "nvml", "kind": "gap", "intervals": [[str(START + 31_000 * MS), str(750 * MS), "gap"]],
                  "omitted": 0, "rule": ""})  # fmt: skip
    return {"start_ns": str(START), "end_ns": str(END), "lanes": lanes}


def _heat() -> dict[str, Any]:
    rows: list[list[str | None]] = []
    for rank in range(4):
        row: list[str | None] = [str((i * 7919 * (rank + 3)) % (4 * MS)) for i in range(50)]
        if rank == 2:
            row = [str(30 * MS + i * 62_000) if i in LATE_STEPS else v for i, v in enumerate(row)]
        row[41] = None if rank == 1 else row[41]
        rows.append(row)
    return {
        "comm_id": "9e3779b97f4a7c15", "nranks": 4, "ranks": [0, 1, 2, 3], "columns": [[i, i] for i in range(50)],
        "lateness_ns": rows, "threshold_ns": str(5 * MS), "late": [[2, i] for i in LATE_STEPS], "omitted": 0,
    }  # fmt: skip


def _nvml(gpu: int) -> dict[str, Any]:
    n = 120
    idle = range(74, 117) if gpu == 3 else range(0)

    def series(name: str, unit: str, base: int, swing: int, rest: int) -> dict[str, Any]:
        mean = [rest if i in idle else base + (i * 7_368_787 + gpu * 11) % (swing + 1) - swing // 2 for i in range(n)]
        gone = {62, 63}
        return {"name": name, "unit": unit,
                "minimum": [None if i in gone else str(max(v - swing // 5, 0)) for i, v in enumerate(mean)],
                "mean": [None if i in gone else str(v) for i, v in enumerate(mean)],
                "maximum": [None if i in gone else str(v + swing // 4) for i, v in enumerate(mean)]}  # fmt: skip

    return {
        "gpu_index": gpu, "gpu_uuid": UUIDS[gpu], "bin_ns": str(500 * MS),
        "times_ns": [str(START + i * 500 * MS) for i in range(n)],
        "series": [
            series("gpu_utilization_percent", "%", 84, 20, 0), series("power_mw", "mW", 612_000, 90_000, 121_000),
            series("memory_used_bytes", "bytes", 71 << 30, 1 << 28, 71 << 30), series("clock_sm_mhz", "MHz", 1_755,
            60, 345),
            series("temperature_c", "°C", 64, 6, 48),
        ],
    }  # fmt: skip


def _latency() -> list[dict[str, Any]]:
    def bins(low: int, counts: tuple[int, ...]) -> list[list[str]]:
        return [[str(low << i), str(low << (i + 1)), str(n)] for i, n in enumerate(counts)]

    return [
        {"table": "cuda_calls", "op": "cudaStreamSynchronize", "bins": bins(1 << 24, (4, 156, 40))},
        {"table": "cuda_calls", "op": "cudaLaunchKernel", "bins": bins(1 << 11, (900, 30_100, 13_200, 1_310, 70, 12,
         4, 2, 1, 1))},
        {"table": "cuda_calls", "op": "cudaMemcpyAsync", "bins": bins(1 << 12, (110, 1_402, 790, 80, 9, 5, 3, 1))},
        {"table": "nccl_calls", "op": "ncclAllReduce", "bins": bins(1 << 13, (21, 143, 36))},
    ]  # fmt: skip


def _appendix() -> dict[str, Any]:
    probe = {"library": "cudart", "path": "/opt/venv/lib/libcudart.so.12", "mechanism": "uprobe_multi",
    "offset": "311296",
             "instruction": "push", "expected_cost_ns": "780", "unmatched": "0", "misses": "0"}  # fmt: skip
    return {
        "declarations": [d.to_json() for d in (LATE_RANK, IDLE, SILENCE, THROTTLING)],
        "probes": {"omitted": 0, "evidence": "E3", "rows": [
            {**probe, "op": "cudaLaunchKernel", "hits": "45600"}, {**probe, "op": "cudaMemcpyAsync", "hits": "2400"},
            {**probe, "op": "cudaStreamSynchronize", "hits": "200"}, {**probe, "op": "cudaMalloc", "hits": "13"},
            {**probe, "op": "ncclAllReduce", "library": "nccl", "path": "/opt/venv/lib/libnccl.so.2", "hits": "200",
             "instruction": "single-stepped", "expected_cost_ns": "18200"},
            {"op": "sched_switch", "library": "kernel", "path": "", "mechanism": "tp_btf", "instruction": None,
             "expected_cost_ns": None, "hits": "1204331", "unmatched": "0", "misses": "0"},
        ]},
        "libraries": {"omitted": 0, "evidence": "E3", "rows": [
            {"library": "cudart", "op": "attached", "pid": "4901", "path": "/opt/venv/lib/libcudart.so.12",
             "build_id": "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c",
             "not_observed": "cudaGraphLaunch, cudaMallocAsync", "reason": None},
            {"library": "cudart", "op": "not observable", "pid": "4977", "path": "/usr/local/bin/encoder",
             "build_id": None,
             "not_observed": "", "reason": "statically linked, no symbols"},
        ]},
        "definitions": [
            {"term": "lateness", "text": "Arrival of a rank minus the median arrival of the other ranks."},
            {"term": "GPU-second", "text": "One second of one GPU."},
            {"term": "share", "text": "Part of the whole that is named with it, 0 to 1."},
        ],
        "assumptions": [
            {"id": "rate", "text": "Price of one GPU-hour, given by whoever asked for the analysis",
             "value": "2.99 USD"},
            {"id": "poll", "text": "An NVML reading holds until the next one", "value": q(250 * MS, "ns",
             "assumed").to_json()},
        ],
        "windows": {"capture": q(LENGTH).to_json(), "NVML poll": q(250 * MS, "ns", "assumed").to_json()},
        "clock": {"pairs": "12", "worst bracket": q(1_840).to_json(), "steps": "none seen"},
    }  # fmt: skip
