"""How regular the polls stay while the rings are busy."""

from __future__ import annotations

import math
import os
from pathlib import Path

from bench import compile as compiler
from bench import nvml_polls
from bench.nvml_polls import GPUS, Options, Polls
from bench.result import Figure, Plan, ratio, value
from bench.spread import take_turns
from gpuaudit.bundle.errors import AuditError, HostUnfit

NAME = "cadence"
TITLE = "Polls while the rings are busy"
EVENTS_PER_S = 500_000
INTERVAL_MS = 250
SECONDS = 8.0
METHOD = (
    f"The NVML source over the double with {GPUS} GPUs, in one process with the recorder, which drains a ring that a "
    f"producer on another CPU fills with {EVENTS_PER_S:,} records a second, turns them into columns, compresses and "
    "seals them; and the same without a producer. Lateness: the distance of two polls of a GPU less 250 ms, either "
    "way. What the ring lost is told."
)


def measure(plan: Plan) -> Figure:
    """Lateness of polls, with the rings quiet and busy."""
    if os.geteuid() != 0:
        raise HostUnfit("filling a ring needs root", hint="run the bench as root")
    if len(os.sched_getaffinity(0)) < 2:
        raise HostUnfit("one CPU: producer and recorder need one each")
    library = nvml_polls.library(plan.folder)
    program = compiler.bpf("generate.bpf.c", plan.folder)
    seconds, turn = max(2.0, SECONDS * plan.scale), 0

    def polls(rate: float) -> Polls:
        nonlocal turn
        turn += 1
        folder = Path(plan.folder, f"turn-{turn}")
        folder.mkdir()
        options = Options(seconds, str(folder), program=str(program) if rate else "", events_per_s=rate)
        return nvml_polls.run(options, library)

    turns = take_turns({"busy": lambda: polls(EVENTS_PER_S), "quiet": lambda: polls(0)}, plan.repeats, plan.budget_s)
    busy, quiet = turns["busy"], turns["quiet"]
    late = {name: [rank(t.lateness_ms, 99) for t in of] for name, of in turns.items()}
    return Figure(NAME, TITLE, METHOD, (
        *(
            ratio(f"99th percentile of lateness ÷ poll interval, rings {name}", ms, [INTERVAL_MS] * len(ms), "lower")
            for name, ms in late.items()
        ),
        value("lateness, rings busy: median", "ms", [rank(t.lateness_ms, 50) for t in busy]),
        value("lateness, rings busy: 99th percentile", "ms", late["busy"]),
        value("lateness, rings busy: largest", "ms", [max(t.lateness_ms) for t in busy]),
        value("lateness, rings quiet: 99th percentile", "ms", late["quiet"]),
        value("lateness, rings quiet: largest", "ms", [max(t.lateness_ms) for t in quiet]),
        value("records drained and sealed", "1/s", [t.events / t.elapsed_s for t in busy]),
        value("records lost, of those written", "%", [100 * t.lost / max(1, t.events + t.lost) for t in busy]),
    ), {"GPUs": str(GPUS), "polls in a turn": f"{int(seconds * 4) * GPUS}"})  # fmt: skip


def rank(values: list[float], percent: int) -> float:
    """The order statistic of rank ceil(percent/100 · n); AuditError for none."""
    if not values:
        raise AuditError("no GPU was polled twice")
    return sorted(values)[math.ceil(percent * len(values) / 100) - 1]
