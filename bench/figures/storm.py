"""What a capture costs a program that launches, at three rates."""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bench import compile as compiler
from bench.figures.verify import audit_environment
from bench.live import Capture, Captured
from bench.result import Figure, Plan, Value, ratio, value
from bench.spread import take_turns
from gpuaudit.bundle.errors import AuditError, HostUnfit

NAME = "storm"
TITLE = "A launch loop, captured and not"
RATES_PER_S = (10_000, 100_000, 1_000_000)
SECONDS = 1.5
PARTS = 15
METHOD = (
    "A C program works and launches in turn: so much work that without a capture it makes 10,000, 100,000 or 1,000,000 "
    "launches a second of a runtime that does nothing. The same number of launches with the same work, beside "
    "`audit capture --pid` and without it; a turn is told by its median fifteenth. Every launch made in a turn is in "
    "the bundle, as a row or in call_totals, or was counted as lost. CPU and memory are what attacher and recorder say "
    "of themselves in the bundle, start and seal included; one capture for each rate."
)


@dataclass
class _Storm:
    """The program; ``unit_ns``: what a unit of work takes here."""

    process: subprocess.Popen[str]
    unit_ns: float
    made: int = 0

    def slow(self, rate_per_s: int, seconds: float) -> float:
        """ns per launch and its work: the median of :data:`PARTS` parts."""
        units, calls = max(0, round(1e9 / rate_per_s / self.unit_ns)), max(10, round(rate_per_s * seconds / PARTS))
        return statistics.median(self._launch(units, calls) / calls for _ in range(PARTS))

    def _launch(self, units: int, calls: int) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{units} {calls}\n")
        self.process.stdin.flush()
        self.made += calls
        return int(self.process.stdout.readline())


@dataclass
class _Turns:
    """What the captured turns found, by rate."""

    captured: dict[int, list[Captured]] = field(default_factory=dict)


def measure(plan: Plan) -> Figure:
    """ns per launch, by rate, with and without a capture."""
    if os.geteuid() != 0:
        raise HostUnfit("attaching probes needs root", hint="run the bench as root")
    turns, seconds = _Turns(), SECONDS * max(plan.scale, 0.2)
    environment = audit_environment(plan.folder)
    with _storm(plan) as storm:

        def bare(rate: int) -> Callable[[], float]:
            return lambda: storm.slow(rate, seconds)

        def beside(rate: int) -> Callable[[], float]:
            def once() -> float:
                taken = turns.captured.setdefault(rate, [])
                out = plan.folder / f"storm-{rate}-{len(taken)}.db"
                capture = Capture(storm.process.pid, out, environment, ("--source", "cuda", "--source", "off_cpu"))
                capture.begin()
                before = storm.made
                try:
                    ns = storm.slow(rate, seconds)
                finally:
                    done = capture.end()
                made = storm.made - before
                if done.events + done.lost < made:
                    raise AuditError(f"{made} launches, {done.events} in the evidence and {done.lost} lost")
                taken.append(done)
                out.unlink()
                return ns

            return once

        ways = {
            f"{kind} {rate}": make(rate)
            for rate in RATES_PER_S
            for kind, make in (("bare", bare), ("captured", beside))
        }
        ns = take_turns(ways, plan.repeats, plan.budget_s)
    return Figure(NAME, TITLE, METHOD, tuple(_values(ns, turns)), {
        "launches in a turn": ", ".join(f"{round(r * seconds / PARTS) * PARTS:,}" for r in RATES_PER_S),
        "a unit of work": f"{storm.unit_ns:.2f} ns",
    })  # fmt: skip


@contextmanager
def _storm(plan: Plan) -> Iterator[_Storm]:
    library = compiler.library("launches.c", "libcudart.so.13", plan.folder)
    command = [str(compiler.program("storm.c", plan.folder)), str(library)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield _Storm(process, float(process.stdout.readline()))
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(30)


def _values(ns: dict[str, list[float]], turns: _Turns) -> Iterator[Value]:
    for rate in RATES_PER_S:
        words = f"{rate:,} launches/s"
        yield ratio(f"captured ÷ not, elapsed, {words}", ns[f"captured {rate}"], ns[f"bare {rate}"], "lower")
    slow = RATES_PER_S[0]
    added = [a - b for a, b in zip(ns[f"captured {slow}"], ns[f"bare {slow}"], strict=True)]
    if min(added) > 0:
        yield value("launches a second of one thread to which a capture adds 1 %", "1/s", [1e7 / ns for ns in added])
    for rate in RATES_PER_S:
        words, taken = f"{rate:,} launches/s", turns.captured[rate]
        added = [a - b for a, b in zip(ns[f"captured {rate}"], ns[f"bare {rate}"], strict=True)]
        yield value(f"added per launch, {words}", "ns", added)
        yield value(f"recorder CPU, {words}", "s", [c.cost["recorder_cpu"] / 1e9 for c in taken])
        yield value(f"attacher CPU, {words}", "s", [c.cost["attacher_cpu"] / 1e9 for c in taken])
        yield value(f"recorder, peak memory, {words}", "MiB", [c.cost["recorder_memory_max"] / 2**20 for c in taken])
        yield value(f"lost, of all launches, {words}", "%", [100 * c.lost / max(1, c.events + c.lost) for c in taken])
        yield value(
            f"counted, not listed, of all launches, {words}", "%", [100 * c.counted / max(1, c.events) for c in taken]
        )
        yield value(f"bytes of bundle per launch, {words}", "bytes", [c.size_bytes / max(1, c.events) for c in taken])
