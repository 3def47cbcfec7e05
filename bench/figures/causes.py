"""Causes in ten million events: what ``audit analyze`` takes, each detector, and the same joins written by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench.causes import by_hand
from bench.causes.events import write_bundle
from bench.figures.verify import audit_environment
from bench.result import Figure, Plan, ratio, value

NAME = "causes"
TITLE = "Causes in 10 million events"
EVENTS = 10_000_000
LIMIT_S = 1_800
SHOWN_S = 0.5
"""Kinds of effect and detectors that took less are told together."""
METHOD = (
    "Four ranks that train, made from a seed (`bench/causes/events.py`): 79 % CUDA calls, 2 % collectives, 15 % "
    "intervals off a CPU, 5 % disk requests; one call in 250 is slow. `audit analyze` as a command, Python's start and "
    "verification included; then every kind of effect and every detector one after the other in a process of its own "
    "(`python -m bench.causes.stages`), where what several need counts for the first that asks. By hand: slow calls "
    "and their time preempted, in a lock and in reads as five queries in the same DuckDB, hash joins on thread and "
    "bucket of time, which give the same nanoseconds and neither evidence nor shares. Once; CPU time, which other "
    "processes change little."
)


def measure(plan: Plan) -> Figure:
    """CPU time and peak memory."""
    bundle = plan.folder / "events.db"
    rows = write_bundle(bundle, plan.size(EVENTS, 30_000))
    command = [sys.executable, "-m", "bench.causes.stages", str(bundle), "--json"]
    done = subprocess.run(
        command, cwd=Path(__file__).resolve().parents[2], env=audit_environment(plan.folder), capture_output=True,
        text=True, timeout=LIMIT_S, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout)
    whole, stages, peaks = told["audit analyze"], told["stages"], dict(told["peaks"])
    detecting = [(name, s) for name, s in stages if name.startswith(("effect ", "detector "))]
    long = [(name, s) for name, s in detecting if s >= SHOWN_S]
    rest = sum(s for _, s in detecting) - sum(s for _, s in long)
    same = "the same" if told["covered"] == told["by_hand"] else "NOT the same"
    return Figure(NAME, TITLE, METHOD, (
        ratio(f"slow calls and {len(by_hand.JOINS)} detectors ÷ the joins by hand, CPU", [told["joined_s"]],
              [told["by_hand_s"]], "lower"),
        value("audit analyze: CPU", "s", [whole["cpu_s"]]),
        value("audit analyze: peak memory", "MiB", [whole["peak_bytes"] / 2**20]),
        *(value(f"{name}: CPU", "s", [s]) for name, s in long),
        value("all other effects and detectors: CPU", "s", [rest]),
        value("peak memory once read", "MiB", [peaks["verify and read"]]),
        value("peak memory after all effects and detectors", "MiB", [peaks[detecting[-1][0]]]),
    ), {"rows": f"{sum(rows.values()):,}", "nanoseconds by hand": same},
    )  # fmt: skip
