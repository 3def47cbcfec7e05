"""What a capture costs a PyTorch training loop on the CPU."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

from bench import compile as compiler
from bench.figures.verify import audit_environment
from bench.live import Capture, Captured
from bench.result import Figure, Plan, ratio, value
from bench.spread import take_turns
from gpuaudit.bundle.errors import AuditError, HostUnfit

NAME = "training"
TITLE = "A PyTorch training loop, captured and not"
PYTHON = "GPU_AUDIT_BENCH_TORCH"
"""Variable with the Python that has torch; this one, where it is not set."""
SECONDS, PARTS, WARM_STEPS = 3.0, 15, 100
METHOD = (
    "A two-layer model trained on one CPU thread by PyTorch; each step also makes 40 launches of a runtime that does "
    "nothing. The same steps beside `audit capture --pid` with everything it records by default (threads off the CPU, "
    "system calls, memory, disks, network, stacks), and without; a turn is told by its median fifteenth. torch is "
    f"not among this project's packages: {PYTHON} names a Python that has it."
)


def measure(plan: Plan) -> Figure:
    """ns per step with and without a capture."""
    if os.geteuid() != 0:
        raise HostUnfit("attaching probes needs root", hint="run the bench as root")
    python = os.environ.get(PYTHON, sys.executable)
    found = subprocess.run(
        [python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True, check=False
    )
    if found.returncode:
        raise HostUnfit("torch is not installed", hint=f"set {PYTHON} to a Python that has it")
    library = compiler.library("launches.c", "libcudart.so.13", plan.folder)
    program = Path(__file__).resolve().parents[1] / "programs" / "train.py"
    process = subprocess.Popen(
        [python, str(program), str(library)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    environment, taken = audit_environment(plan.folder), list[Captured]()
    assert process.stdin is not None
    assert process.stdout is not None

    def steps(count: int) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{count}\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    try:
        launches = int(process.stdout.readline())
        part = max(5, round(SECONDS * plan.scale * 1e9 / PARTS * WARM_STEPS / steps(WARM_STEPS)))

        def bare() -> float:
            return statistics.median(steps(part) / part for _ in range(PARTS))

        def beside() -> float:
            out = plan.folder / f"training-{len(taken)}.db"
            capture = Capture(process.pid, out, environment)
            capture.begin()
            try:
                ns = bare()
            finally:
                taken.append(capture.end())
            if taken[-1].events + taken[-1].lost < part * PARTS * launches:
                raise AuditError(f"{part * PARTS * launches} launches, {taken[-1].events} in the evidence")
            out.unlink()
            return ns

        ns = take_turns({"bare": bare, "captured": beside}, plan.repeats, plan.budget_s)
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(30)
    return Figure(NAME, TITLE, METHOD, (
        ratio("captured ÷ not, elapsed per step", ns["captured"], ns["bare"], "lower"),
        value("a step, not captured", "ns", ns["bare"]),
        value("launches per second, not captured", "1/s", [launches * 1e9 / x for x in ns["bare"]]),
        value("recorder CPU", "s", [c.cost["recorder_cpu"] / 1e9 for c in taken]),
        value("recorder, peak memory", "MiB", [c.cost["recorder_memory_max"] / 2**20 for c in taken]),
    ), {"torch": found.stdout.strip(), "steps in a turn": f"{part * PARTS:,}"})  # fmt: skip
