"""What taking a stack adds to a call."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import compile as compiler
from bench.result import Figure, Plan, ratio, value
from bench.spread import take_turns
from gpuaudit.bundle.errors import AuditError, HostUnfit
from gpuaudit.capture.selection import Selection
from gpuaudit.capture.settings import Settings
from tests.doubles.build import build
from tests.integration.recording import recording

NAME = "stacks"
TITLE = "A stack for every call"
FUNCTION, CALLS, WARM_CALLS, PARTS = "cudaFree", 10_000, 1_000, 10
PYTHON_FRAMES = 12
WAYS: dict[str, Settings] = {
    "record": Settings(budget_per_s=0),
    "stack": Settings(budget_per_s=0, sample_every=1, stacks=True),
}
METHOD = (
    "`cudaFree(NULL)` of the cudart double in a loop, from a C program and from CPython through ctypes, "
    f"{PYTHON_FRAMES} Python frames deep: without a probe; with our pair that writes a record; and with our pair that "
    "writes a record and takes the stacks of every call, as it does of slow ones: the native stack, and of CPython its "
    "frames as well. The stacks are seen before, as they mostly are. A turn is told by its median tenth; what is added "
    "is over the bare call of the same turn, and every call must have a row, with stacks where they are taken."
)


@dataclass
class _Caller:
    """A program that calls, and what its last rows had."""

    command: list[str]
    calls: int
    python: bool
    process: subprocess.Popen[str] | None = None
    without: dict[str, int] = field(default_factory=dict)

    def ns_per_call(self) -> float:
        self._call(WARM_CALLS)
        part = self.calls // PARTS
        return statistics.median(self._call(part) / part for _ in range(PARTS))

    def _call(self, count: int) -> int:
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def captured(self, settings: Settings) -> float:
        """The same with probes on the library."""
        assert self.process is not None
        selection = Selection(pids=frozenset({self.process.pid}), sources=frozenset({"cuda"}))
        with recording(selection, settings=settings) as r:
            r.step()
            self._call(WARM_CALLS)
            r.step()  # what is new of its stacks is named now
            ns = self.ns_per_call()
            r.finish()
            rows = r.of("cuda_calls", op=FUNCTION)
            made = 2 * WARM_CALLS + self.calls // PARTS * PARTS
            column = "python_stack" if self.python else "native_stack"
            bare = sum(row[column] is None for row in rows)
            if len(rows) != made or (settings.stacks and bare):
                raise AuditError(f"{made} calls, {len(rows)} rows, {bare} of them without a stack")
        return ns


def measure(plan: Plan) -> Figure:
    """ns per call, from both programs, in all ways."""
    if os.geteuid() != 0:
        raise HostUnfit("attaching probes needs root", hint="run the bench as root")
    library = str(build("cudart", plan.folder))
    calls = plan.size(CALLS, 1000)
    python = str(Path(__file__).resolve().parents[1] / "programs" / "call.py")
    callers = {
        "native": _Caller([str(compiler.program("call.c", plan.folder)), library, FUNCTION], calls, False),
        "CPython": _Caller([sys.executable, python, library, FUNCTION, str(PYTHON_FRAMES)], calls, True),
    }
    with _running(callers["native"]), _running(callers["CPython"]):
        ways: dict[str, Callable[[], float]] = {}
        for name, caller in callers.items():
            ways[f"{name} bare"] = caller.ns_per_call
            for way, settings in WAYS.items():
                ways[f"{name} {way}"] = lambda c=caller, s=settings: c.captured(s)  # type: ignore[misc]
        ns = take_turns(ways, plan.repeats, plan.budget_s)
    added = {
        f"{name} {way}": [x - b for x, b in zip(ns[f"{name} {way}"], ns[f"{name} bare"], strict=True)]
        for name in callers
        for way in WAYS
    }
    return Figure(NAME, TITLE, METHOD, (
        ratio("pair with a native stack ÷ pair with a record, added per call", added["native stack"],
              added["native record"], "lower"),
        ratio("pair with CPython frames ÷ pair with a record, added per call", added["CPython stack"],
              added["CPython record"], "lower"),
        *(value(f"{name}, bare call", "ns", ns[f"{name} bare"]) for name in callers),
        *(value(f"{name}, pair with a record: added per call", "ns", added[f"{name} record"]) for name in callers),
        value("native, pair with a native stack: added per call", "ns", added["native stack"]),
        value("CPython, pair with native stack and CPython frames: added per call", "ns", added["CPython stack"]),
    ), {"Python": sys.version.split()[0], "calls in a turn": f"{calls:,}"})  # fmt: skip


@contextmanager
def _running(caller: _Caller) -> Iterator[None]:
    caller.process = subprocess.Popen(caller.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert caller.process.stdin is not None
    assert caller.process.stdout is not None
    try:
        yield
    finally:
        caller.process.stdin.close()
        caller.process.stdout.close()
        caller.process.wait(30)
