"""Importing a trace of the PyTorch profiler, next to HolisticTraceAnalysis loading it and to reading the JSON alone."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from bench import traces, usage
from bench.figures.verify import audit_environment
from bench.result import Figure, Plan, ratio, value
from bench.spread import take_turns

NAME = "imports"
TITLE = "Importing a profiler's trace"
COPIES, SMALL = 3, 1
METHOD = (
    "`audit import` of a real trace of one of eight ranks (A100, 109,123 events) put end to end, as a command: "
    "start of Python, every event a row, sealed and signed. Next to it, on the same file: HolisticTraceAnalysis (PyPI) "
    "loading it into its table (`parse_trace_file`: nothing kept on disk), and `json.load` alone. Each in a process of "
    "its own; the file is in the page cache. Speed is of the CPU time, which other processes do not change."
)
HTA = "import sys; from hta.common.trace import parse_trace_file; parse_trace_file(sys.argv[1])"
JSON = "import json, sys; json.load(open(sys.argv[1], encoding='utf-8'))"


def measure(plan: Plan) -> Figure:
    """CPU time and memory of each way, and the import's memory on a trace of a third of the size."""
    copies = plan.size(COPIES)
    large, small = plan.folder / "large.json", plan.folder / "small.json"
    events = traces.write_trace(large, copies)
    traces.write_trace(small, SMALL)
    environment = audit_environment(plan.folder)
    plain = {k: v for k, v in environment.items() if k != "PYTHONPATH"}
    python = hta_python()

    def imported(path: Path) -> usage.Usage:
        out = str(path.with_suffix(".db"))
        command = [sys.executable, "-m", "gpuaudit.cli.main", "import", str(path), "--out", out, "--force"]
        return usage.run(command, environment=environment)

    ways = {
        "import": lambda: imported(large), "small": lambda: imported(small),
        "json": lambda: usage.run([sys.executable, "-c", JSON, str(large)], environment=plain),
    }  # fmt: skip
    if python is not None:
        ways["hta"] = lambda: usage.run([python, "-c", HTA, str(large)], environment=plain, folder=plan.folder)
    turns = take_turns(ways, plan.repeats, plan.budget_s)
    size = large.stat().st_size
    cpu = {name: [t.cpu_s for t in taken] for name, taken in turns.items()}
    peak = {name: [t.peak_bytes / 2**20 for t in taken] for name, taken in turns.items()}
    speed = {name: [size / 1e6 / t for t in taken] for name, taken in cpu.items()}
    beside = (
        ratio("audit import ÷ HTA's loader, speed", speed["import"], speed["hta"], "higher"),
        ratio("audit import ÷ HTA's loader, peak memory", peak["import"], peak["hta"], "lower"),
    ) if "hta" in turns else ()  # fmt: skip
    theirs = (
        value("HTA's loader: speed", "MB/s of CPU", speed["hta"]),
        value("HTA's loader: peak memory", "MiB", peak["hta"]),
    ) if "hta" in turns else ()  # fmt: skip
    return Figure(NAME, TITLE, METHOD, (
        *beside,
        ratio("audit import ÷ json.load, CPU", cpu["import"], cpu["json"], "lower"),
        ratio(f"peak memory of audit import, trace of {copies} times ÷ once", peak["import"], peak["small"], "lower"),
        value("audit import: speed", "MB/s of CPU", speed["import"]),
        value("audit import: events", "1/s of CPU", [events / t for t in cpu["import"]]),
        value("audit import: peak memory", "MiB", peak["import"]),
        *theirs,
        value("json.load: peak memory", "MiB", peak["json"]),
    ), {"events": f"{events:,}", "trace": f"{size / 1e6:.1f} MB"},
       () if "hta" in turns else ("HTA is not installed here: its Python is named in GPU_AUDIT_HTA_PYTHON.",),
    )  # fmt: skip


def hta_python() -> str | None:
    """The Python that has HolisticTraceAnalysis: the one that is named, or this one; None where neither has it."""
    named = os.environ.get("GPU_AUDIT_HTA_PYTHON")
    if named is None:
        return sys.executable if importlib.util.find_spec("hta") else None
    found = subprocess.run([named, "-c", "import hta"], capture_output=True, check=False)
    return named if found.returncode == 0 else None
