"""How long it takes until the last probe is attached."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from bench import compile as compiler
from bench.figures.verify import audit_environment
from bench.live import Capture
from bench.result import Figure, Plan, value
from bench.spread import take_turns
from gpuaudit.analyze.query import run_query
from gpuaudit.bundle.errors import HostUnfit
from tests.doubles.build import build

NAME = "startup"
TITLE = "From the command to the last probe"
METHOD = (
    "`audit capture --pid` of a process that maps a CUDA runtime: from just before the command is started, Python "
    "included, until the last of its probes is attached, which the bundle tells; and the part of it that the "
    "calibration of the probes' cost takes (it ends before the first program is attached). Clock: CLOCK_BOOTTIME."
)


def measure(plan: Plan) -> Figure:
    """Seconds until the first kernel program, and until the last function, is attached."""
    if os.geteuid() != 0:
        raise HostUnfit("attaching probes needs root", hint="run the bench as root")
    library = build("cudart", plan.folder)
    command = [str(compiler.program("call.c", plan.folder)), str(library), "cudaFree"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    environment = audit_environment(plan.folder)
    probes: list[int] = []

    def once() -> tuple[float, float]:
        out = plan.folder / "startup.db"
        began_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        capture = Capture(process.pid, out, environment)
        capture.begin()
        capture.end()
        sql = "SELECT MIN(start_ns), MAX(start_ns), COUNT(*) FROM probes WHERE duration_ns IS NULL"
        first, last, count = (int(str(x)) for x in run_query(out, sql).rows[0])
        probes.append(count)
        for leftover in plan.folder.glob("startup.db*"):
            leftover.unlink()
        return (first - began_ns) / 1e9, (last - began_ns) / 1e9

    try:
        turns = take_turns({"startup": once}, plan.repeats, plan.budget_s)["startup"]
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)
    return Figure(NAME, TITLE, METHOD, (
        value("until the first program is attached", "s", [first for first, _ in turns]),
        value("until the last probe is attached", "s", [last for _, last in turns]),
    ), {"probes and kernel programs": f"{max(probes)}", "Python": sys.version.split()[0]})  # fmt: skip
