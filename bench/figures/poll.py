"""What asking eight GPUs costs."""

from __future__ import annotations

from pathlib import Path

from bench import nvml_polls
from bench.nvml_polls import GPUS, PROCESSES_PER_GPU, Options, Polls
from bench.result import Figure, Plan, ratio, value
from bench.spread import take_turns

NAME = "poll"
TITLE = "Polling NVML"
SECONDS = 6.0
METHOD = (
    f"The capture's NVML source over the NVML double with {GPUS} GPUs, {PROCESSES_PER_GPU} processes and 18 NVLinks on "
    "each, four polls a second, with health, links, accounting, GPM and events in their threads, recorded, compressed "
    "and sealed; next to the same questions of the samples alone, asked as often through the same binding and thrown "
    "away. CPU time, user and system, of the process, the double's included; the double answers at once, so time that "
    "a real driver takes is not in it."
)


def measure(plan: Plan) -> Figure:
    """CPU of a poll of all GPUs, recorded and only asked."""
    library = nvml_polls.library(plan.folder)
    turn = 0

    def polls(*, record: bool) -> Polls:
        nonlocal turn
        turn += 1
        folder = Path(plan.folder, f"turn-{turn}")
        folder.mkdir()
        return nvml_polls.run(Options(max(1.0, SECONDS * plan.scale), str(folder), record), library)

    ways = {"recorded": lambda: polls(record=True), "asked": lambda: polls(record=False)}
    turns = take_turns(ways, plan.repeats, plan.budget_s)
    recorded, asked = turns["recorded"], turns["asked"]
    per_poll = [t.cpu_s / t.polls for t in recorded]
    alone = [t.cpu_s / t.polls for t in asked]
    return Figure(NAME, TITLE, METHOD, (
        ratio("CPU ÷ elapsed time: the share of one core", [t.cpu_s for t in recorded], [t.elapsed_s for t in recorded],
              "lower"),
        ratio("all recorded ÷ samples asked and thrown away, CPU per poll", per_poll, alone, "lower"),
        value(f"CPU per poll of {GPUS} GPUs", "ms", [s * 1e3 for s in per_poll]),
        value("CPU per poll and GPU", "ms", [s * 1e3 / GPUS for s in per_poll]),
        value(f"CPU per poll of {GPUS} GPUs, samples asked and thrown away", "ms", [s * 1e3 for s in alone]),
    ), {"GPUs": str(GPUS), "processes": str(GPUS * PROCESSES_PER_GPU), "polls": "4 per second"})  # fmt: skip
