"""The whole demo, the second time it runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bench import usage
from bench.result import Figure, Plan, ratio, value
from bench.spread import take_turns

NAME = "demo"
TITLE = "The whole demo, a second time"
METHOD = (
    "`scripts/demo` when its set-up is done: capture of the embedded scenario, analysis, report, signatures, "
    "verification; next to one process of the same Python that does nothing but load the libraries that the demo "
    "uses. Peak memory is that of the largest single process (wait4)."
)
LIBRARIES = ("numpy", "cryptography.x509", "duckdb", "pyarrow", "jinja2", "weasyprint", "pyhanko.sign")
SET_UP_LIMIT_S = 900
"""It may have to make the virtual environment."""

ROOT = Path(__file__).resolve().parents[2]


def measure(plan: Plan) -> Figure:
    """Seconds and memory of the demo and of loading its libraries."""
    out = plan.folder / "demo"
    demo = [str(ROOT / "scripts" / "demo"), str(out)]
    set_up = [str(ROOT / "scripts" / "setup"), "demo"]
    usage.run(set_up, folder=ROOT, environment=_environment(), limit_s=SET_UP_LIMIT_S)
    python = str(ROOT / ".venv" / "bin" / "python")
    floor = [python, "-c", f"import {', '.join(LIBRARIES)}"]

    def whole() -> usage.Usage:
        return usage.run(demo, folder=ROOT, environment=_environment())

    def loading() -> usage.Usage:
        return usage.run(floor)

    loading()
    turns = take_turns({"demo": whole, "loading": loading}, plan.repeats, plan.budget_s)
    demos, loads = turns["demo"], turns["loading"]
    shutil.rmtree(out)
    elapsed, load_elapsed = [t.seconds for t in demos], [t.seconds for t in loads]
    peak, load_peak = [t.peak_bytes / 2**20 for t in demos], [t.peak_bytes / 2**20 for t in loads]
    return Figure(NAME, TITLE, METHOD, (
        ratio("demo ÷ loading its libraries, elapsed", elapsed, load_elapsed, "lower"),
        ratio("demo ÷ loading its libraries, peak memory", peak, load_peak, "lower"),
        ratio("demo ÷ loading its libraries, CPU", [t.cpu_s for t in demos], [t.cpu_s for t in loads], "lower"),
        value("demo", "s", elapsed),
        value("demo: CPU", "s", [t.cpu_s for t in demos]),
        value("demo: peak memory", "MiB", peak),
        value("loading the libraries", "s", load_elapsed),
        value("loading the libraries: peak memory", "MiB", load_peak),
    ))  # fmt: skip


def _environment() -> dict[str, str]:
    """Without what would lead the demo's Python to packages other than those of its own environment."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
