"""A day of eight GPUs and four inference engines: what it takes on disk, and what its analysis takes."""

from __future__ import annotations

import sys

from bench import day, usage
from bench.figures.verify import audit_environment
from bench.result import Figure, Plan, value

NAME = "day"
TITLE = "A day of 8 GPUs and 4 engines at 4 Hz"
SECONDS = 86_400
METHOD = (
    "Polls of a real vLLM 0.32 server under five loads (idle, light, queueing, prefix hits, KV pressure), 6 minutes, "
    "put end to end for a day, times four engines, with GPU samples drawn from a seed; sealed as a capture seals. Then "
    "`audit analyze` as a command, Python's start included: verification, every window of every engine, all rules."
)


def measure(plan: Plan) -> Figure:
    """Size of the bundle; time and peak memory of ``audit analyze``. Once: a day is long."""
    seconds = plan.size(SECONDS, 600)
    bundle = plan.folder / "day.db"
    _, rows = day.write_day(bundle, seconds)
    command = [sys.executable, "-m", "gpuaudit.cli.main", "analyze", str(bundle), "--force"]
    used = usage.run(command, environment=audit_environment(plan.folder), limit_s=3600)
    total = sum(rows.values())
    size = bundle.stat().st_size
    return Figure(NAME, TITLE, METHOD, (
        value("bundle", "MiB", [size / 2**20]),
        value("bundle: bytes per row", "bytes", [size / total]),
        value("audit analyze", "s", [used.seconds]),
        value("audit analyze: CPU", "s", [used.cpu_s]),
        value("audit analyze: peak memory", "MiB", [used.peak_bytes / 2**20]),
    ), {"hours": f"{seconds / 3600:g}", "rows": f"{total:,}", "of them engine samples": f"{rows['engine_samples']:,}"},
    )  # fmt: skip
